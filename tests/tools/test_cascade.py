"""tools/evaluate_cascade.py: recalls are those of the cascade spelt out, and of all pairs where K is everything."""

import json
import sys

import numpy as np
import pytest
from tiny import VSRN, make_tiny, message, write_model

import evaluation
from tools import evaluate_cascade as tool
from tools.searching import faiss_index, index_benchmark

pytest.importorskip("faiss")
IMAGES = 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = make_tiny(tmp_path_factory.mktemp("cascade"), regions=5, splits={"test": IMAGES, "dev": 5})
    made.root = made.folder.parents[1]
    write_model(made, made.root / "vsrn", **VSRN)
    write_model(made, made.root / "gsmn", is_sparse=True, propagation="neighbors")
    return made


@pytest.fixture
def matrices():
    """Similarities with ties, and vectors that do not agree with them."""
    rng = np.random.default_rng(0)
    sims = rng.integers(0, 30, (40, 200)).astype(np.float32)
    return sims, *(rng.normal(size=(n, 6)).astype(np.float32) for n in (40, 200))


def literal(scores, true, nearest):
    """The rank of one query, from lists; a tie ranks before the answer."""
    there = [c for c in true if c in nearest]
    if not there:
        return len(scores)
    best = max(scores[c] for c in there)
    return sum(scores[c] >= best for c in nearest if c not in true)


@pytest.mark.parametrize("k", [1, 3, 10, 39])
def test_ranks_are_the_cascade_spelt_out(matrices, k):
    sims, images, captions = matrices
    found = faiss_index.nearest(faiss_index.build_index(captions), images, 50)[0]
    ranks = tool.ranks_at(sims, np.arange(200).reshape(40, 5), found, k)
    for g in range(40):
        nearest = sorted(range(200), key=lambda c: -(images[g] @ captions[c]))[:k]
        assert ranks[g] == literal(sims[g], range(5 * g, 5 * g + 5), nearest)


def test_everything_equals_all_pairs(matrices):
    """The last row is GSMN's evaluation exactly, the first VSRN's."""
    sims, images, captions = matrices
    rows = tool.cascade_recalls(sims, images, captions)
    assert [row["k"] for row in rows] == [0, 5, 10, 20, None]
    for row, matrix in ((rows[-1], sims), (rows[0], images @ captions.T)):
        for way, expected in (("i2t", evaluation.i2t(matrix)), ("t2i", evaluation.t2i(matrix))):
            assert tuple(row[way].values()) == (*expected[:3], 100.0)
    there = [row["t2i"]["in_shortlist"] for row in rows[1:]]
    assert there == sorted(there) and 0 < there[0] < 60


def test_candidates_that_an_index_misses(matrices):
    """-1 is nobody, not the last candidate."""
    sims = matrices[0]
    found = np.full((40, 8), -1)
    found[:, 0] = np.arange(40) * 5
    assert np.array_equal(tool.ranks_at(sims, np.arange(200).reshape(40, 5), found, 8), np.zeros(40))


def test_on_a_split(tiny, tmp_path, capsys, monkeypatch):
    """K = all is test.py's result; what is timed gives GSMN's own order; table and json are written."""
    monkeypatch.setattr(tool, "SECONDS", 0)
    models = [str(tiny.root / name) for name in ("vsrn", "gsmn")]
    flags = ["--model_path", models[0], "--rerank", models[1], "--device", "cpu"]
    tool.main([*flags, "--json", str(tmp_path / "rows.json")])
    said, rows = capsys.readouterr().out, json.loads((tmp_path / "rows.json").read_text())
    for row, path in ((rows[-1], models[1]), (rows[0], models[0])):
        plain = evaluation.evalrank(path, split="test", ranks=None, device="cpu")
        assert row["i2t"] == {"in_shortlist": 100, **{name: plain[name] for name in ("r1", "r5", "r10")}}
        assert row["t2i"] == {"in_shortlist": 100, **{name: plain[name + "i"] for name in ("r1", "r5", "r10")}}
    assert f"test: {IMAGES} images, 60 captions, index exact" in said
    assert [line.split()[0] for line in said.splitlines()[3:]] == ["VSRN", "5", "10", "all"]
    assert all(row["ms"] > 0 and row["ms_encoding"] > 0 for row in rows[1:])

    vsrn, gsmn = (tool.encode_split(tool.cascade_options(flags), path, lambda *_: None) for path in models)
    sims = evaluation.shard_xattn(gsmn.model, *gsmn.encoded)
    built = faiss_index.build_index(vsrn.encoded.img_embs.numpy())
    for k in (5, None):
        best, scores = tool.ask(vsrn, gsmn, built, k, None, 8)
        np.testing.assert_allclose(scores, sims[best, 8], atol=1e-6)
        assert len(best) == (k or IMAGES) and list(scores) == sorted(scores, reverse=True)


def test_figure(tiny, matrices, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{**row, "ms": 1.0 + i, "ms_encoding": 2.0 + i} for i, row in enumerate(tool.cascade_recalls(*matrices))]
    tool.save_figure(tool.draw_cascade(rows), tmp_path / "cascade.svg")
    drawn = (tmp_path / "cascade.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("R@10", "all", "image to text", "images encoded"))


def test_synthetic(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(index_benchmark, "QUESTIONS", 200)
    monkeypatch.setattr(index_benchmark, "TIMED_QUESTIONS", 5)
    tool.main(["--synthetic", "20000", "--width", "16", "--kinds", "ivf", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["kind"], row["breadth"]) for row in rows] == [("exact", None), ("ivf", 16), ("ivf", 64), ("ivf", 256)]
    assert rows[0]["of10"] == 1 and rows[1]["of10"] < rows[2]["of10"] <= rows[3]["of10"] <= 1
    assert 20000 * 16 * 4 < rows[0]["disk"] < 20000 * 16 * 4 + 1000
    if sys.platform == "linux":
        assert all(0.9 * row["disk"] < row["memory"] < 3 * row["disk"] for row in rows)
    assert "20000 vectors of 16 numbers" in capsys.readouterr().out
    parts = list(index_benchmark.blocks(20000, 16))
    assert sum(map(len, parts)) == 20000 and np.array_equal(parts[1][:5], index_benchmark.block(1, 16)[:5])


def test_complaints(tiny):
    one = ["--model_path", str(tiny.root / "vsrn"), "--device", "cpu"]
    assert "need --model_path, a checkpoint of VSRN, and --rerank" in message(tool.main, one)
    assert "holds vsrn; --rerank takes a checkpoint of GSMN" in message(tool.main, [*one, "--rerank", one[1]])
    gsmn = str(tiny.root / "gsmn")
    assert "holds gsmn, which scores pairs" in message(tool.main, ["--model_path", gsmn, "--rerank", gsmn])
