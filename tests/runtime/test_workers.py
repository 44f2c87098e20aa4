"""Processes that read data: as many as the shared memory holds batches for, and an end to every wait for them."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from tiny import names, run, same_state
from torch.utils.data import Dataset

import data
from files.errors import InputError
from runtime import workers
from runtime.batches import EpochSampler

MB = 10**6


class Rows(Dataset):
    """Items of 1 MB."""

    def __getitem__(self, i):
        return torch.zeros(250_000), np.zeros(0)

    def __len__(self):
        return 8


@pytest.fixture
def room(monkeypatch):
    """Sets the free shared memory in MB, on a machine of 16 cores."""
    workers.say_once.cache_clear()
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    return lambda size: monkeypatch.setattr(workers, "free_shared_memory", lambda: size * MB)


@pytest.mark.parametrize("free, fitting", [(0, 0), (11, 0), (12, 1), (64, 7), (1000, 10)])
def test_workers_fit_into_the_shared_memory(free, fitting, room, capsys):
    """A batch of 2 MB in use and two that each worker reads ahead, in half of the room."""
    room(free)
    for _ in range(3):
        assert workers.fitting_workers(Rows(), data.in_order(8, 2), 10) == fitting
    said = capsys.readouterr().err
    line = f"/dev/shm has {free} MB free, which is little for batches of 2 MB: {fitting} processes read data instead of"
    assert said.count("warning") == (fitting < 10) and (line in said) == (fitting < 10)


def test_processes_of_a_machine_share_the_memory(room, monkeypatch):
    room(64)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers.fitting_workers(Rows(), EpochSampler(8, 4, replicas=2), 10) == 3


def test_training_in_a_small_shared_memory(tiny_data, tmp_path, room, capsys):
    room(0)
    assert (run(tiny_data, tmp_path, "--workers", 4, epochs=1) / "checkpoint_0.pth.tar").exists()
    assert "0 processes read data instead of 4" in capsys.readouterr().err


class Dying(Rows):
    def __getitem__(self, i):
        os._exit(1)


class Unsent(Rows):
    """Items that cannot be sent to the main process, as where the shared memory is full."""

    def __getitem__(self, i):
        return lambda: None


class Endless(Rows):
    def __getitem__(self, i):
        time.sleep(5)


@pytest.mark.parametrize(
    "rows, message",
    [
        (Dying, "--workers 1: a process that reads data died; use --workers 0, or give"),
        (Unsent, "--workers 1: a process that reads data died; use --workers 0, or give"),
        (Endless, "--workers 1: no batch of data for 1 seconds; use --workers 0, or give"),
    ],
)
def test_a_wait_for_data_ends(rows, message, monkeypatch, workers_end, capfd):
    monkeypatch.setattr(workers, "PATIENCE", 1 if rows is Endless else 100)
    monkeypatch.setattr(workers, "batch_bytes", lambda *_: 1)
    loader = workers.Loader(rows(), data.in_order(8, 2), 1, list)
    with pytest.raises(InputError, match=message):
        next(iter(loader))
    assert "Traceback" not in capfd.readouterr().err


def test_a_signal_while_training_waits_for_data(tiny_data, tmp_path, monkeypatch):
    """The first one leaves, with a checkpoint from which the run goes on as if nothing had happened."""
    whole = run(tiny_data, tmp_path / "whole")
    read, count = data.PrecompDataset.__getitem__, iter(range(10**6))

    def stopped(self, i):
        if self.split == "train" and next(count) == 100:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)
        return read(self, i)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(data.PrecompDataset, "__getitem__", stopped)
        run(tiny_data, tmp_path / "parts")
    folder = tmp_path / "parts/ck"
    assert left.value.code == 128 + signal.SIGTERM and names(folder) == ["checkpoint_0_3.pth.tar"]
    run(tiny_data, tmp_path / "parts", "--resume", folder)
    same_state(whole / "checkpoint_1.pth.tar", folder / "checkpoint_1.pth.tar")
