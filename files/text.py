"""Reads text and JSON: captions, word ids, dependencies."""

import codecs
import json
import re
from array import array
from itertools import chain
from pathlib import Path

import numpy as np

from files.errors import InputError, reason
from files.opening import open_regular

CAPTIONS_PER_IMAGE = 5
PICTURES = ("coco", "f8k", "f30k")  # data sets of pictures with annotations; all others have features


def data_folder(data_path, data_name):
    """The folder of a data set; InputError that lists the data sets in data_path."""
    folder = Path(data_path) / data_name
    if folder.is_dir():
        return folder
    if not Path(data_path).is_dir():
        raise InputError(f"{data_path}: no such folder; --data_path names the folder that holds the data sets")
    there = sorted(p.name for p in Path(data_path).glob("*") if p.is_dir())
    names = ", ".join(there) or "nothing"
    raise InputError(f"{folder}: no such folder; {data_path} has: {names}; check --data_path and --data_name")


def read_bytes(path):
    with open_regular(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from None


def _read_text(path):
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def read_lines(path):
    """The lines of a UTF-8 file as a list of str, without their ends; BOM and CRLF are accepted.

    Lines end at '\\n' only, so that other Unicode separators inside a caption do not shift the numbering.
    """
    lines = _read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_json(path):
    """The content of a JSON file; InputError names line and column of a mistake."""
    text = _read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); write or copy it again") from None


def read_captions(path):
    """The captions of a {split}_caps.txt, a list of str; InputError for an empty one."""
    captions = read_lines(path)
    for number, caption in enumerate(captions, start=1):
        if not caption.strip():
            raise InputError(f"{path}, line {number}: empty caption; every line needs one")
    return captions


_NUMBERS = re.compile(r"\s*-?\d{1,18}\s*(,\s*-?\d{1,18}\s*)*", re.ASCII)


def read_ids(path, n_words):
    """The word ids of a {split}_precaps_stan.txt, one caption's list at a time, all in 0 ... n_words - 1."""
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}, line {number}"
        if not _NUMBERS.fullmatch(line):
            raise InputError(
                f"{where}: {line[:40]!r} is no list of word ids with commas between; every caption needs one"
            )
        ids = [int(x) for x in line.split(",")]
        for bad in (min(ids), max(ids)):
            if not 0 <= bad < n_words:
                raise InputError(
                    f"{where}: word id {bad}, but the vocabulary has ids 0 to {n_words - 1}; "
                    "use the vocabulary the ids were made with"
                )
        yield ids


def read_dependencies(path):
    """The dependencies of a {split}_caps.json as they stand: per caption a list of [governor, dependent]."""
    captions = read_json(path)
    if not isinstance(captions, list):
        raise InputError(f"{path}: need a list with the dependencies of every caption")
    for i, pairs in enumerate(captions):
        if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
            found = str(pairs)[:40]
            raise InputError(f"{path}, caption {i}: need a list of [governor, dependent] pairs, not {found}")
    return captions


def _is_pair(pair):
    return isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and abs(i) < 2**31 for i in pair)


class Ragged:
    """Lists of numbers (or of pairs) of different lengths in one array: 145,000 captions take 8 MB.

    Ragged[i] is list i; lengths: all their lengths (N,); flat: all numbers, (sum,) or (sum, 2) int32.
    """

    def __init__(self, lists, pairs=False):
        flat, ends = array("i"), [0]
        for one in lists:
            flat.extend(chain.from_iterable(one) if pairs else one)
            ends.append(len(flat))
        self.flat = np.array(flat, np.int32).reshape(-1, 2) if pairs else np.array(flat, np.int32)
        self.starts = np.array(ends) // (2 if pairs else 1)
        self.lengths = np.diff(self.starts)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.flat[self.starts[i] : self.starts[i + 1]].tolist()
