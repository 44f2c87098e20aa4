"""Features in shared memory: a slow disk is read once, front to back, for all processes and workers of a machine."""

import contextlib
import os
import shutil
from pathlib import Path

import distributed
from files import InputError

PIECE = 1 << 24  # bytes read at once


@contextlib.contextmanager
def preloaded(path):
    """Inside, the path of a copy of the file in memory; what is mapped from it stays when the path is gone.

    The copy belongs to no folder: nothing is left behind, however the program ends.  InputError where memory
    does not suffice.
    """
    copy = None
    if distributed.is_first_here():
        copy = copy_to_memory(Path(path))
    here = distributed.machine()
    places = distributed.gather_objects((here, copy and f"/proc/{os.getpid()}/fd/{copy}"))
    try:
        yield next(place for machine, place in places if machine == here and place)
        distributed.barrier()  # all have opened it
    finally:
        if copy is not None:
            os.close(copy)


def copy_to_memory(path):
    """A file descriptor of a copy of the file in memory."""
    if not hasattr(os, "memfd_create"):
        raise InputError("--preload needs Linux; leave it out, the features are then read from the disk")
    try:
        need, free = path.stat().st_size, free_memory()
        if need > 0.9 * free:
            raise InputError(f"--preload: {path} takes {need / 1e9:.1f} GB, {free / 1e9:.1f} GB of memory are free; "
                             "leave --preload out, or halve the file with tools/convert.py")  # fmt: skip
        copy = os.memfd_create(path.name)
        with open(path, "rb") as file, open(os.dup(copy), "wb") as memory:
            shutil.copyfileobj(file, memory, PIECE)
    except OSError as error:
        raise InputError(f"--preload: {path} cannot be read into memory ({error.strerror})") from None
    return copy


def free_memory():
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return float("inf")
