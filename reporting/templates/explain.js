"use strict";
// One or two pairs of image and sentence: pointing at a word shows its regions, pointing at a region its words.
// In two pairs the same word, or the same region of one image, is chosen in both.

const SVG = "http://www.w3.org/2000/svg";
let data;
let chosen = null; // the node pointed at: { pair, kind: "words" or "regions", index }

function draw(tag, attributes, parent, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

const all = selector => [...document.querySelectorAll(selector)];
const one = selector => document.querySelector(selector);
const column = (rows, k) => rows.map(row => row[k]);
const tokensOf = pair => data.captions[pair.caption].tokens;
const imageOf = pair => data.images[pair.image];
const nameOf = (pair, kind, k) => kind === "words" ? tokensOf(pair)[k] : `region ${k}`;

// Weights of the other side's nodes for a node: its own attention, or how far each attends to it.
function weightsOf(pair, kind, index) {
  const asked = one("input[name=asks]:checked").value, asks = asked === "pointed" ? kind : asked;
  const rows = asks === "words" ? pair.beta : pair.alpha;
  return { asks, weights: asks === kind ? rows[index] : column(rows, index) };
}

function strongest(weights, count) {
  return [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, count).filter(k => weights[k] > 0);
}

// ---- the node pointed at

// The number, in pair p, of the node that is chosen; -1 where that pair has no such node.
function chosenIn(p) {
  if (!chosen) return -1;
  if (p === chosen.pair) return chosen.index;
  const here = data.pairs[p], there = data.pairs[chosen.pair];
  if (chosen.kind === "regions") return here.image === there.image ? chosen.index : -1;
  return here.caption === there.caption ? chosen.index : data.aligned[there.caption][chosen.index];
}

function choose(pair, kind, index) {
  chosen = kind === null ? null : { pair, kind, index };
  data.pairs.forEach((_, p) => show(p));
  data.captions.forEach((_, c) => fadeArcs(c));
  for (const row of all("tr[data-words], tr[data-regions]")) {
    const numbers = row.dataset[chosen?.kind ?? ""]?.split(" ").map(Number);
    row.classList.toggle("chosen", Boolean(numbers) && numbers[chosen.pair] === chosen.index);
  }
  if (kind === "regions") drawKernels(data.pairs[pair].image, index);
}

function show(p) {
  const pair = data.pairs[p], kind = chosen?.kind, index = chosenIn(p), none = index < 0;
  const { asks, weights } = none ? { weights: [] } : weightsOf(pair, kind, index);
  const top = Math.max(...weights, 1e-12), other = kind === "words" ? "regions" : "words";
  const lit = none ? [] : strongest(weights, 3).filter(k => weights[k] > 0.2 * top);
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
  const other = kind === "words" ? "regions" : "words";
  const list = strongest(weights, 4).map(k => `${nameOf(pair, other, k)} (${weights[k].toFixed(2)})`).join(", ");
  const verb = asks === kind ? "attends to" : "is attended by";
  return `${nameOf(pair, kind, index)} ${verb} ${list}. It adds ${pair[kind][index].toFixed(4)} to the score.`;
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
const largestFirst = boxes => [...boxes.keys()].sort((a, b) => area(boxes[b]) - area(boxes[a]));

function drawView(p) {
  const svg = one(`section[data-pair="${p}"] .view-svg`), image = imageOf(data.pairs[p]), [w, h] = image.size;
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  if (image.picture) draw("image", { href: image.picture, width: w, height: h, class: "picture", preserveAspectRatio: "none" }, svg);
  for (const r of largestFirst(image.boxes)) { // small ones lie on top and can be pointed at
    const rect = draw("rect", { ...place(image, image.boxes[r]), class: "region", tabindex: 0, role: "button", "aria-label": `region ${r}` }, svg);
    pointable(rect, p, "regions", r);
  }
}

function numberRegions(p, regions) {
  const svg = one(`section[data-pair="${p}"] .view-svg`), image = imageOf(data.pairs[p]), size = image.size[0] / 45;
  svg.querySelectorAll(".region-number").forEach(text => text.remove());
  for (const r of regions) {
    const { x, y } = place(image, image.boxes[r]);
    draw("text", { x: x + size / 4, y: y + size * 1.1, class: "region-number", style: `font-size: ${size}px` }, svg, r);
  }
}

function drawWords(p) {
  tokensOf(data.pairs[p]).forEach((token, w) => {
    const button = document.createElement("button");
    button.textContent = token;
    if (token === "<start>" || token === "<end>") button.className = "edge";
    one(`section[data-pair="${p}"] .words`).append(pointable(button, p, "words", w));
  });
}

// ---- bars and matching vectors: a column for each node

const LEFT = 52, WIDE = 480;

function nodeColumns(svg, p, kind, top, bottom) {
  const pair = data.pairs[p], step = (WIDE - LEFT) / pair[kind].length;
  pair[kind].forEach((value, k) => {
    const x = LEFT + step * k, label = kind === "words" ? tokensOf(pair)[k] : k;
    if (kind === "words" || k % 5 === 0)
      draw("text", { transform: `translate(${x + step / 2 + 4} ${bottom + 8}) rotate(-60)`, "text-anchor": "end" }, svg, label);
    const rect = draw("rect", { x, y: top, width: step, height: bottom - top, class: "column" }, svg);
    draw("title", {}, rect, `${nameOf(pair, kind, k)}: ${value.toFixed(4)}`);
    pointable(rect, p, kind, k);
  });
}

const under = (pair, kind) => kind === "words" ? 18 + 6 * Math.max(...tokensOf(pair).map(token => token.length)) : 26;

// One scale for words and regions, in both pairs.
function scaleOf() {
  const values = data.pairs.flatMap(pair => [...pair.words, ...pair.regions]);
  return { high: Math.max(0, ...values), low: Math.min(0, ...values) };
}

function drawBars(svg, p, kind, { high, low }) {
  const pair = data.pairs[p], values = pair[kind], step = (WIDE - LEFT) / values.length;
  const span = high - low || 1, tall = 130, y = value => 8 + tall * (high - value) / span;
  svg.setAttribute("viewBox", `0 0 ${WIDE} ${tall + 16 + under(pair, kind)}`);
  for (const value of [high, low].filter(v => v !== 0))
    draw("text", { x: LEFT - 4, y: y(value) + 4, "text-anchor": "end", class: "faint" }, svg, value.toFixed(3));
  values.forEach((value, k) => draw("rect", { x: LEFT + step * (k + 0.12), width: step * 0.76, y: y(Math.max(0, value)),
    height: Math.abs(y(value) - y(0)), class: value < 0 ? "bar-bad" : "bar-good" }, svg));
  draw("line", { x1: LEFT, x2: WIDE, y1: y(0), y2: y(0), class: "zero" }, svg);
  nodeColumns(svg, p, kind, 8, 8 + tall);
}

// −1 orange, 0 light grey, 1 blue
function ramp(value) {
  const end = value < 0 ? [194, 87, 12] : [31, 111, 196], t = Math.min(1, Math.abs(value));
  return `rgb(${end.map(c => Math.round(238 + (c - 238) * t))})`;
}

function drawMatch(svg, p, kind) {
  const pair = data.pairs[p], rows = kind === "words" ? pair.word_match : pair.region_match;
  const blocks = rows[0].length, tall = Math.max(60, 10 * blocks), step = (WIDE - LEFT) / rows.length, high = tall / blocks;
  svg.setAttribute("viewBox", `0 0 ${WIDE} ${tall + 16 + under(pair, kind)}`);
  rows.forEach((row, k) => row.forEach((value, b) => draw("rect",
    { x: LEFT + step * k, y: 8 + high * b, width: step + 0.3, height: high + 0.3, fill: ramp(value) }, svg)));
  for (const b of [0, blocks - 1]) draw("text", { x: LEFT - 4, y: 8 + high * (b + 0.5) + 4, "text-anchor": "end", class: "faint" }, svg, b);
  nodeColumns(svg, p, kind, 8, 8 + tall);
}

// ---- edges between words

function drawArcs(c) {
  const svg = one(`.arcs[data-caption="${c}"]`), { tokens, edges, word_edges } = data.captions[c], middles = [];
  let x = 10;
  for (const token of tokens) {
    const wide = 7.5 * token.length + 16;
    middles.push(x + wide / 2);
    x += wide;
  }
  const drawn = edges.length ? edges : pairsOf(tokens.length), least = edges.length ? 0.35 : 0.04;
  const tall = 24 + 0.5 * Math.max(...drawn.map(([i, j]) => reach(middles[j] - middles[i])), 20);
  svg.setAttribute("viewBox", `0 0 ${x + 10} ${tall + 30}`);
  svg.setAttribute("width", x + 10);
  for (const [i, j] of drawn) {
    const weight = Math.max(word_edges[i][j], word_edges[j][i]), a = middles[i], b = middles[j];
    const up = reach(b - a), arc = draw("path", { d: `M${a} ${tall}C${a} ${tall - up * 0.66} ${b} ${tall - up * 0.66} ${b} ${tall}`,
      class: "arc", "stroke-width": 1 + 3 * weight, "stroke-opacity": least + (1 - least) * weight }, svg);
    Object.assign(arc.dataset, { from: i, to: j });
  }
  const p = data.pairs.findIndex(pair => pair.caption === c);
  tokens.forEach((token, w) => {
    const text = draw("text", { x: middles[w], y: tall + 18, "text-anchor": "middle", style: "font-size: 14px; cursor: pointer" }, svg, token);
    pointable(text, p, "words", w);
    draw("text", { x: middles[w], y: tall - 6, "text-anchor": "middle", class: "arc-label", "data-word": w }, svg);
  });
}

const reach = distance => 18 + 0.6 * distance;
const pairsOf = n => [...Array(n * n).keys()].map(k => [Math.floor(k / n), k % n]).filter(([i, j]) => i < j);

// Only the chosen word's edges stay strong, with the weight that each neighbour has for it.
function fadeArcs(c) {
  const svg = one(`.arcs[data-caption="${c}"]`);
  const word = chosen?.kind === "words" ? chosenIn(data.pairs.findIndex(pair => pair.caption === c)) : -1;
  for (const arc of svg.querySelectorAll(".arc"))
    arc.classList.toggle("faded", word >= 0 && ![arc.dataset.from, arc.dataset.to].includes(String(word)));
  for (const text of svg.querySelectorAll(".arc-label")) {
    const weight = word < 0 ? 0 : data.captions[c].word_edges[word][text.dataset.word];
    text.textContent = weight >= 0.005 ? weight.toFixed(2) : "";
  }
}

// ---- the spatial kernels around a region

// base64 of 16-bit integers -> weights in 0 ... 1, kernels[k][i][j]
function unpack(text, regions) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
  const weight = (k, i, j) => view.getUint16(2 * ((k * regions + i) * regions + j), true) / 65535;
  const count = bytes.length / 2 / regions / regions, range = n => [...Array(n).keys()];
  return range(count).map(k => range(regions).map(i => range(regions).map(j => weight(k, i, j))));
}

function drawKernels(i, region) {
  const image = data.images[i];
  if (!image.kernels) return;
  one(`.centre-number[data-image="${i}"]`).textContent = region;
  const top = Math.max(...image.kernels.flatMap(kernel => kernel[region]), 1e-12); // one scale for all kernels
  const maps = image.kernels.map((kernel, k) => {
    const figure = document.createElement("figure"), svg = draw("svg", { viewBox: `0 0 ${image.size[0]} ${image.size[1]}` });
    const weights = kernel[region], sum = weights.reduce((a, b) => a + b, 0);
    for (const r of largestFirst(image.boxes))
      draw("rect", { ...place(image, image.boxes[r]), class: "neighbour", "fill-opacity": (0.4 * weights[r] / top).toFixed(3) }, svg);
    draw("rect", { ...place(image, image.boxes[region]), class: "centre" }, svg);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `kernel ${k + 1}`);
    const caption = document.createElement("figcaption");
    caption.textContent = `kernel ${k + 1}: sum ${sum.toFixed(2)}, largest ${Math.max(...weights).toFixed(2)}`;
    figure.append(svg, caption);
    return figure;
  });
  one(`.kernels[data-image="${i}"]`).replaceChildren(...maps);
}

// ---- the table of differences

function listenToRows() {
  for (const row of all("tr[data-words], tr[data-regions]")) {
    const kind = row.dataset.words ? "words" : "regions", numbers = row.dataset[kind].split(" ").map(Number);
    const p = numbers[0] >= 0 ? 0 : 1;
    row.addEventListener("pointerenter", () => choose(p, kind, numbers[p]));
    row.addEventListener("click", () => choose(p, kind, numbers[p]));
  }
}

document.addEventListener("DOMContentLoaded", () => {
  data = JSON.parse(one("#data").textContent);
  for (const image of data.images) if (image.kernels) image.kernels = unpack(image.kernels, image.boxes.length);
  data.pairs.forEach((_, p) => { drawView(p); drawWords(p); });
  const scale = scaleOf();
  for (const svg of all("svg[data-chart]")) {
    const { chart, of, pair } = svg.dataset;
    chart === "bars" ? drawBars(svg, Number(pair), of, scale) : drawMatch(svg, Number(pair), of);
  }
  data.captions.forEach((_, c) => drawArcs(c));
  data.images.forEach((_, i) => {
    const { regions } = data.pairs.find(pair => pair.image === i);
    drawKernels(i, regions.indexOf(Math.max(...regions)));
  });
  listenToRows();
  addEventListener("keydown", event => { if (event.key === "Escape") choose(-1, null, -1); });
  for (const input of all("input[name=asks]"))
    input.addEventListener("change", () => { if (chosen) choose(chosen.pair, chosen.kind, chosen.index); });
  const asked = /^#(words|regions)=(\d+)$/.exec(location.hash); // page.html#words=3 opens with word 3 chosen
  if (asked && Number(asked[2]) < data.pairs[0][asked[1]].length) choose(0, asked[1], Number(asked[2]));
  document.body.dataset.ready = "yes";
});
