// Ties the pictures together: one selected model, redrawn when the width changes.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const holder = $("front-chart"), choice = $("shape-choice");
  let points = [], chosen = data.best === null ? data.front[0] || null : data.front[data.best], shownWidth = 0;
  const tip = makeTip(holder, data);
  const chosable = [...data.front, ...data.baselines].filter((point) => point.shape);

  function drawChosen() {
    $("shape-section").hidden = !(chosen && chosen.shape);
    if ($("shape-section").hidden) return;
    if (!chosable.includes(chosen)) { chosable.push(chosen); html("option", choice, chosen.name); }
    choice.selectedIndex = chosable.indexOf(chosen);
    $("shape-facts").textContent = chosen.facts.join(" · ");
    drawShape($("shape-chart"), chosen, data.teacherShape);
    drawShapeTable($("shape-table"), chosen, data.teacherShape);
  }
  function drawPicture() { points = drawFront(holder, data, tip, select, chosen); }
  function select(point) {
    if (!point.shape) return;
    chosen = point;
    const focused = [...holder.querySelectorAll("[tabindex]")].indexOf(document.activeElement);
    drawPicture();
    if (focused >= 0) holder.querySelectorAll("[tabindex]")[focused].focus();
    drawChosen();
  }
  function drawAll() {
    if (document.documentElement.clientWidth === shownWidth) return;
    shownWidth = document.documentElement.clientWidth;
    tip.hide();
    const some = data.front.length || data.candidates.length || data.baselines.length;
    $("front-section").hidden = !some;
    if (some) { drawLegend($("front-legend"), data); drawPicture(); }
    drawChosen();
    $("progress-section").hidden = !data.progress;
    if (data.progress) {
      drawProgress($("progress-evaluations"), data.progress, "evaluations", "Evaluations");
      drawProgress($("progress-seconds"), data.progress, "seconds", "Seconds of search");
    }
  }

  chosable.forEach((point) => html("option", choice, point.name));
  choice.addEventListener("change", () => select(chosable[choice.selectedIndex]));
  const pointed = (event) => { const point = nearestPoint(holder, points, event); if (point) tip.show(point); else tip.hide(); return point; };
  holder.addEventListener("pointermove", pointed);
  holder.addEventListener("pointerleave", tip.hide);
  holder.addEventListener("click", (event) => { const point = pointed(event); if (point) select(point); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hide(); });
  setUpCopying();
  const notes = [];
  if (data.candidatesNote) notes.push("The front, the teacher and the baselines are shown on held-out text, the other candidates on the calibration text that the search measures on (a part of it where they were given up early).");
  if (data.numAbove) notes.push(`${data.numAbove} candidates of higher perplexity are above the picture.`);
  $("front-note").textContent = notes.join(" ");
  addEventListener("resize", drawAll);
  drawAll();
})();
