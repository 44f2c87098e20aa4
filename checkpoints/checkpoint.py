"""Writes and reads checkpoints: complete, atomic, and safe to open from any source.

A checkpoint is a dict; docs/method.md, section 5, lists its keys.
"""

import argparse
import contextlib
import functools
import os
import platform
import random
import subprocess
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from checkpoints.fields import check_fields
from files import pickles
from files.errors import InputError, reason, warn
from files.opening import sha256
from files.writing import atomic_write, check_writable, make_folder
from systems.options import check_options, completed
from systems.table import SYSTEMS, titles

FORMAT = 1
BEST = "model_best.pth.tar"


# ---- reading


def find_checkpoint(path, resume=False, say=warn):
    """The checkpoint file that a path means: a file, or one of a run's folder (or of the folder `checkpoint` in it).

    There it is model_best.pth.tar or, without one and to resume, the newest complete file; `say` as in `newest`.
    InputError for a folder without checkpoints.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return path
    for folder in (path, path / "checkpoint"):
        if not resume and os.path.isfile(folder / BEST):
            return folder / BEST
        if any(folder.glob("checkpoint_*.pth.tar")) or os.path.isfile(folder / BEST):
            return newest(folder, say)
    others = ", ".join(pickles.checkpoint_names(path)[:4]) or "none"
    raise InputError(f"{path}: no {BEST} and no checkpoint_*.pth.tar in this folder; other checkpoints in it: {others}")


def load_checkpoint(path):
    """The checkpoint that a path means for an evaluation (find_checkpoint), on the CPU and ready to use.

    Released files (zip or the older format, Python 2 or 3) and ours get the same form: `opt` complete, names
    in `model` and `further` without DataParallel's 'module.', counters present.  The older format has no checksums:
    a warning gives the file's sha256.  Raises InputError, one line, where there is no checkpoint, it is damaged, a
    field has another type than fields.FIELDS says, it asks for code, or its format is newer than this program.
    """
    path = find_checkpoint(path)
    checkpoint = read_checkpoint(path)
    if not pickles.is_zip_file(path):
        warn(f"{path}: the older file format has no checksums; compare its sha256, {sha256(path)}")
    return checkpoint


def read_checkpoint(path, lazily=False):
    """What load_checkpoint gives, of a file.  lazily: as pickles.read_torch_file."""
    saved = pickles.read_torch_file(path, lazily)
    with pickles.one_line(path):
        check_fields(saved, path)
        if saved.get("format", 0) > FORMAT:
            raise InputError(f"{path}: format {saved['format']}, this program reads up to {FORMAT}; update the program")
        saved = {"epoch": 0, "best_rsum": 0.0, "Eiters": 0, "further": {}, **saved}
        caption_model = saved.pop("caption_model", None)  # as files before `further` held it
        further = saved["further"] if caption_model is None else {**saved["further"], "caption_model": caption_model}
        model = [strip_module(part, path) for part in saved["model"]]
        further = {name: strip_module(part, path) for name, part in further.items()}
        return {**saved, "model": model, "further": further, "opt": complete(saved["opt"], model, path)}


def strip_module(state, path):
    """A state dict without the 'module' that DataParallel puts into names, on any level."""
    names = [".".join(part for part in name.split(".") if part != "module") for name in state]
    if names == list(state):
        return state
    if len(set(names)) < len(names):
        raise InputError(f"{path}: the same parameter with and without 'module.'; write the file anew")
    return dict(zip(names, state.values()))


def complete(opt, model, path):
    """The complete flags of a run: with those that a released file or an older program's lacks.

    opt.model decides which system's they are; the state dicts are asked only where it is missing.
    """
    if not hasattr(opt, "model"):
        system = next((system for system in SYSTEMS.values() if system.holds(model, opt)), None)
        if system is None:
            raise InputError(
                f"{path}: its opt names no model, and its {len(model)} state dicts are not those of {titles()}; "
                "write opt.model into the file, or get another"
            )
        opt = argparse.Namespace(**{"model": system.name, **system.released, **vars(opt)})
    check_options(opt, path)
    flags = {}
    embedding = model[1].get("embed.weight") if len(model) > 1 else None
    if embedding is not None and not hasattr(opt, "vocab_size"):
        flags["vocab_size"] = len(embedding)
    if any(name.startswith("cnn.") for state in model for name in state):
        flags["no_pretrained"] = True  # the CNN's weights are in the file
    return completed(opt, **flags)


def check_vocab(checkpoint, vocab, path="checkpoint"):
    """InputError, saying how they differ, when `vocab` is not the vocabulary a checkpoint was trained with.

    A released file holds no words; there only their number can be compared.
    """
    given, known = list(vocab.word2idx), checkpoint.get("vocab")
    size = len(known) if known else checkpoint["opt"].vocab_size
    differ = [f"word {i} is '{g}', not '{k}'" for i, (g, k) in enumerate(zip(given, known or given)) if g != k]
    if len(given) != size:
        differ = [f"{len(given)} words, not {size}"]
    if differ:
        inside = ", or in an evaluation leave that out, since it is in the checkpoint" if known else ""
        raise InputError(
            f"{path}: trained with another vocabulary ({differ[0]}); give its own with --vocab_path{inside}"
        )


# ---- writing


def save_checkpoint(state, path):
    """Write a checkpoint (the keys above), whole or not at all; adds `format`, `saved` and `versions`.

    InputError when the disk is full, the folder read-only or gone; an older file of that name stays.
    ValueError, with nothing written, for a value that load_checkpoint would refuse.
    """
    check_plain(state)
    stamp = {"format": FORMAT, "saved": time.time(), "versions": versions()}
    atomic_write(path, lambda file: torch.save({**state, **stamp}, file))


def check_plain(value, name="checkpoint"):
    """ValueError, which names it, for a value that load_checkpoint would refuse."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if type(value) in (dict, OrderedDict, list, tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            check_plain(item, f"{name}[{key!r}]")
    elif value is not None and not isinstance(value, (int, float, str, torch.Tensor, np.number, np.bool_, Path)):
        raise ValueError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


# ---- what a run depends on beside its weights


def capture_rng():
    """States of the random generators (Python, NumPy, torch, each CUDA device) as tensors and numbers."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_rng(state):
    """Restore the states of capture_rng; skips CUDA devices that this machine lacks."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    if not 0 <= rest[0] <= len(keys):  # NumPy would read beyond its keys
        raise ValueError(f"NumPy's position is {rest[0]}")
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


@functools.cache
def versions():
    """Versions of Python, torch, NumPy and, in a clone, git's commit ('-dirty' with uncommitted changes)."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        ask = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git here, or a folder not ours
            answer = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10)
            found["git"] = answer.stdout.strip()
    return found


# ---- the checkpoints of a folder


class Keeper:
    """Writes a run's checkpoints into its folder, `keep` of them beside the best (0 for all).

    After a failed write (full disk, folder gone) it calls `say` with a message, and the run continues.
    InputError at the start for a folder that cannot be written to.
    """

    def __init__(self, folder, keep, say):
        self.folder, self.keep, self.say = Path(folder), keep, say
        self.failed = {}  # {whether it is the best: error} of failed writes
        make_folder(self.folder)
        check_writable(self.folder / BEST)

    def save(self, state, name):
        """True when written."""
        try:
            make_folder(self.folder)
            save_checkpoint(state, self.folder / name)
        except InputError as error:
            self.failed[name == BEST] = error
            self.say(f"{error}; training goes on, the next checkpoint is tried as usual")
            return False
        self.failed.pop(name == BEST, None)
        prune(self.folder, self.keep if name != BEST else 0, self.say)
        return True

    def check(self):
        """InputError when the newest checkpoint, or the best, is not on the disk."""
        for error in self.failed.values():
            raise InputError(f"{error}: this checkpoint is lost, those written before are good")


def newest(folder, say=warn):
    """Path of the newest complete checkpoint of a folder, to resume from; `say` gets a message for each skipped file.

    The newest has the latest time of writing inside the file, so copying a folder changes nothing.  InputError
    when there is none.
    """
    for path in ordered(folder, ["checkpoint_*.pth.tar", BEST], say):
        try:
            load_checkpoint(path)
            return path
        except InputError as error:
            say(f"{error} (passed over)")
    raise InputError(f"{folder}: no complete checkpoint in this folder; give another, or a file")


def prune(folder, keep, say=warn):
    """Remove all but the newest `keep` of a folder's checkpoint_*.pth.tar (0 keeps all); model_best stays.

    Unreadable files are left alone; `say` gets a message for a file that cannot be removed.
    """
    for path in ordered(folder, ["checkpoint_*.pth.tar"])[keep:] if keep else []:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            say(f"{path}: cannot be removed ({reason(error)})")


def ordered(folder, patterns, say=lambda line: None):
    """Paths of the readable checkpoints of a folder, the one saved last first."""
    found = []
    for path in [path for pattern in patterns for path in Path(folder).glob(pattern)]:
        try:
            state = read_checkpoint(path, lazily=True)
            found.append((state.get("saved", 0), state["Eiters"], state["epoch"], path))
        except InputError as error:
            say(f"{error} (passed over)")
    return [path for *_, path in sorted(found, reverse=True)]
