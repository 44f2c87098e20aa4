"""Processes that read data: none without shared memory, and an end to every wait for them."""

import os
import time
from types import SimpleNamespace as Namespace

import numpy as np
import pytest
import torch
from tiny import prepared
from torch.utils.data import Dataset

import data
from files.errors import InputError
from runtime import workers
from runtime.transfer import send_batch


class Rows(Dataset):
    """Items of 1 MB."""

    def __getitem__(self, i):
        return torch.zeros(250_000), np.zeros(0)

    def __len__(self):
        return 8


@pytest.mark.parametrize("free, fitting", [(64 * 10**6, 0), (10**10, 10)])
def test_workers_need_shared_memory(free, fitting, monkeypatch, capsys):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: Namespace(free=free))
    for _ in range(3):
        assert workers.fitting_workers(10) == fitting
    assert capsys.readouterr().err.count("warning") == (fitting < 10)


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


@pytest.mark.parametrize("rows, message", [(Dying, "died"), (Unsent, "died"), (Endless, "no batch.* 1 seconds")])
def test_a_wait_for_data_ends(rows, message, monkeypatch, workers_end, capfd):
    monkeypatch.setattr(workers, "PATIENCE", 1 if rows is Endless else 100)
    loader = workers.Loader(rows(), data.in_order(8, 2), 1, list)
    with pytest.raises(InputError, match=f"--workers 1.*{message}.*--workers 0"):
        next(iter(loader))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_batches_are_the_items_however_they_are_read(tiny_data, kind, workers_end):
    path = tiny_data.folder / "train_ims.npy"
    np.save(path, np.load(path).astype(kind))
    expected = np.load(path).astype(np.float32)
    opt, words = prepared(tiny_data)
    for count in (0, 2):
        loader = data.get_loaders(opt.data_name, words, 24, count, opt)[0]
        found = [send_batch(batch, "cpu") for batch in loader]  # as a training gets them
        assert sum(len(batch.ids) for batch in found) == 200
        for batch in found:
            assert batch.images.dtype == torch.float32
            assert np.array_equal(batch.images, expected[np.array(batch.ids) // 5])
