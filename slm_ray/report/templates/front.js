// The front: perplexity against size. Points can be hovered, tapped, tabbed to and selected.
const MARKS = {
  square: (s) => `M${-s} ${-s}h${2 * s}v${2 * s}h${-2 * s}z`,
  up: (s) => `M0 ${-1.15 * s}L${1.1 * s} ${0.85 * s}H${-1.1 * s}z`,
  diamond: (s) => `M0 ${-1.3 * s}L${1.3 * s} 0L0 ${1.3 * s}L${-1.3 * s} 0z`,
  down: (s) => `M0 ${1.15 * s}L${1.1 * s} ${-0.85 * s}H${-1.1 * s}z`,
  plus: (s) => `M${-s / 2} ${-s}h${s}v${s / 2}h${s / 2}v${s}h${-s / 2}v${s / 2}h${-s}v${-s / 2}h${-s / 2}v${-s}h${s / 2}z`,
};
const MARK_NAMES = Object.keys(MARKS);

function starPath(radius) {
  const corners = [...Array(10).keys()].map((i) => {
    const angle = (i * Math.PI) / 5 - Math.PI / 2, reach = i % 2 ? radius * 0.42 : radius;
    return `${(reach * Math.cos(angle)).toFixed(2)} ${(reach * Math.sin(angle)).toFixed(2)}`;
  });
  return `M${corners.join("L")}z`;
}

function addMark(picture, point, path, name, tip, select, kind) {
  const label = `${kind}${point.name}: ${factsOf(point).join("; ")}`;
  const mark = svg("path", { d: path, transform: `translate(${point.px} ${point.py})`, class: name, tabindex: 0, role: "button", "aria-label": label }, picture);
  mark.addEventListener("focus", () => { if (mark.matches(":focus-visible")) tip.show(point); });
  mark.addEventListener("blur", tip.hide);
  mark.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(point); }
    if (event.key === "Escape") tip.hide();
  });
}

function circlePath(r) { return `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`; }

function drawFront(holder, data, tip, select, chosen) {
  const narrow = holder.clientWidth < 560, height = narrow ? 430 : 540;
  const { picture, width } = canvas(holder, height, `${data.yLabel} against ${data.xLabel}: ${data.front.length} models on the front, ${data.candidates.length} other candidates`, "group");
  const box = { left: narrow ? 44 : 56, right: width - 10, top: 30, bottom: height - 50 };
  const x = scale(data.x, box.left, box.right), y = scale(data.y, box.bottom, box.top, true);
  const place = (point) => {
    point.px = x(point.x);
    point.py = point.row === undefined ? y(point.y) : box.top + 16 + 24 * point.row;
    return point;
  };
  if (data.budget) {
    const [low, high] = data.budget.map((value) => Math.min(Math.max(x(value), box.left), box.right));
    svg("rect", { x: low, y: box.top, width: Math.max(high - low, 1), height: box.bottom - box.top, class: "zone" }, picture);
  }
  drawAxes(picture, box, x, y, data.x.ticks, data.y.ticks, data.xLabel, data.yLabel);
  data.candidates.forEach(place);
  const cloud = data.candidates.map((p) => `M${(p.px - 2.6).toFixed(1)} ${p.py.toFixed(1)}a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0 -5.2 0z`);
  svg("path", { d: cloud.join(""), class: "cand" }, picture);
  const labels = [], crowded = data.front.length > 50;
  data.front.forEach((point) => { place(point).fy = y(point.fitted === undefined ? point.y : point.fitted); });
  const fitted = data.front.filter((point) => point.fitted !== undefined);
  fitted.forEach((point) => svg("path", { d: `M${point.px} ${point.py}V${point.fy}`, class: "fitted-line" }, picture));
  fitted.forEach((point) => svg("path", { d: circlePath(5), transform: `translate(${point.px} ${point.fy})`, class: "fitted-point" }, picture));
  svg("path", { d: data.front.map((p, i) => `${i ? "L" : "M"}${p.px} ${p.py}`).join(""), class: "front-line" }, picture);
  if (data.teacher) {
    const star = place(data.teacher);
    svg("line", { x1: box.left, x2: box.right, y1: star.py, y2: star.py, class: "teacher-line" }, picture);
    addMark(picture, star, starPath(11), "teacher-star", tip, select, "teacher ");
    labels.push({ x: star.px, y: star.py, text: `${star.name}  ${star.label}`, prefer: [-1, -1], strong: true });
  }
  const isBig = (point) => point.winner !== undefined || point === data.front[data.best];
  for (const point of [...data.front.filter((p) => !isBig(p)), ...data.front.filter(isBig)]) {
    const big = isBig(point), strong = point === data.front[data.best];
    addMark(picture, point, circlePath(big ? 7.5 : crowded ? 3 : 4.5), "front-point", tip, select, "");
    const label = { x: point.px, y: point.fy, text: `${point.winner === undefined ? "best" : `winner ${point.winner}`}  ${point.fittedLabel || point.label}`, prefer: [-1, 1], strong };
    if (strong) labels.unshift(label); else if (big) labels.push(label);
  }
  data.baselines.forEach((point, i) => {
    place(point);
    addMark(picture, point, MARKS[MARK_NAMES[i % 5]](5.5), `mark b${i % 5}`, tip, select, "baseline ");
    labels.unshift({ x: point.px, y: point.py, text: `${point.row === undefined ? "" : "↑ "}${point.name}  ${point.label}`, prefer: [1, 0] });
  });
  const line = data.teacher ? [...Array(Math.ceil(width / 24)).keys()].map((i) => ({ px: i * 24, py: data.teacher.py })) : [];
  const along = data.front.slice(1).flatMap((end, i) => {
    const start = data.front[i], count = Math.ceil(Math.hypot(end.px - start.px, end.py - start.py) / 24);
    return [...Array(count).keys()].map((n) => ({ px: start.px + ((end.px - start.px) * n) / count, py: start.py + ((end.py - start.py) * n) / count }));
  });
  const covered = [...along, ...fitted.map((point) => ({ px: point.px, py: point.fy }))];
  const solid = [...data.front, ...data.baselines, ...(data.teacher ? [data.teacher] : [])];
  const frame = { x: box.left, y: box.top, w: width - box.left, h: box.bottom - box.top };
  drawLabels(picture, labels, [...solid, ...data.candidates, ...line, ...covered], frame);
  if (chosen && chosen.px !== undefined) svg("path", { d: circlePath(11), transform: `translate(${chosen.px} ${chosen.py})`, class: "chosen" }, picture);
  // The front first, so that it is what a pointer finds where points crowd.
  return [...solid, ...data.candidates];
}

function drawFrontLegend(holder, data) {
  holder.replaceChildren();
  const entry = (name, draw) => {
    const item = html("span", holder);
    draw(svg("svg", { viewBox: "0 0 22 16" }, item));
    html("span", item, name);
  };
  const mark = (path, name) => (parent) => svg("path", { d: path, transform: "translate(11 8)", class: name }, parent);
  if (data.front.length) entry("front", (p) => { svg("path", { d: "M0 8H22", class: "front-line" }, p); mark(circlePath(4.5), "front-point")(p); });
  if (data.front.some((point) => point.fitted !== undefined)) entry("weights fitted, as exported", mark(circlePath(5), "fitted-point"));
  if (data.candidates.length) entry("candidates", mark(circlePath(3), "cand"));
  if (data.teacher) entry("teacher", mark(starPath(8), "teacher-star"));
  data.baselines.forEach((point, i) => entry(point.name, mark(MARKS[MARK_NAMES[i % 5]](5), `mark b${i % 5}`)));
  if (data.budget) entry("budget", (p) => svg("rect", { x: 0, y: 1, width: 22, height: 14, class: "zone" }, p));
}

// The model selected in each front, and who draws its layers.
const chosenIn = {}, onChoice = {};

FIGURES.front = (root, data) => {
  const key = root.dataset.figure;
  const legend = html("div", root, null, { class: "legend", "aria-hidden": "true" });
  const holder = html("div", root, null, { class: "chart" });
  const notes = [];
  if (data.candidatesNote) notes.push("The front, the teacher and the baselines are shown on held-out text, the other candidates on the calibration text that the search measures on (a part of it where they were given up early).");
  if (data.numAbove) notes.push(data.numAbove === 1 ? "One candidate of higher perplexity is above the picture." : `${data.numAbove} candidates of higher perplexity are above the picture.`);
  if (data.numLeftOut) notes.push(`${data.numLeftOut} of ${data.numLeftOut + data.candidates.length} candidates are left out of the picture, evenly.`);
  if (notes.length) html("p", root, notes.join(" "), { class: "small" });
  let points = [];
  chosenIn[key] = data.best === null ? data.front[0] || null : data.front[data.best];
  const tip = makeTip(holder, data);
  const draw = () => { points = drawFront(holder, data, tip, select, chosenIn[key]); };
  function select(point) {
    if (!point.shape) return;
    chosenIn[key] = point;
    const focused = [...holder.querySelectorAll("[tabindex]")].indexOf(document.activeElement);
    draw();
    if (focused >= 0) holder.querySelectorAll("[tabindex]")[focused].focus();
    (onChoice[key] || []).forEach((tell) => tell());
  }
  (onChoice[key] ||= []).push(draw);
  followPoints(holder, () => points, tip, select);
  drawFrontLegend(legend, data);
  return () => { tip.hide(); draw(); };
};
