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
  if (chosen.kind === "words") return data.aligned[chosen.pair][chosen.index];
  return data.pairs[p].image === data.pairs[chosen.pair].image ? chosen.index : -1;
}

function choose(pair, kind, index) {
  chosen = kind === null ? null : { pair, kind, index };
  data.pairs.forEach((_, p) => show(p));
  for (const row of all("tr[data-numbers]"))
    row.classList.toggle("chosen", row.dataset.kind === kind && Number(row.dataset.numbers.split(" ")[pair]) === index);
}

function show(p) {
  const pair = data.pairs[p], kind = chosen?.kind, index = chosenIn(p), none = index < 0, other = OTHER[kind];
  const { asks, weights } = none ? { weights: [] } : weightsOf(pair, kind, index);
  const top = Math.max(...weights, 1e-12), lit = strongest(weights, 3).filter(k => weights[k] > 0.2 * top);
  for (const element of all(`[data-kind][data-pair="${p}"]`)) {
    const k = Number(element.dataset.index), weight = element.dataset.kind === other && !none ? weights[k] / top : 0;
    element.classList.toggle("chosen", !none && element.dataset.kind === kind && k === index);
    if (element.matches(".region")) {
      element.classList.toggle("lit", other === "regions" && lit.includes(k));
      element.style.fillOpacity = 0.38 * weight;
    }
    if (element.matches("button")) element.style.setProperty("--weight", (0.65 * weight).toFixed(3));
  }
  numberRegions(p, none ? [] : kind === "regions" ? [index] : lit);
  one(`section[data-pair="${p}"] .readout`).textContent = none ? "" : readout(pair, kind, index, asks, weights);
}

function readout(pair, kind, index, asks, weights) {
  const list = (nodes, values) => strongest(values, 4).map(k => `${nameOf(pair, nodes, k)} (${number(values[k], 2)})`).join(", ");
  const verb = asks === kind ? "attends to" : "is attended by", adds = pair.adds[kind];
  let text = `${nameOf(pair, kind, index)} ${verb} ${list(OTHER[kind], weights)}.`;
  if (adds) text += ` It adds ${number(adds[index], 4)} to the score.`;
  const neighbours = kind === "words" && pair.edges ? list("words", pair.edges[index]) : "";
  return neighbours ? `${text} Its neighbours in the graph of words: ${neighbours}.` : text;
}

function pointable(element, p, kind, index) {
  Object.assign(element.dataset, { pair: p, kind, index });
  for (const event of ["pointerenter", "focus", "click"]) element.addEventListener(event, () => choose(p, kind, index));
  return element;
}

// ---- pictures, sentences and bars

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

// A column for each node; one scale for words and regions, in both pairs.
function drawBars(svg, p, kind) {
  const every = data.pairs.flatMap(pair => [...pair.adds.words ?? [], ...pair.adds.regions ?? []]);
  const high = Math.max(0, ...every), low = Math.min(0, ...every), left = 52, wide = 480, tall = 130;
  const pair = data.pairs[p], values = pair.adds[kind], step = (wide - left) / values.length;
  const under = kind === "words" ? 18 + 6 * Math.max(...pair.tokens.map(token => token.length)) : 26;
  const y = value => 8 + tall * (high - value) / (high - low || 1);
  svg.setAttribute("viewBox", `0 0 ${wide} ${tall + 16 + under}`);
  for (const value of [high, low].filter(v => v !== 0))
    draw("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end", class: "faint" }, svg, number(value, 3));
  values.forEach((value, k) => {
    const x = left + step * k;
    draw("rect", { x: x + step * 0.12, width: step * 0.76, y: y(Math.max(0, value)), height: Math.abs(y(value) - y(0)), class: value < 0 ? "bar-bad" : "bar-good" }, svg);
    if (kind === "words" || k % 5 === 0)
      draw("text", { transform: `translate(${x + step / 2 + 4} ${tall + 16}) rotate(-60)`, "text-anchor": "end" }, svg, kind === "words" ? pair.tokens[k] : k);
    const rect = draw("rect", { x, y: 8, width: step, height: tall, class: "column" }, svg);
    draw("title", {}, rect, `${nameOf(pair, kind, k)}: ${number(value, 4)}`);
    pointable(rect, p, kind, k);
  });
  draw("line", { x1: left, x2: wide, y1: y(0), y2: y(0), class: "zero" }, svg);
}

// Shown before one points: the word that adds most, or the first.
function chooseFirst() {
  const { tokens, adds } = data.pairs[0], words = [...tokens.keys()].filter(w => !isEnd(tokens[w]));
  if (adds.words) words.sort((a, b) => adds.words[b] - adds.words[a]);
  if (words.length) choose(0, "words", words[0]);
}

document.addEventListener("DOMContentLoaded", () => {
  data = JSON.parse(one("#data").textContent);
  data.pairs.forEach((_, p) => { drawView(p); drawWords(p); });
  for (const svg of all("svg[data-bars]")) drawBars(svg, Number(svg.dataset.of), svg.dataset.bars);
  for (const row of all("tr[data-numbers]")) {
    const numbers = row.dataset.numbers.split(" ").map(Number), p = numbers[0] >= 0 ? 0 : 1;
    for (const event of ["pointerenter", "click"]) row.addEventListener(event, () => choose(p, row.dataset.kind, numbers[p]));
  }
  addEventListener("keydown", event => { if (event.key === "Escape") choose(-1, null, -1); });
  for (const input of all("input[name=asks]"))
    input.addEventListener("change", () => { if (chosen) choose(chosen.pair, chosen.kind, chosen.index); });
  const asked = /^#words=(\d+)$/.exec(location.hash); // page.html#words=3 opens with word 3 chosen
  if (asked && Number(asked[1]) < data.pairs[0].tokens.length) choose(0, "words", Number(asked[1]));
  else chooseFirst();
  document.body.dataset.ready = "yes";
});
