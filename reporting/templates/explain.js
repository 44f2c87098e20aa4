"use strict";
// One or two pairs of image and sentence: pointing at a word shows its regions, pointing at a region its words.
// In two pairs the same word, or the same region of one image, is chosen in both.

const SVG = "http://www.w3.org/2000/svg";
const OTHER = { words: "regions", regions: "words" };
let data;
let chosen = null; // the node pointed at: { pair, kind: "words" or "regions", index }

function draw(tag, attributes, parent, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const all = selector => [...document.querySelectorAll(selector)];
const one = selector => document.querySelector(selector);
const number = (value, digits) => value.toFixed(digits).replace("-", "−");
const nameOf = (pair, kind, k) => kind === "words" ? pair.tokens[k] : `region ${k}`;
const isEnd = token => token === "<start>" || token === "<end>";

// Weights of the other side's nodes for a node: its own attention, or how far each attends to it.
function weightsOf(pair, kind, index) {
  const asked = one("input[name=asks]:checked")?.value ?? "pointed";
  let asks = asked === "pointed" ? kind : asked;
  if (!pair.attention[asks]) asks = OTHER[asks]; // a system has one of the two at least
  const rows = pair.attention[asks];
  return { asks, weights: asks === kind ? rows[index] : rows.map(row => row[index]) };
}

function strongest(weights, count) {
  return [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, count).filter(k => weights[k] > 0);
}

// ---- the node pointed at

// The number, in pair p, of the node that is chosen; -1 where that pair has no such node.
function chosenIn(p) {
  if (!chosen) return -1;
  if (p === chosen.pair) return chosen.index;
  if (chosen.kind === "words") return data.words.find(numbers => numbers[chosen.pair] === chosen.index)[p];
  return data.pairs[p].image === data.pairs[chosen.pair].image ? chosen.index : -1;
}

function choose(pair, kind, index) {
  chosen = { pair, kind, index };
  data.pairs.forEach((_, p) => show(p));
  for (const row of all("tr[data-rows]"))
    row.classList.toggle("chosen", row.dataset.rows === kind && Number(row.dataset.numbers.split(" ")[pair]) === index);
}

function show(p) {
  const pair = data.pairs[p], kind = chosen.kind, index = chosenIn(p), none = index < 0, other = OTHER[kind];
  const { asks, weights } = none ? { weights: [] } : weightsOf(pair, kind, index);
  const top = Math.max(...weights, 1e-12), lit = strongest(weights, 3).filter(k => weights[k] > 0.2 * top);
  for (const element of all(`[data-kind][data-pair="${p}"]`)) {
    const k = Number(element.dataset.index), weight = element.dataset.kind === other && !none ? weights[k] / top : 0;
    element.classList.toggle("chosen", !none && element.dataset.kind === kind && k === index);
    element.classList.toggle("lit", element.dataset.kind === other && lit.includes(k));
    element.style.fillOpacity = 0.38 * weight; // of a region
    element.style.setProperty("--weight", (0.65 * weight).toFixed(3)); // of a word
  }
  numberRegions(p, none ? [] : kind === "regions" ? [index] : lit);
  one(`section[data-pair="${p}"] .readout`).textContent = none ? "" : readout(pair, kind, index, asks, weights);
}

function readout(pair, kind, index, asks, weights) {
  const list = (nodes, values) => strongest(values, 4).map(k => `${nameOf(pair, nodes, k)} (${number(values[k], 2)})`).join(", ");
  const verb = asks === kind ? "attends to" : "is attended by", value = pair.values[kind]?.[index];
  let text = `${nameOf(pair, kind, index)} ${verb} ${list(OTHER[kind], weights)}.`;
  if (value !== undefined) text += pair.adds ? ` It adds ${number(value, 4)} to the score.` : ` Its cosine is ${number(value, 4)}.`;
  const neighbours = kind === "words" && pair.edges ? list("words", pair.edges[index]) : "";
  return neighbours ? `${text} Its neighbours in the graph of words: ${neighbours}.` : text;
}

function pointable(element, p, kind, index) {
  Object.assign(element.dataset, { pair: p, kind, index });
  for (const event of ["pointerenter", "focus", "click"]) element.addEventListener(event, () => choose(p, kind, index));
  return element;
}

// ---- pictures and sentences

function place(image, box) {
  const [w, h] = image.size, [x, y, x2, y2] = box;
  return { x: x * w, y: y * h, width: Math.max(0, x2 - x) * w, height: Math.max(0, y2 - y) * h };
}

const area = ([x, y, x2, y2]) => (x2 - x) * (y2 - y);

function drawView(p) {
  const svg = one(`section[data-pair="${p}"] .view-svg`), image = data.images[data.pairs[p].image], [w, h] = image.size;
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  if (image.picture) draw("image", { href: image.picture, width: w, height: h, class: "picture", preserveAspectRatio: "none" }, svg);
  const largestFirst = [...image.boxes.keys()].sort((a, b) => area(image.boxes[b]) - area(image.boxes[a]));
  for (const r of largestFirst) { // small ones lie on top and can be pointed at
    const rect = draw("rect", { ...place(image, image.boxes[r]), class: "region", tabindex: 0, role: "button", "aria-label": `region ${r}` }, svg);
    pointable(rect, p, "regions", r);
  }
}

function numberRegions(p, regions) {
  const svg = one(`section[data-pair="${p}"] .view-svg`), image = data.images[data.pairs[p].image], size = image.size[0] / 45;
  svg.querySelectorAll(".region-number").forEach(text => text.remove());
  for (const r of regions) {
    const { x, y } = place(image, image.boxes[r]);
    draw("text", { x: x + size / 4, y: y + size * 1.1, class: "region-number", style: `font-size: ${size}px` }, svg, r);
  }
}

function drawWords(p) {
  data.pairs[p].tokens.forEach((token, w) => {
    const button = document.createElement("button");
    button.textContent = token;
    if (isEnd(token)) button.className = "edge";
    one(`section[data-pair="${p}"] .words`).append(pointable(button, p, "words", w));
  });
}

// Shown before one points: the word with the largest number, or the first.
function chooseFirst() {
  const { tokens, values } = data.pairs[0], words = [...tokens.keys()].filter(w => !isEnd(tokens[w]));
  if (values.words) words.sort((a, b) => values.words[b] - values.words[a]);
  if (words.length) choose(0, "words", words[0]);
}

document.addEventListener("DOMContentLoaded", () => {
  data = JSON.parse(one("#data").textContent);
  data.pairs.forEach((_, p) => { drawView(p); drawWords(p); });
  for (const row of all("tr[data-rows]")) {
    const numbers = row.dataset.numbers.split(" ").map(Number), p = numbers[0] >= 0 ? 0 : 1;
    for (const event of ["pointerenter", "click"]) row.addEventListener(event, () => choose(p, row.dataset.rows, numbers[p]));
  }
  for (const input of all("input[name=asks]"))
    input.addEventListener("change", () => { if (chosen) choose(chosen.pair, chosen.kind, chosen.index); });
  chooseFirst();
  document.body.dataset.ready = "yes";
});
