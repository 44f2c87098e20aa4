"""Ranks, printed lines and the evaluation scripts, against released numbers and sorted definitions."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import VSRN, golden, shared, write_model

import evaluation
import test_stack
import testall
import train
from checkpoints import loading
from files.errors import InputError
from reporting.metrics import RECALLS

ROOT = Path(__file__).parents[1]
KINDS = ("dense", "sparse")


@pytest.fixture
def released(tmp_path, monkeypatch):
    """The released data and checkpoints in a folder of their own, as their options' relative paths want."""
    for name in ("f30k_precomp", "model_dense", "model_sparse"):
        shutil.copytree(golden(name), tmp_path / name)
    shutil.copy(golden("f30k_precomp_vocab.json"), tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sorted_ranks(sims):
    """The released definition: sort, then look where the true ones stand."""
    per = sims.shape[1] // sims.shape[0]
    i2t = [
        min(np.where(np.argsort(-row)[None] == np.arange(i * per, i * per + per)[:, None])[1])
        for i, row in enumerate(sims)
    ]
    t2i = [np.where(np.argsort(-column) == c // per)[0][0] for c, column in enumerate(sims.T)]
    return i2t, t2i


@pytest.mark.parametrize("images, per", [(1, 5), (7, 5), (30, 5), (11, 1)])
def test_counted_ranks_are_sorted_ranks(images, per):
    sims = np.random.default_rng(images).normal(size=(images, images * per)).astype(np.float32)
    i2t, t2i = sorted_ranks(sims)
    metrics, (ranks, top1) = evaluation.i2t(sims, return_ranks=True)
    assert ranks.tolist() == i2t and top1.tolist() == sims.argmax(1).tolist()
    assert metrics == evaluation.i2t(sims) == evaluation.recalls(np.array(i2t))
    _, (ranks, top1) = evaluation.t2i(sims, return_ranks=True)
    assert ranks.tolist() == t2i and top1.tolist() == sims.argmax(0).tolist()


def test_ties_count_against():
    sims = np.zeros((4, 20), np.float32)
    assert evaluation.i2t(sims)[:3] == (0, 0, 0) and evaluation.t2i(sims)[0] == 0
    assert evaluation.i2t(sims, return_ranks=True)[1][0].tolist() == [15] * 4
    assert evaluation.t2i(sims, return_ranks=True)[1][0].tolist() == [3] * 20


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
    name = {"released": "quirk", "normalized": "correct"}[boxes]
    expected = np.load(golden(f"expected_{kind}.npz"))
    result = evaluation.evalrank(f"model_{kind}/model_best.pth.tar", data_path=".", split="test", boxes=boxes)
    for way, end in (("i2t", ""), ("t2i", "i")):
        assert [result[k + end] for k in RECALLS] == expected[f"{name}_{way}_metrics"].tolist()
    stored = torch.load("ranks.pth.tar", weights_only=True)
    for key, way in (("rt", "i2t"), ("rti", "t2i")):
        ranks, top1 = stored[key]
        assert ranks.tolist() == expected[f"{name}_{way}_ranks"].tolist()
        assert top1.tolist() == expected[f"{name}_{way}_top1"].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_printed_block_is_the_released_one(released, kind, capsys):
    path = f"model_{kind}/model_best.pth.tar"
    evaluation.evalrank(path, split="test", boxes="released")
    lines = golden(f"expected_{kind}_evalrank.txt").read_text().splitlines()
    assert capsys.readouterr().out.splitlines()[-5:] == lines[-5:]


def test_a_misspelt_override_is_named(released):
    with pytest.raises(TypeError, match="save_sims is no option of a checkpoint; those of evaluation are data_path, "):
        evaluation.evalrank("model_dense/model_best.pth.tar", split="test", save_sims="sims.npy")


def test_embeddings_lie_in_one_buffer_each(released):
    """In the captions' order, without padding and without a second copy."""
    net, opt, vocab = evaluation.load_model("model_dense/model_best.pth.tar", data_path=".", vocab_path=".")
    loader = evaluation.data.get_test_loader("test", opt.data_name, vocab, 16, 0, opt)
    encoded = evaluation.encode_data(net, loader)
    assert encoded.img_embs.untyped_storage().nbytes() == encoded.img_embs.numel() * 4
    first = encoded.cap_embs[0]
    assert first.untyped_storage().nbytes() == sum(encoded.cap_lens) * opt.embed_size * 4
    assert [words.storage_offset() // opt.embed_size for words in encoded.cap_embs] == np.cumsum(
        [0, *encoded.cap_lens[:-1]]
    ).tolist()
    assert all(words.data_ptr() == first.data_ptr() + 4 * words.storage_offset() for words in encoded.cap_embs)
    alone = net.encode_captions(torch.tensor([loader.dataset.tokens[7]]), [encoded.cap_lens[7]])[0]
    torch.testing.assert_close(encoded.cap_embs[7], alone.detach(), rtol=0, atol=2e-7)


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


def script(name, *args, code=0):
    done = subprocess.run([sys.executable, ROOT / name, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_scripts(released):
    expected = np.load(golden("expected_stack.npz"))
    script(
        "test_stack.py",
        "--model_path",
        *(f"model_{k}/model_best.pth.tar" for k in KINDS),
        "--split",
        "test",
        "--save_sims",
        "sims.npy",
        "--json",
        "m.json",
    )
    np.testing.assert_allclose(np.load("sims.npy"), expected["correct_sims"], atol=2e-6)
    metrics = json.loads(Path("m.json").read_text())
    assert [m["model"] for m in metrics] == [*(f"model_{k}/model_best.pth.tar" for k in KINDS), "ensemble"]
    assert [metrics[2]["full"][k] for k in RECALLS] == expected["correct_i2t_metrics"].tolist()
    assert "Traceback" not in script("test.py", "--model_path", "missing.pth.tar", code=2).stderr


def test_testall_gives_folds_and_all(released, capsys):
    testall.main(["--model_path", "model_dense/model_best.pth.tar", "--split", "test", "--json", "m.json"])
    metrics = json.loads(Path("m.json").read_text())[0]
    expected = np.load(golden("expected_dense.npz"))
    assert [metrics["full"][k] for k in RECALLS] == expected["correct_i2t_metrics"].tolist()
    assert len(metrics["fold5"]["folds"]) == 5
    assert "Mean metrics: " in capsys.readouterr().out


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


@pytest.mark.parametrize("name", ["f30k_precomp", "coco_precomp"])
def test_vsrn_order_ensemble_is_the_mean(released_vsrn, name):
    """Under --measure order too, where the released ensemble ignores the second model."""
    paths, expected = [f"{name}/checkpoint{n}.pth.tar" for n in (1, 2)], np.load(f"{name}/expected_test.npz")
    flags = {"measure": "order", "use_abs": True}
    _, sims = evaluation.evaluate(paths, "test", **flags)
    np.testing.assert_allclose(sims["full"][0], (expected["order_sims_1"] + expected["order_sims_2"]) / 2, atol=1e-5)


def test_gsmn_and_vsrn_ensemble(tiny_data, tmp_path):
    small = [*tiny_data.args, *"--embed_size 16 --word_dim 8 --num_epochs 1 --workers 0 --device cpu".split()]
    train.main(
        [
            *small,
            *"--num_block 4 --feat_dim 4 --hid_dim 8".split(),
            "--logger_name",
            str(tmp_path / "g/log"),
            "--model_name",
            str(tmp_path / "g"),
        ]
    )
    train.main(
        [*small, *"--model vsrn --dim_hidden 8 --dim_word 8 --max_len 12".split(), "--logger_name", str(tmp_path / "v")]
    )
    singles = []
    for name in "gv":
        _, sims = evaluation.evaluate([tmp_path / name / "model_best.pth.tar"], "test", device="cpu")
        singles.append(sims["full"][0])
    paths = [str(tmp_path / name / "model_best.pth.tar") for name in "gv"]
    test_stack.main(["--model_path", *paths, "--save_sims", str(tmp_path / "s.npy"), "--device", "cpu", "--ranks", ""])
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), sum(singles) / 2, atol=1e-6)


# ---- ensembles, equal scores and files


@pytest.fixture
def two_models(tmp_path, tiny_data):
    """GSMN and VSRN with random weights -> their paths."""
    write_model(tiny_data, tmp_path / "gsmn.pth.tar")
    write_model(tiny_data, tmp_path / "vsrn.pth.tar", **VSRN, use_abs=True)
    return [tmp_path / "gsmn.pth.tar", tmp_path / "vsrn.pth.tar"]


def sims_of(paths, **how):
    return evaluation.evaluate(paths, "test", device="cpu", workers=0, **how)[1]["full"][0]


def test_weights_and_normalisation(two_models):
    first, second = (sims_of([path]).astype(float) for path in two_models)
    ensemble = {"mean": sims_of(two_models), "weighted": sims_of(two_models, weights=[3, 1])}
    np.testing.assert_allclose(ensemble["mean"], (first + second) / 2, atol=1e-6)
    np.testing.assert_allclose(ensemble["weighted"], (3 * first + second) / 4, atol=1e-6)
    unit = [(sims - sims.mean()) / sims.std() for sims in (first, second)]
    np.testing.assert_allclose(sims_of(two_models, normalize=True), (unit[0] + unit[1]) / 2, atol=1e-4)
    both = sims_of(two_models, weights=[0.5, 2], normalize=True)
    np.testing.assert_allclose(both, (0.5 * unit[0] + 2 * unit[1]) / 2.5, atol=1e-4)


def test_normalisation_of_folds_is_over_the_pairs_of_all_five(two_models):
    _, (sims,) = zip(*evaluation.evaluate(two_models[:1], "test", True, False, device="cpu")[1].items())
    _, (unit,) = zip(*evaluation.evaluate(two_models[:1] * 2, "test", True, False, normalize=True)[1].items())
    np.testing.assert_allclose(unit, (sims - sims.mean()) / sims.std(), atol=1e-4)


@pytest.mark.parametrize("weights", ["1", "0 0", "1 2 3"])
def test_weights_that_do_not_fit(two_models, weights):
    message = f"--weights {weights}: need one for each of 2 checkpoints, and one above 0"
    with pytest.raises(InputError, match=message):
        test_stack.main(["--model_path", *map(str, two_models), "--weights", *weights.split()])


def test_a_model_that_scores_all_pairs_alike_cannot_be_normalised(two_models, monkeypatch):
    monkeypatch.setattr(evaluation, "score_all", lambda model, images, captions, sims: sims.fill(0.25))
    with pytest.raises(InputError, match=r"gsmn\.pth\.tar: gives all pairs one score, which cannot be normalised"):
        sims_of(two_models, normalize=True)


def test_a_missing_checkpoint_is_found_before_the_first_is_evaluated(two_models, tmp_path, capsys):
    with pytest.raises(InputError, match=r"nowhere\.pth\.tar"):
        evaluation.evaluate([*two_models, tmp_path / "nowhere.pth.tar"], "test", device="cpu")
    assert "Computing results" not in capsys.readouterr().out


def test_equal_scores_in_block_and_json(two_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "score_all", lambda model, images, captions, sims: sims.fill(0.25))
    how = {"split": "test", "device": "cpu", "ranks": None}
    worst = evaluation.evalrank(two_models[0], json=tmp_path / "m.json", **how)
    assert (worst["r10"], worst["r5i"]) == (0, 0)
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith(
            "Equal scores, lowest to highest (released order): i2t R@1 0.00 to 100.00 (10.00), i2t R@5 0.00 to 100.00"
        )
    )
    assert json.loads((tmp_path / "m.json").read_text())[0]["full"]["ties"]["best"]["rsum"] == 600
    released = evaluation.evalrank(two_models[0], ties="released", **how)
    assert (released["r1"], released["r1i"]) == (10, 10) == (worst["ties"]["released"]["r1"], 10)
    flags = ["--ties", "released", "--fold5", "--ranks", "", "--device", "cpu", "--json", str(tmp_path / "m.json")]
    test_stack.main(["--model_path", *map(str, two_models), *flags])
    folds = json.loads((tmp_path / "m.json").read_text())[-1]["fold5"]
    assert folds["ties"]["rule"] == "released" and folds["r1"] == 50 and folds["ties"]["worst"]["r1"] == 0


def test_evalrank_writes_what_the_scripts_write(two_models, tmp_path):
    paths = {name: tmp_path / name for name in ("m.json", "site", "ranks.pth.tar")}
    result = evaluation.evalrank(
        two_models,
        split="test",
        device="cpu",
        json=paths["m.json"],
        report=paths["site"],
        ranks=paths["ranks.pth.tar"],
    )
    gsmn, vsrn, ensemble = json.loads(paths["m.json"].read_text())
    assert ensemble["full"]["rsum"] == result["rsum"] and ensemble["ensemble"] == {"weights": None, "normalize": False}
    assert (gsmn["checkpoint"]["kind"], vsrn["checkpoint"]["kind"].partition(",")[0]) == ("GSMN, dense", "VSRN")
    assert gsmn["checkpoint"]["epoch"] == 1 and gsmn["checkpoint"]["flags"]["embed_size"] == 32
    assert (paths["site"] / "index.html").is_file() and paths["ranks.pth.tar"].is_file()
    with pytest.raises(InputError, match="--images is for --report"):
        evaluation.evalrank(two_models, split="test", images=tmp_path)


def test_ranks_are_left_in_the_working_folder_where_it_allows_that(two_models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    how = {"split": "test", "device": "cpu"}
    evaluation.evalrank(two_models[0], **how)
    assert f"Ranks: {tmp_path}/ranks.pth.tar (--ranks '' writes none)\n" in capsys.readouterr().err
    Path("ranks.pth.tar").unlink()
    Path("ranks.pth.tar").mkdir()  # as good as a read-only folder, for every user
    assert evaluation.evalrank(two_models[0], **how)["rsum"] > 0
    assert "warning: the ranks are not kept: ranks.pth.tar: cannot be written" in capsys.readouterr().err
    Path("mine").mkdir()
    with pytest.raises(InputError, match="mine: cannot be written"):
        evaluation.evalrank(two_models[0], ranks="mine", **how)


def test_an_ensemble_reads_each_checkpoint_once(place, monkeypatch):
    read, paths = [], ["gsmn/model_best.pth.tar", "vsrn"]
    load = loading.checkpoint.load_checkpoint
    monkeypatch.setattr(loading.checkpoint, "load_checkpoint", lambda path: read.append(path) or load(path))
    evaluation.evaluate(paths, "test", device="cpu")
    assert read == paths
