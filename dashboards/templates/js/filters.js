// Filters: which comparisons may be chosen, and which lines of the chosen one are shown.
const whichNames = { machine: "Machine", suite: "Suite", task: "Task", length: "Length (tokens)", shape: "Shape", dtype: "Data type" };
const whatNames = { pass: "Pass", provider: "Provider", tile: "query_tile" };
const wanted = new Map(); // of `which`: name to value, absent for all
const hidden = { pass: new Set(), provider: new Set(), tile: new Set() };
let lineFacts = new Map();

const factsOf = ([label, provider, tile, pass]) => ({ label, provider, tile: tile || "none", pass });
const keepLine = (line) => {
  const facts = lineFacts.get(line);
  return !facts || Object.keys(hidden).every((name) => !hidden[name].has(facts[name]));
};

const matches = (part) =>
  !part.dataset.machine || [...wanted].every(([name, value]) => part.dataset[name] === value);

const distinct = (values) => [...new Set(values)];

const selectOf = (name, values) => {
  const select = element("select", { "data-which": name }, element("option", { value: "" }, "all"));
  for (const value of values) select.append(element("option", { value }, value));
  select.addEventListener("change", () => {
    if (select.value) wanted.set(name, select.value);
    else wanted.delete(name);
    applyWhich();
  });
  return element("label", {}, element("span", {}, whichNames[name]), select);
};

const makeWhich = () => {
  const place = byId("which");
  if (!place) return;
  for (const name of Object.keys(whichNames)) {
    const values = distinct(parts.map((part) => part.dataset[name]).filter(Boolean));
    if (values.length > 1) place.append(selectOf(name, values));
  }
  if (!place.querySelector("select")) {
    place.append(element("p", { class: "empty" }, "This report has one machine, suite, shape and data type."));
  }
};

const applyWhich = () => {
  for (const part of parts) {
    const kept = matches(part);
    const option = byId("part-choice")?.querySelector(`option[value="${part.id}"]`);
    if (option) { option.hidden = !kept; option.disabled = !kept; }
    const row = document.querySelector(`#everything tr[data-part="${part.id}"]`);
    if (row) row.hidden = !kept;
  }
  const now = shown();
  if (now && !matches(now)) {
    const next = parts.find((part) => part.dataset.machine && matches(part));
    if (next && choose(next.id)) redraw();
  }
  sayFilters();
};

const makeWhat = () => {
  const place = byId("what");
  if (!place) return;
  for (const group of place.querySelectorAll("div")) group.remove();
  for (const name of Object.keys(whatNames)) {
    const values = distinct([...lineFacts.values()].map((facts) => facts[name]));
    const group = element("div", { role: "group", "aria-label": whatNames[name] });
    group.append(element("span", { class: "group-name" }, whatNames[name]));
    for (const value of values) {
      const box = element("input", { type: "checkbox", "data-what": name, value });
      box.checked = !hidden[name].has(value);
      box.addEventListener("change", () => {
        if (box.checked) hidden[name].delete(value);
        else hidden[name].add(value);
        sayFilters();
        redraw();
      });
      group.append(element("label", {}, box, value));
    }
    if (values.length) place.append(group);
  }
};

const knowLines = (part, lines) => {
  const known = new Map(Object.entries(lines).map(([line, facts]) => [Number(line), factsOf(facts)]));
  const other = part.id !== byId("what")?.dataset.part;
  lineFacts = known;
  if (other && byId("what")) {
    byId("what").dataset.part = part.id;
    makeWhat();
    sayFilters();
  }
};

const sayFilters = () => {
  const count = byId("filters-count");
  if (!count) return;
  const facts = [...lineFacts.values()];
  const off = Object.keys(hidden).filter((name) => facts.some((f) => hidden[name].has(f[name])));
  const active = wanted.size + off.length;
  count.textContent = active ? ` (${active})` : "";
  const kept = [...lineFacts.keys()].filter(keepLine).length;
  const left = parts.filter((part) => part.dataset.machine && matches(part)).length;
  if (!left) {
    byId("filters-say").textContent = "No comparison has all of these; the one before is still shown";
    return;
  }
  const which = wanted.size ? `${left} comparisons; ` : "";
  byId("filters-say").textContent = lineFacts.size ? `${which}${kept} of ${lineFacts.size} lines shown` : which;
};

// Tables, cards and figures of lines and passes that are filtered out.
const applyToTables = (part) => {
  for (const body of part.querySelectorAll("[data-line]")) body.hidden = !keepLine(Number(body.dataset.line));
  for (const figure of part.querySelectorAll("figure[data-pass]")) {
    figure.hidden = lineFacts.size > 0 && hidden.pass.has(figure.dataset.pass);
  }
};

const resetFilters = () => {
  wanted.clear();
  for (const set of Object.values(hidden)) set.clear();
  for (const select of document.querySelectorAll("#which select")) select.value = "";
  makeWhat();
  applyWhich();
  redraw();
};
