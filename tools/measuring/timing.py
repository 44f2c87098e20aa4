"""Times and peaks of memory, and the lines that show them."""

import ctypes
import time
from pathlib import Path

import torch

from modules import cpu_kernel

HEADER = f"{'':44}{'seconds':>10}{'x bare':>9}{'x literal':>11}{'MB':>8}"
clock = time.perf_counter  # time.process_time with benchmark.py --busy


def seconds(task):
    """Of one call of the task, a GPU's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    task()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def memory(reset=False):
    """Peak memory of this process in MB since the last reset, which gives what is in use then (Linux; else NaN)."""
    try:
        if reset:
            cpu_kernel.SPARE_MEMORY.clear()  # what is kept for the next call is not there for free
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        key = "VmRSS" if reset else "VmHWM"
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
    except (OSError, AttributeError, StopIteration):
        return float("nan")


def measure(name, task, repeat, bare=None, literal_seconds=None):
    """Time a task, each time after the bare product, and print a line -> best seconds."""
    before = memory(reset=True)
    task()  # the first call may compile
    peak, times, bases = memory() - before, [], []
    for _ in range(repeat):
        bases += [seconds(bare)] if bare else []
        times.append(seconds(task))
    best = min(times)
    ratio = f"{best / min(bases):9.2f}" if bare else " " * 9
    faster = f"{literal_seconds / best:10.0f}x" if literal_seconds else " " * 11
    print(f"{name:44}{best:10.3f}{ratio}{faster}{peak:8.0f}", flush=True)
    return best


def stage(name, task, before):
    """Run a task once; print its time and the peak of memory so far above `before`."""
    start = clock()
    result = task()
    print(f"{name:44}{clock() - start:10.3f}{memory() - before:28.0f}", flush=True)
    return result
