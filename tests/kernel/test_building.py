"""The C kernel's library: compiled once, kept whole, never trusted blindly; without it torch computes."""

import os
import shutil
import stat
import subprocess
import time

import pytest
import torch
from tiny import random_case, small_opt

from files.errors import InputError
from modules.kernel import building, scores
from systems.gsmn import GSMN

pytestmark = pytest.mark.skipif(
    building.library(16, 32) is None, reason="the C kernel is switched off (GSMN_NATIVE=0) or cannot be compiled (CC)"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GSMN_CACHE", str(tmp_path / "a" / "b"))
    yield tmp_path / "a" / "b"
    building.library.cache_clear()
    scores.load.cache_clear()


@pytest.fixture
def tiny_source(tmp_path, monkeypatch):
    """A source that compiles at once."""
    monkeypatch.setattr(building, "SOURCE", tmp_path)
    for name in building.SOURCES:
        (tmp_path / name).write_text("")
    (tmp_path / "forward.c").write_text("int constants;")
    return tmp_path


def test_compiled_once_and_anew_for_other_sources_and_sizes(own_cache, tiny_source):
    library = building.compiled(2, 8)
    made = library.stat().st_mtime_ns
    assert building.compiled(2, 8) == library and library.stat().st_mtime_ns == made
    assert [path.name for path in own_cache.iterdir()] == [library.name]
    (tiny_source / "forward.c").write_text("int more;")
    assert len({library, building.compiled(2, 8), building.compiled(3, 8)}) == 3
    (tiny_source / "forward.c").write_text("not C")
    with pytest.raises(subprocess.CalledProcessError):
        building.compiled(2, 8)
    assert len(list(own_cache.iterdir())) == 3


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:900], lambda content: content + b"x"])
def test_a_damaged_library_is_made_again(own_cache, tiny_source, damage):
    library = building.compiled(2, 8)
    whole = library.read_bytes()
    library.write_bytes(damage(whole))
    assert building.compiled(2, 8).read_bytes() == whole
    assert len(list(own_cache.iterdir())) == 1


def test_a_folder_that_others_may_write_is_not_used(own_cache, tiny_source):
    library = building.compiled(2, 8)
    own_cache.chmod(stat.S_IRWXU | stat.S_IWOTH)
    with pytest.raises(InputError, match=str(own_cache)):
        building.compiled(2, 8)
    assert building.library(2, 8) is None and library.exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(own_cache):
    own_cache.mkdir(parents=True)
    os.chown(own_cache, 12345, 12345)
    with pytest.raises(InputError, match="another user"):
        building.compiled(2, 8)


def test_a_compiler_that_hangs_is_ended(tmp_path, monkeypatch, caplog):
    compiler = tmp_path / "slow"
    compiler.write_text("#!/bin/sh\nexec sleep 60\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(building, "SECONDS", 0.2)
    start = time.monotonic()
    assert building.library(2, 8) is None and time.monotonic() - start < 30
    assert "timed out" in caplog.text


def test_the_compiler_is_split_like_a_shell_does(monkeypatch, tiny_source):
    compiler = shutil.which(os.environ.get("CC", "cc").split()[0])
    monkeypatch.setenv("CC", f'env "A NAME=1" {compiler} -O2')
    assert building.compiled(2, 8).exists()
    monkeypatch.setenv("CC", 'cc "')
    assert building.library(3, 8) is None


def test_without_a_compiler_torch_computes_the_same(monkeypatch, caplog):
    monkeypatch.delenv("GSMN_CACHE")  # which other tests have filled
    torch.manual_seed(1)
    net, case = GSMN(small_opt()), random_case()
    with torch.no_grad():
        compiled = net.forward_sim(*case)
        for name, value, warnings in (("CC", "no-such-compiler", 1), ("CC", "false", 1), ("GSMN_NATIVE", "0", 0)):
            caplog.clear()
            monkeypatch.setenv(name, value)
            building.library.cache_clear()
            scores.load.cache_clear()
            assert scores.load(4, 16) is None and scores.load(4, 16) is None
            assert caplog.text.count("cannot be compiled") == warnings
            torch.testing.assert_close(net.forward_sim(*case), compiled, rtol=0, atol=2e-6)
