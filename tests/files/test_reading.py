"""Plain files: what is accepted, what is refused and in which words, and that no pickle can call anything."""

from runtime.start import run

import errno
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from pickle_samples import header, int16, item, numpy_int64, python2_sizes
from tiny import message

import vocab
from files.arrays import open_array, read_sizes
from files.errors import InputError
from files.text import read_captions, read_dependencies, read_ids, read_json, read_lines

ROOT = Path(__file__).resolve().parents[2]


def fails(text, read, *args):
    """read(*args), of which some read when asked for a line, raises InputError with this text."""
    assert text in message(lambda: list(read(*args) or ()))


def test_messages_are_one_printable_line():
    assert str(InputError("x\ny\x1b[2J\u2028z\ud800é ")) == "x y [2J z é"


# ---- text and JSON ----


def test_lines_end_at_newlines_only(tmp_path):
    path = tmp_path / "caps.txt"
    path.write_bytes("\ufeffa dog\r\nün\u2028e\x0b\x85\n\nlast".encode())
    assert read_lines(path) == ["a dog", "ün\u2028e\x0b\x85", "", "last"]


def read_ten_words(path):
    return read_ids(path, 10)


@pytest.mark.parametrize("read", [read_lines, read_json, open_array, read_sizes])
def test_missing_files_and_folders_instead_of_files(tmp_path, read):
    fails("nothing.here: no such file", read, tmp_path / "nothing.here")
    fails("cannot be read (Is a directory)", read, tmp_path)


@pytest.mark.parametrize(
    "read, content, text",
    [
        (read_lines, b"ab\ncd\n\xff\xfe\n", "line 3: byte 0xff"),
        (read_lines, b"\xef\xbb\xbf\xe9", "line 1: byte 0xe9"),
        (read_lines, b"\xff\xfea\0", "line 1: byte 0xff"),
        (read_captions, "a dog\n \t\na cat\n", "line 2: empty caption"),
        (read_json, '{"a": 1,\n "b" 2}', "line 2 column 6"),
        (read_json, "", "line 1 column 1"),
        (read_json, "[" * 100000, ": not valid JSON"),
        (read_json, "1" * 5000, ": not valid JSON"),
        *((read_ten_words, f"1,9,2\n{line}\n1,2\n", "line 2: ") for line in ("", "  ")),
        (read_ten_words, "1,9,2\n1,4,x,2\n1,2\n", "line 2: '1,4,x,2' is no list"),
        *((read_ten_words, line, "is no list") for line in ("1,4,,2", "1,4.0,2", "1,4,2,", "1,٤,2", "1_0", "9" * 5000)),
        (read_ten_words, "1,9,2\n1,10,2\n", "line 2: word id 10, but the vocabulary has ids 0 to 9"),
        (read_ten_words, "1,-4,2\n", "line 1: word id -4"),
        (read_dependencies, "{}", ": need a list with the dependencies"),
        (read_dependencies, "[[], 3]", "caption 1: need a list of [governor, dependent] pairs, not 3"),
        (read_dependencies, "[[[0, 1, 2]]]", "caption 0"),
        (read_dependencies, "[[[0, 1.5]]]", "caption 0"),
        (read_dependencies, "[[[0, true]]]", "caption 0"),
        (read_dependencies, '[[[0, "1"]]]', "caption 0"),
        (read_dependencies, "[[[0, 99999999999]]]", "caption 0"),
        (read_dependencies, "[[0, 1]]", "caption 0"),
    ],
)
def test_text_that_is_none(tmp_path, read, content, text):
    (tmp_path / "x.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    fails("x.txt", read, tmp_path / "x.txt")
    fails(text, read, tmp_path / "x.txt")


def test_ids_may_have_blanks_and_crlf(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"1, 9 ,2 \r\n7\r\n")
    assert list(read_ids(tmp_path / "ids.txt", 10)) == [[1, 9, 2], [7]]


# ---- arrays ----


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04",  # .npz
        b"hello",
        header("<f4", (1000,)) + bytes(3999),
        header("<f4", (-3, 4)),
        header("<f4", (2**40, 2**40)),
        header("|O", (3,)),
    ],
)
def test_arrays_that_are_none(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    fails("truncated or not a plain .npy file", open_array, tmp_path / "x.npy")


FIELDS = [("image_w", "<i8"), ("image_h", "<i8")]


@pytest.mark.parametrize("number", [int16, numpy_int64])
def test_sizes_written_by_python_2(tmp_path, number):
    content = python2_sizes([item(number(500), number(375)), item(number(224), number(333))])
    (tmp_path / "size.npy").write_bytes(content)
    sizes = read_sizes(tmp_path / "size.npy")
    assert sizes.dtype == np.float32 and sizes.tolist() == [[500, 375], [224, 333]]


def test_sizes_of_other_kinds(tmp_path):
    path = tmp_path / "size.npy"
    dicts = [{"image_w": 500, "image_h": np.int32(375)}, {"image_h": 333.0, "image_w": 224}]
    for array in (
        np.array(dicts),
        np.array([(500, 375), (224, 333)], FIELDS),
        np.array([(375, 500), (333, 224)], [("image_h", ">i2"), ("image_w", "f4")]),
    ):
        np.save(path, array)
        assert read_sizes(path).tolist() == [[500, 375], [224, 333]]


@pytest.mark.parametrize(
    "array, text",
    [
        (np.array([(500, 0)], FIELDS), "row 0: image size 500 x 0"),
        (np.array([(5, 5), (-1, 5)], FIELDS), "row 1: image size -1 x 5"),
        (np.array([{"image_w": 5, "image_h": float("nan")}]), "row 0: image size 5 x nan"),
        (np.array([{"image_w": 5, "image_h": 10**400}]), "one item"),
        (np.array([{"width": 5, "height": 5}]), "one item"),
        (np.array([None]), "one item"),
        (np.zeros((3, 2)), "one item"),
        (np.zeros(3, [("image_w", "i8")]), "one item"),
        (np.zeros((3, 1), FIELDS), "one item"),
        (np.zeros(3, [("image_w", "S8"), ("image_h", "i8")]), "one item"),
        (np.zeros(3, [("image_w", "i8", 2), ("image_h", "i8", 2)]), "one item"),
    ],
)
def test_sizes_that_are_none(tmp_path, array, text):
    np.save(tmp_path / "size.npy", array)
    fails(text, read_sizes, tmp_path / "size.npy")


# ---- pickles (what attacks do is in test_malicious.py) ----


def test_what_is_allowed_cannot_be_altered(tmp_path):
    # a class's attribute set through the state of BUILD must not outlive the file
    path = tmp_path / "v.pkl"
    path.write_bytes(b"\x80\x02cvocab\nVocabulary\nN}U\x08__call__K\x05s\x86b.")
    fails("not a vocabulary", vocab.deserialize_vocab, path)
    assert vocab.Vocabulary(vocab.SPECIAL)("no such word") == vocab.UNK


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x96" + struct.pack("<Q", 2**28) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**28) + b".",
        b"\x80\x02Nr\xff\xff\xff\x0f.",
    ],
    ids=["bytearray", "text", "memo"],
)
def test_a_small_pickle_cannot_take_the_memory(tmp_path, content):
    (tmp_path / "v.pkl").write_bytes(content)
    tracemalloc.start()
    fails("v.pkl: ", vocab.deserialize_vocab, tmp_path / "v.pkl")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


# ---- scripts ----


@pytest.mark.parametrize(
    "error, code, words",
    [
        (InputError("x.npy: bad; mend it"), 2, ["error: x.npy: bad; mend it"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300), 2, ["error: nnn", "shorter"]),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, ["--sim_memory", "--accumulate", "--batch_size"]),
    ],
)
def test_run_turns_errors_into_exit_codes_and_one_line(capsys, error, code, words):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    line = capsys.readouterr().err
    assert stop.value.code == code and line.count("\n") == 1 and all(word in line for word in words)


def test_a_terminal_that_lacks_characters_gets_escapes():
    code = """if True:
        from files.errors import InputError
        from runtime.start import run
        def main():
            print("‹word›")
            raise InputError("naïve.txt")
        run(main)"""
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ascii_only, capture_output=True, text=True)
    assert done.stdout == "\\u2039word\\u203a\n" and "na\\xefve.txt" in done.stderr
