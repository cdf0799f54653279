// Tables of executed cells: one header row, no empty header cells, and a frame that scrolls and takes the keyboard.
"use strict";

/** pandas prints the index's name in a header row of its own: move it into the first row. */
function mergeHeader(table) {
  const rows = table.tHead ? [...table.tHead.rows] : [];
  const name = rows.at(-1);
  if (rows.length >= 2 && [...name.cells].some((c) => !c.innerText.trim())) {
    const above = rows.at(-2).cells;
    const fits = above.length === name.cells.length && [...name.cells].every(
      (cell, i) => !cell.innerText.trim() || !above[i].innerText.trim());
    if (fits) {
      [...name.cells].forEach((cell, i) => {
        if (cell.innerText.trim()) above[i].innerHTML = cell.innerHTML;
      });
      name.remove();
    }
  }
  for (const cell of table.querySelectorAll("th")) {
    if (cell.innerText.trim()) continue;
    const plain = document.createElement("td");
    plain.className = cell.className;
    plain.colSpan = cell.colSpan;
    plain.rowSpan = cell.rowSpan;
    cell.replaceWith(plain);
  }
}

/** A frame around each table; what scrolls sideways can be reached and named. */
function frameTables(article) {
  for (const table of article.querySelectorAll("table")) {
    mergeHeader(table);
    const frame = document.createElement("div");
    frame.className = "table-frame";
    table.replaceWith(frame);
    frame.append(table);
  }
}

function markScrolling(article) {
  const boxes = ".table-frame, pre, .cell_output, mjx-container[display='true'], div.math";
  for (const box of article.querySelectorAll(boxes)) {
    const wide = box.scrollWidth > box.clientWidth + 1;
    if (wide) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", box.matches(".table-frame") ? "table, scrolls sideways" : "scrolls sideways");
    } else if (box.getAttribute("role") === "group") {
      ["tabindex", "role", "aria-label"].forEach((name) => box.removeAttribute(name));
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector(".bd-article");
  if (!article) return;
  frameTables(article);
  const mark = () => markScrolling(article);
  window.addEventListener("load", mark);
  new ResizeObserver(mark).observe(article);
  article.addEventListener("toggle", mark, true);
  article.addEventListener("click", () => setTimeout(mark, 300)); // a folded cell was opened
});
