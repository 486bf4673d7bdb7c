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
