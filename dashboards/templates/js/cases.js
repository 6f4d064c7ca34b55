// The table of cases: made here, page by page, since a report may have a hundred thousand rows.
const PAGE_ROWS = 50;
const caseColumns = [
  ["seq_len", "length (tokens)", lengthText],
  ["pass", "pass", String],
  ["status", "status", String],
  ["latency_ms", "median (ms)", (v) => significant(v)],
  ["latency_q1_ms", "first quartile (ms)", (v) => significant(v)],
  ["latency_q3_ms", "third quartile (ms)", (v) => significant(v)],
  ["sample_count", "samples", String],
  ["sparsity", "pairs left out", (v) => `${significant(100 * v, 3)} %`],
  ["peak_memory_bytes", "peak memory", bytesText],
  ["seed", "seed", String],
  ["eval_loss", "held-out loss (nats)", (v) => significant(v)],
  ["eval_accuracy", "held-out accuracy", (v) => `${significant(100 * v, 3)} %`],
  ["activation_rate", "open neurons", (v) => `${significant(100 * v, 3)} %`],
  ["rms_error", "RMS error", (v) => significant(v, 3)],
  ["sm_clock_mhz", "clock (MHz)", (v) => significant(v)],
  ["started_at", "began (UTC)", String],
  ["run_id", "run", String],
  ["reason", "reason", String],
];

// Values of a row: cases come column by column, with words and shared values apart.
const valueAt = (cases, name, at) => {
  if (name in cases.shared) return cases.shared[name];
  const column = cases.columns[name];
  if (!column) return null;
  return Array.isArray(column) ? column[at] : column.words[column.codes[at]];
};

const caseState = new Map(); // part to what its table shows

const showCases = async (part) => {
  const place = part.querySelector("[data-cases]");
  if (!place) return;
  let state = caseState.get(part.id);
  if (!state) {
    const cases = await partJson(`${part.id}.cases`);
    const all = cases.rows.map((_, at) => at);
    state = { cases, all, page: 0, by: null, down: false, status: "", find: "" };
    caseState.set(part.id, state);
    makeCases(place, state);
  }
  state.listing();
};

const makeCases = (place, state) => {
  const { cases } = state;
  const trained = "task" in cases.shared; // elsewhere a seed is of inputs, and no result
  const columns = caseColumns.filter(([name]) =>
    (cases.columns[name] || name in cases.shared) && (name !== "seed" || trained));
  const body = element("tbody");
  const say = element("p", { role: "status", class: "say" });
  const caption = element("caption", {}, "Cases of this comparison");
  const heads = ["case", ...columns.map(([, title]) => title)].map((title, at) => {
    const button = element("button", { type: "button", class: "sort" }, title);
    const head = element("th", { scope: "col" }, button);
    button.addEventListener("click", () => {
      const name = at ? columns[at - 1][0] : "";
      state.down = state.by === name && !state.down;
      state.by = name;
      state.page = 0;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      state.listing();
    });
    return head;
  });
  const status = element("select", {}, element("option", { value: "" }, "all"));
  for (const name of distinct(state.all.map((at) => valueAt(cases, "status", at) ?? "no status"))) {
    status.append(element("option", { value: name }, name));
  }
  status.addEventListener("change", () => { state.status = status.value; state.page = 0; state.listing(); });
  const find = element("input", { type: "search", placeholder: "provider, run, reason, command" });
  find.addEventListener("input", () => { state.find = find.value.toLowerCase(); state.page = 0; state.listing(); });
  const turnPage = (by) => () => { state.page += by; state.listing(); };
  const back = element("button", { type: "button" }, "Previous");
  const on = element("button", { type: "button" }, "Next");
  back.addEventListener("click", turnPage(-1));
  on.addEventListener("click", turnPage(1));

  const labelAt = (at) => lineFacts.get(cases.lines[at])?.label ?? "case";
  const textAt = (at) =>
    [labelAt(at), ...["run_id", "reason", "command", "status", "case_id"].map((n) => valueAt(cases, n, at) ?? "")]
      .join(" ").toLowerCase();
  const listed = () => {
    const kept = state.all.filter((at) =>
      keepLine(cases.lines[at]) &&
      (!state.status || (valueAt(cases, "status", at) ?? "no status") === state.status) &&
      (!state.find || textAt(at).includes(state.find)));
    if (state.by === null) return kept;
    const key = state.by ? (at) => valueAt(cases, state.by, at) : labelAt;
    const sign = state.down ? -1 : 1;
    return kept
      .map((at) => [key(at), at])
      .sort(([a, i], [b, j]) => {
        if (a === null || b === null) return (a === null) - (b === null) || i - j;
        return sign * (a < b ? -1 : a > b ? 1 : 0) || i - j;
      })
      .map(([, at]) => at);
  };

  state.listing = () => {
    const rows = listed();
    const last = Math.max(0, Math.ceil(rows.length / PAGE_ROWS) - 1);
    state.page = Math.min(Math.max(0, state.page), last);
    const first = state.page * PAGE_ROWS;
    const onPage = rows.slice(first, first + PAGE_ROWS);
    body.replaceChildren(...onPage.map((at) => {
      const button = element("button", { type: "button", class: "open" }, labelAt(at));
      button.addEventListener("click", () => openCase(cases.rows[at], button).catch(fail));
      const row = element("tr", {}, element("th", { scope: "row" }, button));
      for (const [name, , show] of columns) {
        const value = valueAt(cases, name, at);
        const cell = element("td", { class: typeof value === "string" ? (name === "reason" ? "p" : "t") : undefined });
        cell.textContent = value === null || value === undefined ? "" : show(value);
        row.append(cell);
      }
      return row;
    }));
    const to = Math.min(first + PAGE_ROWS, rows.length);
    say.textContent = rows.length ? `${first + 1} to ${to} of ${rows.length} cases` : "No case is left by the filters.";
    back.disabled = state.page === 0;
    on.disabled = state.page === last;
    const paged = rows.length > PAGE_ROWS;
    back.hidden = on.hidden = !paged;
  };

  place.replaceChildren(
    element("div", { class: "case-tools" },
      element("label", {}, element("span", {}, "Status"), status),
      element("label", {}, element("span", {}, "Find"), find),
      say, back, on),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Cases of this comparison" },
      element("table", {}, caption, element("thead", {}, element("tr", {}, ...heads)), body)));
};
