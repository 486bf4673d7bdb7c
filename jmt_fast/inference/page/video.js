"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const video = $("video");
const DIMENSIONS = ["valence", "arousal"];
const AXIS = 46, TRAIL = 2, CLOUD = 3000, NEAR = 0.001, STRIP = 14;
const STEPS = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];

/* ---- the numbers: base64 of little-endian integers, see page/__init__.py ---- */
function bytes(text) {
  const raw = atob(text), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}
const times = Array.from(new Uint32Array(bytes(data.times).buffer), (tick) => data.begin + tick * data.tick);
const people = data.people.map((person, index) => {
  const seen = new Uint8Array(times.length).fill(1);
  for (const [first, after] of person.away) seen.fill(0, first, after);
  const before = new Uint32Array(times.length + 1); // frames that are seen before each
  seen.forEach((yes, i) => { before[i + 1] = before[i] + yes; });
  const series = (text) => Array.from(new Int16Array(bytes(text).buffer), (v, i) => (seen[i] ? v / data.scale : null));
  return { name: person.name, index, seen, before, shown: true,
           valence: series(person.valence), arousal: series(person.arousal) };
});
const alone = people.length === 1;
const begin = times[0], end = data.end;

/* ---- helpers ---- */
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (person, dimension) => css(alone ? `--${dimension}` : `--p${person.index % 6}`);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);
function clock(seconds, digits = 1) {
  const sign = seconds < 0 ? "\u2212" : "", unit = 10 ** digits, all = Math.round(Math.abs(seconds) * unit);
  const whole = Math.floor(all / unit), pad = (n) => String(n).padStart(2, "0"), hours = Math.floor(whole / 3600);
  const rest = digits ? "." + String(all % unit).padStart(digits, "0") : "";
  return sign + (hours ? `${hours}:${pad(Math.floor(whole / 60) % 60)}` : Math.floor(whole / 60)) + `:${pad(whole % 60)}${rest}`;
}
/** Index of the frame on show at a time: the last one that has begun. */
function frameAt(time) {
  let low = 0, high = times.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= time + NEAR / 2) low = middle; else high = middle - 1;
  }
  return low;
}
const said = (person, index) =>
  person.seen[index] ? `V ${signed(person.valence[index])}  A ${signed(person.arousal[index])}` : "no face";

/* ---- time: `now` is the truth, the video follows it or, when it plays, leads it ----
   Browsers count on the container's clock, as the traces do, also where the video begins late on it. */
let now = begin, wanted = null, playable = false, running = null;
const toMedia = (time) => Math.max(time, 0) + NEAR; // a little behind a frame's begin, so that rounding does not show the one before
const playing = () => (playable ? !video.paused : running !== null);

function seek(time) {
  now = clamp(time, begin, end);
  if (running !== null) running = performance.now() / 1000 - now;
  wanted = now;
  if (playable && !video.seeking) video.currentTime = toMedia(now);
  if (!playable) wanted = null;
  reveal();
  show();
}
video.addEventListener("seeked", () => {
  if (wanted !== null && Math.abs(video.currentTime - toMedia(wanted)) > NEAR) video.currentTime = toMedia(wanted);
  else wanted = null;
});
for (const event of ["seeking", "timeupdate"]) {
  video.addEventListener(event, () => { // the video's own controls
    if (wanted === null && Math.abs(video.currentTime - now) > 2 * NEAR) {
      now = clamp(video.currentTime, begin, end); show();
    }
  });
}
function toggle() {
  if (playable) {
    if (video.paused) video.play().catch(() => {}); else video.pause();
    return;
  }
  if (running === null && now >= end) now = begin;
  running = running === null ? performance.now() / 1000 - now : null;
  state();
}
function tickOn() {
  if (playable && !video.paused && wanted === null) now = clamp(video.currentTime, begin, end);
  if (running !== null) {
    const rate = Number($("speed").value), at = performance.now() / 1000;
    now = Math.min(now + (at - running - now) * rate, end);
    running = at - now;
    if (now >= end) running = null;
  }
  if (playing()) { follow(); show(); requestAnimationFrame(tickOn); } else { show(); state(); }
}
function state() {
  $("play").textContent = playing() ? "\u275a\u275a" : "\u25b6";
  $("play").setAttribute("aria-label", playing() ? "Pause" : "Play");
  if (playing()) requestAnimationFrame(tickOn);
}
video.addEventListener("play", state);
video.addEventListener("pause", state);

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

/* ---- the plane ---- */
const plane = $("plane").querySelector("canvas");
let backdrop = null;
function planeGeometry() {
  const width = plane.clientWidth, height = plane.clientHeight, size = Math.min(width, height) - 52;
  const left = (width - size) / 2, top = (height - size) / 2 - 2;
  return { width, height, size, left, top, x: (v) => left + ((v + 1) / 2) * size, y: (a) => top + ((1 - a) / 2) * size };
}
function drawBackdrop() {
  backdrop = document.createElement("canvas");
  const g = planeGeometry(), c = canvasOf(backdrop, g.width, g.height), middle = (n) => n + g.size / 2;
  c.strokeStyle = line(); c.strokeRect(g.left, g.top, g.size, g.size);
  c.strokeStyle = soft(); c.globalAlpha = 0.5; c.beginPath();
  c.moveTo(g.left, middle(g.top)); c.lineTo(g.left + g.size, middle(g.top));
  c.moveTo(middle(g.left), g.top); c.lineTo(middle(g.left), g.top + g.size); c.stroke();
  c.globalAlpha = 0.16;
  const step = Math.max(1, Math.floor(times.length / CLOUD));
  for (const person of people.filter((each) => each.shown)) {
    c.fillStyle = alone ? css("--accent") : colour(person);
    for (let i = 0; i < times.length; i += step) {
      if (person.seen[i]) c.fillRect(g.x(person.valence[i]) - 1, g.y(person.arousal[i]) - 1, 2, 2);
    }
  }
  c.globalAlpha = 1; c.fillStyle = soft(); c.font = "12px system-ui, sans-serif"; c.textAlign = "center";
  c.fillText("\u2212 valence +", middle(g.left), g.top + g.size + 17);
  c.save(); c.translate(g.left - 9, middle(g.top)); c.rotate(-Math.PI / 2); c.fillText("\u2212 arousal +", 0, 0); c.restore();
}
function drawPlane(index) {
  const g = planeGeometry(), c = canvasOf(plane, g.width, g.height);
  c.drawImage(backdrop, 0, 0, g.width, g.height);
  for (const person of people.filter((each) => each.shown)) {
    c.strokeStyle = c.fillStyle = alone ? css("--accent") : colour(person);
    c.lineWidth = 2; c.lineCap = "round";
    let first = index;
    while (first > 0 && times[index] - times[first - 1] <= TRAIL) first--;
    const step = Math.max(1, Math.floor((index - first) / 60));
    for (let i = index; i - step >= first; i -= step) {
      if (!person.seen[i] || !person.seen[i - step]) continue;
      c.globalAlpha = 0.7 * (1 - (times[index] - times[i]) / TRAIL);
      c.beginPath(); c.moveTo(g.x(person.valence[i]), g.y(person.arousal[i]));
      c.lineTo(g.x(person.valence[i - step]), g.y(person.arousal[i - step])); c.stroke();
    }
    c.globalAlpha = 1;
    if (!person.seen[index]) continue;
    c.beginPath(); c.arc(g.x(person.valence[index]), g.y(person.arousal[index]), 7, 0, 2 * Math.PI); c.fill();
    c.strokeStyle = css("--card"); c.stroke();
  }
}

/* ---- what is on show now ---- */
const readouts = people.map((person) => {
  const item = document.createElement("li"), button = document.createElement("button"), dot = document.createElement("i");
  const name = document.createElement("b"), text = document.createElement("span");
  name.textContent = person.name;
  button.append(dot, ...(alone ? [] : [name]), text);
  button.title = `Show or hide person ${person.name}`;
  button.addEventListener("click", () => showPerson(person));
  item.append(button);
  $("people").append(item);
  return { button, dot, text };
});
function showPerson(person) {
  if (alone) return;
  person.shown = !person.shown;
  for (const plot of charts) plot.setSeries(person.index + 1, { show: person.shown });
  drawBackdrop(); drawn();
}
function show() {
  if (!backdrop) return;
  const index = frameAt(now), over = charts[0].over;
  const x = charts[0].valToPos(now, "x");
  $("playhead").hidden = now < sight[0] - NEAR || now > sight[1] + NEAR;
  $("playhead").style.left = `${over.getBoundingClientRect().left - $("charts").getBoundingClientRect().left - $("charts").clientLeft + x}px`;
  $("clock").textContent = `${clock(now, 2)} / ${clock(end, 0)}`;
  people.forEach((person, i) => {
    readouts[i].text.textContent = said(person, index);
    readouts[i].button.setAttribute("aria-pressed", String(person.shown));
    readouts[i].dot.style.background = alone ? css("--accent") : colour(person);
  });
  drawPlane(index);
}
function layout() {
  if (!plane.clientWidth || !plane.clientHeight) return; // a window without a size, as one that is only just opening
  for (const [i, plot] of charts.entries()) {
    const width = $(DIMENSIONS[i]).clientWidth;
    if (width !== plot.width) plot.setSize({ width, height: plot.height });
  }
  drawBackdrop(); drawn();
}
new ResizeObserver(layout).observe(document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of charts) plot.redraw();
  layout();
});

/* ---- the video ---- */
function trouble(text) {
  playable = false;
  $("trouble").hidden = false;
  $("trouble").querySelector("p").textContent = text;
}
video.addEventListener("loadedmetadata", () => {
  playable = true; running = null; $("trouble").hidden = true;
  if (now > begin) seek(now);
  state();
});
video.addEventListener("error", () => trouble(
  `${data.video} cannot be played here: it was moved, or this browser lacks its codec. The charts work without it; ` +
  "jmt-fast report video --overlay writes an MP4 that every browser plays."));
$("trouble").querySelector("input").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) { video.src = URL.createObjectURL(file); video.load(); }
});
if (data.embedded) video.src = URL.createObjectURL(new Blob([bytes($("embedded").textContent)], { type: data.embedded }));
else if (data.url) video.src = data.url;
else trouble("The video is not linked. The charts work without it.");

/* ---- buttons and keys ---- */
const rates = Array.from($("speed").options, (option) => option.value);
function speed(value) { $("speed").value = value; video.playbackRate = Number(value); }
function frames(count) { seek(times[clamp(frameAt(now) + count, 0, times.length - 1)]); }
const KEYS = {
  " ": toggle, k: toggle, ",": () => frames(-1), ".": () => frames(1), Home: () => seek(begin), End: () => seek(end),
  "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => view(begin, end), m: () => { video.muted = !video.muted; },
  "<": () => speed(rates[Math.max(rates.indexOf($("speed").value) - 1, 0)]),
  ">": () => speed(rates[Math.min(rates.indexOf($("speed").value) + 1, rates.length - 1)]),
  ArrowLeft: (event) => seek(now - (event.shiftKey ? 10 : 1)), ArrowRight: (event) => seek(now + (event.shiftKey ? 10 : 1)),
  "?": () => $("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open || event.target.matches("select, input")) return;
  if (event.key === " " && event.target.matches("button")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const person = people[Number(key) - 1];
  const act = KEYS[key] || (person && (() => showPerson(person)));
  if (!act) return;
  event.preventDefault(); event.stopPropagation();
  act(event);
}, true);
$("play").addEventListener("click", toggle);
$("closer").addEventListener("click", () => zoom(0.5));
$("wider").addEventListener("click", () => zoom(2));
$("all").addEventListener("click", () => view(begin, end));
$("keys").addEventListener("click", () => $("help").showModal());
$("speed").addEventListener("change", () => speed($("speed").value));
$("charts").addEventListener("pointerleave", () => { $("tip").hidden = true; });
layout();
