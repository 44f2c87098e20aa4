"""Fixtures that several test files share."""

import runtime.start  # noqa: F401, before torch

import gc
import shutil

import pytest
import spoil
from tiny import make_tiny
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from files import errors


@pytest.fixture(autouse=True)
def forget_warnings():
    """Each test hears a warning that an earlier one has heard."""
    errors.warn.cache_clear()


@pytest.fixture
def tiny_data(tmp_path):
    return make_tiny(tmp_path)


@pytest.fixture(scope="session")
def ready(tmp_path_factory):
    root = tmp_path_factory.mktemp("ready")
    spoil.prepare(root)
    return root


@pytest.fixture
def place(ready, tmp_path, monkeypatch):
    """The folder of the test, and where it runs: data/tiny_precomp, vocab/ and a checkpoint of either model."""
    shutil.copytree(ready, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workers_end():
    """Ends loaders' workers that an error has left over; left to the garbage collector each takes five seconds."""
    yield
    for one in gc.get_objects():
        if type(one) is _MultiProcessingDataLoaderIter:
            one._shutdown_workers()
