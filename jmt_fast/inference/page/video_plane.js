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
