"""Plain files: what is accepted, what is refused and in which words, and that no pickle can call anything."""

from runtime.start import run

import errno
import io
import os
import pickle
import struct
import tracemalloc

import hypothesis
import numpy as np
import pytest
import torch
from damage import damaged

import vocab
from files.arrays import open_array, read_sizes
from files.errors import InputError
from files.text import read_captions, read_dependencies, read_ids, read_json, read_lines
from files.writing import atomic_write, make_folder


def fails(text, read, *args):
    """read(*args) raises InputError with this text, on one line."""
    with pytest.raises(InputError) as error:
        list(read(*args) or ())
    assert text in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_messages_are_one_printable_line():
    assert str(InputError("x\ny\x1b[2J\u2028z\ud800é ")) == "x y [2J z é"


# ---- text and JSON ----


def test_lines_end_at_newlines_only(tmp_path):
    path = tmp_path / "caps.txt"
    path.write_bytes("\ufeffa dog\r\nün\u2028e\x0b\x85\n\nlast".encode())
    assert read_lines(path) == ["a dog", "ün\u2028e\x0b\x85", "", "last"]


@pytest.mark.parametrize(
    "content, where",
    [
        (b"ab\ncd\n\xff\xfe\n", "line 3: byte 0xff"),
        (b"\xef\xbb\xbf\xe9", "line 1: byte 0xe9"),
        ("a".encode("utf-16-le").join([b"\xff\xfe", b""]), "line 1: byte 0xff"),
    ],
)
def test_bytes_that_are_not_utf8_are_named(tmp_path, content, where):
    (tmp_path / "caps.txt").write_bytes(content)
    fails(f"caps.txt, {where}", read_lines, tmp_path / "caps.txt")


def test_missing_files_and_folders_instead_of_files(tmp_path):
    for read in (read_lines, read_json, open_array, read_sizes):
        fails("nothing.here: no such file", read, tmp_path / "nothing.here")
        fails("cannot be read (Is a directory)", read, tmp_path)


@pytest.mark.parametrize(
    "content, text",
    [
        ('{"a": 1,\n "b" 2}', "line 2, column 6: not valid JSON"),
        ("", "line 1, column 1: not valid JSON"),
        ("[" * 100000, "not usable JSON"),
        ("1" * 5000, "not usable JSON"),
    ],
)
def test_json_mistakes_are_located(tmp_path, content, text):
    (tmp_path / "x.json").write_text(content)
    fails(text, read_json, tmp_path / "x.json")


@pytest.mark.parametrize(
    "line, text",
    [
        ("", "line 2: empty"),
        ("  ", "line 2: empty"),
        ("1,4,x,2", "line 2: '1,4,x,2' is not a list"),
        ("1,4,,2", "is not a list"),
        ("1,4.0,2", "is not a list"),
        ("1,4,2,", "is not a list"),
        ("1,٤,2", "is not a list"),
        ("1_0", "is not a list"),
        ("9" * 5000, "is not a list"),
        ("1,10,2", "line 2: word id 10, but the vocabulary has ids 0 to 9"),
        ("1,-4,2", "line 2: word id -4"),
    ],
)
def test_ids_that_are_none(tmp_path, line, text):
    (tmp_path / "ids.txt").write_text(f"1,9,2\n{line}\n1,2\n")
    fails(text, read_ids, tmp_path / "ids.txt", 10)


def test_ids_may_have_blanks_and_crlf(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"1, 9 ,2 \r\n7\r\n")
    assert list(read_ids(tmp_path / "ids.txt", 10)) == [[1, 9, 2], [7]]


@pytest.mark.parametrize(
    "content, text",
    [
        ("{}", "need a list with the dependencies"),
        ("[[], 3]", "caption 1: need a list of [governor, dependent] pairs, not 3"),
        ("[[[0, 1, 2]]]", "caption 0"),
        ("[[[0, 1.5]]]", "caption 0"),
        ("[[[0, true]]]", "caption 0"),
        ('[[[0, "1"]]]', "caption 0"),
        ("[[[0, 99999999999]]]", "caption 0"),
        ("[[0, 1]]", "caption 0"),
    ],
)
def test_dependencies_that_are_none(tmp_path, content, text):
    (tmp_path / "caps.json").write_text(content)
    fails(text, read_dependencies, tmp_path / "caps.json")


def test_empty_captions_are_named(tmp_path):
    (tmp_path / "caps.txt").write_text("a dog\n \t\na cat\n")
    fails("caps.txt, line 2: empty caption", read_captions, tmp_path / "caps.txt")


# ---- writing ----


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    def full_disk(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "x"
    atomic_write(path, lambda file: file.write(b"whole"))
    fails("cannot be written (No space left on device)", atomic_write, path, full_disk)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, interrupted)
    assert path.read_bytes() == b"whole" and os.listdir(tmp_path) == ["x"]
    gone = tmp_path / "gone" / "x"
    fails("cannot be written (No such file or directory)", atomic_write, gone, full_disk)
    fails("cannot be made (Not a directory)", make_folder, path / "below")


# ---- arrays ----


def header(descr, shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_arrays_that_are_none(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(1000.0))
    path.write_bytes(path.read_bytes()[:-1])
    fails("truncated or not a plain .npy file", open_array, path)
    for content in (
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04",
        b"hello",
        header("<f4", (-3, 4)),
        header("<f4", (2**40, 2**40)),
        header("|O", (3,)),
    ):
        path.write_bytes(content)
        fails("truncated or not a plain .npy file", open_array, path)
    with open(path, "wb") as file:
        np.savez(file, x=np.arange(3))
    fails("truncated or not a plain .npy file", open_array, path)


FIELDS = [("image_w", "<i8"), ("image_h", "<i8")]
# what Python 2's numpy wrote: protocol 2, byte strings, numpy.core
DTYPE = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R(K\x03U\x01%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
ARRAY = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x02\x85" + DTYPE % (b"O8", b"|") + b"\x89](%setb."
)


def item(w, h):
    return b"}(U\x07image_w%sU\x07image_h%su" % (w, h)


def int16(x):
    return b"M" + struct.pack("<H", x)


def numpy_int64(x):
    dtype = DTYPE % (b"i8", b"<")
    return b"cnumpy.core.multiarray\nscalar\n" + dtype + b"U\x08" + struct.pack("<q", x) + b"\x86R"


def python2_sizes(items):
    return header("|O", (len(items),)) + ARRAY % b"".join(items)


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
        (np.array([(500, 0)], FIELDS), "row 0: image size 500 x 0; width and height must be positive"),
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


def test_a_full_card_is_one_line_that_names_the_flags(capsys):
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(SystemExit) as stop:
        run(main)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    assert all(flag in line for flag in ("--sim_memory", "--accumulate", "--batch_size"))


@pytest.mark.parametrize(
    "error, code, said",
    [
        (InputError("x.npy: bad; mend it"), 2, "error: x.npy: bad; mend it\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_turns_errors_into_exit_codes(capsys, error, code, said):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == code and capsys.readouterr().err == said


# ---- fuzzing: whatever a file holds, InputError is the only error ----

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 150))
JSON_VOCAB = (
    b'{"word2idx": {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "a": 4}, "idx": 5, '
    b'"idx2word": {"0": "<pad>", "1": "<start>", "2": "<end>", "3": "<unk>", "4": "a"}}'
)
PICKLED_VOCAB = pickle.dumps(vocab.Vocabulary([*vocab.SPECIAL, "a", "ü"]), 2)
READERS = {  # test_fuzz.py has a split's other files
    "pickled sizes": (read_sizes, python2_sizes([item(int16(5), numpy_int64(6))] * 2)),
    "json vocabulary": (vocab.deserialize_vocab, JSON_VOCAB),
    "pickled vocabulary": (vocab.deserialize_vocab, PICKLED_VOCAB),
}


@pytest.mark.parametrize("name", READERS)
def test_fuzzed_files_raise_input_error_only(tmp_path_factory, name):
    read, content = READERS[name]
    path = tmp_path_factory.mktemp("fuzz") / ("x.pkl" if name.startswith("pickled v") else "x")
    path.write_bytes(content)
    read(path)  # undamaged it reads

    @hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None)
    @hypothesis.given(damaged(content))
    def fuzz(data):
        path.unlink()
        path.write_bytes(data)
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1

    fuzz()
