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
