"""tools/explain.py: parts add up to the score, attention is the one that matched, pages and figures show them."""

import json
import re
import sys
import time

import numpy as np
import pytest
import torch
from browser import open_browser
from tiny import VSRN, make_tiny, message, picture_folder, write_model

import data
import evaluation
import graph
from reporting.explanation import explain
from tools import explain as tool
from tools.explaining import sentences
from vocab import load_vocab


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("explain"), regions=5, splits={"test": 6})


@pytest.mark.parametrize("boxes", ["normalized", "none"])
@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("propagation", ["self", "neighbors"])
def test_parts_add_up_to_the_score(tiny, tmp_path, propagation, is_sparse, boxes):
    kind = {"propagation": propagation, "is_sparse": is_sparse, "boxes": boxes}
    net, opt, words = write_model(tiny, tmp_path / "m.pth.tar", **kind)
    dataset = data.open_split("test", "tiny_precomp", words, opt)
    batch = data.collate([dataset[i] for i in range(30)])
    with torch.no_grad():
        images, captions, lengths = net.forward_emb(batch.images, batch.captions, batch.lengths)
        visual, textual = net.forward_scores(images, captions, batch.bboxes, batch.depends, lengths)
    for b, c in ((0, 0), (3, 7), (29, 1)):
        pair = None if batch.depends is None else batch.depends[c]
        box = None if batch.bboxes is None else batch.bboxes[b]
        parts = explain(net, images[b], captions[c][: lengths[c]], box, pair)
        assert parts.score == pytest.approx((visual[b, c] + textual[b, c]).item(), abs=1e-6)
        assert parts.regions.sum() == pytest.approx(visual[b, c].item(), abs=1e-6)
        assert parts.words.sum() == pytest.approx(textual[b, c].item(), abs=1e-6)
        assert np.ptp(parts.words) > 1e-5
        same = (propagation, boxes) == ("neighbors", "none")  # all regions then have all as equal neighbours
        assert same or np.ptp(parts.regions) > 1e-5
        assert len(parts.words) == lengths[c] and len(parts.regions) == 5
        assert (len(parts.pairs) > 0) == is_sparse


def test_attention_is_the_one_that_matched(tiny, tmp_path):
    """The matching vectors are the block cosines of the contexts that alpha and beta attend to."""
    net = write_model(tiny, tmp_path / "m.pth.tar")[0]
    regions, sentence = (torch.nn.functional.normalize(torch.randn(n, 32), dim=1) for n in (5, 7))
    parts = explain(net, regions, sentence, torch.rand(5, 4).sort(1).values)
    for rows in (parts.alpha, parts.beta):
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
    for own, other, attention, match in (
        (regions, sentence, parts.alpha, parts.region_match),
        (sentence, regions, parts.beta, parts.word_match),
    ):
        context = torch.from_numpy(attention) @ other
        expected = torch.cosine_similarity(own.view(-1, 4, 8), context.view(-1, 4, 8), dim=2)
        np.testing.assert_allclose(match, expected, atol=1e-5)
    np.testing.assert_allclose(parts.kernels.sum(0), 1, atol=1e-6)
    assert parts.kernels.shape == (graph.KERNELS, 5, 5)
    np.testing.assert_allclose(parts.word_edges.sum(1), 1, atol=1e-6)


def call(tiny, path, out, *more, form="html"):
    flags = ["--model_path", path, "--out", out, "--format", *form.split(), "--device", "cpu", *more]
    tool.main([*map(str, flags)])


def data_of(page):
    """What a page's script draws."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S).group(1))


def test_caption_by_number_and_by_words_are_the_same(tiny, tmp_path, capsys):
    path = tmp_path / "m.pth.tar"
    net, opt, words = write_model(tiny, path)
    text = (tiny.folder / "test_caps.txt").read_text().splitlines()[7]
    call(tiny, path, tmp_path / "a", "--image", "2", "--caption", "7")
    call(tiny, path, tmp_path / "b", "--image", "2", "--caption", text)
    said = capsys.readouterr().out
    scores = re.findall(r"score (\S+) = regions (\S+) \+ words (\S+)", said)
    assert len(scores) == 2 and scores[0] == scores[1]
    found = data_of(tmp_path / "a.html")["pairs"][0]
    assert found["score"] == pytest.approx(float(scores[0][0]), abs=1e-6)
    assert sum(found["regions"]) + sum(found["words"]) == pytest.approx(found["score"], abs=1e-4)
    dataset = data.open_split("test", "tiny_precomp", words, opt)
    with torch.no_grad():
        ids = dataset.tokens[7]
        emb = net.forward_emb(dataset.image(2)[None], torch.tensor([ids]), [len(ids)])
        sims = net.forward_sim(*emb[:2], torch.from_numpy(dataset.boxes[2:3]), None, [len(ids)])
    assert float(scores[0][0]) == pytest.approx(sims.item(), abs=1e-6)


def test_complaints(tiny, tmp_path, monkeypatch):
    path = tmp_path / "m.pth.tar"
    write_model(tiny, path, is_sparse=True)
    said = message(lambda: call(tiny, path, tmp_path / "x", "--image", "6"))
    assert "--image 6: the split test has images 0 to 5" in said
    wrong = ["--image", "0", "--caption", "30"]
    assert "captions 0 to 29" in message(lambda: call(tiny, path, tmp_path / "x", *wrong))
    monkeypatch.setitem(sys.modules, "spacy", None)
    sentence = ["--image", "0", "--caption", "a red dog"]
    assert "pip install spacy" in message(lambda: call(tiny, path, tmp_path / "x", *sentence))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in message(lambda: call(tiny, path, tmp_path / "x", "--image", "0", form="png"))
    write_model(tiny, path, **VSRN)
    said = message(lambda: call(tiny, path, tmp_path / "x", "--image", "0"))
    assert said == f"{path}: holds vsrn, which compares whole vectors; only GSMN matches words and regions"
    assert not list(tmp_path.glob("x*"))


def test_a_sentence_is_read_as_the_files_are(tiny, capsys):
    words = load_vocab(tiny.vocab_path, tiny.data_name)
    reader = sentences.Reader(words)
    read = reader("There is a Red unicorn.")
    assert read.words == ["<start>", "there", "is", "a", "red", "‹unicorn›", ".", "<end>"]
    assert read.ids == [1, *(words(w) for w in ("there", "is", "a", "red", "unicorn", ".")), 2]
    assert "not in the vocabulary: unicorn" in capsys.readouterr().err
    reader.parser = lambda captions: iter([[5, 5, 5, 5, 0, 5] for _ in captions])  # all on the fifth word
    assert reader("There is a red dog.").pairs == [[0, 5], [5, 1], [5, 2], [5, 3], [5, 4], [5, 6]]
    assert "no words" in message(reader, "  ")


def test_pointing_at_a_word_lights_its_regions(tiny, tmp_path):
    path = tmp_path / "m.pth.tar"
    write_model(tiny, path, is_sparse=True)
    call(tiny, path, tmp_path / "blank", "--image", "1")
    call(tiny, path, tmp_path / "picture", "--image", "1", "--images", picture_folder(tiny, tmp_path / "images"))
    from PIL import Image

    pages = [tmp_path / "blank.html", tmp_path / "picture.html"]
    with open_browser() as browser:
        browser.screen()
        for page in pages:
            browser.open(page, "document.body.dataset.ready")
            point_and_look(browser)
            assert browser.run("document.querySelectorAll('.view-svg image').length") == (page == pages[1])
            assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser.screen(400, 800, phone=True)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser.screenshot(tmp_path / "page.png")
        assert browser.errors == []
    with Image.open(tmp_path / "page.png") as shot:
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 100


def point_and_look(browser):
    opacities = (
        "[...document.querySelectorAll('.region')].sort((a, b) => a.dataset.index - b.dataset.index)"
        ".map(r => Number(r.style.fillOpacity))"
    )
    drawn = browser.run("JSON.parse(document.getElementById('data').textContent)")
    pair, tokens = drawn["pairs"][0], drawn["captions"][0]["tokens"]
    assert set(browser.run(opacities)) == {0}
    middle = "(() => {{ const b = {}.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] }})()"
    for _ in range(50):  # a page that is not painted yet takes no notice of the mouse
        browser.point(1, 1)
        browser.point(*browser.run(middle.format("document.querySelectorAll('.words button')[2]")))
        if browser.run("document.querySelectorAll('.words .chosen').length"):
            break
        time.sleep(0.1)
    beta = np.array(pair["beta"][2])
    np.testing.assert_allclose(browser.run(opacities), 0.38 * beta / beta.max(), atol=1e-4)
    assert browser.run("document.querySelector('.explained .readout').textContent").startswith(
        f"{tokens[2]} attends to region {beta.argmax()} ({beta.max():.2f})"
    )
    browser.run("document.querySelector('input[value=regions]').click()")
    alpha = np.array(pair["alpha"])
    np.testing.assert_allclose(browser.run(opacities), 0.38 * alpha[:, 2] / alpha[:, 2].max(), atol=1e-4)
    browser.run("document.querySelector('input[value=pointed]').click()")
    browser.run("document.querySelector('.region[data-index=\"3\"]').focus()")  # a region lights its words
    buttons = "[...document.querySelectorAll('.words button')]"
    weights = browser.run(f"{buttons}.map(button => Number(button.style.getPropertyValue('--weight')))")
    np.testing.assert_allclose(weights, 0.65 * alpha[3] / alpha[3].max(), atol=1e-3)
    assert browser.run("document.querySelector('.centre-number').textContent") == "3"


def test_figures(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    path = tmp_path / "m.pth.tar"
    write_model(tiny, path, is_sparse=True)
    call(tiny, path, tmp_path / "x", "--image", "1", "--region", "4", form="png")
    written = sorted(p.name for p in tmp_path.glob("x*"))
    assert written == [f"x-{name}.png" for name in ("attention", "kernels", "nodes", "word-edges", "words")]
    for name in written:
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_two_pairs_on_one_page(tiny, tmp_path, capsys):
    """Two captions share the image and its kernels, two images the caption; what is said fits the data."""
    path = tmp_path / "m.pth.tar"
    net, opt, words = write_model(tiny, path)
    call(tiny, path, tmp_path / "captions", "--image", "2", "--caption", "11", "a red dog")
    call(tiny, path, tmp_path / "images", "--image", "2", "4", "--caption", "11")
    said = capsys.readouterr().out
    pages = [data_of(tmp_path / f"{name}.html") for name in ("captions", "images")]
    assert [(len(page["images"]), len(page["captions"])) for page in pages] == [(1, 2), (2, 1)]
    assert pages[0]["pairs"][0] == pages[1]["pairs"][0]
    dataset = data.open_split("test", "tiny_precomp", words, opt)
    loader = data.get_test_loader("test", opt.data_name, words, 16, 0, opt)
    sims = evaluation.shard_xattn(net, *evaluation.encode_data(net, loader))[:, 11]
    ranks = [int(np.sum(sims >= sims[g])) for g in (2, 4)]
    assert f"Caption 11 is the image's own. The image has rank {ranks[0]} of 6 for it." in said
    assert f"Caption 11 is not the image's own, but of image 2. The image has rank {ranks[1]} of 6 for it." in said
    assert "The sentence is not from the data." in said
    title = (tmp_path / "images.html").read_text().split("<title>")[1].split("</title>")[0]
    assert title == f"“{dataset.captions[11]}”: image 2 beside image 4".replace("'", "&#39;")
    size = (tmp_path / "images.html").stat().st_size
    assert f"images.html: {size / 1000:.0f} kB" in said
    for wrong in (["--image", "2", "4", "--caption", "11", "12"], ["--image", "1", "2", "3"]):
        assert "a page shows two pairs at most" in message(lambda: call(tiny, path, tmp_path / "x", *wrong))  # noqa: B023


def test_names_of_files_come_from_the_pair(tiny, tmp_path, capsys, monkeypatch):
    """The next sentence does not overwrite the last one's page."""
    monkeypatch.chdir(tmp_path)
    write_model(tiny, tmp_path / "m.pth.tar")
    for caption in ("7", "a red dog", "a red dog !", "A red dog", "ein Hund – größer", "…", "long " * 90):
        tool.main(["--model_path", "m.pth.tar", "--image", "2", "--caption", caption, "--no_rank", "--device", "cpu"])
    names = [path.name for path in tmp_path.glob("*.html")]
    assert len(names) == 7 and {"explain-2-7.html", "explain-2-a-red-dog.html"} < set(names)
    assert max(map(len, names)) < 90 and "rank" not in capsys.readouterr().out


def test_pictures_of_other_proportions(tiny, tmp_path, capsys):
    path = tmp_path / "m.pth.tar"
    write_model(tiny, path)
    folder = picture_folder(
        tiny, tmp_path / "images", lambda i: (150, 201) if i == 1 else (2 * (200 + i), 2 * (100 + i))
    )
    call(tiny, path, tmp_path / "right", "--image", "0", "--images", folder)
    assert "The picture is" not in capsys.readouterr().err
    call(tiny, path, tmp_path / "wrong", "--image", "1", "--images", folder)
    note = "The picture is 150 × 201, but the data's size is 201 × 101: the boxes may not fit it."
    assert f"warning: image 1, 1.png: {note}" in capsys.readouterr().err
    assert note.replace("'", "&#39;") in (tmp_path / "wrong.html").read_text()
