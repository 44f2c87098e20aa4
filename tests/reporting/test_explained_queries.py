"""Pages of the worst queries: the right ones are chosen, and both pairs' parts add up to the evaluation's scores."""

import json
import re

import pytest
from browser import open_browser
from tiny import VSRN, make_tiny, message, picture_folder, similarities, write_model

import data
import evaluation
from reporting import explain_page
from reporting.explained_queries import Comparison, named_comparison, worst_queries
from reporting.explanation import caption_sentence, explain_pair
from reporting.image_view import ImageViewer
from reporting.pages import both_ways

IMAGES = 12


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A model, its split, the similarities of all pairs, and what they find."""
    tiny = make_tiny(tmp_path_factory.mktemp("explained"), regions=5, splits={"test": IMAGES})
    net, opt, words = write_model(tiny, tiny.folder / "m.pth.tar", is_sparse=True, propagation="neighbors")
    dataset = data.open_split("test", opt.data_name, words, opt)
    sims = similarities(net, dataset)
    return tiny, net, dataset, sims, both_ways([sims])


def literal(sims, own):
    """(rank of the best own candidate, that candidate, the best of the others) of one query's scores."""
    others = [c for c in range(len(sims)) if c not in own]
    best = max(own, key=lambda c: sims[c])
    return 1 + sum(sims[c] >= sims[best] for c in others), best, max(others, key=lambda c: sims[c])


def test_worst_queries_are_those_of_the_largest_ranks(scored):
    sims, found = scored[3:]
    for kind, queries in (
        ("images", [literal(sims[i], range(5 * i, 5 * i + 5)) for i in range(IMAGES)]),
        ("captions", [literal(sims[:, c], [c // 5]) for c in range(5 * IMAGES)]),
    ):
        chosen = worst_queries(found[kind], kind, 7, 5)
        assert [c.rank for c in chosen] == sorted((rank for rank, *_ in queries), reverse=True)[:7]
        assert all((c.rank, c.true, c.other) == queries[c.query] for c in chosen)
        assert len(worst_queries(found[kind], kind, 1000, 5)) == len(queries)


def test_pairs_by_name(scored):
    dataset, sims, found = scored[2:]
    rank, true, other = literal(sims[:, 17], [3])
    assert named_comparison("9:17", dataset, found) == Comparison("captions", 17, 3, 9, rank, "Named")
    role = "Found first" if rank > 1 else "Best of the others"
    assert named_comparison("3:17", dataset, found) == Comparison("captions", 17, true, other, rank, role)
    for text in ("3", "3:", "a:b", "-1:3", "3:4:5"):
        assert "IMAGE:CAPTION" in message(named_comparison, text, dataset, found)
    for text in ("12:0", "0:60", "x:1"):
        assert "captions 0 to 59" in message(named_comparison, text, dataset, found)


def test_differences_add_up(scored):
    """The rows of the table are the change of the score by words, wherever the two sentences differ."""
    _, net, dataset, _, _ = scored
    views, sentences = {}, {}

    def explained(image, caption):
        view = views.setdefault(image, ImageViewer(dataset)(image))
        sentence = sentences.setdefault(caption, caption_sentence(dataset, caption))
        return explain_page.ExplainedPair("", "", "", view, sentence, explain_pair(net, dataset, image, sentence))

    for numbers in (((3, 17), (9, 17)), ((3, 17), (3, 42)), ((3, 15), (3, 16))):
        pairs = [explained(*pair) for pair in numbers]
        words = explain_page.numbered_words([pair.sentence for pair in pairs])
        every = explain_page.table_rows(pairs, words)
        rows = [row for row in every if row.kind == "words"]
        left, right = (pair.explanation for pair in pairs)
        assert sum(row.change for row in rows) == pytest.approx(right.words.sum() - left.words.sum(), abs=1e-6)
        for side, pair in enumerate(pairs):  # every word of either sentence once, in order
            shown = [row.numbers[side] for row in rows if row.numbers[side] >= 0]
            assert shown == list(range(len(pair.sentence.words)))
        assert (rows != every) == (numbers[0][0] == numbers[1][0])  # regions of one image


def report(paths, folder, **how):
    evaluation.evalrank(paths, split="test", ranks=None, device="cpu", report=folder, **how)
    return sorted(folder.glob("explain/*/*-*-*.html"))


def test_a_word_is_chosen_in_both_pairs(scored, tmp_path, capsys):
    tiny, dataset = scored[0], scored[2]
    folder = picture_folder(tiny, tmp_path / "images", lambda i: (200 + i, 150 if i == 9 else 100 + i), IMAGES)
    (page,) = report(tiny.folder / "m.pth.tar", tmp_path / "report", images=folder, explain_pair=["9:17"])
    with open_browser() as browser:
        browser.open(page, "document.body.dataset.ready")
        browser.run("document.querySelectorAll('section[data-pair=\"0\"] .words button')[2].focus()")
        assert browser.each(".words button.chosen") == [dataset.vocab.idx2word[dataset.tokens[17][2]]] * 2
        assert len(browser.each(".view .picture")) == 2
        assert all("attends to" in text for text in browser.each(".readout"))
        captions = browser.each("figcaption")
        note = "The picture is 209 × 150, but the data's size is 209 × 109"  # of image 9 alone
        assert note not in captions[0] and note in captions[1] and f"9.png: {note}" in capsys.readouterr().err
        assert browser.fits(400) and browser.errors == []


def test_a_report_explains(scored, tmp_path, capsys):
    """Pages for each GSMN of an ensemble, a link to them, and none for a VSRN."""
    tiny, site, sims = scored[0], tmp_path / "report", scored[3]
    paths = [tiny.folder / "m.pth.tar", tiny.folder / "vsrn<i>" / "v.pth.tar"]
    paths[1].parent.mkdir()
    write_model(tiny, paths[1], **VSRN)
    pages = report(paths, site, explain=2, explain_pair=["9:17"])
    assert sorted(page.name.split("-")[0] for page in pages) == ["captions"] * 3 + ["images"] * 2
    assert "captions-17-9.html" in [page.name for page in pages]
    for page in pages:
        left, right = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S).group(1))
        kind, query, other = page.stem.split("-")
        own = sims[int(query)] if kind == "images" else sims[:, int(query)]
        true = range(5 * int(query), 5 * int(query) + 5) if kind == "images" else [int(query) // 5]
        assert left["score"] == pytest.approx(max(own[c] for c in true), abs=1e-5)
        assert right["score"] == pytest.approx(own[int(other)], abs=1e-5)
        assert (left["tokens"] == right["tokens"]) == (kind == "captions")
    hrefs, index = {str(page.relative_to(site)) for page in pages}, pages[0].with_name("index.html")
    assert all(f'href="{page.name}"' in index.read_text() for page in pages)
    summary = (site / "index.html").read_text()
    assert f'href="{index.relative_to(site)}"' in summary and "(5 pages)" in summary
    assert "vsrn&lt;i&gt;" in summary and "vsrn<i>" not in summary
    links = json.loads((site / "data" / "site.js").read_text()[len('report.put("site", ') : -3])["explained"]
    assert len(links) == 5 and {href for *_, href in links} == hrefs
    with open_browser() as browser:
        query = next(query for kind, query, *_ in links if kind == "captions")
        browser.open(site / "captions.html", "document.body.dataset.ready", f"query={query}")
        assert hrefs & set(browser.each("a.explained", "e.getAttribute('href')")) and browser.errors == []
    capsys.readouterr()
    assert report(paths[1], site, explain=2) == [] and not (site / "explain").exists()
    said = capsys.readouterr()
    assert "nothing to explain" in said.err and f"{site}: replacing" in said.out
    assert "Explanations" not in (site / "index.html").read_text()


def test_what_a_page_says_and_what_cannot_be_explained(scored, tmp_path):
    path, site = scored[0].folder / "m.pth.tar", tmp_path / "report"
    assert "has images 0 to 11" in message(lambda: report(path, site, explain_pair=["12:0"]))
    assert not site.exists()  # it is told before the evaluation
    pages = report(path, site, boxes="released", explain=1)
    assert len(pages) == 2 and all("--boxes released" in page.read_text() for page in pages)
