"""Writes and reads checkpoints: complete, atomic, and safe to open from any source.

A checkpoint is a dict; docs/method.md, section 5, lists its keys.
"""

import argparse
import contextlib
import functools
import os
import platform
import subprocess
import time
from collections import OrderedDict
from pathlib import Path, PurePath

import numpy as np
import torch

from files import pickles
from files.errors import InputError, reason, warn
from files.opening import sha256
from files.writing import atomic_write, check_writable, make_folder
from systems.options import check_options, completed
from systems.table import SYSTEMS, titles
from vocab import SPECIAL

FORMAT = 1
BEST = "model_best.pth.tar"


def find_checkpoint(path, resume=False, say=warn):
    """The checkpoint file that a path means: a file, or one of a run's folder (or of the folder `checkpoint` in it).

    There it is model_best.pth.tar or, without one and to resume, the newest complete file.  The newest has the latest
    time of writing inside the file, so copying a folder changes nothing; `say` gets a message for each file that is
    passed over.  InputError for a folder without checkpoints.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return path
    for folder in (path, path / "checkpoint"):
        if not resume and os.path.isfile(folder / BEST):
            return folder / BEST
        for file in ordered(folder, ["checkpoint_*.pth.tar", BEST], say):
            try:
                read_checkpoint(file)
                return file
            except InputError as error:
                say(f"{error} (passed over)")
    raise InputError(f"{path}: no {BEST} and no complete checkpoint_*.pth.tar in this folder; give a file")


def load_checkpoint(path):
    """The checkpoint that a path means for an evaluation (find_checkpoint), on the CPU and ready to use.

    Released files (zip or the older format, Python 2 or 3) and ours get the same form: `opt` complete, names
    in `model` and `further` without DataParallel's 'module.', counters present.  The older format has no checksums:
    a warning gives the file's sha256.  Raises InputError, one line, where there is no checkpoint, it is damaged, a
    field has another type than FIELDS says, it asks for code, or its format is newer than this program.
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


# A file may be damaged or malicious, so each of its fields has the type that the programs rely on.
LARGEST = 2**53  # counters beyond it are no counters


def is_number(value, least=-LARGEST):
    """Whether this is a finite number from `least` on, and no truth value."""
    return type(value) in (int, float) and least <= value < LARGEST


def is_count(value, least=0):
    return type(value) is int and is_number(value, least)


def is_table(value, check=lambda item: True):
    """Whether this is a dict whose values pass `check`."""
    return isinstance(value, dict) and all(map(check, value.values()))


def is_state_dict(value):
    return is_table(value, torch.is_tensor) and all(type(name) is str for name in value)


def is_vocabulary(value):
    words = type(value) is list and all(type(word) is str for word in value)
    return words and tuple(value[: len(SPECIAL)]) == SPECIAL and len(set(value)) == len(value)


def is_flag(value):
    """Whether this is the value of a flag: text, a number, true or false, nothing, or a short list of these."""
    if type(value) in (list, tuple):
        return len(value) <= 1000 and all(type(item) in (bool, int, float, str) for item in value)
    return value is None or type(value) in (bool, int, float, str, torch.device)


FIELDS = {
    "opt": lambda value: isinstance(value, argparse.Namespace),
    "model": lambda value: isinstance(value, list) and all(map(is_state_dict, value)),
    "further": lambda value: is_table(value, is_state_dict) and all(type(name) is str for name in value),
    "caption_model": lambda value: value is None or is_state_dict(value),
    **dict.fromkeys(("epoch", "step", "Eiters", "format"), is_count),
    "best_epoch": lambda value: is_count(value, -1),
    **dict.fromkeys(("best_rsum", "saved"), is_number),
    "validate_due": lambda value: type(value) is bool,
    **dict.fromkeys(("versions", "rng", "data", "optimizer"), is_table),
    "vocab": lambda value: value is None or is_vocabulary(value),
}


def check_fields(checkpoint, path):
    """InputError unless `checkpoint` is a dict whose fields are what FIELDS says; a device in opt becomes text."""
    if not is_table(checkpoint):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}; not a checkpoint of {titles()}")
    for field, check in FIELDS.items():
        if not check(checkpoint[field]) if field in checkpoint else field in ("opt", "model"):
            raise InputError(f"{path}: '{field}' is not that of a checkpoint of {titles()}; get the file again")
    flags = vars(checkpoint["opt"])
    for name, value in flags.items():
        if type(name) is not str or not is_flag(value):
            raise InputError(f"{path}: its opt holds a {type(value).__name__} for {name}; flags are text or numbers")
    flags.update({name: str(value) for name, value in flags.items() if isinstance(value, torch.device)})


def save_checkpoint(state, path):
    """Write a checkpoint (the keys above), whole or not at all; adds `format`, `saved` and `versions`.

    InputError when the disk is full, the folder read-only or gone; an older file of that name stays.
    ValueError, with nothing written, for a value that load_checkpoint would refuse.
    """
    check_plain(state)
    stamp = {"format": FORMAT, "saved": time.time(), "versions": versions()}
    atomic_write(path, lambda file: torch.save({**state, **stamp}, file))


PLAIN = (int, float, str, torch.Tensor, torch.device, np.number, np.bool_, PurePath)


def check_plain(value, name="checkpoint"):
    """ValueError, which names it, for a value that load_checkpoint would refuse."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if type(value) in (dict, OrderedDict, list, tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            check_plain(item, f"{name}[{key!r}]")
    elif value is not None and not isinstance(value, PLAIN):
        raise ValueError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


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
