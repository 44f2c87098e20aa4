"""tools/evaluate_cascade.py: recalls are those of the cascade spelt out, and of all pairs where K is everything."""

import json

import numpy as np
import pytest
from tiny import VSRN, make_tiny, message, write_model

import evaluation
from checkpoints.loading import open_members
from tools import evaluate_cascade as tool
from tools.searching import faiss_index

pytest.importorskip("faiss")
IMAGES = 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = make_tiny(tmp_path_factory.mktemp("cascade"), regions=5, splits={"test": IMAGES})
    made.root = made.folder.parents[1]
    write_model(made, made.root / "vsrn", **VSRN)
    write_model(made, made.root / "gsmn", is_sparse=True, propagation="neighbors")
    return made


def literal(scores, true, near, k):
    """The rank of one query among the k nearest, a tie before the answer; infinite where the answer is not there."""
    nearest = np.argsort(-near)[:k].tolist()
    best = max((scores[c] for c in true if c in nearest), default=np.inf)
    return np.inf if best == np.inf else sum(scores[c] >= best for c in nearest if c not in true)


def test_recalls_are_the_cascade_spelt_out():
    rng = np.random.default_rng(0)
    sims = rng.integers(0, 30, (40, 200)).astype(np.float32)  # with ties
    images, captions = (rng.normal(size=(n, 6)).astype(np.float32) for n in (40, 200))  # that do not agree with them
    rows = tool.cascade_recalls(sims, images, captions)
    assert [row["k"] for row in rows] == [0, 5, 10, 20, None]
    near = images @ captions.T
    for row in rows[1:-1]:
        k = row["k"]
        ranks = {
            "i2t": [literal(sims[g], range(5 * g, 5 * g + 5), near[g], k) for g in range(40)],
            "t2i": [literal(sims[:, c], [c // 5], near[:, c], k) for c in range(200)],
        }
        for way, found in ranks.items():
            expected = [100 * np.mean(np.less(found, n)) for n in (1, 5, 10, np.inf)]
            assert list(row[way].values()) == pytest.approx(expected)
    for row, matrix in ((rows[-1], sims), (rows[0], near)):
        for way, expected in (("i2t", evaluation.i2t(matrix)), ("t2i", evaluation.t2i(matrix))):
            assert tuple(row[way].values()) == (*expected[:3], 100.0)


def test_candidates_that_an_index_misses():
    """-1 is nobody, not the last candidate."""
    kept = tool.shortlisted(np.ones((2, 4), np.float32), np.array([[1, -1], [-1, -1]]))
    assert (kept == 1).tolist() == [[False, True, False, False], [False] * 4]


def test_on_a_split(tiny, tmp_path, capsys, monkeypatch):
    """K = all is test.py's result; what is timed gives the second model's own order; table and JSON are written."""
    monkeypatch.setattr(tool, "SECONDS", 0)
    models = [str(tiny.root / name) for name in ("vsrn", "gsmn")]
    flags = ["--model_path", models[0], "--rerank", models[1], "--device", "cpu"]
    tool.main([*flags, "--json", str(tmp_path / "found.json")])
    said, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    rows = found["rows"]
    for row, path in ((rows[-1], models[1]), (rows[0], models[0])):
        plain = evaluation.evalrank(path, split="test", ranks=None, device="cpu")
        assert row["i2t"] == {"in_shortlist": 100, **{name: plain[name] for name in ("r1", "r5", "r10")}}
        assert row["t2i"] == {"in_shortlist": 100, **{name: plain[name + "i"] for name in ("r1", "r5", "r10")}}
    assert [line.split()[0] for line in said.splitlines()[-4:]] == ["first", "5", "10", "all"]
    assert all(row["ms"] > 0 and row["ms_encoding"] > 0 for row in rows[1:])
    assert (found["split"], found["images"], found["second"]["path"]) == ("test", IMAGES, models[1])

    first, second = open_members(models, "test", False, {"device": "cpu"})
    sides = evaluation.encode_split(second.model, second.loader)
    sims = evaluation.score_all(second.model, *sides)
    index = faiss_index.build_index(evaluation.encode_split(first.model, first.loader)[0].emb.numpy())
    for k, stored in ((5, None), (5, sides[0].emb), (None, None)):
        best, scores = tool.ask(first, second, index, k, stored, 8)
        np.testing.assert_allclose(scores, sims[best, 8], atol=1e-6)
        assert len(best) == (k or IMAGES) and list(scores) == sorted(scores, reverse=True)


def test_complaints(tiny, tmp_path):
    """A model without vectors; the same images in another order."""
    vsrn, gsmn = str(tiny.root / "vsrn"), str(tiny.root / "gsmn")
    assert "one vector" in message(tool.main, ["--model_path", gsmn, "--rerank", gsmn, "--device", "cpu"])
    other = make_tiny(tmp_path, regions=5, splits={"test": IMAGES})
    path = other.folder / "test_caps.txt"
    captions = np.array(path.read_text().splitlines()).reshape(IMAGES, -1)
    path.write_text("\n".join(captions[::-1].ravel()) + "\n")
    write_model(other, tmp_path / "vsrn", **VSRN)
    flags = ["--model_path", str(tmp_path / "vsrn"), "--rerank", gsmn, "--device", "cpu"]
    assert "order" in message(tool.main, flags)
    assert "no folder" in message(tool.main, ["--model_path", vsrn, "--rerank", gsmn, "--json", "none/x.json"])
