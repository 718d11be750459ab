"use strict";
// A click on the head of a column sorts the table by it; another click turns the order round.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const numeric = head.classList.contains("n");
    const key = (row) => {
      const cell = row.cells[column];
      return numeric ? Number.parseFloat(cell.dataset.value) : cell.textContent;
    };
    head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const compare = (a, b) => {
        if (!numeric) return sign * a.localeCompare(b, "en", { numeric: true });
        // What is no number stands at the end of both orders.
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return sign * (a - b);
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort((a, b) => compare(a[0], b[0]));
      for (const [, row] of rows) body.append(row);
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    });
  });
}
