"""Where a resumed run writes, who may write there, and that it goes on with the data it stopped in."""

import logging
import os
import shutil
from argparse import Namespace

import pytest
from tiny import SPLITS, make_tiny, names, run, stop_after, validations

import train
from checkpoints.resume import check_data, settle_folders
from files.errors import InputError
from files.writing import lock_folder

FEW = ["--batch_size", 128]  # two steps an epoch


@pytest.mark.parametrize("bring", [shutil.copytree, shutil.move])
def test_a_copied_or_moved_run_goes_on_where_it_lies(tiny_data, tmp_path, monkeypatch, bring):
    """Its paths in the checkpoint are relative, and the folder they were relative to is another now."""
    monkeypatch.chdir(tmp_path)
    run(tiny_data, "orig", *FEW, epochs=1)
    bring("orig", "other/run")
    before = {path: path.read_bytes() for path in tmp_path.glob("orig/*/*")}
    monkeypatch.chdir(tmp_path / "other")
    train.main(["--resume", "run/ck", "--num_epochs", "2"])
    assert {path: path.read_bytes() for path in tmp_path.glob("orig/*/*")} == before
    assert names(tmp_path / "other/run/ck")[:2] == ["checkpoint_0.pth.tar", "checkpoint_1.pth.tar"]
    assert [line["epoch"] for line in validations(tmp_path / "other/run/log")] == [0, 1]


def folders(path, checkpoints, log, optimizer=True, **flags):
    """Whether a run goes on in the folder of this file, and its folders; None where they cannot be told."""
    saved = {"opt": Namespace(model_name=checkpoints, logger_name=log), "optimizer": 0}
    if not optimizer:
        del saved["optimizer"]
    opt, asked = Namespace(), Namespace(**{"model_name": "default", "logger_name": "default", **flags})
    try:
        return settle_folders(opt, asked, set(flags), saved, path), opt.model_name, opt.logger_name
    except InputError as error:
        assert "--model_name" in str(error)
        return None


def test_where_a_resumed_run_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/ck", "a/log", "b", "c/ck"):
        os.makedirs(folder)
    for stored in (("a/ck", "a/log"), ("/far/away/ck", "/far/away/log")):
        assert folders("a/ck/model_best.pth.tar", *stored) == (True, "a/ck", "a/log")
        assert folders("c/ck/model_best.pth.tar", *stored) is None  # there is no log
        assert folders("b/checkpoint_0.pth.tar", *stored) is None
        assert folders("b/checkpoint_0.pth.tar", *stored, logger_name="x") == (True, "b", "x")
        assert folders("a/ck/checkpoint_0.pth.tar", *stored, model_name="new/ck") == (False, "new/ck", "new/log")
        assert folders("a/ck/checkpoint_0.pth.tar", *stored, model_name="new") is None
        assert folders("a/ck/model_best.pth.tar", *stored, optimizer=False) is None  # a released file
        assert folders("a/ck/other.pth.tar", *stored) is None
    assert folders("a/ck/model_best.pth.tar", "a/ck", "/elsewhere/log") is None
    for together in (("runs/x", "runs/x"), ("", "runs/x")):
        assert folders("b/model_best.pth.tar", *together) == (True, "b", "b")
        assert folders("b/model_best.pth.tar", *together, logger_name="new") == (False, "new", "new")
    assert folders("b/model_best.pth.tar", "runs/x", "runs/x/log") == (True, "b", "b/log")
    elsewhere = {"model_name": "c/ck", "logger_name": "c/log"}
    assert folders("a/ck/model_best.pth.tar", "a/ck", "a/log", **elsewhere) == (False, "c/ck", "c/log")
    (tmp_path / "c/ck/checkpoint_7.pth.tar").touch()
    assert folders("a/ck/model_best.pth.tar", "a/ck", "a/log", **elsewhere) is None  # of another run


@pytest.mark.parametrize("taken", ["ck", "log"])
def test_two_trainings_never_share_a_folder(tiny_data, tmp_path, taken):
    with lock_folder(tmp_path / taken), pytest.raises(InputError, match=f"{taken}: another training"):
        run(tiny_data, tmp_path, *FEW, epochs=1)
    assert not names(tmp_path / taken)
    run(tiny_data, tmp_path, *FEW, epochs=1)


def test_a_resumed_run_never_repeats_what_another_wrote_meanwhile(tiny_data, tmp_path, monkeypatch, caplog):
    """A job that is started again while the first one still writes its last checkpoint."""
    run(tiny_data, tmp_path, *FEW, epochs=1)
    last, lock = tmp_path / "ck/checkpoint_1.pth.tar", train.lock_run
    monkeypatch.setattr(train, "lock_run", lambda *way: [last.write_bytes(b""), lock(*way)][1])
    with pytest.raises(InputError, match="meanwhile"):
        run(tiny_data, tmp_path, *FEW, "--resume", tmp_path / "ck")
    assert len(validations(tmp_path / "log")) == 1
    monkeypatch.undo()
    last.unlink()
    run(tiny_data, tmp_path, *FEW, "--resume", tmp_path / "ck")
    assert "checkpoint_1.pth.tar" not in caplog.text
    run(tiny_data, tmp_path, *FEW, "--resume", tmp_path / "ck/checkpoint_0.pth.tar")
    assert "checkpoint_1.pth.tar" in caplog.text  # which this run wrote again


def test_an_epoch_goes_on_with_its_own_data_only(tiny_data, tmp_path, monkeypatch):
    stop_after(monkeypatch, steps=1)
    with pytest.raises(SystemExit):
        run(tiny_data, tmp_path / "run", *FEW)
    monkeypatch.undo()
    fewer = make_tiny(tmp_path / "fewer", splits={**SPLITS, "train": 20})
    before = names(tmp_path / "run/ck")
    with pytest.raises(InputError, match="20 images"):
        run(fewer, tmp_path / "run", *FEW, "--resume", tmp_path / "run/ck")
    assert names(tmp_path / "run/ck") == before
    run(tiny_data, tmp_path / "run", *FEW, "--resume", tmp_path / "run/ck")


def test_between_epochs_other_data_are_said(caplog):
    now = dict.fromkeys("images captions texts names ids vocabulary features".split())
    check_data({"data": {**now, "images": 20}}, now, "x.pth.tar")
    assert "x.pth.tar" in caplog.text
    caplog.clear()
    check_data({"step": 3}, now, "x.pth.tar")  # of a program that did not store it
    check_data({"step": 3, "data": now}, now, "x.pth.tar")
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        check_data({"step": 3, "data": {**now, "features": "of float16"}}, now, "x.pth.tar")
    assert "features" in caplog.text
