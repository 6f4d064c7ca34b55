// Hands the figures of the chosen part to plotly: theme, legend room, filters, print. All charts
// are described by the data; nothing is drawn here.
const config = {
  responsive: true,
  displaylogo: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const remembered = () => {
  try { return localStorage.getItem("dynbench-theme"); } catch { return null; }
};
const remember = (name) => {
  try { localStorage.setItem("dynbench-theme", name); } catch { /* private window */ }
};
let theme = remembered() ?? (dark.matches ? "dark" : "light");
let turn = 0; // a later call of draw() ends an earlier one

const loadPlotly = async () => {
  if (root.dataset.plotly) await loadScript(root.dataset.plotly);
  else {
    const script = document.createElement("script");
    script.textContent = await partText("bundle");
    opened.delete("bundle");
    document.head.append(script);
  }
  if (!window.Plotly) throw new Error("the chart library did not start");
};

const coloured = (text, name) => {
  for (const [from, to] of Object.entries(themes[name].swaps)) {
    text = text.replaceAll(`"${from}"`, `"${to}"`);
  }
  return JSON.parse(text);
};

// Room for the legend: it stands below the plot, in as many rows as the width asks for.
const fitted = (layout, entries, widthPx, name) => {
  let rows = entries.length ? 1 : 0;
  let usedPx = 0;
  for (const characters of entries) {
    const entryPx = 74 + 6.8 * characters;
    if (usedPx && usedPx + entryPx > widthPx - 24) { rows += 1; usedPx = 0; }
    usedPx += entryPx;
  }
  const rowsPx = 20 * rows;
  const margin = { ...layout.margin, b: layout.margin.b + rowsPx };
  const height = layout.height + rowsPx;
  return { ...layout, margin, height, template: themes[name].template };
};

// Rows of a map or of bars that a filter hides: the others move together.
const keepRows = (data, layout, keep) => {
  const rows = layout.meta.rows.map((line, row) => (keep(line) ? row : -1)).filter((r) => r >= 0);
  const place = new Map(rows.map((row, at) => [row, at]));
  for (const trace of data) {
    if (trace.type === "heatmap") {
      for (const name of ["z", "text", "hovertext", "customdata"]) {
        if (Array.isArray(trace[name])) trace[name] = rows.map((row) => trace[name][row]);
      }
      trace.y = rows.map((_, at) => at);
    } else {
      const kept = trace.y.map((row, at) => (place.has(row) ? at : -1)).filter((at) => at >= 0);
      for (const name of ["x", "hovertext", "customdata"]) trace[name] = kept.map((at) => trace[name][at]);
      trace.y = kept.map((at) => place.get(trace.y[at]));
    }
  }
  const spared = layout.meta.rows.length - rows.length;
  const axis = layout.yaxis;
  if (axis.ticktext) {
    const texts = new Map(axis.tickvals.map((row, at) => [row, axis.ticktext[at]]));
    const named = rows.filter((row) => texts.has(row));
    axis.tickvals = named.map((row) => place.get(row));
    axis.ticktext = named.map((row) => texts.get(row));
  } else axis.range = [axis.range[0] - spared, axis.range[1]];
  layout.annotations = (layout.annotations ?? []).flatMap((note) => {
    const row = Math.round(note.y + 0.2);
    return place.has(row) ? [{ ...note, y: note.y - row + place.get(row) }] : [];
  });
};

// The figure as the filters leave it, or null where they leave nothing.
const filtered = ({ data, layout }, keep) => {
  layout = { ...layout, yaxis: { ...layout.yaxis } };
  if (layout.meta.rows) {
    if (!layout.meta.rows.some(keep)) return null;
    if (!layout.meta.rows.every(keep)) keepRows(data, layout, keep);
    return { data, layout, entries: layout.meta.entries };
  }
  const lines = data.filter((trace) => trace.meta?.lines);
  const left = data.filter((trace) => !trace.meta?.lines || trace.meta.lines.some(keep));
  if (lines.length && !left.some((trace) => trace.meta?.lines)) return null;
  if (layout.annotations) {
    layout.annotations = layout.annotations.filter((note) => {
      const line = /^line (\d+)$/.exec(note.name ?? "")?.[1];
      return line === undefined || keep(Number(line));
    });
  }
  const all = layout.meta.entries.length > 0;
  const entries = !all ? [] : left
    .filter((trace) => trace.showlegend !== false && trace.name && trace.x?.length)
    .map((trace) => trace.name.length);
  return { data: left, layout, entries };
};

const plotsOf = (part) => (part ? [...part.querySelectorAll(".plot")] : []);

const drawOne = async (plot, figures, name, widthPx) => {
  const roomPx = widthPx ?? plot.clientWidth;
  const { data, layout } = figures[Number(plot.dataset.figure)];
  const narrow = roomPx < layout.meta.narrow_px ? layout.meta.narrow : {};
  const figure = filtered({ data, layout: { ...layout, ...narrow } }, keepLine);
  const place = plot.closest("figure");
  place.classList.toggle("nothing", figure === null);
  if (figure === null) {
    window.Plotly.purge(plot);
    return;
  }
  const sized = fitted(figure.layout, figure.entries, roomPx, name);
  for (const trace of figure.data) if (trace.colorbar) trace.showscale = roomPx >= 480;
  if (widthPx) sized.width = widthPx;
  plot.dataset.entryWidth = plot.clientWidth;
  await window.Plotly.react(plot, figure.data, sized, config);
  if (!plot.dataset.listens) {
    plot.dataset.listens = "yes";
    plot.on("plotly_click", (event) => {
      const place = event.points.map((point) => point.customdata).find(Number.isInteger);
      if (place !== undefined) openCase(place, plot).catch(fail);
    });
  }
  // Zooming needs a pointer, and the numbers stand in the table: no stop for the tab key.
  for (const button of plot.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
};

const draw = async (target) => {
  const mine = ++turn;
  const part = shown();
  root.dataset.figures = "drawing";
  if (part) {
    await unpack(part);
    const text = await partText(`${part.id}.figures`);
    const { figures, lines, homes } = coloured(text, theme);
    caseHomes = homes;
    knowLines(part, lines);
    if (mine !== turn) return;
    applyToTables(part);
    root.dataset.interactive = "yes";
    if (target) byId(target)?.scrollIntoView();
    for (const plot of plotsOf(part)) {
      if (mine !== turn) return;
      if (plot.closest("[hidden]")) continue;
      await drawOne(plot, figures, theme);
      plot.dataset.drawn = theme;
      await new Promise((resume) => setTimeout(resume)); // the page stays responsive
    }
    await showCases(part);
  }
  if (mine === turn) root.dataset.figures = "ready";
};
const redraw = () => { if (window.Plotly) draw().catch(fail); };

const applyTheme = () => {
  root.dataset.theme = theme;
  byId("theme-name").textContent = theme === "dark" ? "Light" : "Dark";
};

const choose = (key) => {
  const before = shown();
  const next = parts.find((part) => part.id === key) ?? before ?? parts[0];
  for (const part of parts) part.hidden = part !== next;
  const select = byId("part-choice");
  if (select && next) select.value = next.id;
  if (before && before !== next) {
    for (const plot of plotsOf(before)) window.Plotly?.purge(plot);
    for (const plot of plotsOf(before)) { delete plot.dataset.listens; delete plot.dataset.drawn; }
  }
  return before !== next;
};

const printAll = () => { // on paper: light, and as wide as the page
  const part = shown();
  if (!window.Plotly || !part) return;
  partText(`${part.id}.figures`).then((text) => {
    const { figures } = coloured(text, "light");
    for (const plot of plotsOf(part)) if (!plot.closest("[hidden]")) drawOne(plot, figures, "light", 660);
  });
};
