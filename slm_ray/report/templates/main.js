// Draws every picture of the page, again when the width changes or when a folded part is opened.
(function () {
  const all = JSON.parse(document.getElementById("data").textContent);
  const figures = [...document.querySelectorAll("[data-figure]")].map((root) => ({
    root, draw: FIGURES[root.dataset.kind](root, all[root.dataset.figure], all), width: 0,
  }));
  function drawAll() {
    for (const figure of figures) {
      const width = figure.root.clientWidth;
      if (!width || width === figure.width) continue;
      figure.width = width;
      figure.draw();
    }
  }
  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", drawAll));
  // A link to a folded part opens it.
  const open = () => { const part = document.getElementById(location.hash.slice(1)); if (part && part.tagName === "DETAILS") { part.open = true; part.scrollIntoView(); } };
  addEventListener("hashchange", open);
  addEventListener("resize", drawAll);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") document.querySelectorAll(".tip").forEach((tip) => { tip.hidden = true; }); });
  setUpCopying();
  open();
  drawAll();
})();
