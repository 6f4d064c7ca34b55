// The drawer of one case: what was measured, every sample, and the command that repeats it.
const valueText = (value, unit) => {
  if (typeof value !== "number") return value;
  if (unit === "bytes") return bytesText(value);
  const text = Number.isInteger(value) ? String(value) : significant(value, 6);
  return unit ? `${text} ${unit}` : text;
};

const copyText = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // without permission for the clipboard
    const field = element("textarea", { class: "copied" });
    field.value = text;
    byId("drawer-body").append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
};

const commandBlock = (command) => {
  const said = element("span", { role: "status" });
  const button = element("button", { type: "button", id: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    said.textContent = (await copyText(command)) ? "copied" : "select it and copy by hand";
  });
  return element("div", { class: "command" }, element("pre", { tabindex: "0" }, command), button, said);
};

const samplesFor = async (part, place) => {
  const here = await partJson(`${part.id}.samples`);
  if (here?.[place]) return here[place];
  if (!here?.files) return null;
  const file = here.files.find(([first, last]) => place >= first && place <= last);
  return file ? ((await partJson(file[2]))?.[place] ?? null) : null;
};

const samplesFigure = (lists, quartiles) => {
  const [ms, at] = lists;
  const x = at && at.length === ms.length ? at : ms.map((_, place) => place);
  const tracks = [ms, lists[2], lists[3]];
  const last = tracks.findLastIndex((values) => values); // a CPU's power is not known
  const { data, layout } = coloured(JSON.stringify(settings.caseFigures[last]), theme);
  const filled = data.map((trace, track) => ({ ...trace, x: tracks[track] ? x : [], y: tracks[track] ?? [] }));
  if (x !== at) layout.xaxis.title.text = "sample";
  const [low, middle, high] = quartiles;
  const [band, line] = layout.shapes;
  layout.shapes = [{ ...band, y0: low ?? middle, y1: high ?? middle }, { ...line, y0: middle, y1: middle }];
  return { data: filled, layout: fitted(layout, [], 0, theme) };
};

const samplesTable = (lists) => {
  const [ms, at, clock, power] = lists;
  const named = [["sample", ms.map((_, i) => i + 1)], ["began (s)", at], ["latency (ms)", ms], ["clock (MHz)", clock], ["power (W)", power]];
  const columns = named.filter(([, values]) => values);
  const rows = ms.map((_, i) => element("tr", {}, ...columns.map(([, values], c) =>
    element(c ? "td" : "th", c ? {} : { scope: "row" }, significant(values[i], 6)))));
  const head = element("tr", {}, ...columns.map(([title]) => element("th", { scope: "col" }, title)));
  return element("details", {}, element("summary", {}, `Table of ${ms.length} samples`),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Samples" },
      element("table", {}, element("caption", {}, "Samples in the order taken"), element("thead", {}, head), element("tbody", {}, ...rows))));
};

const factsOfCase = (cases, at) => settings.schema.map(({ title, columns }) => {
  const known = columns
    .map(([name, unit, meaning]) => [name, unit, meaning, valueAt(cases, name, at)])
    .filter(([name, , , value]) => value !== null && value !== undefined && name !== "command" && name !== "details");
  if (!known.length) return "";
  const list = element("dl", {}, ...known.map(([name, unit, meaning, value]) =>
    element("div", {}, element("dt", { title: meaning }, name), element("dd", {}, valueText(value, unit)))));
  return element("section", { class: "fact-group" }, element("h3", {}, title), list);
});

let caseHomes = {}; // of a figure over several comparisons: which one has the row

const openCase = async (place, opener) => {
  const home = caseHomes[place];
  const part = home === undefined ? opener.closest(".part") : byId(`f${home}`);
  const cases = part ? await partJson(`${part.id}.cases`) : null;
  if (!cases?.rows.includes(place)) return;
  const at = cases.rows.indexOf(place);
  const value = (name) => valueAt(cases, name, at);
  const lists = await samplesFor(part, place);
  const label = part === shown() ? lineFacts.get(cases.lines[at])?.label : value("provider");
  const title = [label, value("pass"), `${lengthText(value("seq_len"))} tokens`].filter(Boolean).join(", ");
  byId("drawer-title").textContent = title;
  const body = byId("drawer-body");
  const status = value("status");
  const median = value("latency_ms");
  const words = [element("b", {}, status ?? "no status")];
  if (status !== "ok" && value("reason")) words.push(`: ${value("reason")}`);
  else if (median) {
    words.push(`: median ${significant(median)} ms, quartiles ${significant(value("latency_q1_ms") ?? median)} to ${significant(value("latency_q3_ms") ?? median)} ms, ${value("sample_count") ?? "?"} samples`);
  }
  const loss = value("eval_loss");
  const right = value("eval_accuracy");
  const reached = [
    loss !== null && `held-out loss ${significant(loss)} nats`,
    right !== null && `accuracy ${significant(100 * right, 3)} %`,
  ].filter(Boolean);
  if (reached.length) words.push(`; ${reached.join(", ")}`);
  const plot = element("div", { class: "case-plot", role: "group", "aria-label": "Chart: the samples of this case in the order taken, with clock and power. The table below has them." });
  body.replaceChildren(
    element("p", {}, ...words),
    element("h3", {}, "Command that repeats it"),
    value("command") ? commandBlock(value("command")) : element("p", { class: "empty" }, "No command was recorded."),
    element("h3", {}, "Samples"),
    ...(lists ? [plot, samplesTable(lists)] : [element("p", { class: "empty" }, median
      ? "This page keeps the samples of the rows that matter most; dynbench report --site has all of them, and so has the run's parquet file."
      : "No sample was taken.")]),
    ...(cases.brief.includes(place) ? [element("p", { class: "empty" }, "This page keeps the main columns of this row; the run's parquet file has all.")] : []),
    element("div", { class: "facts" }, ...factsOfCase(cases, at)),
    ...(value("details") ? [element("h3", {}, "Details"), element("pre", { tabindex: "0" }, value("details"))] : []),
  );
  const drawer = byId("drawer");
  if (!drawer.open) drawer.showModal();
  body.scrollTop = 0;
  if (lists && window.Plotly) {
    const { data, layout } = samplesFigure(lists, [value("latency_q1_ms"), median, value("latency_q3_ms")]);
    await window.Plotly.newPlot(plot, data, layout, config);
    for (const button of plot.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
  }
  history.replaceState(null, "", `#${part.id}-case-${place}`);
  drawer.dataset.shown = String(place);
};
