"""Similarity matrices in memory or, larger than memory, in .npy files; written by one process or by several."""

import contextlib
import os
from pathlib import Path

import numpy as np

from files.errors import InputError, reason
from files.writing import temporary_name
from runtime import distributed


class ArrayStore:
    """Makes arrays for similarities: in memory or, with a path, as files beside it.

    `keep` gives the first file the name of the path, so a file of that name is always complete.  Every process calls
    every method.
    """

    def __init__(self, path=None):
        self.path, self.files = path and Path(os.path.realpath(path)), []

    def new(self, shape):
        """An array of float32, not initialised.  InputError where there is no room for it."""
        if not self.path:
            return np.empty(shape, np.float32)
        path = Path(distributed.gather_objects(temporary_name(self.path.parent, "work"))[0])
        self.files.append(path)
        try:
            if distributed.is_main():
                create(path, shape)
            distributed.barrier()
            return np.lib.format.open_memmap(path, mode="r+")
        except OSError as error:
            raise InputError(
                f"{path.parent}: needs room for similarities of shape {shape}, seen by every machine ({reason(error)})"
            ) from None

    def keep(self):
        """The first array that was made is complete: its file gets the name of the path."""
        distributed.barrier()
        if self.files and distributed.is_main():
            os.replace(self.files[0], self.path)

    def close(self):
        """Removes the files that were not kept."""
        for path in self.files if distributed.is_main() else ():
            path.unlink(missing_ok=True)


def create(path, shape, dtype=np.float32):
    """A .npy file with its whole size on the disk: a full disk is an error here, not a crash later."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with open(path, "r+b") as file, contextlib.suppress(AttributeError):  # not on every system
        os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)


def exchange(array):
    """Give every process all rows, after each has written its slice of them (distributed.local_slice)."""
    if isinstance(array, np.memmap):
        array.flush()
        distributed.barrier()
    else:
        distributed.exchange_slices(array)


def own_rows(arrays):
    """Of each array the rows that this process changes: all in memory, its slice of a file that all processes share."""
    return [a[distributed.local_slice(len(a))] if isinstance(a, np.memmap) else a for a in arrays]


def mean_and_deviation(arrays):
    """Mean and standard deviation of all numbers of some arrays of one shape, in float64."""
    mean = np.mean([row.mean(dtype=np.float64) for array in arrays for row in array])
    variance = np.mean([np.square(row - mean).mean() for array in arrays for row in array])
    return float(mean), float(np.sqrt(variance))
