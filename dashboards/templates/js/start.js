// Buttons, hash, window and print; then the first figures.
byId("theme").addEventListener("click", () => {
  theme = theme === "dark" ? "light" : "dark";
  remember(theme);
  applyTheme();
  redraw();
});
dark.addEventListener("change", () => {
  if (remembered()) return;
  theme = dark.matches ? "dark" : "light";
  applyTheme();
  redraw();
});
byId("part-choice")?.addEventListener("change", (event) => {
  history.replaceState(null, "", `#${event.target.value}`);
  choose(event.target.value);
  redraw();
});
const partInHash = () => /^#([fq]\d+|history|change)/.exec(location.hash)?.[1];
const caseInHash = () => { // a link to one case, such as #f0-case-12
  const place = /^#[fq]\d+-case-(\d+)$/.exec(location.hash)?.[1];
  if (place !== undefined && shown()) openCase(Number(place), shown()).catch(fail);
};
window.addEventListener("hashchange", () => {
  const key = partInHash();
  if (key === undefined) return;
  if (choose(key)) draw(location.hash.slice(1)).then(caseInHash).catch(fail);
  else {
    byId(location.hash.slice(1))?.scrollIntoView();
    caseInHash();
  }
});

byId("filters-button")?.addEventListener("click", () => {
  const open = byId("filters").hidden;
  byId("filters").hidden = !open;
  byId("filters-button").setAttribute("aria-expanded", String(open));
});
byId("filters")?.addEventListener("reset", (event) => { event.preventDefault(); resetFilters(); });
byId("filters")?.addEventListener("submit", (event) => event.preventDefault());
byId("drawer-close").addEventListener("click", () => byId("drawer").close());
byId("drawer").addEventListener("click", (event) => { // beside the drawer
  if (event.target === byId("drawer")) byId("drawer").close();
});
byId("drawer").addEventListener("close", () => {
  for (const plot of document.querySelectorAll(".case-plot")) window.Plotly?.purge(plot);
  byId("drawer-body").replaceChildren();
  delete byId("drawer").dataset.shown;
  if (/-case-\d+$/.test(location.hash)) history.replaceState(null, "", `#${shown().id}`);
});

document.addEventListener("toggle", (event) => {
  if (event.target.tagName !== "DETAILS") return;
  unpack(event.target).then(() => { const part = event.target.closest(".part"); if (part) applyToTables(part); }).catch(fail);
}, true);

let settled;
window.addEventListener("resize", () => { // a legend needs other rows at another width
  clearTimeout(settled);
  settled = setTimeout(() => {
    const first = plotsOf(shown())[0];
    if (first && Math.abs(first.clientWidth - Number(first.dataset.entryWidth)) > 24) redraw();
  }, 250);
});
window.addEventListener("beforeprint", printAll);
window.addEventListener("afterprint", redraw);

applyTheme();
makeWhich();
choose(partInHash() ?? root.dataset.chosen);
if (parts.length) loadPlotly().then(() => draw(partInHash() ? location.hash.slice(1) : undefined)).then(caseInHash).catch(fail);
else root.dataset.figures = "ready";
