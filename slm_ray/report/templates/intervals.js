// Values with their intervals, a row for each model under each title: scores of tasks, bits per byte, differences.
function modelMark(look, size = 4.6) {
  if (look === "first" || look === null) return circlePath(size);
  return look === "teacher" ? starPath(size * 1.7) : MARKS[MARK_NAMES[look % 5]](size);
}

function clipped(text, most) { return text.length > most ? `${text.slice(0, Math.max(most - 1, 1))}…` : text; }

function drawIntervals(holder, data) {
  const narrow = holder.clientWidth < 640, titleHigh = narrow ? 22 : 0, rowHigh = 16, gap = 14;
  const heights = data.groups.map((group) => titleHigh + Math.max(group.rows.length * rowHigh, 20) + gap);
  const height = 34 + heights.reduce((a, b) => a + b, 0) + 28;
  const { picture, width } = canvas(holder, height, "");
  picture.setAttribute("aria-hidden", "true");
  const box = { left: narrow ? 10 : Math.min(230, width * 0.28), right: width - 16, top: 30, bottom: height - 26 };
  const x = scale(data.x, box.left, box.right, data.log), places = [];
  const inside = (value) => Math.min(Math.max(x(value), box.left), box.right);
  for (const [value, label] of spaced(data.x.ticks, x, 52)) {
    svg("line", { x1: x(value), x2: x(value), y1: box.top - 4, y2: box.bottom, class: "grid" }, picture);
    svg("text", { x: x(value), y: box.bottom + 20, "text-anchor": "middle" }, picture, label);
    svg("text", { x: x(value), y: box.top - 12, "text-anchor": "middle" }, picture, label);
  }
  if (data.zero) svg("line", { x1: x(0), x2: x(0), y1: box.top - 4, y2: box.bottom, class: "zero" }, picture);
  let top = box.top;
  data.groups.forEach((group, index) => {
    if (index) svg("line", { x1: 0, x2: width, y1: top, y2: top, class: "base" }, picture);
    const first = top + gap / 2 + titleHigh, last = first + Math.max(group.rows.length * rowHigh, 20);
    const name = svg("text", narrow ? { x: 0, y: top + 20 } : { x: box.left - 14, y: (first + last) / 2 + 4, "text-anchor": "end" }, picture,
      clipped(group.name, Math.floor((narrow ? width : box.left - 16) / 7.2)));
    name.setAttribute("class", "row-name");
    svg("title", {}, name, group.name);
    if (group.chance !== null && group.chance !== undefined) {
      svg("line", { x1: x(group.chance), x2: x(group.chance), y1: first - 3, y2: last + 3, class: "chance" }, picture);
    }
    group.rows.forEach((row, i) => {
      const py = first + i * rowHigh + rowHigh / 2, tone = lookClass(row.look);
      if (row.low !== null) {
        svg("line", { x1: inside(row.low), x2: inside(row.high), y1: py, y2: py, class: `whisker ${tone}` }, picture);
        for (const end of [row.low, row.high]) {
          if (x(end) === inside(end)) svg("line", { x1: x(end), x2: x(end), y1: py - 3.5, y2: py + 3.5, class: `whisker ${tone}` }, picture);
        }
      }
      const px = inside(row.value), filled = row.hollow ? "hollow" : "";
      svg("path", { d: modelMark(row.look), transform: `translate(${px} ${py})`, class: `dot-mark ${tone} ${filled}` }, picture);
      places.push({ px, py, name: `${group.name}: ${row.name}`, facts: row.facts, line: group.name, reach: row.low === null ? null : [inside(row.low), inside(row.high)] });
    });
    top += heights[index];
  });
  svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "base" }, picture);
  return places;
}

function modelLegend(holder, models, more = []) {
  for (const model of models) {
    const item = html("span", holder), small = svg("svg", { viewBox: "0 0 22 16", "aria-hidden": "true" }, item);
    svg("path", { d: modelMark(model.look), transform: "translate(11 8)", class: `dot-mark ${lookClass(model.look)}` }, small);
    html("span", item, model.name);
  }
  for (const [name, kind] of more) {
    const item = html("span", holder), small = svg("svg", { viewBox: "0 0 22 16", "aria-hidden": "true" }, item);
    svg("line", { x1: 11, x2: 11, y1: 0, y2: 16, class: kind }, small);
    html("span", item, name);
  }
}

FIGURES.intervals = (root, data) => {
  html("p", root, data.label, { class: "panel-title" });
  const legend = html("div", root, null, { class: "legend" }), holder = html("div", root, null, { class: "chart" });
  const more = data.groups.some((group) => group.chance !== null && group.chance !== undefined) ? [["chance", "chance"]] : [];
  modelLegend(legend, data.models, more);
  focusable(holder, `${data.label}: ${data.groups.length} rows; arrow keys go from figure to figure`);
  const tip = makeTip(holder, data);
  let places = [];
  followPoints(holder, () => places, tip);
  return () => { tip.hide(); places = drawIntervals(holder, data); };
};
