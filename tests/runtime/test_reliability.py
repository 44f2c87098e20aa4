"""Runs that are killed, whose folders fail, whose numbers break: what is kept, and what is said."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from forked import Forked
from tiny import at_step, file_limit, flags, names, points, run, same_runs, same_state, validations

import train
from checkpoints import checkpoint
from checkpoints.checkpoint import load_checkpoint
from files.errors import InputError
from runtime.workers import STOPPING
from training import logger
from training.health import Stop

ROOT = Path(__file__).parents[2]
FEW = ["--batch_size", 128]  # two steps an epoch

# ---- processes


def slow_training(arguments, seconds):
    """train.py in a process of its own, each step `seconds` longer; writes a file `stepping` at the first.

    It has as many threads as this process: bits depend on their number.
    """
    return Forked("said", {}, train_slowly, arguments, seconds, torch.get_num_threads())


def train_slowly(arguments, seconds, threads):
    step = train.train_step

    def slow(*arguments):
        Path("stepping").touch()
        time.sleep(seconds)
        return step(*arguments)

    torch.set_num_threads(threads)
    train.train_step = slow
    train.main(arguments)


def wait_for(happened, forked):
    for _ in range(6000):
        if happened():
            return
        assert forked.process.is_alive(), forked.said
        time.sleep(0.01)
    pytest.fail("what is waited for does not happen")


def test_killed_is_uninterrupted(tiny_data, tmp_path, monkeypatch, caplog):
    """SIGKILL in the middle, and the newest checkpoint cut off: the one before leads to the same end.

    Until then no other training may go on from there; at once after it one may, whatever its workers still do.
    """
    monkeypatch.chdir(tmp_path)
    more = ["--save_every", 2, "--val_step", 3]
    process = slow_training(flags(tiny_data, "parts", *more, "--workers", 2), 0.1)
    folder = Path("parts/ck")
    wait_for((folder / "checkpoint_0_6.pth.tar").exists, process)
    os.kill(process.process.pid, signal.SIGSTOP)
    with pytest.raises(InputError, match="another training"):
        run(tiny_data, "parts", *more, "--resume", folder)
    process.process.kill()
    assert process.ended()[0] == -signal.SIGKILL
    newest = checkpoint.find_checkpoint(folder, resume=True)
    os.truncate(newest, newest.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        run(tiny_data, "parts", *more, "--resume", folder)
    assert f"{newest}: incomplete" in caplog.text and "passed over" in caplog.text
    run(tiny_data, "whole", *more)
    same_runs("whole", "parts")


def test_a_second_signal_leaves_at_once(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = slow_training(flags(tiny_data, "run"), 60)
    wait_for(Path("stepping").exists, process)
    os.kill(process.process.pid, signal.SIGTERM)
    wait_for(lambda: process.said.endswith("press Ctrl-C again to leave at once\n"), process)
    said = process.said
    os.kill(process.process.pid, signal.SIGINT)
    assert process.ended(timeout=20) == (128 + signal.SIGINT, said)
    assert not names(Path("run/ck"))


def test_a_hangup_that_is_ignored_stays_so_and_threads_handle_no_signals():
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with ThreadPoolExecutor() as pool:
            pool.submit(Stop).result()
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
        stop = Stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and signal.getsignal(signal.SIGUSR1) == stop.handle
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- folders that fail


def validated_epochs(folder):
    return [row["epoch"] for row in validations(folder)]


def failing_saves(monkeypatch, *bad):
    """Checkpoints of these names find the disk full."""
    save = checkpoint.save_checkpoint

    def write(state, path):
        if path.name in bad:
            raise InputError(f"{path}: cannot be written (No space left on device)")
        save(state, path)

    monkeypatch.setattr(checkpoint, "save_checkpoint", write)


def test_a_save_that_fails_is_made_up_for(tiny_data, tmp_path, monkeypatch, caplog):
    whole = run(tiny_data, tmp_path / "whole", *FEW)
    failing_saves(monkeypatch, "checkpoint_0.pth.tar")
    folder = run(tiny_data, tmp_path / "run", *FEW)
    assert "checkpoint_0.pth.tar: cannot be written (No space left on device); training goes on" in caplog.text
    assert names(folder) == ["checkpoint_1.pth.tar", "model_best.pth.tar"]
    same_state(whole / "checkpoint_1.pth.tar", folder / "checkpoint_1.pth.tar")


def test_a_best_model_that_cannot_be_written_is_not_to_be_beaten(tiny_data, tmp_path, monkeypatch):
    failing_saves(monkeypatch, "model_best.pth.tar")
    with pytest.raises(InputError, match=r"model_best.pth.tar: cannot be written .*: this checkpoint is lost"):
        run(tiny_data, tmp_path, *FEW)
    assert load_checkpoint(tmp_path / "ck/checkpoint_1.pth.tar")["best_rsum"] == 0


def test_full_disk(tiny_data, tmp_path, caplog):
    """A real limit: neither checkpoints nor curves fit, and the run says so to its end."""
    with file_limit(4000), pytest.raises(InputError, match=r"written \(File too large\): this checkpoint is lost"):
        run(tiny_data, tmp_path, *FEW, epochs=4)
    assert names(tmp_path / "ck") == []
    assert f"{tmp_path}/log: cannot be written ([Errno 27] File too large); training goes on" in caplog.text


def test_folders_that_vanish_are_made_again(tiny_data, tmp_path, monkeypatch):
    at_step(2, lambda: shutil.rmtree(tmp_path / "run"), monkeypatch.setattr)
    folder = run(tiny_data, tmp_path / "run", *FEW)
    assert names(folder) == ["checkpoint_1.pth.tar", "model_best.pth.tar"]
    assert validated_epochs(tmp_path / "run/log") == [1]
    assert {tag for tag, *_ in points(tmp_path / "run/log")} >= {"rsum", "r1i"}


def test_curves_begin_anew_after_a_failure(tiny_data, tmp_path, monkeypatch, caplog):
    """The event file that failed may end in half a record, so another one takes over at the next validation."""
    log_value = logger.tensorboard().Logger.log_value

    def failing(self, name, value, step):
        if step == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        log_value(self, name, value, step)

    monkeypatch.setattr(logger.tensorboard().Logger, "log_value", failing)
    run(tiny_data, tmp_path, *FEW)
    assert caplog.text.count("its log has a gap") == 1
    steps = {tag: [step for other, step, _ in points(tmp_path / "log") if other == tag] for tag in ("Le", "rsum")}
    assert steps == {"Le": [3, 4], "rsum": [2, 4]} and len(list((tmp_path / "log").glob("events*"))) == 2


def train_without_curves(reason, arguments):
    """In a process where tensorboard_logger cannot be used."""
    assert not {"tensorboard_logger", "google.protobuf.descriptor_pb2"} & sys.modules.keys()
    if reason == "missing":
        sys.modules["tensorboard_logger"] = None
    else:
        os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "upb"
    train.main(arguments)


@pytest.mark.parametrize("reason", ["missing", "upb"])
def test_without_curves_training_goes_on(tiny_data, tmp_path, reason):
    environment = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": None}
    arguments = reason, flags(tiny_data, tmp_path, *FEW, epochs=1)
    code, said = Forked(tmp_path / "said", environment, train_without_curves, *arguments).ended()
    assert code == 0 and "Traceback" not in said, said
    assert said.count("No TensorBoard curves, only log.jsonl: tensorboard_logger fails") == 1
    assert validated_epochs(tmp_path / "log") == [0] and not list((tmp_path / "log").glob("events*"))


# ---- provenance


def test_a_resumed_run_keeps_the_first_record(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--first"])
    folder = run(tiny_data, tmp_path, *FEW, epochs=1)
    first = json.loads((tmp_path / "log/config.json").read_text())
    monkeypatch.setattr(sys, "argv", ["train.py", "--second"])
    for epochs in (2, 3):
        run(tiny_data, tmp_path, *FEW, "--resume", folder, "--learning_rate", "0.5", epochs=epochs)
    both = json.loads((tmp_path / "log/config.json").read_text())
    again = both.pop("resumed")
    assert both == first and first["command"].endswith("train.py --first") and first["opt"]["val_step"] == 15000
    assert [record["Eiters"] for record in again] == [2, 4] and again[0]["opt"]["learning_rate"] == 0.5
    assert again[1]["command"].endswith("train.py --second")
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
        assert first["versions"].get("git", "").startswith(head.stdout[:12])


# ---- numbers


def test_the_deterministic_run_is_the_run(tiny_data, tmp_path):
    plain = run(tiny_data, tmp_path / "plain", *FEW, "--model", "vsrn", epochs=1)
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        fixed = run(tiny_data, tmp_path / "fixed", *FEW, "--model", "vsrn", "--deterministic", epochs=1)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    same_state(plain / "checkpoint_0.pth.tar", fixed / "checkpoint_0.pth.tar")


def test_broken_embeddings_and_gradients_are_named(tiny_data, tmp_path, monkeypatch):
    """Infinity that arises on the way: in an image's embedding, or only in the backward pass."""
    build, step = train.build_model, train.train_step

    def huge(opt):
        net = build(opt)
        net.img_enc.fc.weight.data.fill_(3e38)
        return net

    def infinite(model, *rest):
        next(model.parameters()).register_hook(lambda grad: grad * float("inf"))
        return step(model, *rest)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"step 0, .* the image of caption \d+: train"):
        patch.setattr(train, "build_model", huge)
        run(tiny_data, tmp_path / "a", *FEW)
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"norm is (inf|nan) at step 0: train"):
        patch.setattr(train, "train_step", infinite)
        run(tiny_data, tmp_path / "b", *FEW)
