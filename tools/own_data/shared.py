"""What the tools that make a data folder share: flags, splits to make, parts of what is unfinished, notes."""

import contextlib
import hashlib
import json
import shutil
from collections import defaultdict

from files.errors import InputError
from files.text import data_folder
from files.writing import make_folder
from runtime.commandline import folder_name

SPLITS = ("train", "dev", "test", "testall")
DAMAGED = "damaged parts of files passed over"  # the note that tells why an image is missing


def add_data_flags(parser):
    """The flags that name a data set."""
    parser.add_argument("--data_path", default="./data/", help="folder that holds the data sets")
    parser.add_argument("--data_name", type=folder_name, required=True, help="data set, a folder under --data_path")


def add_split_flags(parser, source, work):
    """The flags that say which splits a tool makes. source: ending of what it reads; work: what it does."""
    of = f"(default: each that has a {{split}}_{source})"
    parser.add_argument("--split", nargs="+", choices=SPLITS, help=f"splits to {work} {of}")
    parser.add_argument("--overwrite", action="store_true", help=f"{work} again where the files are there already")


def splits_to_make(opt, source, targets, read_source, read_target):
    """(folder, splits) that are asked for and not complete; prints a line for each that is.

    source, targets: endings of the files read and made; read_...(path) has the length of what a file holds.
    InputError where a split has no source, or a target of another length; with --overwrite targets do not count.
    """
    folder, todo = data_folder(opt.data_path, opt.data_name), []
    asked = opt.split or [split for split in SPLITS if (folder / f"{split}_{source}").exists()]
    for split in asked or ["train"]:
        path = folder / f"{split}_{source}"
        if not path.exists():
            raise InputError(f"{path}: no such file; tools/prepare_captions.py writes it, do that first")
        made = [folder / f"{split}_{ending}" for ending in targets]
        there = [one for one in made if one.exists() and not opt.overwrite]
        for one in there:
            found, needed = len(read_target(one)), len(read_source(path))
            if found != needed:
                raise InputError(f"{one}: has {found} items, but {path.name} {needed}; --overwrite makes it anew")
        if there == made:
            print(f"{made[-1]}: complete; --overwrite makes it anew")
        else:
            todo.append(split)
    return folder, todo


def parts_folder(target, key):
    """A hidden folder beside the file `target` for what is made before it is complete; it may hold parts already.

    key: all that the parts depend on, for JSON. Parts that were made with another key are removed.
    """
    of_key = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = target.with_name(f".{target.name}.{of_key}.parts")
    for other in target.parent.glob(f".{target.name}.*.parts"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    make_folder(folder)
    return folder


@contextlib.contextmanager
def noted():
    """{kind: places} to fill; each kind is printed once at the end: how often, and where first.

    After an error too, since the notes often hold its reason.
    """
    notes = defaultdict(list)
    try:
        yield notes
    finally:
        for kind, places in notes.items():
            print(f"note: {kind}: {len(places)} (first: {places[0]})", flush=True)
