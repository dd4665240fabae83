"use strict";
// Small helpers: SVG elements, scales, axes. All text goes in as text nodes, never as markup.
const SVG = "http://www.w3.org/2000/svg";
// What draws each kind of picture: (root, data, all) => a function that draws it at the present width.
const FIGURES = {};

function svg(tag, attributes = {}, parent = null, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}

function html(tag, parent = null, text = null, attributes = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}

function scale(axis, from, to, log = false) {
  const place = log ? Math.log : (value) => value;
  const low = place(axis.low), span = place(axis.high) - low || 1;
  return (value) => from + ((place(value) - low) / span) * (to - from);
}

// Leave out ticks whose labels would touch on a narrow screen.
function spaced(ticks, at, least) {
  let last = -Infinity;
  return ticks.filter(([value]) => {
    const free = Math.abs(at(value) - last) >= least;
    if (free) last = at(value);
    return free;
  });
}

// Counts as everywhere else in a report: three figures and a suffix.
function countText(value) {
  for (const [suffix, unit] of [["E", 1e18], ["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["K", 1e3]]) {
    if (Math.abs(value) >= 0.9995 * unit) return `${+(value / unit).toPrecision(3)}${suffix}`;
  }
  return `${+value.toPrecision(3)}`;
}

function perplexityText(value) {
  if (value >= 1e7) return value.toExponential(1);
  return value >= 99.95 ? Math.round(value).toLocaleString("en") : value.toFixed(value >= 9.995 ? 1 : 2);
}

// Colour and shape of a model, the same in every picture: "first", "teacher", or a number.
function lookClass(look) { return look === null || look === "first" ? "best-look" : look === "teacher" ? "teacher-look" : `c${look % 5}`; }

function drawAxes(picture, box, x, y, xTicks, yTicks, xLabel, yLabel) {
  for (const [value, label] of spaced(yTicks, y, 20)) {
    svg("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value), class: "grid" }, picture);
    svg("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, picture, label);
  }
  const widest = Math.max(0, ...xTicks.map(([, label]) => label.length));
  for (const [value, label] of spaced(xTicks, x, Math.max(48, widest * 7.5 + 10))) {
    svg("text", { x: x(value), y: box.bottom + 20, "text-anchor": "middle" }, picture, label);
  }
  svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "base" }, picture);
  svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 42, "text-anchor": "middle" }, picture, xLabel);
  svg("text", { x: 0, y: box.top - 12 }, picture, yLabel);
}

function canvas(holder, height, label, role = "img") {
  holder.querySelectorAll("svg.main").forEach((old) => old.remove());
  const width = Math.max(holder.clientWidth, 240);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "main", role, "aria-label": label });
  holder.prepend(picture);
  return { picture, width };
}

// Bars of one size per layer: the teacher's outlined, the model's filled.
function layerBars(parent, shape, teacher, key, box) {
  const whole = teacher || shape;
  const size = new Map(shape.layers.map((layer, i) => [layer, shape[key][i]]));
  const layers = teacher ? teacher.layers : shape.layers;
  const top = Math.max(...whole[key], ...shape[key], 1);
  const step = (box.right - box.left) / Math.max(layers.length, 1);
  const wide = Math.max(step - (step > 5 ? 2 : 0.5), 1);
  layers.forEach((layer, i) => {
    const x = box.left + i * step + (step - wide) / 2;
    const bar = (value, name) => {
      const high = ((box.bottom - box.top) * value) / top;
      if (high) svg("rect", { x, y: box.bottom - high, width: wide, height: high, class: name }, parent);
    };
    bar(whole[key][i], "cut");
    bar(size.get(layer) || 0, "kept");
  });
  return { step, top, layers, size };
}

function setUpCopying() {
  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => {
    const text = button.parentElement.querySelector("code");
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    // Files opened from a disk may have no clipboard; then the text is selected for the reader to copy.
    const fallback = () => getSelection().selectAllChildren(text);
    if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(done, fallback); else fallback();
  }));
}
