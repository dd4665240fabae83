// Ties the two pictures together and redraws them when the width changes.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const panels = [["tokens", "Tokens trained on"], ["flops", "FLOPs in all"]].map(([key, label]) => {
    const holder = $(`curves-${key}`);
    return { key, label, holder, tip: makeTip(holder, data), points: [] };
  });
  let shownWidth = 0;
  function drawAll() {
    if (document.documentElement.clientWidth === shownWidth) return;
    shownWidth = document.documentElement.clientWidth;
    $("curves-section").hidden = !data.curves.length;
    if (!data.curves.length) return;
    drawCurveLegend($("curves-legend"), data);
    for (const panel of panels) { panel.tip.hide(); panel.points = drawCurves(panel.holder, data, panel.key, panel.label); }
  }
  for (const panel of panels) {
    const pointed = (event) => { const point = nearestPoint(panel.holder, panel.points, event); if (point) panel.tip.show(point); else panel.tip.hide(); };
    panel.holder.addEventListener("pointermove", pointed);
    panel.holder.addEventListener("pointerdown", pointed);
    panel.holder.addEventListener("pointerleave", panel.tip.hide);
  }
  setUpCopying();
  addEventListener("resize", drawAll);
  drawAll();
})();
