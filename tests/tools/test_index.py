"""tools/index.py and what answers from it: the nearest are found, and a wrong index is told, not believed."""

import hashlib
import json
import os
import shutil
import sys

import numpy as np
import pytest
from found import find
from tiny import VSRN, make_tiny, message, write_model

from tools import index as tool
from tools import search
from tools.searching import faiss_index

pytest.importorskip("faiss")
IMAGES = 12
PRINTED = 1.1e-4  # scores are printed to 1e-4; two ways to compute one may differ by rounding, and so by one digit


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A split of twelve images, checkpoints of both models, and VSRN's index."""
    made = make_tiny(tmp_path_factory.mktemp("index"), regions=5, splits={"test": IMAGES, "dev": IMAGES})
    made.root = made.folder.parents[1]
    for name, changes in (("vsrn", VSRN), ("gsmn", {}), ("other", {**VSRN, "use_abs": True, "embed_size": 16})):
        write_model(made, made.root / name, **changes)
    make_index("--model_path", made.root / "vsrn", "--out", made.root / "test.index")
    return made


def make_index(*flags):
    tool.main([*map(str, flags), "--device", "cpu"])


def ask(tiny, capsys, *flags, name="test.index", top=IMAGES):
    """What search.py finds by an index."""
    asked = ["--index", tiny.root / name, "--device", "cpu", "--cache", tiny.root / "cache", "--top", top]
    capsys.readouterr()
    search.main([*map(str, asked), "--query", "a red dog", *map(str, flags)])
    said = capsys.readouterr()
    rows = [line.split(maxsplit=5) for line in said.out.splitlines()]
    return [int(row[3]) for row in rows], [float(row[1]) for row in rows], said


def groups(n=2000, width=16):
    """Vectors that lie in groups, as embeddings do, and questions near some of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, width))[rng.integers(0, 50, n)] + 0.3 * rng.normal(size=(n, width))
    q = x[:200] + 0.1 * rng.normal(size=(200, width))
    return x.astype(np.float32), q.astype(np.float32)


# ---- the nearest


def test_exact_is_the_products_sorted():
    x, q = groups()
    numbers, scores = faiss_index.nearest(faiss_index.build_index(x), q, 10)
    assert np.array_equal(numbers, np.argsort(-(q @ x.T), kind="stable")[:, :10])
    np.testing.assert_allclose(scores, np.sort(q @ x.T)[:, ::-1][:, :10], rtol=1e-5)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_faster_kinds_miss_little(kind):
    x, q = groups()
    index = faiss_index.build_index(x, kind)
    if kind == "ivf":
        faiss_index.set_breadth(index, 8)
    exact = faiss_index.nearest(faiss_index.build_index(x), q, 10)[0]
    found = faiss_index.nearest(index, q, 10)[0]
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found)])
    assert 0.9 < share <= 1
    if kind == "ivf":  # all groups looked into: nothing is missed
        assert index.nlist == 51
        faiss_index.set_breadth(index, index.nlist)
        assert np.array_equal(faiss_index.nearest(index, q, 10)[0], exact)


def test_a_shortlist_may_be_short():
    x, q = groups()
    index = faiss_index.build_index(x, "ivf")
    faiss_index.set_breadth(index, 1)
    numbers, scores = faiss_index.shortlist(index, q[:1], 1000)
    assert 1 < len(numbers) < 1000 and (faiss_index.nearest(index, q[:1], 1000)[0][0, len(numbers) :] == -1).all()
    np.testing.assert_allclose(scores, x[numbers] @ q[0], rtol=1e-5)


@pytest.mark.parametrize("kind", faiss_index.INDEX_KINDS)
def test_more_neighbours_than_there_are(kind):
    x = groups()[0][:7]
    numbers = faiss_index.nearest(faiss_index.build_index(x, kind), x[:2], 50)[0]
    assert np.array_equal(np.sort(numbers), [range(7)] * 2)


@pytest.mark.parametrize("kind", faiss_index.INDEX_KINDS)
def test_an_index_answers_as_a_search_through_all(tiny, tmp_path, capsys, kind):
    make_index("--model_path", tiny.root / "vsrn", "--out", tmp_path / "an.index", "--kind", kind)
    assert f"{IMAGES} images, 32 numbers each, {kind}" in capsys.readouterr().out
    numbers, scores, said = ask(tiny, capsys, name=tmp_path / "an.index")
    best, all_scores, plain = find(tiny.root / "vsrn", capsys, "--query", "a red dog", "--top", 12, "--cache", "")
    assert dict(zip(numbers, scores)) == pytest.approx(dict(zip(best, all_scores)), abs=PRINTED)
    texts = [sorted(line[14:] for line in one.out.splitlines()) for one in (said, plain)]  # name and caption
    assert texts[0] == texts[1] and "dog" in said.out


def test_answers_without_the_data(tiny, tmp_path, capsys):
    """Names, captions and vocabulary are in the index and the checkpoint."""
    there = ask(tiny, capsys)[2].out
    moved = ["--data_path", tmp_path, "--vocab_path", tmp_path]
    assert "no such file" in message(lambda: ask(tiny, capsys, *moved))  # a vocabulary asked for
    assert ask(tiny, capsys, "--data_path", tmp_path)[2].out == there
    shutil.copy(tiny.root / "vsrn", tmp_path / "copy")
    assert ask(tiny, capsys, "--model_path", tmp_path / "copy")[2].out == there


# ---- GSMN re-orders


def test_whole_shortlist_is_gsmns_own_search(tiny, capsys):
    rerank = ["--rerank", tiny.root / "gsmn", "--shortlist"]
    best, scores, _ = find(tiny.root / "gsmn", capsys, "--query", "a red dog", "--top", 12, "--cache", "")
    numbers, again, _ = ask(tiny, capsys, *rerank, IMAGES)
    assert numbers == best and again == pytest.approx(scores, abs=PRINTED)
    said = ask(tiny, capsys, *rerank, IMAGES, "--query", "a unicorn")[2].err
    assert said.count("not in the vocabulary: unicorn") == 1
    near = ask(tiny, capsys, top=4)[0]
    numbers, again, _ = ask(tiny, capsys, *rerank, 4, top=3)
    assert numbers == [g for g in best if g in near][:3]
    assert again == pytest.approx([scores[best.index(g)] for g in numbers], abs=PRINTED)


def test_cost_grows_with_the_shortlist(tiny, capsys, monkeypatch):
    """Features of the shortlist alone are read; none where all embeddings are in the cache."""
    import data

    read = []
    image = data.PrecompDataset.image
    monkeypatch.setattr(data.PrecompDataset, "image", lambda self, g: read.append(g) or image(self, g))
    flags = ["--rerank", tiny.root / "gsmn", "--shortlist", 5]
    first = ask(tiny, capsys, *flags, top=5)[:2]
    assert len(read) == 5 and set(read) == set(first[0])
    find(tiny.root / "gsmn", capsys, "--query", "a dog", "--cache", tiny.root / "cache")
    read.clear()
    assert ask(tiny, capsys, *flags, top=5)[:2] == first and not read
    shutil.rmtree(tiny.root / "cache")


# ---- what cannot be trusted


def test_told_without_faiss(tiny, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: ask(tiny, capsys), lambda: make_index("--model_path", tiny.root / "vsrn")):
        assert message(call) == "an index needs the package faiss: pip install faiss-cpu"


def test_wrong_models_are_told(tiny, tmp_path, capsys):
    def build(name):
        return message(make_index, "--model_path", tiny.root / name, "--out", tmp_path / "x.index")

    assert "holds gsmn, which scores pairs; an index needs VSRN's one vector" in build("gsmn")
    write_model(tiny, tiny.root / "order", **{**VSRN, "measure": "order"})
    assert "compares by --measure order" in build("order")
    told = message(lambda: ask(tiny, capsys, "--model_path", tiny.root / "other"))  # of another width, too
    assert f"made with another checkpoint, {tiny.root / 'vsrn'} as it was then" in told
    assert "holds gsmn, which scores pairs" in message(lambda: ask(tiny, capsys, "--model_path", tiny.root / "gsmn"))
    rerank = ["--rerank", tiny.root / "vsrn"]
    assert "holds vsrn; --rerank takes a checkpoint of GSMN" in message(lambda: ask(tiny, capsys, *rerank))


def test_wrong_flags_are_told(tiny, tmp_path, capsys):
    assert "holds the split test" in message(lambda: ask(tiny, capsys, "--split", "dev"))
    rerank = ["--rerank", tiny.root / "gsmn", "--shortlist", 5]
    assert message(lambda: ask(tiny, capsys, *rerank, top=6)) == "--shortlist 5: less than the --top 6 images to show"
    assert "goes with --index" in message(search.main, ["--model_path", "x", "--rerank", "y"])
    assert "need --model_path, a checkpoint, or --index" in message(search.main, ["--query", "x"])
    assert "there is no folder" in message(make_index, "--model_path", "x", "--out", tmp_path / "none" / "x.index")


def pair(path):
    """The two files of an index, as bytes."""
    return path.read_bytes(), faiss_index.facts_file(path).read_bytes()


def test_wrong_pairs_are_told(tiny, tmp_path, capsys):
    whole, facts = pair(tiny.root / "test.index")
    path = tmp_path / "an.index"

    def told(index=None, text=None):
        for file, content in ((path, index), (faiss_index.facts_file(path), text)):
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
        return message(lambda: ask(tiny, capsys, name=path))

    assert told() == f"{path}: no such file; tools/index.py builds an index"
    assert f"{path}.json: no such file; tools/index.py writes it beside the index" in told(whole)
    no_pair = f"{path}: not the index that {path}.json describes, or damaged; build it again with tools/index.py"
    for content in (b"", b"text", whole[:-1], whole[:60] + b"\x80" + whole[61:]):
        assert told(content, facts) == no_pair
    make_index("--model_path", tiny.root / "vsrn", "--split", "dev", "--out", tmp_path / "other.index")
    other, other_facts = pair(tmp_path / "other.index")
    assert len(other) == len(whole)
    assert told(other, facts) == told(whole, other_facts) == no_pair
    assert "an.index.json, line 1, column" in told(whole, b"text")
    assert f"{path}.json: does not describe an index (model is missing)" in told(whole, b"[]")
    wrong = {**json.loads(facts), "sha256": hashlib.sha256(b"text").hexdigest()}
    assert f"{path}: FAISS cannot read it (" in told(b"text", json.dumps(wrong).encode())
    path.unlink()
    path.mkdir()
    assert "cannot be read (Is a directory)" in message(lambda: ask(tiny, capsys, name=path))


def test_changed_features_are_told(tiny, capsys):
    features = tiny.folder / "test_ims.npy"
    before = features.read_bytes()
    os.utime(features)  # as a copy has it: the same bytes at another time
    ask(tiny, capsys)
    np.save(features, -np.load(features))
    try:
        for flags in ([], ["--rerank", tiny.root / "gsmn", "--shortlist", IMAGES]):
            told = message(lambda: ask(tiny, capsys, *flags))  # noqa: B023
            assert told.startswith(f"{features}: is not what {tiny.root / 'test.index'} was made from")
    finally:
        features.write_bytes(before)


def test_nothing_half_written(tiny, monkeypatch):
    """Ctrl-C while writing leaves the old index and its facts, and nothing beside them."""
    path = tiny.root / "test.index"
    before, there = pair(path), sorted(tiny.root.iterdir())

    def interrupted(*_):
        raise KeyboardInterrupt

    faiss = faiss_index.need_faiss()
    monkeypatch.setattr(faiss, "write_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_index("--model_path", tiny.root / "vsrn", "--out", path)
    assert pair(path) == before and sorted(tiny.root.iterdir()) == there
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    told = message(make_index, "--model_path", tiny.root / "vsrn", "--out", path)
    assert told == f"{path}: cannot be written (No space left on device)" and pair(path) == before


def test_interrupted_between_the_files(tiny, tmp_path, capsys, monkeypatch):
    """The new index with the old facts is no pair."""
    path = tmp_path / "an.index"
    make_index("--model_path", tiny.root / "vsrn", "--out", path)
    write = faiss_index.atomic_write

    def interrupted(file, content):
        if str(file).endswith(".json"):
            raise KeyboardInterrupt
        write(file, content)

    monkeypatch.setattr(faiss_index, "atomic_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_index("--model_path", tiny.root / "vsrn", "--split", "dev", "--out", path)
    assert "not the index that" in message(lambda: ask(tiny, capsys, name=path))
