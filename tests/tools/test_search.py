"""tools/search.py: finds what the evaluation's similarities say, keeps embeddings, says what is missing."""

import io
import re
import sys

import numpy as np
import pytest
from models import write_model
from states import message
from test_explain import picture_folder
from tiny import make_tiny

import data
import evaluation
import tools.search as tool
from tools.searching import collection
from tools.searching.finders import Reader
from tools.searching.ranking import rank_images

VSRN = {
    "model": "vsrn",
    "measure": "cosine",
    "use_abs": False,
    "dim_hidden": 8,
    "dim_word": 8,
    "max_len": 12,
    "rnn_type": "gru",
    "bidirectional": 0,
    "input_dropout_p": 0.0,
    "boxes": "none",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("search"), regions=5, splits={"test": 6})


def find(path, capsys, *more):
    """The numbers of the images found and their scores."""
    tool.main(["--model_path", str(path), "--device", "cpu", *map(str, more)])
    said = capsys.readouterr()
    found = re.findall(r"^ +\d+ +(\S+) +image (\d+)", said.out, re.M)
    return [int(g) for _, g in found], [float(score) for score, _ in found], said


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
    monkeypatch.setattr(tool, "need_matplotlib", lambda: None)
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
    best, scores = rank_images(net, collection.embed_images(net, loader.dataset), loader.dataset.boxes, sentence, 6)
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
