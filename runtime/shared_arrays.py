"""Similarity matrices: in memory, or, as .npy files, of any size; written by one process or by several."""

import contextlib
import os
from pathlib import Path

import numpy as np

from files.errors import InputError
from runtime import distributed


class Matrices:
    """Gives out arrays for similarities; with a path they are files beside it, and the first one gets its name.

    Every process calls every method.  A file under the path's own name is always complete.
    """

    def __init__(self, path=None):
        self.path, self.files = path and Path(path), []

    def new(self, shape):
        """An array of float32, not initialised.  InputError where there is no room for it."""
        if not self.path:
            return np.empty(shape, np.float32)
        name = f".{self.path.name}.{os.getpid()}.{len(self.files)}"
        path = self.path.with_name(distributed.gather_objects(name)[0])
        self.files.append(path)
        if distributed.is_main():
            create(path, shape)
        distributed.barrier()
        try:
            return np.lib.format.open_memmap(path, mode="r+")
        except OSError as error:
            raise InputError(f"{path.parent}: every machine has to see this folder ({error.strerror})") from None

    def keep(self):
        """The first array given out, complete now, becomes the file of the path."""
        distributed.barrier()
        if self.files and distributed.is_main():
            os.replace(self.files[0], self.path)

    def close(self):
        """Removes what was not kept."""
        for path in self.files if distributed.is_main() else ():
            path.unlink(missing_ok=True)


def create(path, shape):
    """A .npy file with its whole size on the disk: a full disk is an error here, not a crash later."""
    try:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        with open(path, "r+b") as file, contextlib.suppress(AttributeError):  # not on every system
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InputError(f"{path.parent}: no room for similarities of shape {shape} ({error.strerror})") from None


def exchange(array):
    """Give every process all rows, after each has written its share of them (distributed.share)."""
    if isinstance(array, np.memmap):
        array.flush()
        distributed.barrier()
    else:
        distributed.share_out(array)


def own_rows(array):
    """Rows this process changes where the whole array changes: a file is shared, memory is not."""
    rows = distributed.share(len(array)) if isinstance(array, np.memmap) else slice(0, len(array))
    return range(rows.start, rows.stop)


def add(total, array):
    """total += array, row by row."""
    for i in own_rows(total):
        total[i] += array[i]
    distributed.barrier()


def divide(total, count):
    """total /= count, row by row."""
    for i in own_rows(total):
        total[i] /= count
    distributed.barrier()
