// One model's layers against the teacher's.
function layerRow(shape, teacher, layer) {
  const at = shape.layers.indexOf(layer), of = teacher ? teacher.layers.indexOf(layer) : -1;
  const part = (key) => {
    const mine = at < 0 ? 0 : shape[key][at];
    return of < 0 ? `${mine}` : `${mine} of ${teacher[key][of]}`;
  };
  return { heads: part("heads"), kv: part("kv"), neurons: part("neurons"), cut: at < 0 };
}

function drawShape(holder, point, teacher) {
  const narrow = holder.clientWidth < 560, height = narrow ? 300 : 330, shape = point.shape;
  const { picture, width } = canvas(holder, height, `Heads and neurons of each layer of ${point.name}. ${point.facts.join("; ")}`);
  const rows = [["heads", "Attention heads", 26, 130], ["neurons", "MLP neurons", 178, height - 44]];
  for (const [key, title, top, bottom] of rows) {
    const box = { left: 46, right: width - 4, top, bottom };
    svg("text", { x: 0, y: top - 12 }, picture, title);
    const bars = layerBars(picture, shape, teacher, key, box);
    for (const [value, y] of [[bars.top, top], [0, bottom]]) {
      svg("text", { x: box.left - 8, y: y + 4, "text-anchor": "end" }, picture, `${value}`);
    }
    svg("line", { x1: box.left, x2: box.right, y1: bottom, y2: bottom, class: "base" }, picture);
    const every = [1, 2, 5, 10, 20].find((n) => n * bars.step >= 26) || 50;
    bars.layers.forEach((layer, i) => {
      const x = box.left + i * bars.step, row = layerRow(shape, teacher, layer);
      const cover = svg("rect", { x, y: top, width: bars.step, height: bottom - top, fill: "transparent" }, picture);
      svg("title", {}, cover, `layer ${layer}: ${row.cut ? "cut away" : `${row.heads} heads (${row.kv} key-value), ${row.neurons} neurons`}`);
      if (i % every === 0) svg("text", { x: x + bars.step / 2, y: bottom + 16, "text-anchor": "middle" }, picture, `${layer}`);
    });
  }
  svg("text", { x: (46 + width) / 2, y: height - 6, "text-anchor": "middle" }, picture, teacher ? "the teacher's layer" : "layer");
}

function drawShapeTable(holder, point, teacher) {
  holder.replaceChildren();
  const table = html("table", holder), head = html("tr", html("thead", table)), body = html("tbody", table);
  html("caption", table, `Layers of ${point.name}`);
  for (const title of ["layer", "heads", "key-value heads", "neurons"]) html("th", head, title, { scope: "col" });
  for (const layer of (teacher || point.shape).layers) {
    const row = layerRow(point.shape, teacher, layer), line = html("tr", body);
    html("td", line, `${layer}`);
    if (row.cut) html("td", line, "cut away", { colspan: 3 });
    else for (const key of ["heads", "kv", "neurons"]) html("td", line, row[key]);
  }
}

FIGURES.shape = (root, { of }, all) => {
  const data = all[of], choosable = [...data.front, ...data.baselines].filter((point) => point.shape);
  const line = html("p", root), id = `${of}-choice`;
  html("label", line, "Model", { for: id });
  line.append(" ");
  const choice = html("select", line, null, { id });
  choosable.forEach((point) => html("option", choice, point.name));
  const facts = html("p", root, null, { class: "small", "aria-live": "polite" });
  const chart = html("div", root, null, { class: "chart" });
  const fold = html("details", root);
  html("summary", fold, "These layers as a table");
  const table = html("div", fold, null, { class: "scroll", tabindex: 0, role: "region", "aria-label": "Layers" });
  function draw() {
    const chosen = chosenIn[of] && chosenIn[of].shape ? chosenIn[of] : choosable[0];
    if (!chosen) return;
    if (!choosable.includes(chosen)) { choosable.push(chosen); html("option", choice, chosen.name); }
    choice.selectedIndex = choosable.indexOf(chosen);
    facts.textContent = factsOf(chosen).join(" · ");
    drawShape(chart, chosen, data.teacherShape);
    drawShapeTable(table, chosen, data.teacherShape);
  }
  choice.addEventListener("change", () => { chosenIn[of] = choosable[choice.selectedIndex]; onChoice[of].forEach((tell) => tell()); });
  (onChoice[of] ||= []).push(draw);
  return draw;
};
