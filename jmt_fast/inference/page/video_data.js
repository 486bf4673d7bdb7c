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
