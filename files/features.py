"""The region features of a split: which file has them, and its rows.  A new format is one function in FORMATS.

A reader takes a path and gives what a memory-mapped array gives: shape (rows, R, F), dtype, nbytes, and rows by number.
"""

from files.arrays import open_array
from files.errors import InputError, warn


def open_npy(path):
    """A .npy file, memory-mapped."""
    rows = open_array(path)
    if rows.dtype.kind != "f":
        raise InputError(f"{path}: features of type {rows.dtype}; need float32 or float16")
    if not rows.flags.c_contiguous:
        warn(f"{path}: stored in Fortran order, which is slow to read; rewrite it in C order")
    return rows


FORMATS = {"npy": open_npy}  # ending of {split}_ims.…: its reader


def features_file(folder, split):
    """The path of a split's features; the .npy file's where there are none."""
    paths = [folder / f"{split}_ims.{ending}" for ending in FORMATS]
    return next((path for path in paths if path.exists()), paths[0])


def open_features(path, vectors=False):
    """The rows of features of a file, (rows, R, F).  vectors: a row may be one vector, (F,), which makes R 1.

    InputError for another kind or shape.
    """
    rows = FORMATS[path.name.rpartition(".")[2]](path)
    if vectors and len(rows.shape) == 2:
        rows = rows[:, None]
    if len(rows.shape) != 3 or 0 in rows.shape:
        raise InputError(f"{path}: shape {rows.shape}; need (images, {'' if vectors else 'regions, '}numbers)")
    return rows
