// What pictures of points share: labels that cover little, the point under the pointer, and its tooltip.
const REACH_PIXELS = 20;

function overlap(a, b) {
  const wide = Math.min(a.x + a.w, b.x + b.w) - Math.max(a.x, b.x), high = Math.min(a.y + a.h, b.y + b.h) - Math.max(a.y, b.y);
  return wide > 0 && high > 0 ? wide * high : 0;
}

// Put each label where it covers least: other labels, the frame's edge, points.
function placeLabel(label, placed, points, frame) {
  let best = null;
  for (const gap of [11, 19, 30, 46, 66]) {
    for (const [dx, dy] of [[1, 0], [1, -1], [1, 1], [-1, 0], [-1, -1], [-1, 1], [0, -1], [0, 1]]) {
      const reach = dx && dy ? gap * 0.75 : gap, w = label.w, h = 17;
      const x = label.x + (dx > 0 ? reach : dx < 0 ? -reach - w : -w / 2), y = label.y + (dy > 0 ? reach : dy < 0 ? -reach - h : -h / 2);
      const box = { x, y, w, h };
      let cost = gap * 0.6 + 3 * (Math.abs(dx - label.prefer[0]) + Math.abs(dy - label.prefer[1]));
      cost += 3 * (w * h - overlap(box, frame));
      for (const other of placed) cost += 2 * overlap(box, other);
      for (const p of points) if (p.px > x - 3 && p.px < x + w + 3 && p.py > y - 3 && p.py < y + h + 3) cost += 40;
      if (!best || cost < best.cost) best = { cost, ...box };
    }
  }
  return best;
}

function drawLabels(picture, wanted, points, frame) {
  const placed = [];
  for (const label of wanted) {
    const text = svg("text", { class: `label ${label.strong ? "strong" : ""}` }, picture, label.text);
    const box = placeLabel({ ...label, w: text.getComputedTextLength() }, placed, points, frame);
    text.setAttribute("x", box.x);
    text.setAttribute("y", box.y + 13);
    placed.push(box);
    const nx = Math.min(Math.max(label.x, box.x), box.x + box.w), ny = Math.min(Math.max(label.y, box.y), box.y + box.h);
    if (Math.hypot(nx - label.x, ny - label.y) > 24) {
      picture.insertBefore(svg("line", { x1: label.x, y1: label.y, x2: nx, y2: ny, class: "leader" }), text);
    }
  }
}

// Facts of many points are made when they are asked for, not kept in the page.
function factsOf(point) { return typeof point.facts === "function" ? point.facts() : point.facts; }

function makeTip(holder, data) {
  const tip = html("div", holder, null, { class: "tip", "aria-hidden": "true" });
  tip.hidden = true;
  const hide = () => { tip.hidden = true; };
  const show = (point) => {
    tip.replaceChildren();
    html("b", tip, point.name);
    for (const fact of factsOf(point)) html("span", tip, fact);
    if (point.shape) {
      const small = svg("svg", { viewBox: "0 0 236 78" }, tip);
      [["heads", 4], ["neurons", 44]].forEach(([key, top]) => {
        svg("text", { x: 0, y: top + 8 }, small, key);
        layerBars(small, point.shape, point.teacherShape || data.teacherShape, key, { left: 58, right: 236, top, bottom: top + 30 });
      });
    }
    tip.hidden = false;
    const ratio = holder.clientWidth / holder.querySelector("svg.main").viewBox.baseVal.width;
    const left = Math.min(Math.max(point.px * ratio - tip.offsetWidth / 2, 0), holder.clientWidth - tip.offsetWidth);
    const above = point.py * ratio - tip.offsetHeight - 14;
    tip.style.left = `${Math.max(left, 0)}px`;
    tip.style.top = `${above > -60 ? above : point.py * ratio + 16}px`;
  };
  return { show, hide };
}

function nearestPoint(holder, points, event) {
  const picture = holder.querySelector("svg.main"), frame = picture.getBoundingClientRect();
  const ratio = picture.viewBox.baseVal.width / frame.width;
  const px = (event.clientX - frame.left) * ratio, py = (event.clientY - frame.top) * ratio;
  let best = null, least = REACH_PIXELS;
  for (const point of points) {
    const far = Math.hypot(point.px - px, point.py - py);
    if (far < least - 0.5) { best = point; least = far; }
  }
  return best;
}

// Pointer, touch and arrow keys on a picture of points. Left and right go along a line, up and down to another one.
function followPoints(holder, points, tip, select = null) {
  const said = html("p", holder, null, { class: "unseen", "aria-live": "polite" });
  let at = -1;
  const show = (point) => { tip.show(point); at = points().indexOf(point); };
  const pointed = (event) => { const point = nearestPoint(holder, points(), event); if (point) show(point); else tip.hide(); return point; };
  holder.addEventListener("pointermove", pointed);
  holder.addEventListener("pointerdown", pointed);
  holder.addEventListener("pointerleave", tip.hide);
  holder.addEventListener("click", (event) => { const point = pointed(event); if (point && select) { select(point); show(point); } });
  holder.addEventListener("keydown", (event) => {
    const all = points(), step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") { tip.hide(); return; }
    if (!step || !all.length || event.target !== holder) return;
    event.preventDefault();
    const line = at < 0 ? null : all[at].line;
    let next = at < 0 ? 0 : (at + step + all.length) % all.length;
    if (at >= 0 && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      for (let tries = 0; tries < all.length && all[next].line === line; tries += 1) next = (next + step + all.length) % all.length;
    }
    show(all[next]);
    said.textContent = `${all[next].name}: ${factsOf(all[next]).join("; ")}`;
  });
  holder.addEventListener("blur", tip.hide);
}

function focusable(holder, label) {
  holder.tabIndex = 0;
  holder.setAttribute("role", "group");
  holder.setAttribute("aria-label", label);
}
