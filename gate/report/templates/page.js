
"use strict";
(() => {
  // More rows than these are shown only when they are asked for: a browser lays out a long table slowly.
  const FEW = 300;
  const tables = new Map();
  for (const table of document.querySelectorAll("table[id]")) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
    const count = document.querySelector(`[data-count="${table.id}"]`);
    const more = document.querySelector(`[data-all="${table.id}"]`);
    const state = { body, rows, words: "", every: false };
    state.show = () => {
      let matched = 0, shown = 0;
      for (const each of rows) {
        const fits = each.text.includes(state.words);
        matched += fits;
        const visible = fits && (state.every || matched <= FEW);
        shown += visible;
        if (each.row.hidden === visible) each.row.hidden = !visible;
      }
      if (count) count.textContent = `${shown} of ${rows.length} shown`;
      if (more) more.hidden = shown === matched;
    };
    tables.set(table.id, state);
    state.show();
    table.tHead.addEventListener("click", (event) => {
      const head = event.target.closest("th");
      if (!head || !event.target.closest("button")) return;
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = ({ row }) => {
        const cell = row.cells[head.cellIndex];
        return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
      };
      const sign = descending ? -1 : 1;
      rows.sort((a, b) => {
        const left = value(a), right = value(b);
        return sign * (typeof left === "number" ? left - right : left.localeCompare(right));
      });
      body.append(...rows.map((each) => each.row));
      state.show();
    });
    if (more) more.addEventListener("click", () => { state.every = true; state.show(); });
  }
  for (const input of document.querySelectorAll("[data-filters]")) {
    input.addEventListener("input", () => {
      const state = tables.get(input.dataset.filters);
      state.words = input.value.trim().toLowerCase();
      state.show();
    });
  }
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    target.hidden = false;
    target.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
