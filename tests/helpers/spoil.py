"""A place where every script works, and ways to spoil it: for the tests of what users do wrong."""

import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SIZES, make_tiny, state

import test
import test_stack
import testall
import train
import vocab
from checkpoints import checkpoint
from model import build_model
from runtime import start

MAINS = {"train": train, "test": test, "testall": testall, "test_stack": test_stack, "vocab": vocab}
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
    make_tiny(root, splits=SPLITS)
    words = vocab.load_vocab(root / "vocab", "tiny_precomp")
    (root / "gsmn").mkdir()
    save(root / "gsmn/model_best.pth.tar", words, f"{GSMN} --img_dim 8")
    save(root / "vsrn", words, f"{VSRN} --img_dim 8")


def save(path, words, flags, **more):
    """A checkpoint with the initial weights of a model."""
    opt, _ = train.train_options(flags.split())
    opt.vocab_size = len(words)
    model = build_model(opt).state_list()
    checkpoint.save_checkpoint(state(model, opt=opt, vocab=list(words.word2idx), **more), path)


def written():
    return {str(path) for path in Path(".").rglob("*") if path.is_file() and path.name != ".lock"}


def run(script, flags, monkeypatch, capsys):
    """A script with its usual flags and these -> (exit code, lines on stderr)."""
    name = script.split()[0]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *FLAGS[script].split(), *flags.split()])
    with pytest.raises(SystemExit) as end:
        start.run(MAINS[name].main)
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


def line(name, number, content):
    """Line `number` (from 1) of a text file becomes these bytes; None takes it out."""

    def spoil():
        path = Path(TINY, name)
        lines = path.read_bytes().split(b"\n")
        lines[number - 1 : number] = [] if content is None else [content]
        path.write_bytes(b"\n".join(lines))

    return spoil


def altered(path, change):
    """A checkpoint with something changed, given its dict."""

    def spoil():
        state = torch.load(path, weights_only=False)
        change(state)
        torch.save(state, path)

    return spoil


def no_vocabulary():
    altered(BEST, lambda state: state.pop("vocab"))()


def no_optimiser(state):
    state.update(optimizer={"state": {}, "param_groups": []})


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


def vocabulary_of_f8k():
    vocab.serialize_vocab(vocab.Vocabulary(vocab.SPECIAL), "vocab/f8k_vocab.json")


def folder_of_f8k():
    vocabulary_of_f8k()
    os.makedirs("data/f8k")


class Evil:
    def __reduce__(self):
        return os.system, ("touch run",)


def evil_vocabulary():
    os.remove("vocab/tiny_precomp_vocab.json")
    Path("vocab/tiny_precomp_vocab.pkl").write_bytes(pickle.dumps(Evil()))


def evil_checkpoint():
    torch.save({"model": Evil()}, "evil")


def smaller_copy():
    """The test split without its last image in another folder, and a second checkpoint that takes it."""
    shutil.copytree(TINY, "other/tiny_precomp")
    folder = Path("other/tiny_precomp")
    for name in ("ims", "ims_bbx", "ims_size"):
        np.save(folder / f"test_{name}.npy", np.load(folder / f"test_{name}.npy")[:3])
    for name in ("caps.txt", "precaps_stan.txt"):
        (folder / f"test_{name}").write_text("".join((folder / f"test_{name}").open().readlines()[:15]))
    flag("vsrn", "data_path", "other")()


def another_data_set():
    shutil.copytree(TINY, "data/other_precomp")
    flag("vsrn", "data_name", "other_precomp")()


def scan_checkpoint(state):
    state["model"] = [{"fc.weight": torch.ones(2, 2)}, {"embed.weight": torch.ones(7, 2)}]
