"""All pairs of images and captions within --sim_memory: captions padded to few lengths, block by block.

GSMN and SCAN score the blocks; here is decided which pairs are computed at once.  --sim_memory bounds the memory of the
similarity beside the embeddings that it is given.  Evaluation keeps up to 5/16 of it for blocks of embeddings and their
scores; the rest is for computing them.  Letters for shapes as in graph.py.
"""

import math
from functools import cache, partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from files.errors import InputError
from runtime.transfer import send

MEMORY = 256  # MB, where the budget is not given and the device is no GPU
BLOCKS = 5 / 16  # of the budget, for an evaluation's blocks
BUCKETS = 4  # lengths that captions are padded to: few pad much, many cost kernel launches
STEP_BUCKETS = 2  # the same on a GPU if all pairs and their gradients fit the memory at once


def all_pairs(score, sizes, images, captions, limit, again=None):
    """Scores of every image with every caption in at most `limit` bytes -> a tensor (S, I, C) of S kinds of score.

    images, captions: sides, at least one of each.  score(images, words, depends, lengths, parts) gives S tensors
    (I, C) for a block: an ImageSide, words (rows, D) of captions one after the other in ascending lengths, and slices
    of these captions, each of which is padded to its own longest.  sizes(R, lengths, D, gradients) gives the bytes of
    a block of any size, of one image of R regions, of one caption and of one pair.  The last two are one number or one
    for each of the lengths that the captions are padded to.

    If all pairs do not fit at once, the backward pass computes each block again: by torch's checkpoint, or `again`
    scores the blocks and sees to it.  InputError if one pair does not fit.
    """
    lengths = np.asarray(captions.lengths)
    order = lengths.argsort(kind="stable")
    lengths = lengths[order]
    rows, cut = cut_blocks(sizes, images.emb, lengths, limit)
    if torch.is_grad_enabled() and (len(cut) > 1 or rows < len(images)):
        score = again or partial(checkpoint, score, use_reentrant=False)
    down = [images]
    if rows < len(images):
        down = [images.take(slice(i, i + rows)) for i in range(0, len(images), rows)]
    across = [slice(parts[0].start, parts[-1].stop) for parts in cut]
    words = in_order(captions.emb, order, lengths).split([int(lengths[some].sum()) for some in across])
    columns = []
    for some, parts, own in zip(across, cut, words):
        pairs = None if captions.depends is None else [captions.depends[c] for c in order[some]]
        parts = [slice(part.start - some.start, part.stop - some.start) for part in parts]
        block = [score(part, own.to(images.emb.dtype), pairs, lengths[some], parts) for part in down]
        columns.append([joined(kind, 0) for kind in zip(*block)])
    scores = torch.stack([joined(kind, 1) for kind in zip(*columns)])  # (S, I, C)
    return scores.index_select(2, send(torch.from_numpy(order.argsort()), scores.device))


def in_order(cap_emb, order, lengths):
    """The words (rows, D) of captions in this order, one caption after the other; lengths: in this order."""
    if not isinstance(cap_emb, torch.Tensor):
        return torch.cat([cap_emb[c][:n] for c, n in zip(order, lengths)])
    rows = np.concatenate([c * cap_emb.shape[1] + np.arange(n) for c, n in zip(order, lengths)])
    return cap_emb.flatten(0, 1).index_select(0, send(torch.from_numpy(rows), cap_emb.device))


def padded(words, lengths):
    """Words (rows, D) of captions, one after the other, their lengths -> words (C, n, D) padded with 0; mask (C, n), 0
    for words, -inf for padding; share (C, n) of a word in its caption's mean, 0 for padding.  One copy to the device.
    """
    first, place = lengths.cumsum() - lengths, np.arange(lengths.max())
    rows = np.where(place < lengths[:, None], first[:, None] + place, -1)  # (C, n)
    sent = send(torch.from_numpy(np.column_stack([rows, lengths])), words.device)
    rows, length = sent[:, :-1], sent[:, -1:]
    padding = rows < 0
    words = words.index_select(0, rows.clamp_min(0).flatten()).view(*rows.shape, -1)
    words = words.masked_fill(padding.unsqueeze(2), 0)  # (C, n, D)
    mask = words.new_zeros(padding.shape).masked_fill(padding, -math.inf)
    return words, mask, length.to(words.dtype).reciprocal().masked_fill(padding, 0)


@cache
def budget(memory, device):
    """Bytes for the similarity: `memory` MB; if that is 0, MEMORY, or half of what is free on a GPU when it is first
    asked for, so that all steps are cut alike.
    """
    if memory or device.type != "cuda":
        return (memory or MEMORY) * 2**20
    free = torch.cuda.mem_get_info(device)[0]
    return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) / 2


def share():
    """The part of the budget for computing scores; in training there are no blocks of an evaluation."""
    return 1 if torch.is_grad_enabled() else 1 - BLOCKS


def for_computing(memory, device):
    """The bytes of the budget that all_pairs may take."""
    return share() * budget(memory, device)


def buckets(lengths, most):
    """Lengths in ascending order -> at most `most` slices of them with the least padding."""
    ends = [i for i in range(1, len(lengths)) if lengths[i - 1] < lengths[i]] + [len(lengths)]  # of each length's run
    cuts = {end: (end * lengths[end - 1], [end]) for end in ends}  # the best way to cut the first `end`: area, ends
    for _ in range(min(most, len(ends)) - 1):
        longer = dict(cuts)
        for start, (area, parts) in cuts.items():
            for end in ends:
                if end > start and (more := area + (end - start) * lengths[end - 1]) < longer[end][0]:
                    longer[end] = more, [*parts, end]
        cuts = longer
    parts = cuts[len(lengths)][1]
    return [slice(a, b) for a, b in zip([0, *parts], parts)]


def cut_blocks(sizes, regions, lengths, limit):
    """How to cut all pairs; lengths of the captions in ascending order, limit in bytes.

    -> (images of a block, the captions of each block as a list of slices, each padded to its own longest).
    InputError if one image and one caption do not fit.
    """
    (images, R, D), gradients = regions.shape, torch.is_grad_enabled()
    a_step = gradients and regions.device.type != "cpu"
    parts = buckets(lengths, STEP_BUCKETS if a_step else BUCKETS)
    counts, longest = [part.stop - part.start for part in parts], np.array([lengths[part.stop - 1] for part in parts])
    block, image, caption, pair = sizes(R, longest.repeat(counts), D, gradients)
    both = np.sum(np.broadcast_to(caption + images * pair, len(lengths)))
    if block + images * image + both <= limit:
        return images, [parts]
    shapes = []
    for count, n in zip(counts, longest):
        block, image, caption, pair = sizes(R, n, D, gradients)
        if block + image + caption + pair > limit:
            megabytes = math.ceil((block + image + caption + pair) / share() / 2**20)
            raise InputError(
                f"--sim_memory: {limit / share() / 2**20:.0f} MB do not hold one image of {R} regions with one caption "
                f"of {n} words, which need {megabytes} MB; give --sim_memory {megabytes} or leave them out"
            )
        shapes.append(block_shape(images, count, image, caption, pair, limit - block))
    rows = min(rows for rows, _ in shapes)
    return rows, [
        [slice(start, min(start + columns, part.stop))]
        for part, (_, columns) in zip(parts, shapes)
        for start in range(part.start, part.stop, columns)
    ]


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
