"""Region features on their way from a file to batches: read into one tensor, or kept on the device (--preload)."""

import contextlib
import os

import torch
from torch.utils.data import get_worker_info

from files.errors import InputError
from runtime.transfer import send

CHUNK = 256  # rows that are read at a time


def read_features(dataset, captions):
    """The features (B, R, F) of captions, in the file's type; in a worker they lie in shared memory."""
    like = dataset.features_like
    size = len(captions), *like.shape[1:]
    if get_worker_info() is None:
        features = like.new_empty(size)
    else:  # read where the main process finds them: a copy of a batch costs more than reading it
        storage = torch.UntypedStorage._new_shared(max(1, like.new_empty(size, device="meta").nbytes))
        features = like.set_(storage, 0, size)
    dataset.read_rows([dataset.row_of(i) for i in captions], features)
    return features


class Preloaded:
    """All features of a split on a device, in the file's type.  InputError where they do not fit."""

    def __init__(self, dataset, device):
        self.dataset, self.device, like = dataset, torch.device(device), dataset.features_like
        rows = len(dataset.images)
        size, free = rows * like.new_empty(1, *like.shape[1:], device="meta").nbytes, free_memory(self.device)
        if size > free:
            raise InputError(
                f"--preload: the features take {size / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free; "
                "leave it out, or halve them (tools/convert.py features)"
            )
        self.features = like.new_empty(rows, *like.shape[1:], device=device)
        for start in range(0, rows, CHUNK):
            part = like.new_empty(len(self.features[start : start + CHUNK]), *like.shape[1:])
            dataset.read_rows(range(start, start + len(part)), part)
            self.features[start : start + len(part)] = part

    def __call__(self, captions):
        """The features (B, R, F) float32 of captions, on the device."""
        rows = torch.tensor([self.dataset.row_of(i) for i in captions], dtype=torch.int64)
        return self.features.index_select(0, send(rows, self.device)).float()


def free_memory(device):
    """Bytes that are free on a device; of the host's memory, the share of one of its processes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
