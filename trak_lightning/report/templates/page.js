"use strict";
(() => {
  const list = document.getElementById("target-list");
  const cards = Array.from(list.children);
  const search = document.getElementById("search");
  const sort = document.getElementById("sort");
  const wrong = document.getElementById("wrong");
  const count = document.getElementById("count");

  const text = new Map(cards.map((card) => [card, card.dataset.search.toLocaleLowerCase()]));

  function matches(card) {
    const words = search.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const found = words.every((word) =>
      /^#\d+$/.test(word) ? card.dataset.index === word.slice(1) : text.get(card).includes(word));
    return found && !(wrong && wrong.checked && card.dataset.wrong !== "1");
  }

  function filter() {
    let shown = 0;
    for (const card of cards) {
      card.hidden = !matches(card);
      shown += card.hidden ? 0 : 1;
    }
    count.textContent = shown === cards.length ? "" : `${shown} of ${cards.length} targets`;
    document.getElementById("nothing").hidden = shown > 0;
  }

  function order() {
    const descending = sort.value.startsWith("-");
    const key = sort.value.replace("-", "");
    const value = (card) => Number(card.dataset[key]);
    const sorted = [...cards].sort((a, b) => (descending ? value(b) - value(a) : value(a) - value(b)));
    list.append(...sorted);
  }

  search.addEventListener("input", filter);
  sort.addEventListener("change", order);
  if (wrong) wrong.addEventListener("change", filter);
  document.querySelector(".controls").hidden = false;
  filter();

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      if (column === 0) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") !== "descending";
        const value = (row) => row.cells[column].dataset.value;
        const compare = (a, b) => value(a) === undefined
          ? a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, {numeric: true})
          : Number(value(a)) - Number(value(b));
        const rows = Array.from(body.rows).sort((a, b) => (descending ? compare(b, a) : compare(a, b)));
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        body.append(...rows);
      });
    });
  }
})();
