"use strict";
// The pages of queries: filter, order, page by page.  What is asked for stands in the address after #.
// Data are scripts that call report.put(name, value), so that everything works from disk.

const PAGE = 20; // queries on a page
const report = { data: {}, put(name, value) { this.data[name] = value; } };
const number = new Intl.NumberFormat("en");
const kind = document.body.dataset.kind, form = document.forms[0], count = document.getElementById("count");
let site, lists; // data/site.js, and data/images.js or data/captions.js: the candidates of each model

// An element; texts are texts, never markup.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The captions that tell what a query is about: an image's own, or the caption itself.
function captionsOf(asking, query) {
  return asking === "images" ? site.texts.slice(query * site.per, (query + 1) * site.per) : [site.texts[query]];
}

// Whether a caption has a length and every word; word* stands for whatever begins so.
function captionTest({ words, from, to }) {
  const asked = words.toLowerCase().match(/[\p{L}\p{M}\p{N}]+\*?/gu) ?? [];
  return text => {
    const found = text.toLowerCase().match(/[\p{L}\p{M}\p{N}]+/gu) ?? [];
    const has = word => word.endsWith("*") ? found.some(one => one.startsWith(word.slice(0, -1))) : found.includes(word);
    return found.length >= Number(from) && found.length <= (to || Infinity) && asked.every(has);
  };
}

function choose(filters) {
  const all = site.ranks[kind], ranks = all.at(filters.model || -1), beside = all[filters.beside];
  const gain = query => beside ? beside[query] - ranks[query] : 0;
  const [low, high] = filters.rank.split("-").map(Number), fits = captionTest(filters);
  const queries = [...ranks.keys()].filter(query =>
    ranks[query] >= low && ranks[query] <= (high || Infinity) &&
    (!filters.change || Math.sign(gain(query)) === Number(filters.change)) &&
    captionsOf(kind, query).some(fits));
  const orders = {
    best: (a, b) => ranks[a] - ranks[b],
    worst: (a, b) => ranks[b] - ranks[a],
    gain: (a, b) => gain(b) - gain(a),
    loss: (a, b) => gain(a) - gain(b),
  };
  return filters.sort ? queries.sort(orders[filters.sort]) : queries;
}

function rankMark(rank) {
  const mark = rank === 1 ? "rank hit" : rank > 10 ? "rank missed" : "rank";
  return make("span", { class: mark }, `rank ${number.format(rank)}`);
}

function picture(image) {
  const alt = `Image ${image} ${site.names[image]}`;
  return make("img", { src: `thumbs/${site.thumbs[image]}`, alt, title: captionsOf("images", image)[0], loading: "lazy" });
}

function candidate(id, place, score, isOwn) {
  const [page, content] = kind === "images" ? ["captions", site.texts[id]] : ["images", picture(id)];
  return make("li", { class: isOwn ? "own" : "other" },
    make("span", { class: "place" }, (isOwn ? "✓ " : "") + number.format(place)),
    make("a", { href: `${page}.html#query=${id}` }, content),
    make("span", { class: "score" }, score.toFixed(3).replace("-", "−")));
}

// One model's best candidates; the query's own ones that stand further down follow with their places.
function candidates(query, [ids, scores, ownPlaces, ownScores]) {
  const own = kind === "images" ? ownPlaces.map((_, k) => query * site.per + k) : [Math.floor(query / site.per)];
  const best = ids.map((id, k) => candidate(id, k + 1, scores[k], own.includes(id)));
  const rest = [...own.keys()].filter(k => ownPlaces[k] > ids.length).sort((a, b) => ownPlaces[a] - ownPlaces[b]);
  const further = rest.map(k => candidate(own[k], ownPlaces[k], ownScores[k], true));
  return make("ol", { class: kind === "images" ? "found texts" : "found pictures" }, ...best, ...further);
}

function drawQuery(query, models) {
  const answers = models.map(model => make("section", { "aria-label": site.models[model] },
    make("h3", {}, site.models[model], rankMark(site.ranks[kind][model][query])),
    candidates(query, lists[model].map(values => values[query]))));
  const [title, name] = kind === "images" ? [`Image ${query}`, site.names[query]]
    : [site.texts[query], `caption ${query}, image ${Math.floor(query / site.per)}`];
  const pages = site.explained.filter(([side, asked]) => side === kind && asked === query);
  const heading = make("h2", {}, title, make("span", { class: "name" }, name),
    ...pages.map(([,, model, href]) => make("a", { class: "explained", href }, `explained: ${model}`)));
  const body = make("div", { class: kind }, ...(kind === "images" ? [picture(query)] : []), make("div", { class: "models" }, ...answers));
  return make("article", { class: "query", tabindex: "0", "aria-label": title, "data-query": query }, heading, body);
}

function show() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (form.elements.change) form.elements.change.disabled = !form.elements.beside.value;
  const filters = Object.fromEntries(new FormData(form)), total = site.ranks[kind][0].length;
  const queries = asked.has("query") ? [Number(asked.get("query"))].filter(query => query in site.ranks[kind][0]) : choose(filters);
  const last = Math.ceil(queries.length / PAGE) || 1, page = Math.min(Math.max(Number(asked.get("page")) || 1, 1), last);
  const models = [filters.model || site.models.length - 1, ...(filters.beside ? [filters.beside] : [])];
  const cards = queries.slice((page - 1) * PAGE, page * PAGE).map(query => drawQuery(query, models));
  document.getElementById("queries").replaceChildren(...cards);
  count.textContent = `${number.format(queries.length)} of ${number.format(total)} ${kind}`;
  document.getElementById("page").textContent = `Page ${number.format(page)} of ${number.format(last)}`;
  for (const link of document.querySelectorAll("a[data-step]")) {
    const next = page + Number(link.dataset.step);
    asked.set("page", next);
    link.href = `#${asked}`;
    link.hidden = next < 1 || next > last;
  }
  document.body.dataset.ready = (Number(document.body.dataset.ready) || 0) + 1; // how often it was drawn
}

// Fill in the form as the address says.
function follow() {
  form.reset();
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = form.elements.namedItem(name);
    if (field) field.value = value;
  }
  scrollTo(0, 0);
  show();
}

document.addEventListener("DOMContentLoaded", () => {
  site = report.data.site;
  lists = report.data[kind];
  form.addEventListener("input", () => {
    const asked = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
    history.replaceState(null, "", `#${asked}`);
    show();
  });
  form.addEventListener("submit", event => event.preventDefault());
  addEventListener("hashchange", follow);
  follow();
});
