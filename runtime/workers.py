"""Processes that read data: as many as the shared memory has room for, with a time limit on waiting for them."""

import atexit
import functools
import multiprocessing
import multiprocessing.queues
import os
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader

from files.errors import InputError, warn
from runtime import distributed

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 2  # batches that each worker reads ahead
PATIENCE = 600  # seconds to wait for one batch
CURE = "use --workers 0, or give the container more shared memory (docker run --shm-size=8g)"


class Loader(DataLoader):
    """A DataLoader whose workers fit into the shared memory, and which never waits for them without limit.

    batches: lists of indices. InputError when a worker dies or no batch arrives for PATIENCE seconds.
    """

    def __init__(self, dataset, batches, workers, collate_fn):
        workers = fitting_workers(dataset, batches, workers)
        super().__init__(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=start_worker,
            collate_fn=collate_fn,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # leaves torch's global random state alone
            prefetch_factor=PREFETCHED if workers else None,
            timeout=PATIENCE if workers else 0,
        )

    def __iter__(self):
        try:
            yield from super().__iter__()
        except RuntimeError as error:  # torch has no class of its own for either
            if "exited unexpectedly" in str(error):
                raise InputError(f"--workers {self.num_workers}: a process that reads data died; {CURE}") from None
            if "timed out" in str(error):
                message = f"--workers {self.num_workers}: no batch of data for {self.timeout} seconds"
                raise InputError(f"{message}; {CURE}") from None
            raise


def fitting_workers(dataset, batches, workers):
    """At most `workers`: as many as there are cores, and as the shared memory holds batches for.

    Training and validation may read at once, hence each takes half of what is free, shared by the processes of this
    machine. Warns once where the memory is the limit.
    """
    workers = min(workers, os.cpu_count() or 1)  # more only wait for each other
    free = free_shared_memory()
    if not workers or free is None:
        return workers
    batch = batch_bytes(dataset, batches)
    room = free / 2 / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fitting = int(max(0, room - batch) // max(1, PREFETCHED * batch))  # one more batch is in use
    if fitting < workers and distributed.is_main():
        say_once(f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, which is little for batches of {batch / 1e6:.0f} MB: "
                 f"{fitting} processes read data instead of {workers}; "
                 "docker run --shm-size=8g (or --ipc=host) gives a container more")  # fmt: skip
    return min(workers, fitting)


@functools.cache
def say_once(message):
    warn(message)


def free_shared_memory():
    """Bytes that are free where workers leave their batches; None where this system has no such place."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def batch_bytes(dataset, batches):
    """Bytes of the arrays of one batch, by the data set's first item."""
    size = batches.largest() if hasattr(batches, "largest") else max(map(len, batches), default=0)
    return size * sum(part.nbytes for part in dataset[0] if isinstance(part, (torch.Tensor, np.ndarray)))


def start_worker(worker):
    """Ignores signals: a terminal sends Ctrl-C to every process, and the main one decides when the workers stop.

    Where a batch cannot be sent (no shared memory is left) the worker ends, which the main process notices;
    multiprocessing would print a traceback, drop the batch and leave the main process waiting.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda error, batch: os._exit(1))


@atexit.register
def end_workers():
    """At its exit Python sends SIGTERM to workers left over by an error, which they ignore, and waits for them."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
