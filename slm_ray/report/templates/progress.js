// Hypervolume of the front against what was spent.
function drawProgress(holder, progress, key, label) {
  const height = 260;
  const { picture, width } = canvas(holder, height, `Hypervolume against ${label}: from ${progress.values[0].toPrecision(3)} to ${progress.values.at(-1).toPrecision(3)}`);
  const box = { left: 46, right: width - 14, top: 30, bottom: height - 50 };
  const x = scale(progress[key], box.left, box.right), y = scale(progress.value, box.bottom, box.top);
  drawAxes(picture, box, x, y, progress[key].ticks, progress.value.ticks, label, "Hypervolume");
  const points = progress.values.map((value, i) => [x(progress[key].at[i]), y(value)]);
  svg("path", { d: points.map(([px, py], i) => (i ? `H${px}V${py}` : `M${px} ${py}`)).join(""), class: "hv-line" }, picture);
  points.forEach(([px, py], i) => {
    const dot = svg("circle", { cx: px, cy: py, r: points.length > 60 ? 2 : 3.5, class: "front-point" }, picture);
    svg("title", {}, dot, `${progress.evaluations.at[i]} evaluations, ${progress.seconds.at[i].toFixed(0)} s: ${progress.values[i].toPrecision(4)}`);
  });
}

FIGURES.progress = (root, data) => {
  const pair = html("div", root, null, { class: "pair" });
  const parts = [["evaluations", "Evaluations"], ["seconds", "Seconds of search"]].map(([key, label]) => [html("div", pair, null, { class: "chart" }), key, label]);
  return () => parts.forEach(([holder, key, label]) => drawProgress(holder, data, key, label));
};
