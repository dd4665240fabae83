// Lines of points against one or more quantities: training curves, and the fronts of several searches.
const DASHES = ["9 4", "3 3", "9 4 2 4", "2 2", "14 4"];
const MANY_POINTS = 80;

// The first five lines differ in colour and dashes; the next ones take the same colours with other dashes.
function dashes(look) { return look === null ? "none" : DASHES[(look + Math.floor(look / 5)) % 5]; }

// Points of training come as [tokens, FLOPs, loss, standard error].
function curvePoint(point, name) {
  if (!Array.isArray(point)) return point;
  const [tokens, flops, loss, error] = point, y = Math.exp(Math.min(loss, 300));
  const facts = () => [
    `${countText(tokens)} tokens, ${countText(flops)} FLOPs in all`,
    `loss ${loss.toFixed(4)}${error ? ` ± ${error.toFixed(4)}` : ""}`, `perplexity ${perplexityText(y)}`,
  ];
  return { name, tokens, flops, y, error, facts };
}

function drawBand(picture, curve, key, x, y, clip) {
  if (!curve.points.some((p) => p.error)) return;
  const up = curve.points.map((p) => `${x(p[key]).toFixed(1)} ${y(p.y * Math.exp(p.error)).toFixed(1)}`);
  const down = curve.points.map((p) => `${x(p[key]).toFixed(1)} ${y(p.y * Math.exp(-p.error)).toFixed(1)}`).reverse();
  svg("path", { d: `M${up.concat(down).join("L")}z`, class: `band ${lookClass(curve.look)}`, "clip-path": clip }, picture);
}

function drawDots(picture, curve, key, x, y, high, dim) {
  const inside = curve.points.filter((p) => p.y <= high), r = curve.points.length > MANY_POINTS ? 1.6 : 3.5;
  const d = inside.map((p) => `M${(x(p[key]) - r).toFixed(1)} ${y(p.y).toFixed(1)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`).join("");
  svg("path", { d, class: `dot-mark ${lookClass(curve.look)} ${dim}` }, picture);
  return inside;
}

function drawCurves(holder, data, panel, curves, brought) {
  const narrow = holder.clientWidth < 560, height = narrow ? 360 : 430, key = panel.key, clipId = `clip-${holder.dataset.name}`;
  const { picture, width } = canvas(holder, height, "");
  picture.setAttribute("aria-hidden", "true");
  const box = { left: narrow ? 44 : 56, right: width - 14, top: 30, bottom: height - 50 };
  const x = scale(panel.axis, box.left, box.right), y = scale(data.y, box.bottom, box.top, true);
  svg("rect", { x: box.left - 6, y: box.top - 4, width: box.right - box.left + 12, height: box.bottom - box.top + 8 }, svg("clipPath", { id: clipId }, picture));
  const clip = `url(#${clipId})`;
  drawAxes(picture, box, x, y, panel.axis.ticks, data.y.ticks, panel.label, data.yLabel);
  for (const level of data.levels) svg("line", { x1: box.left, x2: box.right, y1: y(level.value), y2: y(level.value), class: "teacher-line" }, picture);
  const dimmed = (curve) => (brought && curve !== brought ? "dim" : "");
  const bands = curves.length > 8 ? curves.filter((c) => c.look === null || c === brought) : curves;
  bands.forEach((curve) => drawBand(picture, curve, key, x, y, clip));
  for (const mark of data.marks) {
    const other = curves[mark.reference];
    svg("line", { x1: x(mark[key]), x2: x(other.points.at(-1)[key]), y1: y(mark.goal), y2: y(mark.goal), class: `goal ${lookClass(other.look)} ${dimmed(other)}` }, picture);
  }
  // What the picture is about comes last, over the others.
  const rank = (c) => (c === brought ? 2 : c.look === null ? 1 : 0);
  const order = [...curves].sort((a, b) => rank(a) - rank(b)), lines = [];
  for (const curve of order) {
    const d = curve.points.map((p, j) => `${j ? "L" : "M"}${x(p[key]).toFixed(1)} ${y(p.y).toFixed(1)}`).join("");
    svg("path", { d, class: `curve ${lookClass(curve.look)} ${dimmed(curve)}`, "stroke-dasharray": dashes(curve.look), "clip-path": clip }, picture);
    lines.unshift(drawDots(picture, curve, key, x, y, data.y.high, dimmed(curve)).map((p) => ({
      px: x(p[key]), py: y(p.y), name: p.name || curve.name, facts: p.facts, shape: p.shape, teacherShape: p.teacherShape, line: curve.name,
    })));
  }
  const places = lines.flat();
  for (const mark of data.marks) {
    svg("circle", { cx: x(mark[key]), cy: y(mark.y), r: 9, class: `ring ${lookClass(curves[mark.reference].look)} ${dimmed(curves[mark.reference])}` }, picture);
  }
  const labels = (data.labels[key] || []).map((label) => ({ x: x(label.x), y: y(label.y), text: label.text, prefer: [1, -1] }));
  const around = places.length > 600 ? places.filter((_, i) => i % Math.ceil(places.length / 600) === 0) : places;
  drawLabels(picture, labels, around, { x: box.left, y: box.top, w: box.right - box.left, h: box.bottom - box.top });
  return places;
}

// Names that can be selected: the chosen line stands out and the others fade.
function curveLegend(holder, data, curves, choose) {
  const buttons = curves.map((curve) => {
    const button = html("button", holder, null, { type: "button", "aria-pressed": "false" });
    const small = svg("svg", { viewBox: "0 0 22 16", "aria-hidden": "true" }, button);
    svg("path", { d: "M0 8H22", class: `curve ${lookClass(curve.look)}`, "stroke-dasharray": dashes(curve.look) }, small);
    svg("circle", { cx: 11, cy: 8, r: 3.5, class: `dot-mark ${lookClass(curve.look)}` }, small);
    html("span", button, curve.name);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(on && other === button)));
      choose(on ? curve : null);
    });
    return button;
  });
  for (const level of data.levels) {
    const item = html("span", holder), small = svg("svg", { viewBox: "0 0 22 16", "aria-hidden": "true" }, item);
    svg("line", { x1: 0, x2: 22, y1: 8, y2: 8, class: "teacher-line" }, small);
    html("span", item, `${level.name} ${level.label}`);
  }
}

FIGURES.curves = (root, data) => {
  const curves = data.curves.map((curve) => ({ ...curve, points: curve.points.map((p) => curvePoint(p, curve.name)) }));
  let brought = null;
  const legend = html("div", root, null, { class: "legend" });
  const panels = data.panels.map((panel) => {
    if (panel.title) html("p", root, panel.title, { class: "panel-title" });
    if (panel.note) html("p", root, panel.note, { class: "small" });
    const holder = html("div", root, null, { class: "chart" });
    holder.dataset.name = `${root.dataset.figure}-${panel.key}`;
    const ends = curves.slice(0, 12).map((c) => `${c.name} ends at ${perplexityText(c.points.at(-1).y)}`).join("; ");
    focusable(holder, `${data.yLabel} against ${panel.label}; arrow keys go from point to point. ${ends}${curves.length > 12 ? "; and more" : ""}`);
    const whole = { panel, holder, tip: makeTip(holder, data), points: [] };
    followPoints(holder, () => whole.points, whole.tip);
    return whole;
  });
  const draw = () => panels.forEach((p) => { p.tip.hide(); p.points = drawCurves(p.holder, data, p.panel, curves, brought); });
  curveLegend(legend, data, curves, (curve) => { brought = curve; draw(); });
  return draw;
};
