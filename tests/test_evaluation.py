"""Metrics, printed lines and the evaluation scripts, against released numbers."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import VSRN, golden, make_tiny, shared, write_model

import evaluation
import test_stack
import testall
from checkpoints import loading
from files.errors import InputError
from reporting.metrics import RECALLS

KINDS = ("dense", "sparse")


@pytest.fixture
def released(tmp_path, monkeypatch):
    """The released data and checkpoints in a folder of their own, as their options' relative paths want."""
    for name in ("f30k_precomp", "model_dense", "model_sparse"):
        shutil.copytree(golden(name), tmp_path / name)
    shutil.copy(golden("f30k_precomp_vocab.json"), tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_scores(bad):
    sims = np.zeros((2, 10), np.float32)
    sims[1, 7] = bad
    for function in (evaluation.i2t, evaluation.t2i):
        with pytest.raises(InputError, match=f"image 1 and caption 7 is {bad}"):
            function(sims)


def test_npts_and_uneven_captions():
    sims = np.random.default_rng(0).normal(size=(6, 30)).astype(np.float32)
    assert evaluation.i2t(sims, npts=3) == evaluation.i2t(sims[:3, :15])
    with pytest.raises(InputError, match="31 captions do not divide evenly among 6 images"):
        evaluation.t2i(np.zeros((6, 31), np.float32))


def test_recalls_by_hand():
    assert evaluation.recalls(np.array([0, 4, 9, 20])) == (25, 50, 75, 7, 9.25)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", ["released", "normalized"])
def test_evalrank_repeats_released_metrics(released, kind, boxes, capsys):
    """The block that is printed, too."""
    name = {"released": "quirk", "normalized": "correct"}[boxes]
    expected = np.load(golden(f"expected_{kind}.npz"))
    result = evaluation.evalrank(f"model_{kind}/model_best.pth.tar", data_path=".", split="test", boxes=boxes)
    stored = torch.load("ranks.pth.tar", weights_only=True)
    for key, way, end in (("rt", "i2t", ""), ("rti", "t2i", "i")):
        assert [result[k + end] for k in RECALLS] == expected[f"{name}_{way}_metrics"].tolist()
        ranks, top1 = stored[key]
        assert ranks.tolist() == expected[f"{name}_{way}_ranks"].tolist()
        assert top1.tolist() == expected[f"{name}_{way}_top1"].tolist()
    if boxes == "released":
        lines = golden(f"expected_{kind}_evalrank.txt").read_text().splitlines()
        assert capsys.readouterr().out.splitlines()[-5:] == lines[-5:]


def test_a_misspelt_override_is_named(released):
    with pytest.raises(TypeError, match="save_sim"):
        evaluation.evalrank("model_dense/model_best.pth.tar", split="test", save_sim="sims.npy")


def test_embeddings_lie_in_one_buffer_each(released):
    """In the captions' order, without padding and without a second copy."""
    net, opt, vocab = evaluation.load_model("model_dense/model_best.pth.tar", data_path=".", vocab_path=".")
    loader = evaluation.data.get_test_loader("test", opt.data_name, vocab, 16, 0, opt)
    images, captions = evaluation.encode_split(net, loader)
    assert images.emb.untyped_storage().nbytes() == images.emb.numel() * 4
    first = captions.emb[0]
    assert first.untyped_storage().nbytes() == sum(captions.lengths) * opt.embed_size * 4
    starts = np.cumsum([0, *captions.lengths[:-1]]) * opt.embed_size * 4
    assert [words.data_ptr() - first.data_ptr() for words in captions.emb] == starts.tolist()
    alone = net.encode_captions(torch.tensor([loader.dataset.tokens[7]]), [captions.lengths[7]])[0]
    torch.testing.assert_close(captions.emb[7], alone.detach(), rtol=0, atol=2e-7)


def test_five_folds(released, capsys):
    """Folds as printed by the released code; the means under their right labels."""
    result = evaluation.evalrank("model_dense/model_best.pth.tar", split="test", fold5=True, boxes="released")
    expected = np.load(golden("expected_dense.npz"))["fold5_mean"]
    keys = [*RECALLS, *(k + "i" for k in RECALLS), "ar", "ari", "rsum"]
    np.testing.assert_allclose([result[k] for k in keys], expected)
    printed = capsys.readouterr().out.splitlines()
    folds = [line for line in golden("expected_dense_evalrank_fold5.txt").read_text().splitlines() if "," in line]
    assert [line for line in printed if re.match("(Image|Text) to .*,", line)] == [f for f in folds if "to" in f]
    assert printed[-5:] == [
        "rsum: 458.0",
        "Average i2t Recall: 75.0",
        "Image to text: 50.0 80.0 95.0 1.6 3.1",
        "Average t2i Recall: 77.7",
        "Text to image: 33.0 100.0 100.0 2.0 2.1",
    ]


def test_ensemble(released):
    paths = [f"model_{kind}/model_best.pth.tar" for kind in KINDS]
    expected = np.load(golden("expected_stack.npz"))
    result = evaluation.evalrank(paths, split="test", boxes="released")
    assert [result[k] for k in RECALLS] == expected["quirk_i2t_metrics"].tolist()
    assert [result[k + "i"] for k in RECALLS] == expected["quirk_t2i_metrics"].tolist()
    folds = evaluation.evalrank(paths, split="test", fold5=True, boxes="released")
    np.testing.assert_allclose(folds["rsum"], expected["fold5_mean"][-1])


def test_scripts(released):
    paths = [f"model_{kind}/model_best.pth.tar" for kind in KINDS]
    flags = ["--split", "test", "--json", "m.json"]
    expected = np.load(golden("expected_stack.npz"))
    test_stack.main(["--model_path", *paths, *flags, "--save_sims", "sims.npy"])
    np.testing.assert_allclose(np.load("sims.npy"), expected["correct_sims"], atol=2e-6)
    metrics = json.loads(Path("m.json").read_text())
    assert [m["model"] for m in metrics] == [*paths, "ensemble"]
    assert [metrics[2]["full"][k] for k in RECALLS] == expected["correct_i2t_metrics"].tolist()
    testall.main(["--model_path", paths[0], *flags])
    metrics, expected = json.loads(Path("m.json").read_text())[0], np.load(golden("expected_dense.npz"))
    assert [metrics["full"][k] for k in RECALLS] == expected["correct_i2t_metrics"].tolist()
    assert len(metrics["fold5"]["folds"]) == 5


# ---- VSRN through the same scripts


@pytest.fixture
def released_vsrn(tmp_path, monkeypatch):
    """VSRN's released data and checkpoints, in a folder as their options' relative paths want."""
    shutil.copytree(shared("golden/vsrn"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["f30k_precomp", "coco_precomp"])
def test_vsrn_prints_the_released_blocks(released_vsrn, name, capsys):
    expected = json.loads(Path(name, "metrics.json").read_text())
    evaluation.evalrank(f"{name}/checkpoint1.pth.tar", split="test")
    single = capsys.readouterr().out.splitlines()
    evaluation.evalrank([f"{name}/checkpoint{n}.pth.tar" for n in (1, 2)], split="test")
    ensemble = capsys.readouterr().out.splitlines()
    assert single[-5:] == expected["stdout_evaluation.evalrank(checkpoint1,test)"].splitlines()[-5:]
    assert ensemble[-5:] == expected["stdout_evaluation_models.evalrank(1,2,test)"].splitlines()[-5:]


# ---- ensembles, equal scores and files


@pytest.fixture
def two_models(tmp_path, tiny_data):
    """GSMN and VSRN with random weights -> their paths."""
    write_model(tiny_data, tmp_path / "gsmn.pth.tar")
    write_model(tiny_data, tmp_path / "vsrn.pth.tar", **VSRN, measure="order", use_abs=True)
    return [tmp_path / "gsmn.pth.tar", tmp_path / "vsrn.pth.tar"]


def sims_of(paths, **how):
    return evaluation.evaluate(paths, "test", device="cpu", workers=0, **how)[1]["full"][0]


def test_weights_and_normalisation(two_models):
    """Under --measure order too, where the released ensemble ignores the second model."""
    plain = [sims_of([path]).astype(float) for path in two_models]
    unit = [(sims - sims.mean()) / sims.std() for sims in plain]
    for weights, normalize in ((None, False), ([3, 1], False), (None, True), ([0.5, 2], True)):
        expected = np.average(unit if normalize else plain, axis=0, weights=weights)
        found = sims_of(two_models, weights=weights, normalize=normalize)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4 if normalize else 1e-6)


def test_normalisation_of_folds_is_over_the_pairs_of_all_five(two_models):
    sims = np.array(evaluation.evaluate(two_models[:1], "test", True, False, device="cpu")[1]["fold5"])
    unit = evaluation.evaluate(two_models[:1] * 2, "test", True, False, normalize=True, device="cpu")[1]["fold5"]
    np.testing.assert_allclose(unit, (sims - sims.mean()) / sims.std(), atol=1e-4)


@pytest.mark.parametrize("weights", ["1", "0 0", "1 2 3"])
def test_weights_that_do_not_fit(weights):
    """Found before a checkpoint is read."""
    with pytest.raises(InputError, match=f"--weights {weights}: "):
        test_stack.main(["--model_path", __file__, __file__, "--weights", *weights.split()])


def test_a_model_that_scores_all_pairs_alike_cannot_be_normalised(two_models, monkeypatch):
    monkeypatch.setattr(evaluation, "score_all", constant_scores)
    with pytest.raises(InputError, match=r"gsmn\.pth\.tar: .* normalised"):
        sims_of(two_models, normalize=True)


def test_members_of_an_ensemble_have_the_same_items_in_the_same_order(two_models, tmp_path):
    """The same images and captions, the last image first: refused, since similarities are added by position."""
    other = make_tiny(tmp_path / "other")
    for name in ("test_caps.txt", "test_precaps_stan.txt"):
        lines = (other.folder / name).read_text().splitlines()
        (other.folder / name).write_text("\n".join(lines[-5:] + lines[:-5]) + "\n")
    write_model(other, tmp_path / "other.pth.tar")
    with pytest.raises(InputError, match=r"other\.pth\.tar: its data have other captions"):
        evaluation.evaluate([two_models[0], tmp_path / "other.pth.tar"], "test", device="cpu")


def test_the_score_of_a_sentence_is_that_of_the_split(two_models):
    for path in two_models:
        net, opt, vocab = evaluation.load_model(path, device="cpu")
        split = evaluation.data.open_split("test", opt.data_name, vocab, opt)
        boxes = None if split.boxes is None else split.boxes[3]
        found = net.score(split.image(3), boxes, split.captions[10:20], vocab)
        np.testing.assert_allclose(found, sims_of([path])[3, 10:20], atol=1e-6)


def constant_scores(model, images, captions):
    return np.full((len(images), len(captions)), 0.25, np.float32)


def test_a_missing_checkpoint_is_found_before_the_first_is_evaluated(two_models, tmp_path, capsys):
    with pytest.raises(InputError, match=r"nowhere\.pth\.tar"):
        evaluation.evaluate([*two_models, tmp_path / "nowhere.pth.tar"], "test", device="cpu")
    assert "Computing results" not in capsys.readouterr().out


def test_equal_scores_in_block_and_json(two_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "score_all", constant_scores)
    how = {"split": "test", "device": "cpu", "ranks": None}
    worst = evaluation.evalrank(two_models[0], json=tmp_path / "m.json", **how)
    assert (worst["r10"], worst["r5i"]) == (0, 0)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("Equal scores") and "i2t R@1 0.00 to 100.00 (10.00)" in said
    assert json.loads((tmp_path / "m.json").read_text())[0]["full"]["ties"]["best"]["rsum"] == 600
    released = evaluation.evalrank(two_models[0], ties="released", **how)
    assert (released["r1"], released["r1i"]) == (10, 10) == (worst["ties"]["released"]["r1"], 10)
    flags = ["--ties", "released", "--fold5", "--ranks", "", "--device", "cpu", "--json", str(tmp_path / "m.json")]
    test_stack.main(["--model_path", *map(str, two_models), *flags])
    folds = json.loads((tmp_path / "m.json").read_text())[-1]["fold5"]
    assert folds["ties"]["rule"] == "released" and folds["r1"] == 50 and folds["ties"]["worst"]["r1"] == 0


def test_evalrank_writes_what_the_scripts_write(two_models, tmp_path):
    how = {"split": "test", "device": "cpu", "ranks": tmp_path / "ranks.pth.tar"}
    result = evaluation.evalrank(two_models, json=tmp_path / "m.json", report=tmp_path / "site", **how)
    gsmn, vsrn, ensemble = json.loads((tmp_path / "m.json").read_text())
    assert ensemble["full"]["rsum"] == result["rsum"] and ensemble["ensemble"] == {"weights": None, "normalize": False}
    assert gsmn["checkpoint"]["kind"].startswith("GSMN, dense") and vsrn["checkpoint"]["kind"].startswith("VSRN, ")
    assert gsmn["checkpoint"]["epoch"] == 0 and gsmn["checkpoint"]["flags"]["embed_size"] == 32
    assert (tmp_path / "site/index.html").is_file() and (tmp_path / "ranks.pth.tar").is_file()
    with pytest.raises(InputError, match="--images"):
        evaluation.evalrank(two_models, split="test", images=tmp_path)


def test_ranks_are_left_in_the_working_folder_where_it_allows_that(two_models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    how = {"split": "test", "device": "cpu"}
    evaluation.evalrank(two_models[0], **how)
    assert f"{tmp_path}/ranks.pth.tar" in capsys.readouterr().err
    Path("ranks.pth.tar").unlink()
    Path("ranks.pth.tar").mkdir()  # as good as a read-only folder, for every user
    assert evaluation.evalrank(two_models[0], **how)["rsum"] > 0
    assert "ranks.pth.tar: cannot be written" in capsys.readouterr().err
    Path("mine").mkdir()
    with pytest.raises(InputError, match="mine: cannot be written"):
        evaluation.evalrank(two_models[0], ranks="mine", **how)


def test_an_ensemble_reads_each_checkpoint_once(place, monkeypatch):
    read, paths = [], ["gsmn/model_best.pth.tar", "vsrn"]
    load = loading.checkpoint.load_checkpoint
    monkeypatch.setattr(loading.checkpoint, "load_checkpoint", lambda path: read.append(path) or load(path))
    evaluation.evaluate(paths, "test", device="cpu")
    assert read == paths
