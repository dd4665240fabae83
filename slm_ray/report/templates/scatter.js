// Points of two chosen quantities, such as efficiency against quality, and small panels side by side.
function drawScatter(holder, points, xAxis, yAxis, options) {
  const narrow = holder.clientWidth < 560, height = options.height || (narrow ? 380 : 420);
  const { picture, width } = canvas(holder, height, "");
  picture.setAttribute("aria-hidden", "true");
  const box = { left: options.left || (narrow ? 48 : 60), right: width - 16, top: 30, bottom: height - 50 };
  const x = scale(xAxis, box.left, box.right, xAxis.log), y = scale(yAxis, box.bottom, box.top, yAxis.log);
  drawAxes(picture, box, x, y, xAxis.ticks, yAxis.ticks, xAxis.label, yAxis.label);
  const labels = [], places = [];
  for (const point of points) {
    const px = x(point.x), py = y(point.y), tone = lookClass(point.look);
    if (point.low !== undefined && point.low !== null) {
      svg("line", { x1: px, x2: px, y1: Math.min(y(point.low), box.bottom), y2: Math.max(y(point.high), box.top), class: `whisker ${tone}` }, picture);
    }
    svg("path", { d: modelMark(point.look, options.size || 5.5), transform: `translate(${px} ${py})`, class: `dot-mark ${tone}` }, picture);
    if (options.named) labels.push({ x: px, y: py, text: clipped(point.name, narrow ? 22 : 44), prefer: [1, 0], strong: point.look === "first" });
    places.push({ px, py, name: point.name, facts: point.facts, line: point.name });
  }
  drawLabels(picture, labels, places, { x: box.left, y: box.top, w: width - box.left, h: box.bottom - box.top });
  return places;
}

function chooser(line, title, keys, axes, change, id) {
  if (keys.length < 2) return { get value() { return keys[0]; } };
  html("label", line, title, { for: id });
  line.append(" ");
  const choice = html("select", line, null, { id });
  keys.forEach((key) => html("option", choice, axes[key].label, { value: key }));
  choice.addEventListener("change", change);
  line.append(" ");
  return choice;
}

FIGURES.scatter = (root, data) => {
  const line = html("p", root, null, { class: "choices" }), holder = html("div", root, null, { class: "chart" });
  const across = chooser(line, "Across", data.xs, data.axes, () => draw(), `${root.dataset.figure}-x`);
  const up = chooser(line, "Up", data.ys, data.axes, () => draw(), `${root.dataset.figure}-y`);
  focusable(holder, "Models by two quantities; arrow keys go from model to model");
  const tip = makeTip(holder, data);
  let places = [];
  followPoints(holder, () => places, tip);
  function draw() {
    tip.hide();
    const [kx, ky] = [across.value, up.value];
    const shown = data.points.filter((p) => kx in p.values && ky in p.values).map((p) => ({
      ...p, x: p.values[kx], y: p.values[ky], low: (p.intervals[ky] || [null])[0], high: (p.intervals[ky] || [null, null])[1],
      facts: [`${data.axes[kx].label}: ${p.texts[kx]}`, `${data.axes[ky].label}: ${p.texts[ky]}`],
    }));
    places = drawScatter(holder, shown, data.axes[kx], data.axes[ky], { named: true });
  }
  return draw;
};

FIGURES.panels = (root, data) => {
  const grid = html("div", root, null, { class: "panels" });
  const panels = data.panels.map((panel) => {
    const part = html("div", grid);
    html("p", part, panel.title, { class: "panel-title" });
    if (panel.note) html("p", part, panel.note, { class: "small" });
    const holder = html("div", part, null, { class: "chart" });
    focusable(holder, `${panel.title}: ${panel.note}; arrow keys go from point to point`);
    const whole = { panel, holder, tip: makeTip(holder, data), places: [] };
    followPoints(holder, () => whole.places, whole.tip);
    return whole;
  });
  return () => panels.forEach((p) => {
    p.tip.hide();
    const points = p.panel.points.map(([px, py, name, facts]) => ({ x: px, y: py, name, facts, look: "first" }));
    p.places = drawScatter(p.holder, points, p.panel.x, p.panel.y, { height: 250, size: 4, left: 50 });
  });
};
