/* ---- time: `now` is the truth, the video follows it or, when it plays, leads it ----
   Browsers count on the container's clock, as the traces do, also where the video begins late on it. */
let now = begin, wanted = null, asked = null, playable = false, running = null;
const toMedia = (time) => Math.max(time, 0) + NEAR; // a little behind a frame's begin, so that rounding does not show the one before
const playing = () => (playable ? !video.paused : running !== null);

function seek(time) {
  now = clamp(time, begin, end);
  if (running !== null) running = performance.now() / 1000 - now;
  wanted = now;
  if (!playable) wanted = null;
  else if (!video.seeking) ask();
  reveal();
  show();
}
function ask() {
  asked = wanted;
  video.currentTime = toMedia(asked);
}
video.addEventListener("seeked", () => {
  if (video.seeking) return; // on its way elsewhere already
  if (wanted !== asked) ask(); else wanted = null; // not by its time: one that plays has moved on
});
// A seek to the end that arrives while the video plays ends it, though it is wanted elsewhere by now.
video.addEventListener("ended", () => { if (wanted !== null && wanted < end) video.play().catch(() => {}); });
// Chromium may leave an older picture on a paused video's screen after quick seeks, unless its frames are listened to.
const listen = () => video.requestVideoFrameCallback?.(listen);
listen();
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
