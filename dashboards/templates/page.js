"use strict";
// Unpacks plotly and the figures of the chosen comparison, hands them to plotly, and keeps theme,
// selector and print in step. All charts are described by the data; nothing is drawn here.
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const themes = JSON.parse(byId("themes").textContent);
  const facets = [...document.querySelectorAll(".facet")];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const unpacked = new Map();
  let turn = 0; // a later call of draw() ends an earlier one

  const remembered = () => {
    try { return localStorage.getItem("dynbench-theme"); } catch { return null; }
  };
  const remember = (name) => {
    try { localStorage.setItem("dynbench-theme", name); } catch { /* private window */ }
  };
  let theme = remembered() ?? (dark.matches ? "dark" : "light");

  const inflateText = async (text) => {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };
  const inflate = (id) => inflateText(byId(id).textContent);

  // In a large report what does not show at first comes packed: unpacked where and when it shows.
  const unpack = async (within) => {
    for (const place of [within, ...within.querySelectorAll("[data-packed]")]) {
      if (!place.dataset.packed) continue;
      if (place.closest("details:not([open])")) continue;
      const text = place.dataset.packed;
      delete place.dataset.packed;
      place.innerHTML = await inflateText(text);
    }
  };

  const figuresOf = async (facet) => {
    if (!unpacked.has(facet.id)) unpacked.set(facet.id, await inflate(`${facet.id}-figures`));
    return unpacked.get(facet.id);
  };

  const loadPlotly = async () => {
    const script = document.createElement("script");
    script.textContent = await inflate("bundle");
    document.head.append(script);
    if (!window.Plotly) throw new Error("the chart library did not start");
  };

  const themed = (text, name) => {
    for (const [from, to] of Object.entries(themes[name].swaps)) {
      text = text.replaceAll(`"${from}"`, `"${to}"`);
    }
    return JSON.parse(text);
  };

  // Room for the legend: it stands below the plot, in as many rows as the width asks for.
  const fitted = (layout, widthPx, name) => {
    let rows = layout.meta.entries.length ? 1 : 0;
    let usedPx = 0;
    for (const characters of layout.meta.entries) {
      const entryPx = 74 + 6.8 * characters;
      if (usedPx && usedPx + entryPx > widthPx - 24) { rows += 1; usedPx = 0; }
      usedPx += entryPx;
    }
    const rowsPx = 20 * rows;
    const margin = { ...layout.margin, b: layout.margin.b + rowsPx };
    const height = layout.height + rowsPx;
    return { ...layout, margin, height, template: themes[name].template };
  };

  const shown = () => facets.find((facet) => !facet.hidden);
  const plots = (facet) => (facet ? [...facet.querySelectorAll(".plot")] : []);

  const drawOne = async (plot, figures, name, widthPx) => {
    const { data, layout } = figures[Number(plot.dataset.figure)];
    const roomPx = widthPx ?? plot.clientWidth;
    const sized = fitted(layout, roomPx, name);
    for (const trace of data) if (trace.colorbar) trace.showscale = roomPx >= 480;
    if (widthPx) sized.width = widthPx;
    plot.dataset.entryWidth = plot.clientWidth;
    await window.Plotly.react(plot, data, sized, config);
    // Zooming needs a pointer, and the numbers stand in the table: no stop for the tab key.
    for (const button of plot.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
  };

  const draw = async (target) => {
    const mine = ++turn;
    const facet = shown();
    root.dataset.figures = "drawing";
    if (facet) {
      await unpack(facet);
      if (target) byId(target)?.scrollIntoView();
      const figures = themed(await figuresOf(facet), theme);
      for (const plot of plots(facet)) {
        if (mine !== turn) return;
        await drawOne(plot, figures, theme);
        plot.dataset.drawn = theme;
        await new Promise((resume) => setTimeout(resume)); // the page stays responsive
      }
    }
    if (mine === turn) root.dataset.figures = "ready";
  };

  const fail = (error) => {
    root.dataset.figures = "failed";
    const trouble = byId("trouble");
    trouble.textContent = `The charts could not be drawn (${error.message}). Every number stands in the tables.`;
    trouble.hidden = false;
  };

  const applyTheme = () => {
    root.dataset.theme = theme;
    byId("theme-name").textContent = theme === "dark" ? "Light" : "Dark";
  };

  const choose = (number) => {
    const before = shown();
    const next = facets.find((facet) => facet.dataset.facet === String(number)) ?? facets[0];
    for (const facet of facets) facet.hidden = facet !== next;
    const select = byId("facet-choice");
    if (select && next) select.value = next.dataset.facet;
    if (before && before !== next) for (const plot of plots(before)) window.Plotly?.purge(plot);
    return before !== next;
  };

  const numberInHash = () => /^#f(\d+)/.exec(location.hash)?.[1];
  const redraw = () => { if (window.Plotly) draw().catch(fail); };

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
  byId("facet-choice")?.addEventListener("change", (event) => {
    history.replaceState(null, "", `#f${event.target.value}`);
    choose(event.target.value);
    redraw();
  });
  window.addEventListener("hashchange", () => {
    const number = numberInHash();
    if (number !== undefined && choose(number)) {
      draw(location.hash.slice(1)).catch(fail);
    }
  });

  document.addEventListener("toggle", (event) => unpack(event.target).catch(fail), true);

  let settled;
  window.addEventListener("resize", () => { // a legend needs other rows at another width
    clearTimeout(settled);
    settled = setTimeout(() => {
      const first = plots(shown())[0];
      if (first && Math.abs(first.clientWidth - Number(first.dataset.entryWidth)) > 24) redraw();
    }, 250);
  });

  // On paper: light, and as wide as the page.
  window.addEventListener("beforeprint", () => {
    const facet = shown();
    if (!window.Plotly || !unpacked.has(facet?.id)) return;
    const figures = themed(unpacked.get(facet.id), "light");
    for (const plot of plots(facet)) drawOne(plot, figures, "light", 660);
  });
  window.addEventListener("afterprint", redraw);

  applyTheme();
  choose(numberInHash() ?? root.dataset.chosen);
  if (facets.length) loadPlotly().then(draw).catch(fail);
  else root.dataset.figures = "ready";
})();
