"""files/writing.py: whole or not at all, whatever has the name, whoever else writes, whenever a writer is killed."""

import os
import re
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from files import writing
from files.errors import InputError
from files.writing import atomic_write, check_writable


def put(content):
    return lambda file: file.write(content)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    def fail(file):
        file.write(b"half")
        raise error

    atomic_write(tmp_path / "x", put(b"whole"))
    with pytest.raises((InputError, KeyboardInterrupt), match=r"No space left|^$"):
        atomic_write(tmp_path / "x", fail)
    assert (tmp_path / "x").read_bytes() == b"whole" and os.listdir(tmp_path) == ["x"]


def test_devices_and_pipes_are_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    for name in ("pipe", "null"):
        check_writable(tmp_path / name)
        atomic_write(tmp_path / name, put(b"content"))
    reader.join()
    assert got == [b"content"] and (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "null").is_symlink() and Path(os.devnull).is_char_device()


def test_links_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(tmp_path / "there" / name)
    (tmp_path / "there" / "old").write_bytes(b"before")
    for name in ("old", "new"):
        atomic_write(tmp_path / name, put(b"after"))
        assert (tmp_path / name).is_symlink() and (tmp_path / "there" / name).read_bytes() == b"after"
    assert sorted(os.listdir(tmp_path / "there")) == ["new", "old"]


def test_nobody_can_place_a_link_where_the_temporary_file_will_be(tmp_path, monkeypatch):
    (tmp_path / "precious").write_bytes(b"mine")
    monkeypatch.setattr(writing.secrets, "token_hex", lambda n: "0" * 2 * n)
    Path(writing.temporary_name(tmp_path)).symlink_to(tmp_path / "precious")
    with pytest.raises(InputError):
        atomic_write(tmp_path / "x", put(b"theirs"))
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "x", put(b""))
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def write_rounds(path, mark):
    for _ in range(100):
        atomic_write(path, lambda file: [file.write(mark * 1000) for _ in range(20)])


def test_two_writers_of_one_name(tmp_path):
    writers = [get_context("fork").Process(target=write_rounds, args=(tmp_path / "x", mark)) for mark in (b"a", b"b")]
    [writer.start() for writer in writers]
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / "x").exists():
            assert (tmp_path / "x").read_bytes() in (b"a" * 20000, b"b" * 20000)
    assert [writer.exitcode for writer in writers] == [0, 0] and os.listdir(tmp_path) == ["x"]


def test_what_killed_programs_left_is_removed_once_it_is_old(tmp_path):
    names = [writing.temporary_name(tmp_path, ending) for ending in ("tmp", "tmp", "tmp", "work", "work")]
    young, old, link, folder, young_folder = map(Path, names)
    young.touch(), old.touch(), link.symlink_to(old), folder.mkdir(), young_folder.mkdir()
    (folder / "inside").touch()
    others = [tmp_path / ".unfinished-x.tmp", tmp_path / "x.tmp", tmp_path / ".x.tmp"]
    [path.touch() for path in others]
    hours = {young: 0.5, old: 1.5, folder: 25, young_folder: 2, **dict.fromkeys(others, 99)}
    for path, age in hours.items():
        os.utime(path, (time.time() - 3600 * age,) * 2)
    writing.remove_leftovers.cache_clear()
    atomic_write(tmp_path / "x", put(b""))
    assert not old.exists() and not folder.exists()
    assert set(tmp_path.iterdir()) == {tmp_path / "x", young, link, young_folder, *others}


@pytest.mark.parametrize("name", ["n" * 300, "gone/x", "folder", "file/x"])
def test_a_name_that_cannot_be_is_refused_before_the_work(name, tmp_path):
    (tmp_path / "folder").mkdir(), (tmp_path / "file").touch()
    with pytest.raises(InputError, match=re.escape(name)):
        check_writable(tmp_path / name)
    with pytest.raises(InputError, match=re.escape(name)):
        atomic_write(tmp_path / name, put(b""))
