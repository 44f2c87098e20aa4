"""What train.py says at its start and end, and what it refuses before it begins."""

import logging
import shutil

import numpy as np
import pytest
import torch
from tiny import names, run
from tqdm import tqdm

import evaluation
from checkpoints.checkpoint import load_checkpoint
from checkpoints.resume import Progress, refuse_used_folder
from files.errors import InputError
from training import announce

FEW = ["--batch_size", 128]  # two steps an epoch


def said(caplog, *arguments, **how):
    """What a training announces, but not that there is no C compiler."""
    with caplog.at_level(logging.INFO):
        folder = run(*arguments, **how)
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return folder, [line for line in lines if "kernel cannot be compiled" not in line]


def test_start_and_end(tiny_data, tmp_path, caplog):
    folder, lines = said(caplog, tiny_data, tmp_path / "run", *FEW, "--log_step", 1)
    parts = load_checkpoint(folder / "model_best.pth.tar")["model"]
    weights = sum(weight.numel() for part in parts for weight in part.values())
    assert lines[0].startswith("GSMN, dense, --propagation self, --boxes normalized, ")
    assert f" {weights:,} weights, on cpu, " in lines[0]
    assert lines[1:3] == [
        f"{tiny_data.folder}/train: 40 images, 200 captions",
        f"{tiny_data.folder}/dev: 10 images, 50 captions",
    ]
    assert lines[3] == "2 epochs of 2 steps, 128 pairs a step"
    assert lines[4].startswith(f"Checkpoints: {folder}, about ") and "for all 3 (--keep N keeps" in lines[4]
    size = float(lines[4].split("about ")[1].split()[0])
    assert size * 1000 == pytest.approx(3 * 4 * weights, rel=0.1)
    assert lines[5] == f"Log and curves: {tmp_path}/run/log"
    assert "grad_norm before clipping " in lines[6] and lines[6].startswith("Epoch: [0][1/2]\tEit 1  lr 0.01  Le ")
    validation = lines.index("Validating: 10 images, 50 captions")
    assert lines[validation + 1] == "R@1, R@5, R@10, median rank, mean rank:"
    assert lines[validation + 2].startswith("Image to text: ") and lines[validation + 4].startswith("rsum: ")
    assert lines[-4].startswith("Finished 2 epochs in 00:00:")
    best = load_checkpoint(folder / "model_best.pth.tar")
    place = f"on dev of epoch {best['best_epoch']}, in {folder}/model_best.pth.tar"
    assert lines[-3] == f"Best model: rsum {best['best_rsum']:.1f} {place}"
    assert lines[-2] == f"Summary and curves: {tmp_path}/run/log/summary.html"
    test = f"Test it: python test.py --model_path {folder}/model_best.pth.tar "
    assert lines[-1] == f"{test}--data_path {tiny_data.data_path} --vocab_path {tiny_data.vocab_path}"


def test_a_finished_run_has_nothing_left_to_do(tiny_data, tmp_path, caplog):
    folder = run(tiny_data, tmp_path, *FEW, epochs=1)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    _, lines = said(caplog, tiny_data, tmp_path, *FEW, "--resume", folder, epochs=1)
    assert f"{folder} has finished all its 1 epochs: nothing is left to do. --num_epochs 11 trains further" in lines
    assert lines[-1].startswith("Best model: rsum ") and " of epoch 0, in " in lines[-1]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


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
    _, lines = said(caplog, tiny_data, tmp_path / "auto", *vsrn, epochs=1)
    assert lines[0].startswith("VSRN, --vsrn_variant coco (norm over the regions at the start), ")
    folder, lines = said(caplog, tiny_data, tmp_path / "run", *vsrn, "--vsrn_variant", "f30k", epochs=1)
    assert lines[0].startswith("VSRN, --vsrn_variant f30k (BatchNorm at the end), ")
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
    assert f"{folder}: 1.0 kB are free, fewer than the checkpoints need; --keep 2 needs " in caplog.text


@pytest.mark.parametrize(
    "keep, every, done, count",
    [(0, 0, 0, 31), (2, 0, 0, 3), (0, 0, 28, 3), (0, 10, 0, 91), (3, 10, 0, 4), (0, 0, 30, 1)],
)
def test_number_of_checkpoints(keep, every, done, count):
    opt = type("opt", (), {"num_epochs": 30, "keep": keep, "save_every": every})
    assert announce.checkpoints_of(opt, 25, Progress(epoch=done)) == count


def test_sizes_in_words():
    sizes = [999, 1000, 123_456, 1_500_000_000, 47e9, 2e12]
    assert list(map(announce.in_bytes, sizes)) == ["999 bytes", "1.0 kB", "123 kB", "1.5 GB", "47 GB", "2.0 TB"]
    assert announce.checkpoint_bytes(torch.nn.Linear(9, 1)) == 120


def test_a_warning_says_that_it_is_one(capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    announce.start_logging()
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        logging.log(level, "%s", "text")
    said = [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["text", "warning: text", "error: text"]


def test_log_lines_do_not_stick_to_the_bar(capsys):
    """On a terminal the bar is wiped before a line and drawn again after it."""
    handler = announce.BesideBars()
    with tqdm(total=2, desc="epoch 0", file=handler.stream) as bar:
        bar.update()
        handler.emit(logging.makeLogRecord({"msg": "Image to text: 1.0"}))
    rows = capsys.readouterr().err.split("\n")
    assert rows[0].split("\r")[-1] == "Image to text: 1.0" and "epoch 0" in rows[1]
