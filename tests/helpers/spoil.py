"""A place where every script works, and ways to spoil it: for the tests of what users do wrong."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SIZES, make_tiny, write_model

import vocab
from runtime import start

SPLITS = {"train": 8, "dev": 4, "test": 4, "testall": 4}
DATA = "--data_path data --vocab_path vocab --data_name tiny_precomp --device cpu --workers 0"
RUN = f"{DATA} --num_epochs 1 --logger_name run/log --model_name run/ck"
GSMN, VSRN = f"{SIZES['gsmn']} {RUN} --batch_size 16", f"{SIZES['vsrn']} {RUN} --batch_size 16"
FLAGS = {
    "train": GSMN,
    "train vsrn": VSRN,
    "test": "--model_path gsmn --device cpu --ranks= --data_path data",
    "test vsrn": "--model_path vsrn --device cpu --ranks= --data_path data",
    "testall": "--model_path gsmn --device cpu --ranks= --data_path data",
    "test_stack": "--model_path gsmn vsrn --device cpu --ranks=",
    "vocab": "--data_path data --data_name tiny_precomp --vocab_path run",
}
TINY = "data/tiny_precomp"
BEST = "gsmn/model_best.pth.tar"
IDS, CAPS = "train_precaps_stan.txt", "train_caps.txt"


def prepare(root):
    """Everything in order: a data set, a folder 'gsmn' and a file 'vsrn' with checkpoints that fit it."""
    tiny = make_tiny(root, splits=SPLITS)
    (root / "gsmn").mkdir()
    for name, path in (("gsmn", root / BEST), ("vsrn", root / "vsrn")):
        write_model(tiny, path, model=name, data_path="data", vocab_path="vocab", embed_size=16)


def written():
    return {str(path) for path in Path(".").rglob("*") if path.is_file() and path.name != ".lock"}


def run(script, flags, monkeypatch, capsys):
    """A script with its usual flags and these -> (exit code, lines on stderr)."""
    name = script.split()[0]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *FLAGS[script].split(), *flags.split()])
    with pytest.raises(SystemExit) as end:
        start.run(importlib.import_module(name).main)
    return end.value.code, capsys.readouterr().err.splitlines()


# ---- ways to spoil it


def nothing():
    pass


def remove(*names):
    return lambda: [os.remove(f"{TINY}/{name}") for name in names]


def cut(path, size=-1):
    """A file that ends too early."""
    return lambda: os.truncate(path, size if size >= 0 else os.path.getsize(path) + size)


def array(name, change):
    def spoil():
        path = f"{TINY}/{name}.npy"
        content = np.load(path)
        changed = change(content)
        np.save(path, content if changed is None else changed)

    return spoil


def put(value, *where):
    return lambda content: content.__setitem__(where, value)


def bytes_of(name, change):
    """A file of the data set with other content."""

    def spoil():
        path = Path(TINY, name)
        path.write_bytes(change(path.read_bytes()))

    return spoil


def altered(path, change):
    """A checkpoint with something changed."""

    def spoil():
        state = torch.load(path, weights_only=False)
        change(state)
        torch.save(state, path)

    return spoil


def no_vocabulary():
    altered(BEST, lambda state: state.pop("vocab"))()


def weight(path, part, name, value):
    """A checkpoint with a weight of this value throughout."""
    return altered(path, lambda state: state["model"][part][name].fill_(value))


def flag(path, name, value):
    """A checkpoint of another opt."""
    return altered(path, lambda state: setattr(state["opt"], name, value))


def all_of(*spoils):
    return lambda: [spoil() for spoil in spoils]


def one_word_less():
    path = "vocab/tiny_precomp_vocab.json"
    words = list(vocab.deserialize_vocab(path).word2idx)
    vocab.serialize_vocab(vocab.Vocabulary(words[:-1]), path)


def folder_of_f8k():
    vocab.serialize_vocab(vocab.Vocabulary(vocab.SPECIAL), "vocab/f8k_vocab.json")
    os.makedirs("data/f8k")


def another_data_set():
    shutil.copytree(TINY, "data/other_precomp")
    flag("vsrn", "data_name", "other_precomp")()
