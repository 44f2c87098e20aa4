"""train.py end to end on a tiny data set: it learns, stops, goes on, and says what is wrong."""

import json
import logging
import shutil
import signal
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from tiny import names, prepared, run, same_runs, same_weights, stop_after, validations

import data
import evaluation
import train
from checkpoints.checkpoint import load_checkpoint
from checkpoints.resume import Progress
from files.errors import InputError
from modules.losses import ContrastiveLoss, observed
from runtime.batches import with_shares
from systems.vsrn import VSRN
from training import announce
from training.health import CollapseWatch
from training.logger import RunLog

FEW = ["--batch_size", 128]  # two steps an epoch


def test_it_learns_and_is_evaluated(tiny_data, tmp_path):
    folder = run(tiny_data, tmp_path / "run", epochs=5)
    assert names(folder) == [*(f"checkpoint_{e}.pth.tar" for e in range(5)), "model_best.pth.tar"]
    log = validations(tmp_path / "run/log")
    assert max(entry["r1i"] for entry in log) > 3 * 10  # by chance 10
    result = evaluation.evalrank(folder / "model_best.pth.tar", split="dev", ranks=None, device="cpu")
    best = max(log, key=lambda entry: entry["rsum"])
    assert result["rsum"] == best["rsum"] == load_checkpoint(folder / "model_best.pth.tar")["best_rsum"]
    config = json.loads((tmp_path / "run/log/config.json").read_text())
    assert config["opt"]["num_epochs"] == 5 and config["versions"]["torch"] == str(torch.__version__)
    features = tiny_data.folder / "train_ims.npy"
    assert config["data"][str(features)] == features.stat().st_size


def test_a_seed_fixes_the_run_whatever_the_workers(tiny_data, tmp_path):
    a = run(tiny_data, tmp_path / "a", epochs=1)
    b = run(tiny_data, tmp_path / "b", "--workers", 2, epochs=1)
    c = run(tiny_data, tmp_path / "c", "--seed", 1, epochs=1)
    assert same_weights(a / "checkpoint_0.pth.tar", b / "checkpoint_0.pth.tar")
    assert not same_weights(a / "checkpoint_0.pth.tar", c / "checkpoint_0.pth.tar")


@pytest.mark.parametrize("kind", ["--is_sparse --propagation neighbors --max_violation", "--workers 2 --model vsrn"])
def test_resumed_is_uninterrupted(tiny_data, tmp_path, monkeypatch, kind):
    """Stopped in the middle of an epoch, with dropout where the model has it."""
    more = [*kind.split(), "--val_step", 4]
    run(tiny_data, tmp_path / "whole", *more)
    stop_after(monkeypatch, steps=10)
    with pytest.raises(SystemExit) as stopped:
        run(tiny_data, tmp_path / "parts", *more)
    assert stopped.value.code == 128 + signal.SIGTERM
    monkeypatch.undo()
    run(tiny_data, tmp_path / "parts", *more, "--resume", tmp_path / "parts/ck")
    same_runs(tmp_path / "whole", tmp_path / "parts")
    logs = [(tmp_path / name / "log/log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    clock = {"time": 0, "pairs_per_second": 0}
    whole, parts = ([{**json.loads(line), **clock} for line in lines] for lines in logs)
    assert whole == parts


def test_a_new_run_leaves_the_log_of_an_earlier_one_aside(tmp_path, caplog):
    folder = tmp_path / "log"
    for score in (10, 20, 30):
        RunLog(folder).validation({"rsum": score}, 1, 0)
        (folder / "summary.html").write_text(str(score))
    for kept, score in (("before-1", 10), ("before-2", 20), (".", 30)):
        lines = (folder / kept / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["rsum"] for line in lines] == [score]
        assert len(list((folder / kept).glob("events.out.tfevents.*"))) == 1
        assert (folder / kept / "summary.html").read_text() == str(score)
    assert f"{folder}: holds the log of an earlier run, which is now in {folder}/before-1" in caplog.text


def test_a_stop_during_validation_is_made_up_for(tiny_data, tmp_path, monkeypatch):
    """Within an epoch, then at its end."""
    more = [tiny_data, tmp_path / "parts", "--val_step", 4]
    run(tiny_data, tmp_path / "whole", *more[2:], epochs=1)
    score, stops = train.score_all, iter([True, False, True])

    def interrupted(*args):
        if next(stops, False):
            signal.raise_signal(signal.SIGTERM)
        return score(*args)

    monkeypatch.setattr(train, "score_all", interrupted)
    for resume in ([], ["--resume", tmp_path / "parts/ck"]):
        with pytest.raises(SystemExit):
            run(*more, *resume, epochs=1)
    run(*more, *resume, epochs=1)
    same_runs(tmp_path / "whole", tmp_path / "parts", "checkpoint_0.pth.tar")


def test_flags_that_contradict_the_checkpoint(tiny_data, tmp_path, caplog):
    folder = run(tiny_data, tmp_path / "run", epochs=1)
    again = [tiny_data, tmp_path / "run", "--resume", folder / "checkpoint_0.pth.tar", "--learning_rate", "0.5"]
    with pytest.raises(InputError, match=r"checkpoint_0.pth.tar.*--embed_size 16.*32"):
        run(*again, "--embed_size", 32, epochs=2)
    run(*again, epochs=2)
    assert "--learning_rate: 0.01" in caplog.text
    opt = load_checkpoint(folder / "checkpoint_1.pth.tar")["opt"]
    assert (opt.embed_size, opt.learning_rate, opt.num_epochs) == (16, 0.5, 2)


def test_collapse_is_said(caplog):
    watch = train.CollapseWatch(type("opt", (), {"margin": 0.2}), window=3)
    for loss, spread in ((25.61, 1e-4), (25.5, 2e-4), (25.6, 0.1), (25.6, 1e-4), (27.0, 1e-4), (25.6, 1e-4)):
        watch.step(loss, spread, 25.6)  # twins among the captions, and a step that is no collapse
    watch.step(25.6, 1e-4, 25.6)
    assert not caplog.text
    watch.step(25.6, 1e-4, 25.6)
    assert "has collapsed" in caplog.text


@pytest.mark.parametrize("loss, rsum, warned", [(26.3, 55, True), (26.3, 200, False), (15.0, 55, False)])
def test_a_model_that_hardly_learns_is_said(caplog, loss, rsum, warned):
    """The loss near its value of equal scores, which differ; one step in ten may be otherwise."""
    watch = CollapseWatch(type("opt", (), {"margin": 0.2}), window=20)
    for step in range(20):
        watch.step(loss if step else 40.0, 0.05, 25.6)
    watch.validation(rsum)
    assert ("--warmup_sum" in caplog.text) == warned


def test_collapse_is_seen_beside_another_loss(tiny_data, tmp_path, monkeypatch, caplog):
    """All scores equal: VSRN's total loss holds the caption loss too, so the retrieval loss is looked at.

    --compile compiles the model once.
    """
    compiled = []
    monkeypatch.setattr(VSRN, "compile_parts", lambda net: compiled.append(net))
    monkeypatch.setattr(train, "CollapseWatch", lambda opt: CollapseWatch(opt, window=4))
    monkeypatch.setattr(VSRN, "similarity", equal_scores)
    run(tiny_data, tmp_path, "--model", "vsrn", "--max_violation", "--compile", epochs=1)
    assert len(compiled) == 1
    assert caplog.text.count("the model has collapsed") == 1


def equal_scores(self, images, captions):
    return images.emb[:, :1] * captions.emb[:, 0] * 1e-9


def test_repeated_captions_are_no_collapse():
    """Each pair has a twin, the rest is far away: the loss is that of a collapse, the spread is not."""
    loss = ContrastiveLoss(0.2, max_violation=True)
    scores = torch.full((4, 4), -1.0)
    scores[:2, :2] = scores[2:, 2:] = 1.0
    assert loss(scores).item() == pytest.approx(2 * 0.2 * 4)
    assert observed(scores) == {"positive": 1.0, "hardest_negative": 1.0, "score_spread": 1.0}
    twins = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool()
    assert loss(scores, twins).item() == 0 and observed(scores, twins)["hardest_negative"] == -1
    everybody = torch.ones(4, 4, dtype=torch.bool)
    assert loss(scores, everybody).item() == 0 and observed(scores, everybody)["hardest_negative"].isnan()


def test_twins_of_several_processes_need_no_exchange(tiny_data, monkeypatch):
    """They follow from the sampler, which every process knows: the global batch's matrix, nothing sent."""
    for name in ("all_gather_object", "gather_object", "broadcast_object_list", "all_gather", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, None)
    opt, words = prepared(tiny_data)
    loader = data.get_loaders(opt.data_name, words, 60, 0, opt, 2, 1)[0]
    batch = next(iter(with_shares(loader)))
    dataset = loader.dataset
    dataset.tokens = [list(dataset.tokens[i - i % 5 % 2]) for i in range(len(dataset.tokens))]  # equal in pairs
    ids = [i for share in batch.shares for i in share.ids]
    twins = train.twins(batch, dataset)
    assert len(ids) == 60 and batch.shares[1].ids == batch.ids and twins.sum() > 60
    for a, row in zip(ids, twins.tolist()):
        assert row == [a // 5 == b // 5 and dataset.tokens[a] == dataset.tokens[b] for b in ids]


def test_released_checkpoint_can_be_gone_on_from(tiny_data, tmp_path, caplog):
    folder = run(tiny_data, tmp_path / "run", epochs=1)
    saved = torch.load(folder / "checkpoint_0.pth.tar", weights_only=False)
    released = {key: saved[key] for key in ("epoch", "model", "best_rsum", "opt", "Eiters")}
    shutil.rmtree(tmp_path / "run")
    torch.save(released, tmp_path / "released.pth.tar")
    folder = run(tiny_data, tmp_path / "run", "--resume", tmp_path / "released.pth.tar")
    assert "without the optimiser's state" in caplog.text
    assert load_checkpoint(folder / "checkpoint_1.pth.tar")["Eiters"] == 14


# ---- what it says at its start and end, and what it refuses before it begins


def said(caplog, *arguments, **how):
    """The folder of a training, and its log."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        folder = run(*arguments, **how)
    return folder, caplog.text


def test_start_and_end_and_nothing_left_to_do(tiny_data, tmp_path, caplog):
    folder, text = said(caplog, tiny_data, tmp_path / "run", *FEW, "--log_step", 1)
    best = load_checkpoint(folder / "model_best.pth.tar")
    weights = sum(weight.numel() for part in best["model"] for weight in part.values())
    for fact in (
        "GSMN",
        f"{weights:,} weights",
        "about 37.7kB each",
        "200 captions",
        f"{tmp_path}/run/log/summary.html",
    ):
        assert fact in text
    assert text.count("loss ") == 4 and text.count(" ETA ") == 4  # at each step
    assert f"rsum {best['best_rsum']:.1f} on dev of epoch {best['best_epoch']}" in text
    assert same_weights(folder / "model_best.pth.tar", folder / f"checkpoint_{best['best_epoch']}.pth.tar")
    assert f"test.py --model_path {folder}/model_best.pth.tar --data_path {tiny_data.data_path}" in text
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    _, text = said(caplog, tiny_data, tmp_path / "run", *FEW, "--resume", folder)
    assert "nothing is left to do" in text and f" of epoch {best['best_epoch']}, in " in text
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_disk_too_small_is_said(tiny_data, tmp_path, monkeypatch, caplog):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(announce.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    folder, text = said(caplog, tiny_data, tmp_path, *FEW, epochs=1)
    assert f"{folder}: too little disk" in text and "--keep" in text


def test_a_line_of_log(caplog):
    """Of a model with two losses, and the time that is left."""
    facts = {"epoch": 29, "step": 4425, "batch_time": 10.812}
    figures = {"loss": 234.5678, "Le_retrieval": 200.1234, "Le_caption": 34.44444, "grad_norm": 12.3456}
    training = Namespace(
        model=Namespace(retrieval_loss="Le_retrieval"), loader=range(4426), opt=Namespace(num_epochs=30),
        progress=Progress(epoch=28, step=4326, Eiters=1000), began=(time.time() - 3600, 0),
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        announce.log_line(training, announce.Step(figures, facts, [], 64))
    line = caplog.records[-1].getMessage()
    assert "caption" in line and "retrieval" not in line
    assert "ETA 4.5h" in line  # 4526 steps of 3.6 seconds


def test_a_second_run_never_overwrites_the_first(tiny_data, tmp_path):
    """A folder that holds other files is free."""
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck/ranks.pth.tar").touch()
    folder = run(tiny_data, tmp_path, *FEW, epochs=1)
    before = names(folder), (folder / "model_best.pth.tar").read_bytes(), names(tmp_path / "log")
    with pytest.raises(InputError, match=rf"{folder}: holds 2 checkpoints of an earlier run .*--resume {folder}\), or"):
        run(tiny_data, tmp_path, *FEW, epochs=1)
    assert (names(folder), (folder / "model_best.pth.tar").read_bytes(), names(tmp_path / "log")) == before
    run(tiny_data, tmp_path, *FEW, "--resume", folder, epochs=2)


def test_the_width_of_features_comes_from_their_file(tiny_data, tmp_path):
    width = tiny_data.args.index("--img_dim")
    tiny_data.args[width : width + 2] = []
    folder = run(tiny_data, tmp_path / "a", *FEW, epochs=1)
    assert load_checkpoint(folder / "checkpoint_0.pth.tar")["opt"].img_dim == 8
    for split in ("train", "dev"):
        np.save(tiny_data.folder / f"{split}_ims.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match=r"train_ims.npy: shape \(4, 4\)"):
        run(tiny_data, tmp_path / "b", *FEW, epochs=1)


def test_the_variant_is_said_and_carried(tiny_data, tmp_path, caplog):
    """A data set may have any name: --vsrn_variant decides, and the checkpoint knows it wherever it is evaluated."""
    vsrn = [*FEW, "--model", "vsrn"]
    folder, text = said(caplog, tiny_data, tmp_path / "run", *vsrn, "--vsrn_variant", "f30k", epochs=1)
    assert "VSRN, --vsrn_variant f30k" in text
    result = evaluation.evalrank(folder / "model_best.pth.tar", split="dev", ranks=None, device="cpu")
    assert result["r1r5"] == load_checkpoint(folder / "model_best.pth.tar")["best_rsum"]
    again = [tiny_data, tmp_path / "run", *vsrn, "--resume", folder]
    with pytest.raises(InputError, match="--vsrn_variant f30k"):
        run(*again, "--vsrn_variant", "coco", epochs=2)
    run(*again, epochs=2)
    assert "bn.weight" in load_checkpoint(folder / "checkpoint_1.pth.tar")["model"][0]
