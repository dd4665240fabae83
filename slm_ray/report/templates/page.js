"use strict";
// Draws every picture of the page with Vega when it comes into view, again when light and dark change.
(function () {
  const { pictures, palettes, config } = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const linked = new Map(); // link => views that share the chosen model

  function coloured(value, palette) {
    if (Array.isArray(value)) return value.map((inner) => coloured(inner, palette));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, key === "datasets" ? inner : coloured(inner, palette)]));
    }
    return typeof value === "string" && value in palette ? palette[value] : value;
  }

  // All text goes in as text, never as markup.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  function showTip(handler, event, item, value) {
    const lines = value ? String(value.tip ?? value).split("\n").filter(Boolean) : [];
    tip.hidden = !lines.length;
    if (tip.hidden) return;
    tip.replaceChildren(...lines.map((line, i) => {
      const part = document.createElement(i ? "span" : "b");
      part.textContent = line;
      return part;
    }));
    const left = Math.min(Math.max(event.clientX - tip.offsetWidth / 2, 4), innerWidth - tip.offsetWidth - 4);
    const above = event.clientY - tip.offsetHeight - 14;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 0 ? above : event.clientY + 18) + scrollY}px`;
  }

  function signalOf(view, name) { try { return view.signal(name); } catch { return undefined; } }

  function share(views, from, name, value) {
    for (const view of views) if (view !== from && signalOf(view, name) !== undefined && view.signal(name) !== value) view.signal(name, value).runAsync();
  }

  function link(views, view) {
    views.push(view);
    if (signalOf(view, "model") !== undefined) view.addSignalListener("model", (_, value) => share(views, view, "model", value));
    else view.addEventListener("click", (_, item) => { if (item && item.datum && item.datum.model) share(views, view, "model", item.datum.model); });
    try {
      view.addDataListener("chosen_store", (_, rows) => views.forEach((other) => {
        if (other === view) return;
        try { if (JSON.stringify(other.data("chosen_store")) !== JSON.stringify(rows)) other.data("chosen_store", rows.map((row) => ({ ...row }))).runAsync(); } catch { /* it has none */ }
      }));
    } catch { /* nothing can be chosen in it */ }
  }

  async function draw(root) {
    const palette = palettes[dark.matches ? "dark" : "light"], views = linked.get(root.dataset.link) || [];
    linked.set(root.dataset.link, views);
    const narrow = root.clientWidth < 560;
    for (const [i, holder] of [...root.querySelectorAll(".chart")].entries()) {
      const { views: specs, rows } = pictures[root.dataset.figure], spec = coloured(specs[i], palette);
      for (const [name, key] of Object.entries(specs[i].datasets)) spec.datasets = { ...spec.datasets, [name]: rows[key] };
      spec.config = coloured(config, palette);
      spec.config.font = getComputedStyle(document.body).fontFamily;
      if (narrow) spec.config.axis.labelLimit = 110;
      const done = await vegaEmbed(holder, spec, { actions: false, renderer: "svg", ast: true, tooltip: showTip });
      holder.vegaView = done.view;
      link(views, done.view);
    }
  }

  const figures = [...document.querySelectorAll("[data-figure]")];
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) { seen.unobserve(target); draw(target); }
  }, { rootMargin: "400px" });
  figures.forEach((figure) => seen.observe(figure));
  dark.addEventListener("change", () => {
    linked.clear();
    figures.filter((figure) => figure.querySelector("svg")).forEach(draw);
  });
  addEventListener("beforeprint", () => figures.forEach((figure) => { seen.unobserve(figure); if (!figure.querySelector("svg")) draw(figure); }));

  // A link to a folded part opens it.
  const open = () => {
    const part = document.getElementById(location.hash.slice(1));
    if (part && part.tagName === "DETAILS") { part.open = true; part.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => {
    const text = button.parentElement.querySelector("code");
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    // Files opened from a disk may have no clipboard; then the text is selected for the reader to copy.
    const fallback = () => getSelection().selectAllChildren(text);
    if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(done, fallback); else fallback();
  }));
  open();
})();
