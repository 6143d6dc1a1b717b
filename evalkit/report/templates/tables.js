"use strict";
// Tables: a heading sorts, a third click restores the order; a field filters.
for (const section of document.querySelectorAll("section.table")) {
  const body = section.querySelector("tbody"), rows = [...body.rows], heads = [...section.querySelectorAll("thead th")];
  const units = []; // a row, and the rows that only add to it
  for (const row of rows) row.classList.contains("detail") ? units.at(-1).push(row) : units.push([row]);
  const value = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.number !== undefined ? Number(cell.dataset.number) : cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, "en", { numeric: true });
  };
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const was = head.getAttribute("aria-sort");
    const order = was === null ? "descending" : was === "descending" ? "ascending" : null;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    if (order) head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const empty = (row) => { const v = value(row, i); return v === "" || v === "-"; };
    const sorted = order ? [...units].sort(([a], [b]) => empty(a) - empty(b) || sign * compare(value(a, i), value(b, i))) : units;
    body.append(...sorted.flat());
  }));
  section.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const unit of units) {
      const text = unit[0].textContent.toLowerCase();
      for (const row of unit) row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
