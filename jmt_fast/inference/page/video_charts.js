/* ---- charts ---- */
let sight = [begin, end];
const line = () => css("--line"), grid = () => css("--grid"), soft = () => css("--soft");
function chart(dimension, labelled) {
  const axis = { stroke: soft, grid: { stroke: grid, width: 1 }, ticks: { stroke: line, width: 1, size: 4 }, font: "12px system-ui" };
  const options = {
    width: $(dimension).clientWidth, height: labelled ? 164 : 138, padding: [6, 22, labelled ? 0 : 6, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: "all" }, points: { size: 6 } },
    scales: { x: { time: false, range: () => sight }, y: { range: [-1, 1] } },
    axes: [
      { ...axis, size: labelled ? 28 : 0, incrs: STEPS, values: (u, splits, i, space, step) =>
          labelled ? splits.map((s) => clock(s, step < 0.1 ? 2 : step < 1 ? 1 : 0)) : splits.map(() => ""), space: 70 },
      { ...axis, size: AXIS, gap: 4, splits: () => [-1, -0.5, 0, 0.5, 1],
        grid: { stroke: (u) => grid(), width: 1 }, values: (u, s) => s.map((v) => v === 0 ? "0" : (v < 0 ? "\u2212" : "+") + Math.abs(v)) },
    ],
    series: [{}, ...people.map((person) => ({ stroke: () => colour(person, dimension), width: 1.6, pxAlign: 0, points: { show: false } }))],
    hooks: { draw: [zero, ...(labelled ? [drawn] : [])], setCursor: [tip] },
  };
  const plot = new uPlot(options, [times, ...people.map((person) => person[dimension])], $(dimension));
  draggable(plot.over);
  return plot;
}
function zero(u) {
  const { ctx, bbox } = u, y = Math.round(u.valToPos(0, "y", true));
  ctx.save(); ctx.strokeStyle = soft(); ctx.globalAlpha = 0.5; ctx.beginPath();
  ctx.moveTo(bbox.left, y); ctx.lineTo(bbox.left + bbox.width, y); ctx.stroke(); ctx.restore();
}
function drawn() { // uPlot resizes and rescales later than it is told to: what goes by its measures waits for this
  if (backdrop) { drawStrips(); show(); }
}
const charts = DIMENSIONS.map((dimension, i) => chart(dimension, i === DIMENSIONS.length - 1));
const strips = people.map((person) => {
  const canvas = document.createElement("canvas");
  canvas.title = `${person.name}: where the face is seen`;
  $("strips").append(canvas);
  draggable(canvas);
  return canvas;
});
function canvasOf(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}
/** One bar a pixel, as high as the share of its frames in which the face is seen. */
function drawStrips() {
  const over = charts[0].over, width = over.clientWidth, [from, to] = sight;
  const edges = Array.from({ length: width + 1 }, (_, x) => frameAt(from + (x / width) * (to - from)));
  people.forEach((person, i) => {
    const canvas = strips[i], context = canvasOf(canvas, width, STRIP);
    canvas.hidden = !person.shown;
    canvas.style.width = `${width}px`;
    canvas.style.marginLeft = `${over.offsetLeft}px`;
    context.fillStyle = css("--away");
    context.fillRect(0, STRIP - 4, width, 4);
    context.fillStyle = alone ? css("--accent") : colour(person);
    for (let x = 0; x < width; x++) {
      const first = edges[x], after = Math.max(edges[x + 1], first + 1);
      const share = (person.before[after] - person.before[first]) / (after - first);
      context.fillRect(x, STRIP * (1 - share), 1, STRIP * share);
    }
  });
}
function view(from, to) {
  const whole = end - begin, least = Math.min(whole, 0.5), span = clamp(to - from, least, whole);
  from = clamp(from, begin, end - span);
  sight = [from, from + span];
  for (const plot of charts) plot.setScale("x", { min: sight[0], max: sight[1] });
}
function zoom(factor, middle = now) {
  const [from, to] = sight, left = (clamp(middle, from, to) - from) * factor;
  view(clamp(middle, from, to) - left, clamp(middle, from, to) - left + (to - from) * factor);
}
function follow() { // a page further when playing runs out of the picture
  const [from, to] = sight;
  if (now > to && to < end) view(now, now + to - from); else reveal();
}
function reveal() {
  const [from, to] = sight, span = to - from;
  if (now < from) view(now - span / 4, now + (3 * span) / 4); else if (now > to) view(now - (3 * span) / 4, now + span / 4);
}
function draggable(element) {
  let held = false, resume = false;
  const at = (event) => {
    const box = element.getBoundingClientRect();
    return sight[0] + ((event.clientX - box.left) / box.width) * (sight[1] - sight[0]);
  };
  const go = (event) => seek(clamp(at(event), sight[0], sight[1]));
  element.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held = true; resume = playing();
    element.setPointerCapture(event.pointerId);
    if (resume) toggle();
    go(event);
  });
  element.addEventListener("pointermove", (event) => held && go(event));
  for (const name of ["pointerup", "pointercancel"]) {
    element.addEventListener(name, () => { if (held && resume) toggle(); held = false; });
  }
  element.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, at(event));
  }, { passive: false });
}
function tip(u) {
  const { left, top, idx } = u.cursor, box = $("tip");
  if (left < 0 || idx === null || !u.over.matches(":hover")) { if (!document.querySelector(".u-over:hover")) box.hidden = true; return; }
  const rows = people.filter((person) => person.shown).map((person) => (alone ? "" : `${person.name}  `) + said(person, idx));
  box.textContent = [clock(times[idx], 2), ...rows].join("\n");
  box.hidden = false;
  const area = $("charts").getBoundingClientRect(), over = u.over.getBoundingClientRect(), x = over.left - area.left + left;
  box.style.left = `${x + box.offsetWidth + 16 > area.width ? x - box.offsetWidth - 12 : x + 12}px`;
  box.style.top = `${over.top - area.top + Math.max(top - 20, 0)}px`;
}
