"use strict";
// The index of a site: light or dark, as its pages remember it.
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let theme = dark.matches ? "dark" : "light";
  try { theme = localStorage.getItem("dynbench-theme") ?? theme; } catch { /* private window */ }
  const apply = () => {
    root.dataset.theme = theme;
    document.getElementById("theme-name").textContent = theme === "dark" ? "Light" : "Dark";
  };
  document.getElementById("theme").addEventListener("click", () => {
    theme = theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("dynbench-theme", theme); } catch { /* private window */ }
    apply();
  });
  apply();
  root.dataset.figures = "ready";
})();
