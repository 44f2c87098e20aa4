"use strict";
// One or two pairs of image and sentence: pointing at a word shows its regions, pointing at a region its words.
// A node (word, region, row of the table) has its number in each pair as data-numbers, -1 where the pair lacks it.

const OTHER = { words: "regions", regions: "words" };
let pairs, chosen; // chosen: kind and numbers of the node pointed at

const all = (selector, parent = document) => [...parent.querySelectorAll(selector)];
const number = (value, digits) => value.toFixed(digits).replace("-", "−");
const nameOf = (pair, kind, k) => kind === "words" ? pair.tokens[k] : `region ${k}`;

// Weights of the other side's nodes for a node: its own attention or, in a system without it, how far each attends to it.
function weightsOf(pair, kind, index) {
  const rows = pair.attention[kind];
  return rows ? rows[index] : pair.attention[OTHER[kind]].map(row => row[index]);
}

function strongest(weights, count) {
  return [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, count).filter(k => weights[k] > 0);
}

function show(section, p) {
  const pair = pairs[p], { kind, numbers } = chosen, index = Number(numbers.split(" ")[p]);
  const weights = index < 0 ? [] : weightsOf(pair, kind, index);
  const top = Math.max(...weights, 1e-12), lit = strongest(weights, 3).filter(k => weights[k] > 0.2 * top);
  for (const node of all("[data-kind]", section)) {
    const k = Number(node.dataset.index), isOther = node.dataset.kind !== kind;
    node.classList.toggle("chosen", !isOther && k === index);
    node.classList.toggle("lit", isOther && lit.includes(k));
    node.style.setProperty("--weight", isOther && index >= 0 ? (weights[k] / top).toFixed(4) : 0);
  }
  section.querySelector(".readout").textContent = index < 0 ? "" : readout(pair, kind, index, weights);
}

function readout(pair, kind, index, weights) {
  const list = (nodes, values) => strongest(values, 4).map(k => `${nameOf(pair, nodes, k)} (${number(values[k], 2)})`).join(", ");
  const verb = pair.attention[kind] ? "attends to" : "is attended by", value = pair.values[kind]?.[index];
  let text = `${nameOf(pair, kind, index)} ${verb} ${list(OTHER[kind], weights)}.`;
  if (value !== undefined) text += pair.adds ? ` It adds ${number(value, 4)} to the score.` : ` Its cosine is ${number(value, 4)}.`;
  const neighbours = kind === "words" && pair.edges ? list("words", pair.edges[index]) : "";
  return neighbours ? `${text} Its neighbours in the graph of words: ${neighbours}.` : text;
}

function choose(node) {
  if (!node) return;
  chosen = node.dataset;
  all("section[data-pair]").forEach(show);
  for (const row of all("tr[data-kind]"))
    row.classList.toggle("chosen", row.dataset.kind === chosen.kind && row.dataset.numbers === chosen.numbers);
}

document.addEventListener("DOMContentLoaded", () => {
  pairs = JSON.parse(document.getElementById("data").textContent);
  for (const event of ["pointerover", "focusin", "click"])
    document.addEventListener(event, ({ target }) => choose(target.closest("[data-kind]")));
  // shown before one points: the word with the largest number, or the first
  const words = all("section[data-pair='0'] .words button:not(.edge)"), values = pairs[0].values.words;
  if (values) words.sort((a, b) => values[b.dataset.index] - values[a.dataset.index]);
  choose(words[0]);
  document.body.dataset.ready = "yes";
});
