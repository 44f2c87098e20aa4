"use strict";
// The pages of queries: filter, order, page by page.
// Data are scripts that call report.put(name, value), so that everything works from disk.

const report = {
  data: {},
  waiting: {},
  put(name, value) { this.data[name] = value; },

  // The value of data/name.js, loaded when first needed.
  get(name) {
    this.waiting[name] ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => resolve(this.data[name]);
      script.onerror = () => reject(new Error(`${script.src} cannot be read`));
      document.head.append(script);
    });
    return this.waiting[name];
  },
};

const PAGE = 20; // queries on a page
const number = new Intl.NumberFormat("en");

// An element; texts are texts, never markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter(child => child !== null));
  return element;
}

// ---- what is asked for: the form, and the address after # ----

const FIELDS = ["model", "beside", "change", "rank", "words", "from", "to", "sort"];

const initial = field => field.options ? ([...field.options].find(o => o.defaultSelected) ?? field.options[0]).value : "";

function readAddress(form) {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of FIELDS) {
    const field = form.elements[name];
    if (field) field.value = asked.get(name) ?? initial(field);
  }
  return { page: Math.max(1, Number(asked.get("page")) || 1), query: asked.has("query") ? Number(asked.get("query")) : null };
}

function writeAddress(form, page, isNew) {
  const asked = new URLSearchParams();
  for (const name of FIELDS) {
    const field = form.elements[name];
    if (field && field.value !== initial(field)) asked.set(name, field.value);
  }
  if (page > 1) asked.set("page", page);
  const address = "#" + asked;
  if (isNew) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
}

// ---- which queries, in which order ----

const length = text => text.split(/\s+/).filter(word => /[\p{L}\p{N}]/u.test(word)).length;

// The captions that tell what a query is about: an image's own, or the caption itself.
function captionsOf(kind, query) {
  const { texts, site } = report.data;
  return kind === "images" ? texts.slice(query * site.per, (query + 1) * site.per) : [texts[query]];
}

// Every word must be there; word* stands for whatever begins so.
function wordTest(words) {
  const escape = word => word.replace(/[.*+?^${}()|[\]\\\/]/g, "\\$&");
  const tests = words.trim().split(/\s+/).filter(Boolean)
    .map(word => "(?<![\\p{L}\\p{N}])" + escape(word.replace(/\*+$/, "")) + (word.endsWith("*") ? "" : "(?![\\p{L}\\p{N}])"))
    .map(pattern => new RegExp(pattern, "iu"));
  return text => tests.every(test => test.test(text));
}

function choose(kind, form) {
  const value = name => form.elements[name]?.value ?? "";
  const all = report.data.ranks[kind];
  const ranks = all[value("model") || all.length - 1];
  const beside = value("beside") === "" ? null : all[value("beside")];
  const [low, high] = value("rank").split("-").map(Number);
  const hasWords = wordTest(value("words"));
  const from = Number(value("from")) || 0, to = Number(value("to")) || Infinity;
  const gain = query => beside ? beside[query] - ranks[query] : 0;
  const change = { better: 1, equal: 0, worse: -1 }[beside ? value("change") : ""];
  const textual = value("words").trim() || from || to < Infinity;
  const fits = text => hasWords(text) && (!from && to === Infinity || length(text) >= from && length(text) <= to);
  const queries = [...ranks.keys()].filter(query =>
    (!low || ranks[query] >= low && (!high || ranks[query] <= high)) &&
    (change === undefined || Math.sign(gain(query)) === change) &&
    (!textual || captionsOf(kind, query).some(fits)));
  const order = {
    best: (a, b) => ranks[a] - ranks[b],
    worst: (a, b) => ranks[b] - ranks[a],
    gain: (a, b) => gain(b) - gain(a),
    loss: (a, b) => gain(a) - gain(b),
  }[value("sort")];
  return order ? queries.sort(order) : queries;
}

// ---- drawing ----

function rankMark(rank) {
  const kind = rank === 1 ? " hit" : rank > 10 ? " missed" : "";
  return make("span", { class: "rank" + kind }, `rank ${number.format(rank)}`);
}

function mark(isOwn, place) {
  const text = (isOwn ? "✓ " : "") + number.format(place);
  const mark = make("span", { class: "place" }, text);
  if (isOwn) mark.append(make("span", { class: "hidden" }, " correct"));
  return mark;
}

const score = value => make("span", { class: "score" }, value.toFixed(3).replace("-", "−"));

// The image, or its regions as boxes on a blank page with the words of its first caption.
function picture(image) {
  const { thumbs, names, chunk } = report.data.site;
  const alt = `Image ${image}${names[image] ? ", " + names[image] : ""}`;
  if (thumbs[image]) return make("img", { src: "thumbs/" + encodeURIComponent(thumbs[image]), alt, loading: "lazy" });
  const words = captionsOf("images", image)[0];
  const box = make("span", { class: "regions", role: "img", "aria-label": `${alt}, no picture: ${words}` });
  report.get(`regions-${Math.floor(image / chunk)}`).then(part => {
    const [width, height, path] = part[image % chunk];
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("aria-hidden", "true");
    svg.setAttribute("viewBox", `-1 -1 ${width + 2} ${height + 2}`);
    svg.append(document.createElementNS(svg.namespaceURI, "rect"), document.createElementNS(svg.namespaceURI, "path"));
    svg.firstChild.setAttribute("width", width);
    svg.firstChild.setAttribute("height", height);
    svg.lastChild.setAttribute("d", path);
    box.append(svg, make("span", { class: "words" }, words));
  });
  return box;
}

function foundText(place, id, value, isOwn) {
  return make("li", isOwn ? { class: "own" } : {}, mark(isOwn, place),
    make("a", { href: `captions.html#query=${id}` }, report.data.texts[id]), score(value));
}

function foundPicture(place, id, value, isOwn) {
  return make("li", isOwn ? { class: "own" } : {}, make("a", { href: `images.html#query=${id}`, title: captionsOf("images", id)[0] }, picture(id)),
    make("span", { class: "line" }, mark(isOwn, place), score(value)));
}

// One model's best candidates; the query's own ones that stand further down follow with their places.
function foundList(kind, query, [ids, scores, ownPlaces, ownScores]) {
  const { per } = report.data.site;
  const own = kind === "images" ? ownPlaces.map((_, k) => query * per + k) : [Math.floor(query / per)];
  const draw = kind === "images" ? foundText : foundPicture;
  const style = "found " + (kind === "images" ? "texts" : "pictures");
  const best = ids.map((id, k) => draw(k + 1, id, scores[k], own.includes(id)));
  const rest = [...own.keys()].filter(k => !ids.includes(own[k])).sort((a, b) => ownPlaces[a] - ownPlaces[b]);
  const further = rest.map(k => draw(ownPlaces[k], own[k], ownScores[k], true));
  further[0]?.classList.add("further");
  return make("ol", { class: style }, ...best, ...further);
}

function gainText(rank, other) {
  const gain = other - rank;
  return gain ? `${number.format(Math.abs(gain))} ${gain > 0 ? "better" : "worse"}` : "equal";
}

async function drawQuery(kind, query, models) {
  const { site, ranks, texts } = report.data;
  const chunk = await report.get(`${kind}-${Math.floor(query / site.chunk)}`);
  const shown = models.map(model => {
    const found = foundList(kind, query, chunk[model].map(values => values[query % site.chunk]));
    const title = models.length > 1 ? make("h3", {}, site.models[model], rankMark(ranks[kind][model][query])) : null;
    return make("section", { "aria-label": site.models[model] }, title, found);
  });
  const [rank, other] = models.map(model => ranks[kind][model][query]);
  const title = kind === "images" ? `Image ${query}` : texts[query];
  const heading = make("h2", {}, title,
    other === undefined ? rankMark(rank) : make("span", { class: "rank" }, gainText(rank, other)),
    make("span", { class: "name" }, kind === "images" ? site.names[query] : `caption ${query}, image ${Math.floor(query / site.per)}`),
    ...(site.explained[kind][query] ?? []).map(([name, href]) => make("a", { class: "explained", href }, `explained: ${name}`)));
  const answers = make("div", { class: "models" }, ...shown);
  const body = kind === "images" ? make("div", { class: "asked" }, picture(query), answers) : answers;
  return make("article", { class: "query", tabindex: "0", "aria-label": title, "data-query": query }, heading, body);
}

// ---- the page ----

function startQueries(kind) {
  const form = document.querySelector("form.filters"), list = document.getElementById("queries");
  const state = { page: 1, query: null, queries: [], drawing: 0 };
  const pages = () => Math.max(1, Math.ceil(state.queries.length / PAGE));

  const draw = () => drawPage().catch(error => {
    document.getElementById("count").textContent = `Nothing can be shown: ${error.message}`;
    throw error;
  });

  async function drawPage() {
    const turn = ++state.drawing;
    state.queries = state.query === null ? choose(kind, form) : [state.query].filter(q => q in report.data.ranks[kind][0]);
    state.page = Math.min(state.page, pages());
    const model = Number(form.elements.model?.value ?? 0), beside = form.elements.beside?.value ?? "";
    if (form.elements.change) form.elements.change.disabled = beside === "";
    const models = beside === "" ? [model] : [model, Number(beside)];
    const shown = state.queries.slice((state.page - 1) * PAGE, state.page * PAGE);
    const cards = await Promise.all(shown.map(query => drawQuery(kind, query, models)));
    if (turn !== state.drawing) return; // something newer is being drawn
    list.replaceChildren(...cards);
    say();
    document.body.dataset.ready = turn;
  }

  function say() {
    const total = report.data.ranks[kind][0].length, found = state.queries.length;
    const what = `${number.format(found)} of ${number.format(total)} ${kind}`;
    const count = document.getElementById("count");
    count.replaceChildren(found ? what : `${what}: nothing fits all of these filters.`);
    if (state.query !== null) count.append(" · ", make("a", { href: "#" }, "show all"));
    document.getElementById("page").textContent = `Page ${number.format(state.page)} of ${number.format(pages())}`;
    for (const button of document.querySelectorAll("[data-step]"))
      button.disabled = !inRange(Number(button.dataset.step));
  }

  const inRange = step => state.page + step >= 1 && state.page + step <= pages();

  function turnPage(step) {
    state.page += step;
    writeAddress(form, state.page, true);
    scrollTo({ top: 0 });
    draw();
  }

  function changed() {
    state.page = 1;
    state.query = null;
    writeAddress(form, 1, false);
    draw();
  }

  function follow() {
    if (location.hash === "#main") return; // the skip link
    Object.assign(state, readAddress(form));
    draw();
  }

  let timer;
  form.addEventListener("input", event => {
    clearTimeout(timer);
    timer = setTimeout(changed, event.target.matches("input") ? 150 : 0);
  });
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(changed));
  for (const button of document.querySelectorAll("[data-step]"))
    button.addEventListener("click", () => turnPage(Number(button.dataset.step)));
  addEventListener("popstate", follow);
  follow();
}

document.addEventListener("DOMContentLoaded", () => {
  const kind = document.body.dataset.kind;
  if (kind) startQueries(kind);
});
