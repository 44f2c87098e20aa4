"""What --sim_memory bounds: the memory of the similarity beside the embeddings that it is given.

Evaluation keeps up to 5/16 of it for blocks of embeddings and their scores; the rest is for computing them.
"""

import math
from functools import cache

import torch

from files.errors import InputError

MEMORY = 256  # MB, where the budget is not given and the device is no GPU
BLOCKS = 5 / 16  # of the budget, for an evaluation's blocks


def budget(memory, device):
    """Bytes for the similarity: `memory` MB or, if that is 0, the device's default."""
    return memory * 2**20 if memory else default_budget(torch.device(device))


@cache
def default_budget(device):
    """256 MB; on a GPU half of what is free when it is first asked for, so that all steps are cut alike."""
    if device.type != "cuda":
        return MEMORY * 2**20
    free = torch.cuda.mem_get_info(device)[0]
    return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) / 2


def share():
    """The part of the budget for computing scores; in training there are no blocks of an evaluation."""
    return 1 if torch.is_grad_enabled() else 1 - BLOCKS


def for_computing(memory, device):
    """The bytes of the budget that pair_scores may take."""
    return share() * budget(memory, device)


def check_fits(needed, limit, regions, words):
    """InputError unless the bytes that one image and one caption need fit the limit."""
    if needed > limit:
        megabytes = math.ceil(needed / share() / 2**20)
        raise InputError(
            f"--sim_memory: {limit / share() / 2**20:.0f} MB do not hold one image of {regions} regions with one "
            f"caption of {words} words, which need {megabytes} MB; give --sim_memory {megabytes} or leave them out"
        )


def runs(sizes, limit):
    """Cut items into runs whose sizes add up to at most `limit`, or of one item -> slices."""
    cut, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            cut.append(slice(start, i))
            start = i
            total = 0
        total += size
    return [*cut, slice(start, len(sizes))]


def block_shape(images, captions, image, caption, pair, limit):
    """(images, captions) of a block that takes at most `limit` bytes, as square as possible.

    image, caption, pair: bytes of one of each, which fit the limit together.
    """
    both = image + caption
    side = (math.sqrt(both**2 + 4 * pair * limit) - both) / (2 * pair)
    columns = min(captions, max(1, int(side)))
    rows = min(images, int((limit - columns * caption) / (image + columns * pair)))
    return rows, min(captions, int((limit - rows * image) / (caption + rows * pair)))


def joined(parts, dim):
    """torch.cat, which would copy a single part."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
