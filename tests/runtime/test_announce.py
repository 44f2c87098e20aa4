"""What train.py says at its start and end, and what it refuses before it begins."""

import logging
import shutil
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from tiny import names, run, same_weights

import evaluation
from checkpoints.checkpoint import load_checkpoint
from checkpoints.resume import Progress, refuse_used_folder
from files.errors import InputError
from training import announce

FEW = ["--batch_size", 128]  # two steps an epoch


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
    for fact in ("GSMN", f"{weights:,} weights", "200 captions", f"{folder}", f"{tmp_path}/run/log/summary.html"):
        assert fact in text
    assert text.count("loss ") == 4 and text.count(" ETA ") == 4  # at each step
    assert f"rsum {best['best_rsum']:.1f} on dev of epoch {best['best_epoch']}" in text
    assert same_weights(folder / "model_best.pth.tar", folder / f"checkpoint_{best['best_epoch']}.pth.tar")
    assert f"test.py --model_path {folder}/model_best.pth.tar --data_path {tiny_data.data_path}" in text
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    _, text = said(caplog, tiny_data, tmp_path / "run", *FEW, "--resume", folder)
    assert "nothing is left to do" in text and f" of epoch {best['best_epoch']}, in " in text
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


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
    folder = run(tiny_data, tmp_path, *FEW, epochs=1)
    before = names(folder), (folder / "model_best.pth.tar").read_bytes(), names(tmp_path / "log")
    with pytest.raises(InputError, match=rf"{folder}: holds 2 checkpoints of an earlier run .*--resume {folder}\), or"):
        run(tiny_data, tmp_path, *FEW, epochs=1)
    assert (names(folder), (folder / "model_best.pth.tar").read_bytes(), names(tmp_path / "log")) == before
    run(tiny_data, tmp_path, *FEW, "--resume", folder, epochs=2)


def test_a_folder_with_other_files_is_free(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "ranks.pth.tar").touch()
    refuse_used_folder(tmp_path)
    refuse_used_folder(tmp_path / "not here yet")


def test_the_width_of_features_comes_from_their_file(tiny_data, tmp_path):
    width = tiny_data.args.index("--img_dim")
    tiny_data.args[width : width + 2] = []
    folder = run(tiny_data, tmp_path / "a", *FEW, epochs=1)
    assert load_checkpoint(folder / "checkpoint_0.pth.tar")["opt"].img_dim == 8
    with pytest.raises(InputError, match=r"train_ims.npy: features are 8 wide, but --img_dim is 2048"):
        run(tiny_data, tmp_path / "b", *FEW, "--img_dim", 2048, epochs=1)
    for split in ("train", "dev"):
        np.save(tiny_data.folder / f"{split}_ims.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match=r"train_ims.npy: shape \(4, 4\)"):
        run(tiny_data, tmp_path / "c", *FEW, epochs=1)


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


def test_a_disk_too_small_is_said(tiny_data, tmp_path, monkeypatch, caplog):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(announce.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with caplog.at_level(logging.WARNING):
        folder = run(tiny_data, tmp_path, *FEW, epochs=1)
    assert f"{folder}: 1.00kB are free, fewer than the checkpoints need; --keep 2 needs " in caplog.text


@pytest.mark.parametrize(
    "keep, every, done, count",
    [(0, 0, 0, 31), (2, 0, 0, 3), (0, 0, 28, 3), (0, 10, 0, 91), (3, 10, 0, 4), (0, 0, 30, 1)],
)
def test_number_and_bytes_of_checkpoints(keep, every, done, count):
    opt = Namespace(num_epochs=30, keep=keep, save_every=every)
    assert announce.checkpoints_of(opt, 25, Progress(epoch=done)) == count
    assert announce.checkpoint_bytes(torch.nn.Linear(9, 1)) == 120
