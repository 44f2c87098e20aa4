"""tools/search.py: finds what the evaluation's similarities say, keeps embeddings, says what is missing."""

import io
import re
import sys

import numpy as np
import pytest
from found import find
from tiny import VSRN, make_tiny, message, picture_folder, write_model

import data
import evaluation
from reporting import rendering
from tools.searching import collection
from tools.searching.finders import Reader
from tools.searching.ranking import best_images


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("search"), regions=5, splits={"test": 6})


@pytest.mark.parametrize("changes", [{}, {"propagation": "neighbors"}, VSRN], ids=["gsmn", "neighbors", "vsrn"])
def test_a_caption_as_query_finds_what_its_similarities_say(tiny, tmp_path, capsys, changes):
    net, opt, words = write_model(tiny, tmp_path / "m.pth.tar", **changes)
    loader = data.get_test_loader("test", opt.data_name, words, 16, 0, opt)
    sims = evaluation.shard_xattn(net, *evaluation.encode_data(net, loader))[:, 8]
    asked = ["--query", loader.dataset.captions[8].upper(), "--top", 4, "--cache", tmp_path / "cache"]
    best, scores, _ = find(tmp_path / "m.pth.tar", capsys, *asked)
    assert best == np.argsort(-sims)[:4].tolist()
    np.testing.assert_allclose(scores, sims[best], atol=1e-4)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_cache_belongs_to_checkpoint_and_features(tiny, tmp_path, capsys, monkeypatch):
    cache, asked = tmp_path / "cache", ["--query", "a red dog", "--cache", tmp_path / "cache"]
    write_model(tiny, tmp_path / "a.pth.tar")
    first = find(tmp_path / "a.pth.tar", capsys, *asked)[:2]
    embed = collection.embed_images
    monkeypatch.setattr(collection, "embed_images", lambda *_: pytest.fail("encoded again"))
    assert find(tmp_path / "a.pth.tar", capsys, *asked)[:2] == first
    monkeypatch.setattr(collection, "embed_images", embed)
    write_model(tiny, tmp_path / "b.pth.tar", lambda_softmax=3.0)
    find(tmp_path / "b.pth.tar", capsys, *asked)
    assert len(list(cache.iterdir())) == 2
    features = tiny.folder / "test_ims.npy"
    np.save(features, -np.load(features))
    changed = find(tmp_path / "a.pth.tar", capsys, *asked)[:2]
    assert changed[1] != first[1] and len(list(cache.iterdir())) == 3
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:200])
    best, scores, said = find(tmp_path / "a.pth.tar", capsys, *asked)
    assert (best, scores) == changed and "encoded anew" in said.err


def test_the_cache_is_bounded(tiny, tmp_path, capsys):
    """A file of 6 images, 5 regions, 32 numbers takes 3,840 bytes and its header; the one unused for longest goes."""
    asked = ["--query", "a red dog", "--cache", tmp_path / "cache", "--cache_size", 9e-6]
    for name, sharpness in (("a", 3.0), ("b", 5.0), ("a", 3.0), ("c", 7.0)):
        write_model(tiny, tmp_path / name, lambda_softmax=sharpness)
        said = find(tmp_path / name, capsys, *asked)[2].out
    kept = sorted((tmp_path / "cache").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert len(kept) == 2 and all(file.name.startswith("tiny_precomp-test-6-gsmn-") for file in kept)
    removed = re.search(r"^(\S+): removed, --cache_size is 9e-06 GB$", said, re.M)[1]
    assert f"{kept[1]}: 0.00384 MB of embeddings kept" in said and not (tmp_path / "cache" / removed).exists()
    assert "embeddings kept" not in find(tmp_path / "a", capsys, *asked)[2].out  # a was used after b
    said = find(tmp_path / "b", capsys, *asked[:-1], 1e-6)[2]
    assert "more than --cache_size 1e-06; they are not kept" in said.err


def test_asks_until_an_empty_line(tiny, tmp_path, capsys, monkeypatch):
    write_model(tiny, tmp_path / "m.pth.tar")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a red dog\nthe unicorn\n\na blue car\n"))
    best, _, said = find(tmp_path / "m.pth.tar", capsys, "--top", 2, "--cache", "")
    assert len(best) == 4 and "not in the vocabulary: unicorn" in said.err


def test_complaints(tiny, tmp_path, capsys, monkeypatch):
    path = tmp_path / "m.pth.tar"
    write_model(tiny, path, is_sparse=True)
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert "pip install spacy" in message(lambda: find(path, capsys, "--query", "a dog", "--cache", ""))
    write_model(tiny, path)
    assert "no words" in message(lambda: find(path, capsys, "--query", " ", "--cache", ""))
    no_folder = ["--query", "a dog", "--images", tmp_path / "none", "--cache", ""]
    assert "no such folder" in message(lambda: find(path, capsys, *no_folder))


def test_a_sparse_model_reads_the_parsed_sentence(tiny, tmp_path):
    """A parse like the file's gives the file's similarity."""
    net, opt, words = write_model(tiny, tmp_path / "m.pth.tar", is_sparse=True, propagation="neighbors")
    loader = data.get_test_loader("test", opt.data_name, words, 16, 0, opt)
    sims = evaluation.shard_xattn(net, *evaluation.encode_data(net, loader))[:, 8]
    reader = Reader(words)
    reader.parser = lambda captions: iter([[*range(sum(map(len, sentences)))] for sentences in captions])  # a chain
    sentence = reader(loader.dataset.captions[8])
    assert sentence.pairs == loader.dataset.depends[8]
    best, scores = best_images(net, collection.embed_images(net, loader.dataset), loader.dataset.boxes, sentence, 6)
    np.testing.assert_allclose(scores, np.sort(sims)[::-1], atol=1e-6)
    assert best.tolist() == np.argsort(-sims).tolist()


def test_figure(tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from PIL import Image

    write_model(tiny, tmp_path / "m.pth.tar")
    folder = picture_folder(tiny, tmp_path / "images")
    (tmp_path / "images" / "3.png").unlink()  # its regions are drawn
    out = tmp_path / "found.png"
    find(tmp_path / "m.pth.tar", capsys, "--query", "a dog", "--images", folder, "--out", out, "--cache", "")
    with Image.open(out) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_a_page_without_matplotlib(tiny, tmp_path, capsys, monkeypatch):
    """One page for each sentence, with pictures where they are there, and a warning about the one that does not fit."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a dog\nA dog!\nein Hund – größer\n"))
    write_model(tiny, tmp_path / "m.pth.tar")
    folder = picture_folder(tiny, tmp_path / "images", lambda i: (200 + i, 150 if i == 2 else 100 + i))
    (tmp_path / "images" / "3.png").unlink()
    said = find(tmp_path / "m.pth.tar", capsys, "--images", folder, "--cache", "", "--top", 6)[2]
    names = sorted(path.name for path in tmp_path.glob("*.html"))
    assert len(names) == 3 and "search-a-dog.html" in names and names[2].startswith("search-ein-hund-größer-")
    page = (tmp_path / "search-a-dog.html").read_text()
    assert page.count("<img src=") == 5 and page.count("<path d=") == 1 and "The best 6 of 6 images" in page
    note = "The picture is 202 × 150, but the data's size is 202 × 102: the boxes may not fit it."
    assert f"warning: image 2, 2.png: {note}" in said.err and "3.png is not there" in said.err
    assert f"search-a-dog.html: {len(page.encode()) / 1000:.0f} kB" in said.out
    assert "needs the package matplotlib" in message(
        lambda: find(tmp_path / "m.pth.tar", capsys, "--query", "a dog", "--out", "x.png", "--cache", "")
    )


def test_sentences_do_not_overwrite_one_another(tiny, tmp_path, capsys, monkeypatch):
    write_model(tiny, tmp_path / "m.pth.tar")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a dog\na car\n"))
    find(tmp_path / "m.pth.tar", capsys, "--out", tmp_path / "found.html", "--cache", "")
    assert "“a dog”" in (tmp_path / "found.html").read_text() and "“a car”" in (tmp_path / "found-2.html").read_text()


def test_a_page_has_a_largest_size(tiny, tmp_path, capsys, monkeypatch):
    write_model(tiny, tmp_path / "m.pth.tar")
    folder = picture_folder(tiny, tmp_path / "images")
    out = tmp_path / "found.html"
    asked = ["--query", "a dog", "--images", folder, "--out", out, "--cache", ""]
    find(tmp_path / "m.pth.tar", capsys, *asked)
    whole = out.stat().st_size
    monkeypatch.setattr(rendering, "PAGE_BYTES", whole - 1)
    find(tmp_path / "m.pth.tar", capsys, *asked)
    assert out.stat().st_size < whole and out.read_text().count("<img src=") == 6
    monkeypatch.setattr(rendering, "PAGE_BYTES", 1000)
    said = message(lambda: find(tmp_path / "m.pth.tar", capsys, *asked))
    assert said == "the page of 6 images would take more than 1 kB; show less"


def test_a_sentence_in_another_encoding(tiny, tmp_path, capsys, monkeypatch):
    write_model(tiny, tmp_path / "m.pth.tar")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("größer".encode()), encoding="ascii"))
    said = message(lambda: find(tmp_path / "m.pth.tar", capsys, "--cache", ""))
    assert said == "the sentence is not ascii; PYTHONIOENCODING=utf-8 reads UTF-8"
