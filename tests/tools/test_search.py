"""search.py finds what the evaluation scores, with and without captions; evaluate_cascade.py's recalls spelt out."""

import io
import json
import re
import sys
from functools import partial

import numpy as np
import pytest
from tiny import VSRN, make_tiny, message, picture_folder, similarities, write_model

import data
import evaluation
from checkpoints.loading import open_members
from tools import evaluate_cascade, search
from tools.searching import faiss_index
from tools.searching.collection import Reader, best_images
from tools.searching.faiss_index import build_index, nearest, set_breadth, shortlist


@pytest.fixture
def tiny(tmp_path):
    made = make_tiny(tmp_path, regions=5, splits={"test": 6})
    made.model = tmp_path / "m.pth.tar"
    write_model(made, made.model)
    return made


def find(path, capsys, *more):
    """The numbers of the images found, their scores, and what was printed; path: a checkpoint, or None."""
    flags = [*([] if path is None else ["--model_path", path]), "--device", "cpu", *more]
    search.main([str(flag) for flag in flags])
    said = capsys.readouterr()
    found = re.findall(r"^ +\d+ +(\S+) +image (\d+)", said.out, re.M)
    return [int(g) for _, g in found], [float(score) for score, _ in found], said


@pytest.mark.parametrize("rows", [1, 5], ids=["row-an-image", "row-a-caption"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"propagation": "neighbors"}, VSRN, {"model": "scan"}, {"model": "vsepp"}],
    ids=["gsmn", "neighbors", "vsrn", "scan", "vsepp"],
)
def test_finds_what_the_similarities_say_even_without_captions(tiny, capsys, changes, rows):
    for path in tiny.folder.glob("test_ims*.npy"):
        np.save(path, np.repeat(np.load(path), rows, axis=0))
    net, opt, words = write_model(tiny, tiny.model, **changes)
    dataset = data.open_split("test", opt.data_name, words, opt)
    sims = similarities(net, dataset)[:, 8]
    asked = ["--query", dataset.captions[8].upper(), "--top", 4]
    best, scores, said = find(tiny.model, capsys, *asked)
    assert best == np.argsort(-sims)[:4].tolist() and "dog" in said.out
    np.testing.assert_allclose(scores, sims[best], atol=1e-4)
    for ending in ("caps.txt", "precaps_stan.txt", "caps.json"):
        (tiny.folder / f"test_{ending}").unlink()
    assert find(tiny.model, capsys, *asked)[:2] == (best, scores)


def test_a_sparse_model_reads_the_parsed_sentence(tiny):
    """A parse like the file's gives the file's similarity."""
    net, opt, words = write_model(tiny, tiny.model, is_sparse=True, propagation="neighbors")
    dataset = data.open_split("test", opt.data_name, words, opt)
    sims = similarities(net, dataset)[:, 8]
    reader = Reader(words)
    reader.parser = lambda captions: iter([[*range(sum(map(len, sentences)))] for sentences in captions])  # a chain
    sentence = reader(dataset.captions[8])
    assert sentence.pairs == dataset.depends[8]
    best, scores = best_images(net, dataset, sentence)
    np.testing.assert_allclose(scores, np.sort(sims)[::-1], atol=1e-6)
    assert best.tolist() == np.argsort(-sims).tolist()


def test_asks_until_an_empty_line(tiny, tmp_path, capsys, monkeypatch):
    """A page for each sentence; unknown words are told."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("a red dog\nthe unicorn\n\na blue car\n"))
    best, _, said = find(tiny.model, capsys, "--top", 2, "--out", tmp_path / "found.html")
    assert len(best) == 4 and "unicorn" in said.err
    assert "a red dog" in (tmp_path / "found.html").read_text() and "unicorn" in (tmp_path / "found-2.html").read_text()
    assert not (tmp_path / "found-3.html").exists()


def test_a_page_names_what_was_searched_escapes_it_and_has_a_largest_size(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    captions = (tiny.folder / "test_caps.txt").read_text().splitlines()
    captions[10] = "<script>boom()</script>"
    (tiny.folder / "test_caps.txt").write_text("\n".join(captions) + "\n")
    folder = picture_folder(tiny, tmp_path / "images", lambda i: (200 + i, 150 if i == 2 else 100 + i))
    (tmp_path / "images" / "3.png").unlink()
    said = find(tiny.model, capsys, "--query", "<b> dog", "--images", folder, "--top", 6)[2]
    (path,) = tmp_path.glob("search-*.html")
    page = path.read_text()
    assert (page.count("image/jpeg"), page.count("image/svg+xml")) == (5, 1)  # the missing one's regions
    assert "image 2" in said.err and "3.png" in said.err  # other proportions; not there
    assert "<script>boom" not in page and "&lt;script&gt;boom" in page and "<b> dog" not in page
    for fact in (str(tiny.model), str(tiny.folder), "split test", "epoch 0", "torch"):
        assert fact in page, fact
    sizes = tiny.folder / "test_ims_size.npy"
    np.save(sizes, np.full_like(np.load(sizes), 224))  # the extractor has stretched all: their boxes fit
    assert "image 2" not in find(tiny.model, capsys, "--query", "a dog", "--images", folder, "--top", 6)[2].err


def test_complaints(tiny, tmp_path, capsys, monkeypatch):
    def told(*flags):
        return message(find, tiny.model, capsys, *flags)

    dog = "--query", "a dog"
    assert "no words" in told("--query", " ")
    assert "no such folder" in told(*dog, "--images", tmp_path / "none")
    assert "no folder" in told(*dog, "--out", tmp_path / "none" / "x.html")
    assert "none_ims.npy" in told(*dog, "--split", "none")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("größer".encode()), encoding="ascii"))
    assert "ascii" in told()
    (tiny.folder / "test_caps.txt").write_text("one\n")
    assert "test_caps.txt" in find(tiny.model, capsys, *dog)[2].err
    write_model(tiny, tiny.model, is_sparse=True)
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert "pip install spacy" in told(*dog)


# ---- an index


IMAGES, PRINTED = 12, 1.1e-4  # scores are printed to 1e-4; two ways to compute one may differ by a digit


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """A split of twelve images, checkpoints of both models, and VSRN's index."""
    pytest.importorskip("faiss")
    root = tmp_path_factory.mktemp("index")
    made = make_tiny(root, regions=5, splits={"test": IMAGES, "dev": IMAGES})
    for name, changes in (("vsrn", VSRN), ("gsmn", {}), ("other", {**VSRN, "embed_size": 24})):
        write_model(made, root / name, **changes)
    write_model(made, root / "sparse", is_sparse=True, propagation="neighbors")
    make_index(root / "vsrn", root / "test.index")
    made.root = root
    return made


def make_index(model, out, *flags):
    search.main(list(map(str, ["--model_path", model, "--device", "cpu", "--save_index", out, *flags])))


def ask(tiny, capsys, *flags, name="test.index", top=IMAGES):
    """What search.py finds by an index."""
    return find(None, capsys, "--index", tiny.root / name, "--top", top, "--query", "a red dog", *flags)


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_an_index_answers_as_a_search_through_all(indexed, tmp_path, capsys, kind):
    make_index(indexed.root / "vsrn", tmp_path / "an.index", "--kind", kind)
    numbers, scores, said = ask(indexed, capsys, name=tmp_path / "an.index")
    best, all_scores, plain = find(indexed.root / "vsrn", capsys, "--query", "a red dog", "--top", 12)
    assert dict(zip(numbers, scores)) == pytest.approx(dict(zip(best, all_scores)), abs=PRINTED)
    texts, plain = ({line[14:] for line in one.out.splitlines()} for one in (said, plain))  # names and captions
    assert plain <= texts and "dog" in said.out


def test_an_index_answers_without_the_data(indexed, tmp_path, capsys):
    """Names and captions are in the index, the vocabulary in the checkpoint, which may be a copy."""
    there = ask(indexed, capsys)[:2]
    (tmp_path / "copy").write_bytes((indexed.root / "vsrn").read_bytes())
    assert ask(indexed, capsys, "--data_path", tmp_path, "--model_path", tmp_path / "copy")[:2] == there


@pytest.mark.parametrize("first, second", [("vsrn", "gsmn"), ("vsepp", "scan")])
def test_another_model_orders_the_shortlist(indexed, tmp_path, capsys, first, second):
    for name in (first, second):
        write_model(indexed, tmp_path / name, model=name)
    make_index(tmp_path / first, tmp_path / "an.index")
    asked, rerank = {"name": tmp_path / "an.index"}, ["--rerank", tmp_path / second, "--shortlist"]
    best, scores, _ = find(tmp_path / second, capsys, "--query", "a red dog", "--top", 12)
    numbers, again, _ = ask(indexed, capsys, *rerank, IMAGES, **asked)
    assert dict(zip(numbers, again)) == pytest.approx(dict(zip(best, scores)), abs=PRINTED)
    near = ask(indexed, capsys, top=4, **asked)[0]
    numbers, again, _ = ask(indexed, capsys, *rerank, 4, top=3, **asked)
    assert numbers == [g for g in best if g in near][:3]
    assert again == pytest.approx([scores[best.index(g)] for g in numbers], abs=PRINTED)


def test_wrong_models_and_flags(indexed, tmp_path, capsys, monkeypatch):
    def told(*flags, **how):
        return message(lambda: ask(indexed, capsys, *flags, **how))

    write_model(indexed, indexed.root / "order", **{**VSRN, "measure": "order"})
    for name in ("gsmn", "order"):
        assert "one vector" in message(make_index, indexed.root / name, tmp_path / "x.index")
    assert "weights" in told("--model_path", indexed.root / "other")
    assert "test" in told("--split", "dev")
    assert "--shortlist 5" in told("--rerank", indexed.root / "gsmn", "--shortlist", 5, top=6)
    assert "--index" in message(find, __file__, capsys, "--rerank", __file__, "--query", "z")
    assert "--model_path" in message(find, None, capsys, "--query", "x")
    assert "no folder" in message(make_index, __file__, tmp_path / "none" / "x.index")
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install faiss-cpu" in told()
    assert "pip install faiss-cpu" in message(make_index, indexed.root / "vsrn", tmp_path / "x.index")


def test_damaged_indexes_are_told(indexed, tmp_path, capsys):
    whole, facts = (path.read_bytes() for path in (indexed.root / "test.index", indexed.root / "test.index.json"))
    path, beside = tmp_path / "an.index", tmp_path / "an.index.json"
    fewer = json.loads(facts)
    fewer["names"].pop()
    wrong_indexes = [(index, facts) for index in (b"", whole[:-1], b"text")]
    for index, text in (*wrong_indexes, *((whole, text) for text in (b"", b"[]", json.dumps(fewer).encode()))):
        path.write_bytes(index)
        beside.write_bytes(text)
        assert "an.index" in message(lambda: ask(indexed, capsys, name=path))
    for missing in (beside, path):
        missing.unlink()
        assert "an.index" in message(lambda: ask(indexed, capsys, name=path))


@pytest.mark.parametrize("ending", ["ims.npy", "imagename.txt"])
def test_an_index_of_other_data_is_refused(indexed, tmp_path, capsys, ending):
    """Changed features, or other names, are told where they are there, asked for or not."""
    made = make_tiny(tmp_path, regions=5, splits={"test": IMAGES})
    names, path = [f"{i}.png\n" for i in range(IMAGES)], made.folder / f"test_{ending}"
    (made.folder / "test_imagename.txt").write_text("".join(names))
    make_index(indexed.root / "vsrn", tmp_path / "x.index", "--data_path", made.data_path)
    asked = partial(ask, indexed, capsys, name=tmp_path / "x.index")
    asked()
    if ending == "ims.npy":
        np.save(path, -np.load(path))
    else:
        path.write_text("".join(reversed(names)))
    assert "x.index" in message(asked)
    assert "x.index" in message(asked, "--rerank", indexed.root / "gsmn", "--shortlist", IMAGES)


def test_an_interruption_leaves_no_wrong_pair(indexed, tmp_path, capsys, monkeypatch):
    """While the index is written, the old pair stays; between the two files, the old JSON is gone."""
    path, write = tmp_path / "an.index", faiss_index.atomic_write
    make_index(indexed.root / "vsrn", path)
    before = path.read_bytes(), (tmp_path / "an.index.json").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(faiss_index.need_faiss(), "write_index", interrupted)
        make_index(indexed.root / "vsrn", path)
    assert (path.read_bytes(), (tmp_path / "an.index.json").read_bytes()) == before
    monkeypatch.setattr(
        faiss_index, "atomic_write", lambda file, put: (interrupted if ".json" in str(file) else write)(file, put)
    )
    with pytest.raises(KeyboardInterrupt):
        make_index(indexed.root / "vsrn", path, "--split", "dev")
    assert "an.index.json" in message(lambda: ask(indexed, capsys, name=path))


# ---- FAISS


def test_kinds_of_index():
    """exact is the products sorted; an ivf misses little, and nothing with all its groups."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(50, 16))[rng.integers(0, 50, 2000)]
    x = (groups + 0.3 * rng.normal(size=groups.shape)).astype(np.float32)
    q = (x[:200] + 0.1 * rng.normal(size=(200, 16))).astype(np.float32)  # near some of them
    numbers, scores = nearest(build_index(x), q, 10)
    assert np.array_equal(numbers, np.argsort(-(q @ x.T), kind="stable")[:, :10])
    np.testing.assert_allclose(scores, np.sort(q @ x.T)[:, ::-1][:, :10], rtol=1e-5)
    assert np.array_equal(np.sort(nearest(build_index(x[:7]), x[:2], 50)[0]), [range(7)] * 2)  # fewer than asked
    ivf, hnsw = build_index(x, "ivf"), build_index(x, "hnsw")
    for index, breadth, least in ((hnsw, None, 0.9), (ivf, 8, 0.9), (ivf, ivf.nlist, 1)):
        if breadth:
            set_breadth(index, breadth)
        found = nearest(index, q, 10)[0]
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(numbers, found)]) >= least
    set_breadth(ivf, 1)
    short, scores = shortlist(ivf, q[:1], 1000)
    assert 1 < len(short) < 1000 and (short >= 0).all()
    np.testing.assert_allclose(scores, x[short] @ q[0], rtol=1e-5)


# ---- evaluate_cascade.py


def literal(scores, true, near, k):
    """The rank of one query among the k nearest, a tie before the answer; infinite where the answer is not there."""
    nearest = np.argsort(-near)[:k].tolist()
    best = max((scores[c] for c in true if c in nearest), default=np.inf)
    return np.inf if best == np.inf else sum(scores[c] >= best for c in nearest if c not in true)


def test_recalls_are_the_cascade_spelt_out():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    sims = rng.integers(0, 30, (40, 200)).astype(np.float32)  # with ties
    images, captions = (rng.normal(size=(n, 6)).astype(np.float32) for n in (40, 200))  # that do not agree with them
    rows = evaluate_cascade.cascade_recalls(sims, images, captions)
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
    kept = evaluate_cascade.shortlisted(np.ones((2, 4), np.float32), np.array([[1, -1], [-1, -1]]))
    assert (kept == 1).tolist() == [[False, True, False, False], [False] * 4]


def test_a_cascade_on_a_split(indexed, tmp_path, capsys, monkeypatch):
    """K = all is test.py's result; what is timed gives the second model's own order; table and JSON are written."""
    monkeypatch.setattr(evaluate_cascade, "SECONDS", 0)
    models = [str(indexed.root / name) for name in ("vsrn", "sparse")]
    flags = ["--model_path", models[0], "--rerank", models[1], "--device", "cpu"]
    evaluate_cascade.main([*flags, "--json", str(tmp_path / "found.json")])
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
        best, scores = evaluate_cascade.ask(first, second, index, k, stored, 8)
        np.testing.assert_allclose(scores, sims[best, 8], atol=1e-6)
        assert len(best) == (k or IMAGES) and list(scores) == sorted(scores, reverse=True)


def test_wrong_members_of_a_cascade(indexed, tmp_path):
    """A model without vectors; the same images in another order."""

    def told(first, *more):
        flags = ["--model_path", first, "--rerank", indexed.root / "sparse", "--device", "cpu", *more]
        return message(evaluate_cascade.main, [str(flag) for flag in flags])

    other = make_tiny(tmp_path, regions=5, splits={"test": IMAGES})
    path = other.folder / "test_caps.txt"
    captions = np.array(path.read_text().splitlines()).reshape(IMAGES, -1)
    path.write_text("\n".join(captions[::-1].ravel()) + "\n")
    write_model(other, tmp_path / "vsrn", **VSRN)
    assert "one vector" in told(indexed.root / "sparse")
    assert "order" in told(tmp_path / "vsrn")
    assert "no folder" in told(indexed.root / "vsrn", "--json", "none/x.json")
