"""Writing checkpoints: complete or not there, whatever the disk does and whenever the writer is killed."""

import argparse
import os
import random
import resource
import time
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from tiny import gsmn, message, names, same, state

from checkpoints import checkpoint
from checkpoints.checkpoint import find_checkpoint, load_checkpoint, prune, save_checkpoint
from checkpoints.resume import capture_rng, restore_rng
from vocab import SPECIAL, Vocabulary

# ---- writing


def test_round_trip(tmp_path):
    """Everything a run keeps comes back as it was."""
    groups = [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]
    full = state(
        step=17,
        optimizer={"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": groups},
        further={"caption_model": {"weight": torch.ones(2, 3)}},
        vocab=[*SPECIAL, "\xe9t\xe9"],
        rng=capture_rng(),
        half=torch.ones(2).half(),
        nothing=None,
        schedule=(1, 2.5, float("inf")),
    )
    save_checkpoint(full, tmp_path / "x.pth.tar")
    found = load_checkpoint(tmp_path / "x.pth.tar")
    assert {"format", "saved", "versions"} < found.keys()
    for key in full.keys() - {"opt"}:
        same(full[key], found[key])
    assert vars(full["opt"]).items() <= vars(found["opt"]).items()
    assert found["format"] == 1 and abs(found["saved"] - time.time()) < 60


def test_released_readers_find_what_they_expect(tmp_path):
    """A program that knows only the released form reads ours."""
    save_checkpoint(state(), tmp_path / "x.pth.tar")
    found = torch.load(tmp_path / "x.pth.tar", weights_only=False)
    assert type(found["opt"]) is argparse.Namespace and found["opt"].embed_size == 4
    same(found["model"], gsmn())


def test_other_values_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint\['rng'\]\['sampler'\]\[1\] is a set"):
        save_checkpoint(state(rng={"sampler": [1, {2}]}), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, 3000, 40000])
def test_disk_full(limit, tmp_path):
    """A system that takes no more bytes, at several points of the file."""
    path = tmp_path / "checkpoint_0.pth.tar"
    save_checkpoint(state(epoch=1), path)
    big = state(epoch=2, extra={"a": torch.ones(3000), "b": torch.ones(9000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        found = message(save_checkpoint, big, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found == f"{path}: cannot be written (File too large)"
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and load_checkpoint(path)["epoch"] == 1


# ---- random states


def draws():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item(), random.gauss(0, 1)


def test_rng(tmp_path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    draws()  # leaves half a pair of normal numbers in NumPy's and Python's generators
    save_checkpoint(state(rng=capture_rng()), tmp_path / "x")
    expected = [draws() for _ in range(700)]  # beyond the generators' block of 624
    random.seed(4), np.random.seed(5), torch.manual_seed(6)
    restore_rng(load_checkpoint(tmp_path / "x")["rng"])
    assert [draws() for _ in range(700)] == expected


def test_rng_of_more_devices_than_here(monkeypatch):
    """Two GPUs when saved, one when resumed: the first one's state is set."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.tensor([1]), torch.tensor([2])])
    saved, found = capture_rng(), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", found.extend)
    restore_rng(saved)
    assert [s.tolist() for s in found] == [[1]]


# ---- vocabulary


def test_another_vocabulary_is_told():
    words = [*SPECIAL, "dog", "caf\xe9", "a"]
    for saved in ({"vocab": words}, {"opt": argparse.Namespace(vocab_size=7)}):  # ours; a released file
        checkpoint.check_vocab(saved, Vocabulary(words))
        assert "8 words, not 7" in message(checkpoint.check_vocab, saved, Vocabulary([*words, "b"]))
    other = Vocabulary([*SPECIAL, "dog", "cat", "a"])
    assert "word 5 is 'cat', not 'caf\xe9'" in message(checkpoint.check_vocab, {"vocab": words}, other)


# ---- the checkpoints of a folder


def fill(folder, epochs):
    for epoch in epochs:
        save_checkpoint(state(epoch=epoch + 1, Eiters=10 * epoch), folder / f"checkpoint_{epoch}.pth.tar")


def test_newest_is_the_one_saved_last(tmp_path):
    """Neither numbers (a run taken up again at epoch 3) nor the times of copied files decide."""
    fill(tmp_path, [9, 10, 3])
    os.utime(tmp_path / "checkpoint_3.pth.tar", (0, 0))
    assert find_checkpoint(tmp_path, resume=True).name == "checkpoint_3.pth.tar"


def test_newest_passes_over_damage(tmp_path):
    fill(tmp_path, [0, 1, 2, 3])
    os.truncate(tmp_path / "checkpoint_3.pth.tar", 1500)
    data = bytearray((tmp_path / "checkpoint_2.pth.tar").read_bytes())
    data[data.find(gsmn()[0]["fc.weight"].numpy().tobytes())] ^= 1
    (tmp_path / "checkpoint_2.pth.tar").write_bytes(data)
    (tmp_path / ".unfinished-0123456789abcdef.tmp").write_bytes(b"PK")
    said = []
    assert find_checkpoint(tmp_path, True, said.append).name == "checkpoint_1.pth.tar"
    assert len(said) == 2 and "checkpoint_3" in said[0] and "checkpoint_2" in said[1]
    assert all("passed over" in line for line in said)


def test_prune(tmp_path):
    fill(tmp_path, [0, 1, 2, 10])
    save_checkpoint(state(), tmp_path / "model_best.pth.tar")
    (tmp_path / "checkpoint_5.pth.tar").write_bytes(b"not ours to judge")
    before = names(tmp_path)
    prune(tmp_path, 0)
    prune(tmp_path, 7)
    assert names(tmp_path) == before
    prune(tmp_path, 2)
    left = ["checkpoint_10.pth.tar", "checkpoint_2.pth.tar", "checkpoint_5.pth.tar", "model_best.pth.tar"]
    assert names(tmp_path) == left
    fill(tmp_path, [1])  # saved last, though its number is lower
    prune(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint_1.pth.tar", "checkpoint_5.pth.tar", "model_best.pth.tar"]


# ---- kill -9


def test_killed_writer(tmp_path):
    """A writer killed at random moments: the newest checkpoint and the best are always there, load, and
    are no older than the last ones whose saving had returned.  A kill must fall into a write."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process cannot use its parent's
    rng, step, returned = random.Random(7), 0, get_context("fork").Value("q", 0, lock=False)
    write_next(tmp_path, step)
    for _ in range(15):
        writer = get_context("fork").Process(target=write_forever, args=(tmp_path, step, returned))
        writer.start()
        time.sleep(rng.uniform(0.005, 0.06))
        writer.kill()
        writer.join()
        said = []
        step = load_checkpoint(find_checkpoint(tmp_path, True, said.append))["Eiters"]
        best = load_checkpoint(tmp_path)["Eiters"]
        assert not said and min(step, best) >= returned.value, (said, step, best, returned.value)
    assert list(tmp_path.glob(".unfinished-*"))
    torch.set_num_threads(threads)


def write_forever(folder, step, returned):
    while True:
        step += 1
        write_next(folder, step)
        returned.value = step


def write_next(folder, step):
    weights = {"fc.weight": torch.full((50_000,), float(step))}
    for name in (f"checkpoint_{step}.pth.tar", "model_best.pth.tar"):
        save_checkpoint(state([weights, {}, {}, {}], Eiters=step), folder / name)
    prune(folder, 2)
