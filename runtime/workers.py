"""Processes that read data: as many as the shared memory has room for, with a time limit on waiting for them."""

import atexit
import multiprocessing
import multiprocessing.queues
import os
import shutil
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader

from files.errors import InputError, warn
from runtime import distributed

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 2  # batches that each worker reads ahead
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # signals that end a training
PATIENCE = 600  # seconds to wait for one batch
CURE = "use --workers 0, or give the container more shared memory (docker run --shm-size=8g)"


class Loader(DataLoader):
    """A DataLoader whose workers fit into the shared memory, and which never waits for them without limit.

    batches: lists of indices.  pin: batches go to a GPU next, so they come in pinned memory.
    InputError when a worker dies or no batch arrives for PATIENCE seconds.
    """

    def __init__(self, dataset, batches, workers, collate_fn, pin=False):
        workers = fitting_workers(dataset, batches, workers, collate_fn)
        super().__init__(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=start_worker,
            collate_fn=collate_fn,
            pin_memory=pin,
            generator=torch.Generator(),  # leaves torch's global random state alone
            prefetch_factor=PREFETCHED if workers else None,
            timeout=PATIENCE if workers else 0,
        )

    def __iter__(self):
        try:
            yield from super().__iter__()
        except RuntimeError as error:  # torch has no class of its own for either
            died, late = "exited unexpectedly" in str(error), "timed out" in str(error)
            if not died and not late:
                raise
            fault = "a process that reads data died" if died else f"no batch of data for {self.timeout} seconds"
            raise InputError(f"--workers {self.num_workers}: {fault}; {CURE}") from None


def fitting_workers(dataset, batches, workers, collate_fn):
    """At most `workers`: as many as there are cores, and as the shared memory holds batches for.

    Training and validation may read at once, hence each takes half of what is free, shared by the processes of this
    machine. Warns once where the memory is the limit.
    """
    workers = min(workers, os.cpu_count() or 1)  # more only wait for each other
    if not workers or not os.path.exists(SHARED_MEMORY):  # as on other systems
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    batch = batch_bytes(dataset, batches, collate_fn)
    room = free / 2 / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fitting = int(max(0, room - batch) // max(1, PREFETCHED * batch))  # one more batch is in use
    if fitting < workers and distributed.is_main():
        warn(f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, which is little for batches of {batch / 1e6:.0f} MB: "
             f"{fitting} processes read data instead of {workers}; "
             "docker run --shm-size=8g (or --ipc=host) gives a container more")  # fmt: skip
    return min(workers, fitting)


def batch_bytes(dataset, batches, collate_fn):
    """Bytes of the first batch's arrays, by those of the data set's first item."""
    size = len(next(iter(batches), ()))
    batch = collate_fn([dataset[0]])
    parts = batch[0] if isinstance(batch, list) else batch
    return size * sum(part.nbytes for part in parts if isinstance(part, (torch.Tensor, np.ndarray)))


def start_worker(worker):
    """Ignores signals: a terminal or Slurm sends them to every process, and the main one decides when the workers stop.

    Where a batch cannot be sent (no shared memory is left) the worker ends, which the main process notices;
    multiprocessing would print a traceback, drop the batch and leave the main process waiting.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda error, batch: os._exit(1))


@atexit.register
def end_workers():
    """At its exit Python sends SIGTERM to workers left over by an error, which they ignore, and waits for them."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
