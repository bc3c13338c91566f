/* The table of rules, by any of its properties. Without this script it is a plain table. */
(function () {
  "use strict";
  function set_up() {
    const table = document.getElementById("table-of-rules");
    if (!table || table.dataset.ready) return;
    table.dataset.ready = "yes";
    const rows = Array.from(table.tBodies[0].rows);
    const heads = Array.from(table.tHead.rows[0].cells);
    const at = Object.fromEntries(heads.map((cell, i) => [cell.textContent, i]));
    const text = (row, name) => row.cells[at[name]].textContent.trim();
    const bar = document.createElement("form");
    const told = document.createElement("output");
    bar.className = "find";
    const wanted = [];

    function field(label, input, holds) {
      const box = document.createElement("label");
      box.append(label + " ", input);
      bar.append(box);
      wanted.push((row) => input.value === "" || holds(row, input.value));
      input.addEventListener("input", show);
    }
    function choice(options) {
      const select = document.createElement("select");
      [["", "any"], ...options].forEach(([value, words]) => select.add(new Option(words, value)));
      return select;
    }
    function typed(type, hint) {
      const input = document.createElement("input");
      input.type = type;
      input.placeholder = hint;
      return input;
    }
    function show() {
      let many = 0;
      rows.forEach((row) => {
        row.hidden = !wanted.every((holds) => holds(row));
        many += row.hidden ? 0 : 1;
      });
      told.textContent = many + " of " + rows.length;
    }

    const values = (name) => [...new Set(rows.map((row) => text(row, name)))].filter(Boolean).sort();
    field("words", typed("search", "name, paper, …"), (row, value) =>
      row.textContent.toLowerCase().includes(value.toLowerCase()));
    field("kind", choice(values("kind").map((kind) => [kind, kind])), (row, value) => text(row, "kind") === value);
    field("bytes at most", choice(["0", "1", "4", "8", "12", "16"].map((n) => [n, n])), (row, value) =>
      Number(text(row, "bytes")) <= Number(value));
    field("matrices", choice([["only", "only matrices"], ["whole", "whole tensors"], ["-", "neither"]]), (row, value) =>
      (text(row, "matrices") || "-") === value);
    field("closure", choice([["yes", "needs one"], ["-", "needs none"]]), (row, value) =>
      (text(row, "closure") || "-") === value);
    field("year from", typed("number", "2020"), (row, value) => Number(text(row, "year")) >= Number(value));
    bar.append(told);
    bar.addEventListener("submit", (event) => event.preventDefault());
    table.closest(".found-table").before(bar);

    heads.forEach((cell, i) => {
      const button = document.createElement("button");
      button.textContent = cell.textContent;
      button.title = "sort";
      cell.replaceChildren(button);
      let down = false;
      button.addEventListener("click", () => {
        const number = (row) => Number(row.cells[i].textContent || "nan");
        const numbers = rows.some((row) => !Number.isNaN(number(row)));
        rows.sort((a, b) => (numbers ? (number(a) || 0) - (number(b) || 0)
          : a.cells[i].textContent.localeCompare(b.cells[i].textContent)) * (down ? -1 : 1));
        down = !down;
        table.tBodies[0].append(...rows);
      });
    });
    show();
  }
  if (window.document$) window.document$.subscribe(set_up);
  else document.addEventListener("DOMContentLoaded", set_up);
})();
