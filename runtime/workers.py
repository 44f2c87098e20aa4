"""Processes that read data, where the shared memory has room for them, with a time limit on waiting for them."""

import atexit
import multiprocessing
import multiprocessing.queues
import os
import shutil
import signal

import torch
from torch.utils.data import DataLoader

from files.errors import InputError, warn
from runtime import distributed

SHARED_MEMORY = "/dev/shm"
LEAST = 10**9  # bytes of it that must be free; ten workers with SCAN's features take half of it
PREFETCHED = 2  # batches that each worker reads ahead
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # signals that end a training
PATIENCE = 600  # seconds to wait for one batch
CURE = "use --workers 0, or give the container more shared memory (docker run --shm-size=8g)"


class Loader(DataLoader):
    """A DataLoader that has workers if there is shared memory for them, and never waits for them without limit.

    batches: lists of indices.  pin: batches go to a GPU next, so they come in pinned memory.
    InputError when a worker dies or no batch arrives for PATIENCE seconds.
    """

    def __init__(self, dataset, batches, workers, collate_fn, pin=False):
        workers = fitting_workers(workers)
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


def fitting_workers(workers):
    """At most as many as there are cores; none, with a warning, where the shared memory is too small for batches."""
    workers = min(workers, os.cpu_count() or 1)  # more only wait for each other
    if workers and os.path.exists(SHARED_MEMORY) and shutil.disk_usage(SHARED_MEMORY).free < LEAST:
        if distributed.is_main():
            warn(
                f"{SHARED_MEMORY} has less than {LEAST / 1e6:.0f} MB free: the main process reads the data, more "
                "slowly; docker run --shm-size=8g (or --ipc=host) gives a container more"
            )
        return 0
    return workers


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
