"use strict";
// One image and one sentence: pointing at a word shows its regions, pointing at a region its words.

const SVG = "http://www.w3.org/2000/svg";
let data;
const chosen = { kind: null, index: -1 }; // what is pointed at: "words" or "regions", and its number

function draw(tag, attributes, parent, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

const byId = id => document.getElementById(id);
const nameOf = (kind, k) => kind === "words" ? data.tokens[k] : `region ${k}`;
const column = (rows, k) => rows.map(row => row[k]);

// Weights of the other side's nodes for the chosen one: its own attention, or how far each attends to it.
function weightsOf({ kind, index }) {
  const asked = document.querySelector("input[name=asks]:checked").value;
  const asks = asked === "pointed" ? kind : asked;
  const rows = asks === "words" ? data.beta : data.alpha;
  return { asks, weights: asks === kind ? rows[index] : column(rows, index) };
}

function strongest(weights, count) {
  return [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, count).filter(k => weights[k] > 0);
}

// ---- what is pointed at

function choose(kind, index) {
  Object.assign(chosen, { kind, index });
  const none = kind === null;
  const { asks, weights } = none ? { weights: [] } : weightsOf(chosen);
  const top = Math.max(...weights, 1e-12), other = kind === "words" ? "regions" : "words";
  const lit = none ? [] : strongest(weights, 3).filter(k => weights[k] > 0.2 * top);
  document.querySelectorAll("[data-kind]").forEach(element => {
    const k = Number(element.dataset.index), isChosen = element.dataset.kind === kind && k === index;
    const weight = element.dataset.kind === other && !none ? weights[k] / top : 0;
    element.classList.toggle("chosen", isChosen);
    if (element.matches(".region")) {
      element.classList.toggle("lit", other === "regions" && lit.includes(k));
      element.style.fillOpacity = 0.38 * weight;
    }
    if (element.matches("button")) element.style.setProperty("--weight", (0.65 * weight).toFixed(3));
  });
  numberRegions(kind === "regions" ? [index] : lit);
  tell(none, asks, weights);
  fadeArcs();
  if (kind === "regions") drawKernels(index);
}

function tell(none, asks, weights) {
  if (none) return void (byId("readout").textContent = "");
  const { kind, index } = chosen, other = kind === "words" ? "regions" : "words";
  const list = strongest(weights, 4).map(k => `${nameOf(other, k)} (${weights[k].toFixed(2)})`).join(", ");
  const verb = asks === kind ? "attends to" : "is attended by";
  byId("readout").textContent = `${nameOf(kind, index)} ${verb} ${list}. It adds ${data[kind][index].toFixed(4)} to the score.`;
}

function pointable(element, kind, index) {
  Object.assign(element.dataset, { kind, index });
  element.addEventListener("pointerenter", () => choose(kind, index));
  element.addEventListener("focus", () => choose(kind, index));
  element.addEventListener("click", () => choose(kind, index));
  return element;
}

// ---- the picture and the sentence

function place(box) {
  const [w, h] = data.size, [x, y, x2, y2] = box;
  return { x: x * w, y: y * h, width: Math.max(0, x2 - x) * w, height: Math.max(0, y2 - y) * h };
}

const area = ([x, y, x2, y2]) => (x2 - x) * (y2 - y);
const largestFirst = () => [...data.boxes.keys()].sort((a, b) => area(data.boxes[b]) - area(data.boxes[a]));

function drawScene() {
  const svg = byId("scene"), [w, h] = data.size;
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  if (data.picture) draw("image", { href: data.picture, width: w, height: h, class: "picture" }, svg);
  for (const r of largestFirst()) { // small ones lie on top and can be pointed at
    const rect = draw("rect", { ...place(data.boxes[r]), class: "region", tabindex: 0, role: "button", "aria-label": `region ${r}` }, svg);
    pointable(rect, "regions", r);
  }
}

function numberRegions(regions) {
  document.querySelectorAll(".region-number").forEach(text => text.remove());
  for (const r of regions) {
    const { x, y } = place(data.boxes[r]), size = data.size[0] / 45;
    draw("text", { x: x + size / 4, y: y + size * 1.1, class: "region-number", style: `font-size: ${size}px` }, byId("scene"), r);
  }
}

function drawWords() {
  data.tokens.forEach((token, w) => {
    const button = document.createElement("button");
    button.textContent = token;
    if (token === "<start>" || token === "<end>") button.className = "edge";
    byId("words").append(pointable(button, "words", w));
  });
}

// ---- bars and matching vectors: a column for each node

const LEFT = 44, WIDE = 480;
const label = (kind, k) => kind === "words" ? data.tokens[k] : k;

function nodeColumns(svg, kind, top, bottom, turned) {
  const n = data[kind].length, step = (WIDE - LEFT) / n;
  data[kind].forEach((_, k) => {
    const x = LEFT + step * k, every = kind === "words" || k % 5 === 0;
    if (every && turned) draw("text", { transform: `translate(${x + step / 2 + 4} ${bottom + 8}) rotate(-60)`, "text-anchor": "end" }, svg, label(kind, k));
    const rect = draw("rect", { x, y: top, width: step, height: bottom - top, class: "column" }, svg);
    draw("title", {}, rect, `${nameOf(kind, k)}: ${data[kind][k].toFixed(4)}`);
    pointable(rect, kind, k);
  });
}

const under = kind => kind === "words" ? 18 + 6 * Math.max(...data.tokens.map(token => token.length)) : 26;

function drawBars(svg, kind) {
  const values = data[kind], high = Math.max(0, ...values), low = Math.min(0, ...values);
  const span = high - low || 1, tall = 130, y = value => 8 + tall * (high - value) / span;
  const step = (WIDE - LEFT) / values.length;
  svg.setAttribute("viewBox", `0 0 ${WIDE} ${tall + 16 + under(kind)}`);
  for (const value of [high, low].filter(v => v !== 0))
    draw("text", { x: LEFT - 4, y: y(value) + 4, "text-anchor": "end", class: "faint" }, svg, value.toFixed(3));
  values.forEach((value, k) => draw("rect", { x: LEFT + step * (k + 0.12), width: step * 0.76, y: y(Math.max(0, value)),
    height: Math.abs(y(value) - y(0)), class: value < 0 ? "bar-bad" : "bar-good" }, svg));
  draw("line", { x1: LEFT, x2: WIDE, y1: y(0), y2: y(0), class: "zero" }, svg);
  nodeColumns(svg, kind, 8, 8 + tall, true);
}

// −1 orange, 0 light grey, 1 blue
function ramp(value) {
  const end = value < 0 ? [194, 87, 12] : [31, 111, 196], t = Math.min(1, Math.abs(value));
  return `rgb(${end.map(c => Math.round(238 + (c - 238) * t))})`;
}

function drawMatch(svg, kind, rows) {
  const blocks = rows[0].length, tall = Math.max(60, 10 * blocks), step = (WIDE - LEFT) / rows.length, high = tall / blocks;
  svg.setAttribute("viewBox", `0 0 ${WIDE} ${tall + 16 + under(kind)}`);
  rows.forEach((row, k) => row.forEach((value, b) => draw("rect",
    { x: LEFT + step * k, y: 8 + high * b, width: step + 0.3, height: high + 0.3, fill: ramp(value) }, svg)));
  for (const b of [0, blocks - 1]) draw("text", { x: LEFT - 4, y: 8 + high * (b + 0.5) + 4, "text-anchor": "end", class: "faint" }, svg, b);
  nodeColumns(svg, kind, 8, 8 + tall, true);
}

// ---- edges between words

function drawArcs() {
  const svg = byId("arcs"), n = data.tokens.length, middles = [];
  let x = 10;
  for (const token of data.tokens) {
    const wide = 7.5 * token.length + 16;
    middles.push(x + wide / 2);
    x += wide;
  }
  const edges = data.pairs.length ? data.pairs : pairsOf(n), least = data.pairs.length ? 0.35 : 0.04;
  const tall = 24 + 0.5 * Math.max(...edges.map(([i, j]) => reach(middles[j] - middles[i])), 20);
  svg.setAttribute("viewBox", `0 0 ${x + 10} ${tall + 30}`);
  svg.setAttribute("width", x + 10);
  for (const [i, j] of edges) {
    const weight = Math.max(data.word_edges[i][j], data.word_edges[j][i]), a = middles[i], b = middles[j];
    const up = reach(b - a), arc = draw("path", { d: `M${a} ${tall}C${a} ${tall - up * 0.66} ${b} ${tall - up * 0.66} ${b} ${tall}`,
      class: "arc", "stroke-width": 1 + 3 * weight, "stroke-opacity": least + (1 - least) * weight }, svg);
    Object.assign(arc.dataset, { from: i, to: j });
  }
  data.tokens.forEach((token, w) => {
    const text = draw("text", { x: middles[w], y: tall + 18, "text-anchor": "middle", style: "font-size: 14px; cursor: pointer" }, svg, token);
    pointable(text, "words", w);
    draw("text", { x: middles[w], y: tall - 6, "text-anchor": "middle", class: "arc-label", "data-word": w }, svg);
  });
}

const reach = distance => 18 + 0.6 * distance;
const pairsOf = n => [...Array(n * n).keys()].map(k => [Math.floor(k / n), k % n]).filter(([i, j]) => i < j);

// Only the chosen word's edges stay strong, with the weight that each neighbour has for it.
function fadeArcs() {
  const word = chosen.kind === "words" ? chosen.index : null;
  for (const arc of document.querySelectorAll(".arc"))
    arc.classList.toggle("faded", word !== null && ![arc.dataset.from, arc.dataset.to].includes(String(word)));
  for (const text of document.querySelectorAll(".arc-label")) {
    const weight = word === null ? 0 : data.word_edges[word][text.dataset.word];
    text.textContent = weight >= 0.005 ? weight.toFixed(2) : "";
  }
}

// ---- the spatial kernels around a region

function drawKernels(region) {
  byId("centre").textContent = region;
  const top = Math.max(...data.kernels.flatMap(kernel => kernel[region]), 1e-12); // one scale for all kernels
  const maps = data.kernels.map((kernel, k) => {
    const figure = document.createElement("figure"), svg = draw("svg", { viewBox: `0 0 ${data.size[0]} ${data.size[1]}` });
    const weights = kernel[region], sum = weights.reduce((a, b) => a + b, 0);
    for (const r of largestFirst())
      draw("rect", { ...place(data.boxes[r]), class: "neighbour", "fill-opacity": (0.4 * weights[r] / top).toFixed(3) }, svg);
    draw("rect", { ...place(data.boxes[region]), class: "centre" }, svg);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `kernel ${k + 1}`);
    const caption = document.createElement("figcaption");
    caption.textContent = `kernel ${k + 1}: sum ${sum.toFixed(2)}, largest ${Math.max(...weights).toFixed(2)}`;
    figure.append(svg, caption);
    return figure;
  });
  byId("kernels").replaceChildren(...maps);
}

document.addEventListener("DOMContentLoaded", () => {
  data = JSON.parse(byId("data").textContent);
  drawScene();
  drawWords();
  drawBars(byId("word-bars"), "words");
  drawBars(byId("region-bars"), "regions");
  drawMatch(byId("word-match"), "words", data.word_match);
  drawMatch(byId("region-match"), "regions", data.region_match);
  drawArcs();
  drawKernels(data.regions.indexOf(Math.max(...data.regions)));
  addEventListener("keydown", event => { if (event.key === "Escape") choose(null, -1); });
  for (const input of document.querySelectorAll("input[name=asks]"))
    input.addEventListener("change", () => { if (chosen.kind) choose(chosen.kind, chosen.index); });
  document.body.dataset.ready = "yes";
});
