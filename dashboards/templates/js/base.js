// Names that the other files share, and how packed parts of the page are read.
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const settings = JSON.parse(byId("settings").textContent);
const themes = settings.themes;
const parts = [...document.querySelectorAll(".part")];

const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children); // strings become text, never markup
  return made;
};

const inflateText = async (text) => {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};

// A site keeps its parts in script files, since a page opened from disk may fetch nothing else.
const arrived = new Map();
window.dynbenchPart = (id, text) => arrived.set(id, text);
const loadScript = (source) =>
  new Promise((resolve, reject) => {
    const script = element("script", { src: source });
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${source} could not be read`));
    document.head.append(script);
  });
const packedText = async (id) => {
  const here = byId(id);
  if (here) return here.textContent;
  if (!root.dataset.plotly) return null;
  const folder = byId(id.split(".")[0])?.dataset.folder;
  if (!arrived.has(id)) await loadScript(`data/${folder ? `${folder}/` : ""}${id}.js`);
  const text = arrived.get(id);
  arrived.delete(id);
  return text;
};

const opened = new Map(); // what was unpacked once stays
const partText = (id) => {
  if (!opened.has(id)) {
    opened.set(id, packedText(id).then((text) => (text === null ? null : inflateText(text))));
  }
  return opened.get(id);
};
const partJson = async (id) => {
  const key = `${id} as JSON`;
  if (!opened.has(key)) opened.set(key, partText(id).then((text) => JSON.parse(text ?? "null")));
  return opened.get(key);
};

// In a large report what does not show at first comes packed: unpacked where and when it shows.
const unpack = async (within) => {
  if (within.classList?.contains("part") && root.dataset.plotly && !within.dataset.here) {
    within.dataset.here = "yes";
    within.innerHTML = await partText(`${within.id}.body`);
  }
  for (const place of [within, ...within.querySelectorAll("[data-packed]")]) {
    if (!place.dataset.packed) continue;
    if (place !== within && place.closest("details:not([open])")) continue;
    const text = place.dataset.packed;
    delete place.dataset.packed;
    place.innerHTML = await inflateText(text);
  }
};

const shown = () => parts.find((part) => !part.hidden);

const fail = (error) => {
  root.dataset.figures = "failed";
  const trouble = byId("trouble");
  trouble.textContent = `The charts could not be drawn (${error.message}). Their numbers stand in the tables.`;
  trouble.hidden = false;
};

const significant = (value, digits = 4) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e15) return value.toExponential(digits - 1);
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return value.toFixed(Math.min(decimals, 12)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
};
const lengthText = (tokens) => {
  if (tokens === null || tokens === undefined) return "";
  if (tokens >= 1048576 && tokens % 1048576 === 0) return `${tokens / 1048576}m`;
  return tokens >= 1024 && tokens % 1024 === 0 ? `${tokens / 1024}k` : String(tokens);
};
const bytesText = (bytes) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.abs(bytes) >= 1024 && unit < 4) { bytes /= 1024; unit += 1; }
  return `${significant(bytes, 3)} ${units[unit]}`;
};
