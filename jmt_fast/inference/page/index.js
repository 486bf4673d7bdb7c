"use strict";
const body = document.querySelector("#videos tbody");
const heads = Array.from(document.querySelectorAll("#videos th"));
const names = new Intl.Collator(undefined, { numeric: true });

for (const head of heads) {
  head.querySelector("button")?.addEventListener("click", () => {
    const column = heads.indexOf(head), number = head.classList.contains("number");
    const up = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") !== "ascending" : !number;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = number ? (a, b) => key(a) - key(b) : (a, b) => names.compare(key(a), key(b));
    body.append(...Array.from(body.rows).sort((a, b) => (up ? order(a, b) : order(b, a))));
  });
}
document.getElementById("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
});
