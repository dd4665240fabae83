// Training curves: perplexity against tokens or FLOPs, with the places where one model matched another.
const DASHES = ["9 4", "3 3", "9 4 2 4", "2 2", "14 4"];

function dashes(curve) { return curve.color === null ? "none" : DASHES[curve.color]; }

function curveClass(curve) { return curve.color === null ? "best-curve" : `c${curve.color}`; }

function drawBand(picture, curve, key, x, y, clip) {
  if (!curve.points.some((p) => p.error)) return;
  const up = curve.points.map((p) => `${x(p[key]).toFixed(1)} ${y(p.y * Math.exp(p.error)).toFixed(1)}`);
  const down = curve.points.map((p) => `${x(p[key]).toFixed(1)} ${y(p.y * Math.exp(-p.error)).toFixed(1)}`).reverse();
  svg("path", { d: `M${up.concat(down).join("L")}z`, class: `band ${curveClass(curve)}`, "clip-path": clip }, picture);
}

function drawCurves(holder, data, key, label) {
  const narrow = holder.clientWidth < 560, height = narrow ? 360 : 430, clipId = `clip-${key}`;
  const ends = data.curves.map((c) => `${c.name} ends at ${c.points.at(-1).y.toPrecision(3)}`).join("; ");
  const { picture, width } = canvas(holder, height, `Perplexity against ${label}: ${ends}`);
  const box = { left: narrow ? 44 : 56, right: width - 14, top: 30, bottom: height - 50 };
  const x = scale(data[key], box.left, box.right), y = scale(data.y, box.bottom, box.top, true);
  const frame = svg("clipPath", { id: clipId }, picture);
  svg("rect", { x: box.left - 6, y: box.top - 4, width: box.right - box.left + 12, height: box.bottom - box.top + 8 }, frame);
  const clip = `url(#${clipId})`;
  drawAxes(picture, box, x, y, data[key].ticks, data.y.ticks, label, "Perplexity, held-out text (log scale)");
  if (data.level) svg("line", { x1: box.left, x2: box.right, y1: y(data.level.value), y2: y(data.level.value), class: "teacher-line" }, picture);
  data.curves.forEach((curve) => drawBand(picture, curve, key, x, y, clip));
  for (const mark of data.marks) {
    const other = data.curves[mark.reference];
    svg("line", { x1: x(mark[key]), x2: x(other.points.at(-1)[key]), y1: y(mark.goal), y2: y(mark.goal), class: `goal ${curveClass(other)}` }, picture);
  }
  // The one that the picture is about comes last, over the others.
  const order = [...data.curves].sort((a, b) => (a.color === null) - (b.color === null));
  const places = [];
  for (const curve of order) {
    const d = curve.points.map((p, j) => `${j ? "L" : "M"}${x(p[key]).toFixed(1)} ${y(p.y).toFixed(1)}`).join("");
    svg("path", { d, class: `curve ${curveClass(curve)}`, "stroke-dasharray": dashes(curve), "clip-path": clip }, picture);
    for (const p of curve.points) {
      if (p.y > data.y.high) continue;
      svg("circle", { cx: x(p[key]), cy: y(p.y), r: 3.5, class: `dot-mark ${curveClass(curve)}` }, picture);
      places.push({ px: x(p[key]), py: y(p.y), name: curve.name, facts: p.facts });
    }
  }
  for (const mark of data.marks) {
    svg("circle", { cx: x(mark[key]), cy: y(mark.y), r: 9, class: `ring ${curveClass(data.curves[mark.reference])}` }, picture);
  }
  const labels = data.labels[key].map((label) => ({ x: x(label[key]), y: y(label.y), text: label.text, prefer: [1, -1] }));
  drawLabels(picture, labels, places, { x: box.left, y: box.top, w: box.right - box.left, h: box.bottom - box.top });
  return places;
}

function drawCurveLegend(holder, data) {
  holder.replaceChildren();
  data.curves.forEach((curve) => {
    const item = html("span", holder), small = svg("svg", { viewBox: "0 0 22 16" }, item);
    svg("path", { d: "M0 8H22", class: `curve ${curveClass(curve)}`, "stroke-dasharray": dashes(curve) }, small);
    svg("circle", { cx: 11, cy: 8, r: 3.5, class: `dot-mark ${curveClass(curve)}` }, small);
    html("span", item, curve.name);
  });  if (data.level) {
    const item = html("span", holder), small = svg("svg", { viewBox: "0 0 22 16" }, item);
    svg("line", { x1: 0, x2: 22, y1: 8, y2: 8, class: "teacher-line" }, small);
    html("span", item, `${data.level.name} ${data.level.label}`);
  }
}
