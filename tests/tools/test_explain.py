"""tools/explain.py: parts add up to the score, attention is the one that matched, pages show them."""

import html
import json
import re
import sys

import numpy as np
import pytest
import torch
from browser import open_browser
from tiny import VSRN, make_tiny, message, pair_scores, picture_folder, similarities, write_model

import data
import evaluation
from model import Explanation
from modules.sides import CaptionSide, ImageSide
from reporting.explain_page import ExplainedPair, explain_page
from reporting.explanation import Sentence, caption_sentence, explain_pair
from reporting.image_view import ImageView, grid
from tools import explain as tool
from tools.searching.collection import Reader
from vocab import load_vocab


def explain(net, regions, words, boxes, depends):
    """The explanation of a pair from batches of one."""
    return net.explain(ImageSide(regions, boxes), CaptionSide(words, [words.shape[1]], depends))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("explain"), regions=5, splits={"test": 6})


@pytest.fixture(scope="module")
def dense(tiny):
    """A checkpoint: its path, its model and its test split."""
    net, opt, words = write_model(tiny, tiny.folder / "dense.pth.tar")
    return tiny.folder / "dense.pth.tar", net, data.open_split("test", opt.data_name, words, opt)


def test_a_split_without_captions(tmp_path, capsys):
    tiny, model = make_tiny(tmp_path, splits={"test": 6}), tmp_path / "m.pth.tar"
    write_model(tiny, model)
    sentence = (tiny.folder / "test_caps.txt").read_text().splitlines()[7]
    asked = ["--model_path", str(model), "--image", "1", "--out", str(tmp_path / "page.html"), "--caption"]
    tool.main([*asked, "7"])  # the same caption by its number
    score = capsys.readouterr().out.split("score")[1].split("\n")[0]
    for ending in ("caps.txt", "precaps_stan.txt", "caps.json"):
        (tiny.folder / f"test_{ending}").unlink()
    tool.main([*asked, sentence])
    assert score in capsys.readouterr().out
    assert "test_caps.txt" in message(lambda: tool.main([*asked, "7"]))
    assert [path.name for path in tmp_path.glob("page*")] == ["page.html"]


@pytest.mark.parametrize("boxes", ["normalized", "none"])
@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("propagation", ["self", "neighbors"])
def test_parts_add_up_to_the_score(tiny, tmp_path, propagation, is_sparse, boxes):
    kind = {"propagation": propagation, "is_sparse": is_sparse, "boxes": boxes}
    net, opt, words = write_model(tiny, tmp_path / "m.pth.tar", **kind)
    dataset = data.open_split("test", "tiny_precomp", words, opt)
    batch = data.collate([dataset[i] for i in range(30)])
    with torch.no_grad():
        images, captions = (side.emb for side in net.encode_sides(batch))
        visual, textual = pair_scores(net, images, captions, batch.bboxes, batch.depends, batch.lengths)
    for b, c in ((0, 0), (3, 7), (29, 1)):
        pair = batch.depends and batch.depends[c : c + 1]
        box = None if batch.bboxes is None else batch.bboxes[b : b + 1]
        parts = explain(net, images[b : b + 1], captions[c : c + 1, : batch.lengths[c]], box, pair)
        assert parts.score == pytest.approx((visual[b, c] + textual[b, c]).item(), abs=1e-6)
        assert parts.regions.sum() == pytest.approx(visual[b, c].item(), abs=1e-6)
        assert parts.words.sum() == pytest.approx(textual[b, c].item(), abs=1e-6)
        assert np.ptp(parts.words) > 1e-5
        same = (propagation, boxes) == ("neighbors", "none")  # all regions then have all as equal neighbours
        assert same or np.ptp(parts.regions) > 1e-5
        assert parts.beta.shape == parts.alpha.T.shape == (batch.lengths[c], 5)
        np.testing.assert_allclose(parts.edges.sum(1), 1, atol=1e-6)
        assert (np.count_nonzero(parts.edges) < parts.edges.size) == is_sparse


def test_attention_is_the_one_that_matched(dense):
    """Each side's scores are those of block cosines with the contexts that alpha and beta attend to."""
    net = dense[1]
    regions, sentence = (torch.nn.functional.normalize(torch.randn(n, 32), dim=1) for n in (5, 7))
    boxes = torch.rand(5, 4).sort(1).values
    parts = explain(net, regions[None], sentence[None], boxes[None], None)
    visual, textual = net.i2t_match_G, net.t2i_match_G
    edges = visual.edges(boxes[None]), textual.edges(sentence[None], None, net.smooth)
    for own, other, attention, added, scores, weights in (
        (regions, sentence, parts.alpha, parts.regions, visual.node_scores, edges[0]),
        (sentence, regions, parts.beta, parts.words, textual.node_scores, edges[1]),
    ):
        np.testing.assert_allclose(attention.sum(1), 1, atol=1e-6)
        context = torch.from_numpy(attention) @ other
        match = torch.cosine_similarity(own.view(-1, 4, 8), context.view(-1, 4, 8), dim=2)
        with torch.no_grad():
            np.testing.assert_allclose(added, scores(match[None, None], weights).flatten() / len(own), atol=1e-5)


@pytest.mark.parametrize("cross_attn", ["t2i", "i2t"])
def test_scan_explains_its_own_score(tiny, tmp_path, cross_attn):
    """The score is the evaluation's, the mean of the cosines of nodes with the contexts that they attend to."""
    path = tmp_path / "m.pth.tar"
    net, opt, words = write_model(tiny, path, model="scan", cross_attn=cross_attn, agg_func="Mean")
    dataset = data.open_split("test", "tiny_precomp", words, opt)
    found = explain_pair(net, dataset, 2, caption_sentence(dataset, 7))
    cosines, other = (found.words, found.regions) if cross_attn == "t2i" else (found.regions, found.words)
    attention = found.beta if cross_attn == "t2i" else found.alpha
    assert other is None and not found.adds and found.score == pytest.approx(cosines.mean(), abs=1e-6)
    with torch.no_grad():
        regions = net.encode_images(dataset.image(2)[None])[0]
        sentence = net.encode_captions(torch.tensor([dataset.tokens[7]]), [len(dataset.tokens[7])])[0]
    asking, asked = (sentence, regions) if cross_attn == "t2i" else (regions, sentence)
    np.testing.assert_allclose(attention.sum(1), 1, atol=1e-6)
    expected = torch.cosine_similarity(asking, torch.from_numpy(attention) @ asked, dim=1)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    call(path, tmp_path / "page", "--image", "2", "--caption", "7")
    evaluation.evalrank(path, split="test", ranks=None, device="cpu", report=tmp_path / "report", explain=1)
    pages = [tmp_path / "page.html", *(tmp_path / "report" / "explain").glob("*/*-*-*.html")]
    assert len(pages) == 3 and all("cosine" in page.read_text() for page in pages)


def call(path, out, *more):
    tool.main([*map(str, ["--model_path", path, "--out", out, "--device", "cpu", *more])])


def data_of(page):
    """What a page's script draws."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S).group(1))


def test_a_page_has_the_parts_of_the_evaluations_score(dense, tmp_path, capsys):
    path, net, dataset = dense
    call(path, tmp_path / "page", "--image", "2", "--caption", "7")
    said = re.search(r"score (\S+) = regions (\S+) \+ words (\S+)", capsys.readouterr().out)
    found = data_of(tmp_path / "page.html")[0]
    parts = [found["score"], *(sum(found["values"][side]) for side in ("regions", "words"))]
    assert list(map(float, said.groups())) == pytest.approx(parts, abs=1e-4)
    assert found["score"] == pytest.approx(similarities(net, dataset)[2, 7], abs=1e-6)


def test_complaints(tiny, tmp_path, monkeypatch):
    path, out = tmp_path / "m.pth.tar", tmp_path / "x"
    write_model(tiny, path, is_sparse=True)
    assert "images 0 to 5" in message(call, path, out, "--image", "6")
    assert "captions 0 to 29" in message(call, path, out, "--image", "0", "--caption", "30")
    for wrong in (["2", "4", "--caption", "11", "12"], ["1", "2", "3"]):
        assert "two" in message(call, path, out, "--image", *wrong)
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert "pip install spacy" in message(call, path, out, "--image", "0", "--caption", "a red dog")
    write_model(tiny, path, **VSRN)
    said = message(call, path, out, "--image", "0")
    assert str(path) in said and "VSRN" in said and not list(tmp_path.glob("x*"))


def test_a_sentence_is_read_as_the_files_are(tiny, capsys):
    words = load_vocab(tiny.vocab_path, tiny.data_name)
    reader = Reader(words)
    read = reader("There is a Red unicorn.")
    assert read.words == ["<start>", "there", "is", "a", "red", "‹unicorn›", ".", "<end>"]
    assert read.ids == [1, *(words(w) for w in ("there", "is", "a", "red", "unicorn", ".")), 2]
    assert "not in the vocabulary: unicorn" in capsys.readouterr().err
    reader.parser = lambda captions: iter([[5, 5, 5, 5, 0, 5] for _ in captions])  # all on the fifth word
    assert reader("There is a red dog.").pairs == [[0, 5], [5, 1], [5, 2], [5, 3], [5, 4], [5, 6]]
    assert "no words" in message(reader, "  ")


def shown(browser):
    """How strongly each region of the first pair is lit, and what the page says."""
    regions = "section[data-pair='0'] rect.region"
    weights = browser.each(regions, "[Number(e.dataset.index), Number(getComputedStyle(e).fillOpacity) / 0.38]")
    return [weight for _, weight in sorted(weights)], browser.each(".readout")[0]


def test_pointing_at_a_word_lights_its_regions(tiny, tmp_path):
    path = tmp_path / "m.pth.tar"
    write_model(tiny, path, is_sparse=True)
    call(path, tmp_path / "blank", "--image", "1")
    call(path, tmp_path / "picture", "--image", "1", "--images", picture_folder(tiny, tmp_path / "images"))
    with open_browser() as browser:
        for page, pictures in (("blank", 0), ("picture", 1)):
            browser.open(tmp_path / f"{page}.html", "document.body.dataset.ready")
            point_and_look(browser, *data_of(tmp_path / f"{page}.html"))
            assert len(browser.each(".view image")) == pictures and browser.fits(400)
        assert browser.errors == []


def point_and_look(browser, drawn):
    tokens, beta, alpha = drawn["tokens"], *(np.array(drawn["attention"][side]) for side in ("words", "regions"))
    most = 1 + int(np.argmax(drawn["values"]["words"][1:-1]))  # shown before one points
    lit, said = shown(browser)
    np.testing.assert_allclose(lit, beta[most] / beta[most].max(), atol=1e-3)
    assert said.startswith(tokens[most])
    word = 2 if most != 2 else 3
    button = f"document.querySelectorAll('.words button')[{word}]"
    browser.run(f"{button}.dispatchEvent(new PointerEvent('pointerover', {{ bubbles: true }}))")
    assert browser.each(".words .chosen", "Number(e.dataset.index)") == [word]
    lit, said = shown(browser)
    np.testing.assert_allclose(lit, beta[word] / beta[word].max(), atol=1e-3)
    assert said.startswith(f"{tokens[word]} attends to region {beta[word].argmax()} ({beta[word].max():.2f})")
    assert "neighbours" in said
    browser.run("document.querySelector('.region[data-index=\"3\"]').focus()")  # a region lights its words
    weights = browser.each(".words button", "Number(e.style.getPropertyValue('--weight'))")
    np.testing.assert_allclose(weights, alpha[3] / alpha[3].max(), atol=1e-3)


@pytest.mark.parametrize("side", ["words", "regions"])
def test_a_page_of_a_system_with_one_attention(tmp_path, side):
    """Words attend to regions, or the reverse, and one side alone adds to the score: SCAN's two kinds."""
    view = ImageView(0, "</script><script>document.title = 'run'</script>", None, (4, 3), grid(5), True)
    sentence = Sentence(["<start>", "<img src=x onerror=alert(1)>", "dog", "<end>"], [], None)
    beta = np.random.default_rng(0).dirichlet(np.ones(5), 4)
    parts = {"words": np.array([0.0, 0.1, -0.2, 0.0]), "beta": beta, "regions": None, "alpha": None, "adds": False}
    if side == "regions":
        parts |= {"regions": np.array([0.1, 0.2, 0.3, -0.1, 0.0]), "alpha": beta.T, "words": None, "beta": None}
    pairs = [ExplainedPair(name, name, "", view, sentence, Explanation(0.5, **parts)) for name in ("left", "right")]
    (tmp_path / "page.html").write_text(explain_page("title", "", pairs))
    with open_browser() as browser:
        browser.open(tmp_path / "page.html", "document.body.dataset.ready")
        browser.run("document.querySelectorAll('.words button')[2].focus()")
        lit, said = shown(browser)
        np.testing.assert_allclose(lit, beta[2] / beta[2].max(), atol=1e-3)
        assert ("is attended by" in said, "−0.2000" in said) == (side == "regions", side == "words")
        assert browser.run("document.title") == "title" and browser.errors == []


def test_two_pairs_on_one_page(dense, tmp_path, capsys):
    """Two captions share the image, two images the caption; what is said fits the data."""
    path, net, dataset = dense
    call(path, tmp_path / "captions", "--image", "2", "--caption", "11", "a red dog")
    call(path, tmp_path / "images", "--image", "2", "4", "--caption", "11")
    said = capsys.readouterr().out
    assert data_of(tmp_path / "captions.html")[0] == data_of(tmp_path / "images.html")[0]
    sims = similarities(net, dataset)[:, 11]
    ranks = [int(np.sum(sims >= sims[g])) for g in (2, 4)]
    found = re.findall(r"Caption 11 is (not )?the image's own.*rank (\d) of 6", said)
    assert {("", str(ranks[0])), ("not ", str(ranks[1]))} <= set(found)
    text = html.unescape((tmp_path / "images.html").read_text())
    title = text.split("<title>")[1].split("</title>")[0]
    assert dataset.captions[11] in title and "Image 2" in title and "Image 4" in title
    assert str(path) in text and "tiny_precomp, split test" in text  # what made it


def test_names_of_files_come_from_the_pair(dense, tmp_path, capsys, monkeypatch):
    """The next sentence does not overwrite the last one's page."""
    monkeypatch.chdir(tmp_path)
    for caption in ("7", "a red dog", "a red dog !", "A red dog", "ein Hund – größer", "…", "long " * 90):
        call(dense[0], "", "--image", "2", "--caption", caption, "--no_rank")
    names = [path.name for path in tmp_path.glob("*.html")]
    assert len(names) == 7 and {"explain-2-7.html", "explain-2-a-red-dog.html"} < set(names)
    assert max(map(len, names)) < 90 and "rank" not in capsys.readouterr().out
