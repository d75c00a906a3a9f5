"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  const make = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  for (const hidden of all(".controls, .gallery .check")) hidden.hidden = false;

  function sorted(items, choice) {
    const key = choice.replace("-", "");
    const numbers = (a, b) => Number(a.dataset[key]) - Number(b.dataset[key]);
    const compare = (a, b) => numbers(a, b) || a.dataset[key].localeCompare(b.dataset[key], undefined, {numeric: true});
    const found = [...items].sort(key === "label" ? compare : numbers);
    return choice.startsWith("-") ? found.reverse() : found;
  }

  // Targets: search, filter, sort.
  const list = byId("target-list");
  const cards = Array.from(list.children);
  const text = new Map(cards.map((card) => [card, card.dataset.search.toLocaleLowerCase()]));

  function filter() {
    const wrong = byId("wrong");
    const words = byId("search").value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const found = words.every((word) =>
        /^#\d+$/.test(word) ? card.dataset.index === word.slice(1) : text.get(card).includes(word));
      card.hidden = !(found && !(wrong && wrong.checked && card.dataset.wrong !== "1"));
      shown += card.hidden ? 0 : 1;
    }
    byId("count").textContent = shown === cards.length ? "" : `${shown} of ${cards.length} targets`;
    byId("nothing").hidden = shown > 0;
  }
  byId("search").addEventListener("input", filter);
  byId("sort").addEventListener("change", (event) => list.append(...sorted(cards, event.target.value)));
  if (byId("wrong")) byId("wrong").addEventListener("change", filter);
  filter();

  // Suspects: mark and copy.
  const gallery = document.querySelector(".gallery");
  const markers = all(".marker");
  const marked = () => all(".marker:checked").map((box) => box.closest("li"));
  const count = () => { byId("marked").textContent = `${marked().length} of ${markers.length} marked`; };
  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

  function copy(lines) {
    byId("copied").value = lines.join("\n");
    byId("copied").parentElement.hidden = false;
    byId("copied").select();
    const said = () => { byId("marked").textContent = `${marked().length} copied`; };
    if (navigator.clipboard) navigator.clipboard.writeText(lines.join("\n")).then(said, () => document.execCommand("copy"));
    else if (document.execCommand("copy")) said();
  }
  gallery.addEventListener("change", count);
  byId("suspect-sort").addEventListener("change", (event) => gallery.append(...sorted(gallery.children, event.target.value)));
  byId("mark-all").addEventListener("click", () => {
    const every = markers.every((box) => box.checked);
    for (const box of markers) box.checked = !every;
    count();
  });
  byId("copy-indices").addEventListener("click", () => copy([`[${marked().map((each) => each.dataset.index).join(", ")}]`]));
  byId("copy-csv").addEventListener("click", () => copy(["index,label,says,why", ...marked().map(({dataset}) =>
    [dataset.index, dataset.label, dataset.says, dataset.why].map(quoted).join(","))]));
  count();

  // A training example: all targets that it helps and harms.
  const effects = JSON.parse(byId("effects").textContent);
  const signed = (value) => `${value < 0 ? "−" : "+"}${Number(Math.abs(value).toPrecision(2))}`;

  function onPage(index) {
    const places = all(`.examples li[data-train="${index}"]`).map((each) =>
      [Number(each.closest("article").dataset.index), Number(each.dataset.score), null]);
    return [places.filter((each) => each[1] > 0), places.filter((each) => each[1] < 0)];
  }

  function link([target, score, label]) {
    const there = byId(`target-${target}`);
    const name = `target #${target}${label === null ? "" : ` (${label})`}`;
    const node = there ? make("a", {href: `#target-${target}`}, name) : make("span", {}, name);
    if (there) node.addEventListener("click", () => { there.hidden = false; byId("detail").close(); });
    return make("li", {}, node, " ", make("span", {className: "score"}, signed(score)));
  }

  function open(index) {
    const source = document.querySelector(`li[data-train="${index}"]`);
    const sample = source.querySelector(".sample").cloneNode(true);
    sample.classList.replace("small", "large");
    sample.classList.remove("folded");
    const body = byId("detail-body");
    body.replaceChildren(sample);
    const suspect = byId(`suspect-${index}`);
    if (suspect) for (const each of all(".claim, .note", suspect)) body.append(each.cloneNode(true));
    else if (source.querySelector(".label")) body.append(make("p", {}, "labeled ", make("b", {}, source.querySelector(".label").lastChild.textContent)));
    const [helps, harms] = effects[index] || onPage(index);
    for (const [name, found, kind] of [[byId("detail").dataset.up, helps, "helpful"], [byId("detail").dataset.down, harms, "harmful"]])
      if (found.length) body.append(make("section", {className: kind}, make("h3", {}, name), make("ol", {}, ...found.map(link))));
    byId("detail-title").textContent = `Training example #${index}`;
    byId("detail").showModal();
  }
  document.addEventListener("click", (event) => {
    const image = event.target.closest(".examples .sample img, .gallery .sample img");
    const button = event.target.closest("[data-open]");
    if (button) open(button.dataset.open);
    else if (image) open(image.closest("li").dataset.train);
    else if (event.target === byId("detail")) byId("detail").close();
  });

  // Text: words that an example shares with its target are marked, unless many targets or many of all texts have them, such as "was".
  const WORD = /[\p{L}\p{N}][\p{L}\p{N}'’-]+/gu;
  const wordsOf = (root) => new Set(all(".text", root).flatMap((each) => each.textContent.toLocaleLowerCase().match(WORD) || []));
  const vocabularies = cards.map((card) => wordsOf(card.querySelector(".subject")));
  const examples = new Map(all("[data-train]").map((each) => [each.dataset.train, each]));
  const texts = [...vocabularies, ...Array.from(examples.values(), wordsOf)];
  function counts(sets) {
    const found = new Map();
    for (const words of sets) for (const word of words) found.set(word, (found.get(word) || 0) + 1);
    return found;
  }
  const inTargets = counts(vocabularies), inTexts = counts(texts);
  const common = (word) => word.length < 3 || inTargets.get(word) > Math.max(2, cards.length / 4) ||
    inTexts.get(word) > Math.max(5, 0.03 * texts.length);
  cards.forEach((card, place) => {
    for (const node of all(".evidence .text", card)) {
      const value = node.textContent, parts = [];
      let end = 0;
      for (const {0: word, index} of value.matchAll(WORD)) {
        if (!vocabularies[place].has(word.toLocaleLowerCase()) || common(word.toLocaleLowerCase())) continue;
        parts.push(value.slice(end, index), make("mark", {}, word));
        end = index + word.length;
      }
      if (parts.length) node.replaceChildren(...parts, value.slice(end));
    }
  });

  // Long text is folded, with a button that says so.
  const fold = (node) => {
    if (!node.querySelector(".text, dl") || !node.clientHeight) return;
    // Pictures are what is compared: the fade begins below them.
    const top = node.getBoundingClientRect().top;
    const bottom = Math.max(0, ...all("img", node).map((each) => each.getBoundingClientRect().bottom - top));
    node.style.setProperty("--pictures", `${bottom}px`);
    node.classList.add("folded");
    if (node.scrollHeight <= node.clientHeight + 4) return node.classList.remove("folded");
    const button = make("button", {type: "button", className: "unfold"}, "show all");
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const folded = node.classList.toggle("folded");
      button.textContent = folded ? "show all" : "show less";
      button.setAttribute("aria-expanded", String(!folded));
    });
    node.after(button);
  };
  all(".target .sample, .gallery .sample, .twins .sample").forEach(fold);
  for (const details of all(".examples details"))
    details.addEventListener("toggle", () => all(".sample", details).forEach(fold), {once: true});
})();
