"""Scores of all pairs of images and captions within a memory budget, by the device's fastest implementation.

On a CPU that is the C kernel (kernel/); without a C compiler, and on a GPU, graph.py on captions padded to a few common
lengths, in as few calls as the memory allows.  Both compute docs/method.md, section 7.  Letters for shapes as in
graph.py.
"""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import graph
from kernel import scores as compiled
from modules.memory import block_shape, check_fits, for_computing, joined
from runtime.transfer import send

BUCKETS = 4  # lengths that captions are padded to: few pad much, many cost kernel launches
STEP_BUCKETS = 2  # the same on a GPU if all pairs and their gradients fit the memory at once


class Graphs(NamedTuple):
    """What scores a pair: the structure-level modules, number of blocks, lambda, budget in MB (0: the device's).

    node_matching: graph.node_matching, or the same compiled.
    kernel: `auto`: C on a CPU, graph.py elsewhere; `torch`: graph.py only.
    """

    visual: graph.VisualGraph
    textual: graph.TextualGraph
    blocks: int
    smooth: float
    memory: float = 0
    node_matching: Callable = graph.node_matching
    kernel: str = "auto"

    def hidden(self):
        return self.visual.out_1.weight_v.shape[0]


def pair_scores(graphs, regions, cap_emb, boxes, depends, cap_lens):
    """Visual and textual scores (I, C), (I, C) of every image with every caption.

    regions (I, R, D); cap_emb (C, n, D) padded, or a list of (n_c, D); boxes (I, R, 4), normalised;
    depends: every caption's dependency pairs, or None for the dense graph; cap_lens: words of each.
    A pair's scores do not depend on the other pairs.  InputError if one image and one caption exceed the memory.
    """
    device, dtype = regions.device, graphs.visual.out_1.bias.dtype
    with without_autocast(device.type):
        boxes, regions = send(boxes, device).to(dtype), regions.to(dtype)
        if not regions.numel() or not len(cap_lens):
            return regions.new_zeros(2, len(regions), len(cap_lens)).unbind()
        limit, kernel = for_computing(graphs.memory, device), None
        if graphs.kernel == "auto" and device.type == "cpu" and dtype == torch.float32:
            kernel = compiled.load(graphs.blocks, graphs.hidden())
        if kernel:
            return compiled.all_pairs(kernel, graphs, regions, cap_emb, boxes, depends, cap_lens, limit)
        return padded_scores(graphs, regions, cap_emb, boxes, depends, np.asarray(cap_lens), limit)


def without_autocast(device):
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


# ---- graph.py, on padded captions, block by block ----


def padded_scores(graphs, regions, cap_emb, boxes, depends, lengths, limit):
    """Both scores (I, C) by graph.py in at most `limit` bytes; the other arguments as those of pair_scores.

    If all pairs do not fit at once, the backward pass computes each block again.
    """
    order = lengths.argsort(kind="stable")
    lengths = lengths[order]
    rows, cut = cut_blocks(graphs, regions, lengths, limit)
    compute = block_scores
    if torch.is_grad_enabled() and (len(cut) > 1 or rows < len(regions)):
        compute = partial(checkpoint, block_scores, use_reentrant=False)
    captions = [slice(parts[0].start, parts[-1].stop) for parts in cut]
    words = in_order(cap_emb, order, lengths).split([int(lengths[some].sum()) for some in captions])
    columns = []
    for some, own in zip(captions, words):
        pairs = None if depends is None else [depends[c] for c in order[some]]
        parts = [slice(part.start - some.start, part.stop - some.start) for part in cut[len(columns)]]
        images = zip(regions.split(rows), boxes.split(rows))
        blocks = [compute(graphs, *image, own.to(regions.dtype), pairs, lengths[some], parts) for image in images]
        columns.append([joined(side, 0) for side in zip(*blocks)])
    both = torch.stack([joined(side, 1) for side in zip(*columns)])  # (2, I, C)
    return both.index_select(2, send(torch.from_numpy(order.argsort()), both.device)).unbind()


def in_order(cap_emb, order, lengths):
    """The words (rows, D) of captions in this order, one caption after the other; lengths: in this order."""
    if not isinstance(cap_emb, torch.Tensor):
        return torch.cat([cap_emb[c][:n] for c, n in zip(order, lengths)])
    rows = np.concatenate([c * cap_emb.shape[1] + np.arange(n) for c, n in zip(order, lengths)])
    return cap_emb.flatten(0, 1).index_select(0, send(torch.from_numpy(rows), cap_emb.device))


class Padded(NamedTuple):
    """Captions padded with zeros to the longest."""

    nodes: graph.Nodes
    mask: torch.Tensor  # (C, n): 0 for words, -inf for padding
    share: torch.Tensor  # (C, n): of a word in its caption's mean, 0 for padding
    edges: torch.Tensor | None  # of their graphs, as graph.StructureMatching takes them


def padded(graphs, words, depends, lengths):
    """Words (rows, D) of captions, one after the other, their dependency pairs or None, their lengths -> Padded.

    One copy to the device, and one more of the adjacency matrices for the sparse graph.
    """
    first, place = lengths.cumsum() - lengths, np.arange(lengths.max())
    rows = np.where(place < lengths[:, None], first[:, None] + place, -1)  # (C, n)
    sent = send(torch.from_numpy(np.column_stack([rows, lengths])), words.device)
    rows, length = sent[:, :-1], sent[:, -1:]
    padding = rows < 0
    words = words.index_select(0, rows.clamp_min(0).flatten()).view(*rows.shape, -1)
    words = words.masked_fill(padding.unsqueeze(2), 0)  # (C, n, D)
    mask = words.new_zeros(padding.shape).masked_fill(padding, -math.inf)
    share = length.to(words.dtype).reciprocal().masked_fill(padding, 0)
    adjacency = None
    if depends is not None:
        adjacency = send(graph.adjacency(depends, lengths).to(words.dtype), words.device)
    edges = graphs.textual.edges(words, adjacency, graphs.smooth, mask)
    return Padded(graph.nodes(words, graphs.blocks), mask, share, edges)


def block_scores(graphs, regions, boxes, words, depends, lengths, parts):
    """Both scores (I, C) of a block: all images with all captions, as `padded` takes them, in ascending lengths.

    parts: slices of the captions, each padded to its own longest for the node level.
    """
    texts, images = padded(graphs, words, depends, lengths), graph.nodes(regions, graphs.blocks)
    visual, textual, n = [], [], texts.mask.shape[1]
    for part in parts:
        longest = int(lengths[part.stop - 1])
        mask = texts.mask[part, :longest].contiguous()
        match = graphs.node_matching(images, texts.nodes.part(part, longest), graphs.smooth, mask)
        visual.append(match[0])
        textual.append(F.pad(match[1].transpose(0, 1), (0, 0, 0, n - longest)))  # (C, I, n, K)
    visual = graphs.visual(joined(visual, 1), graphs.visual.edges(boxes))
    return visual, graphs.textual(joined(textual, 0), texts.edges, texts.share).t()


# ---- which pairs are computed at once ----


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


def sizes(graphs, R, n, D, gradients):
    """Bytes, at their peak, of one image of R regions, one caption of n words and one of their pairs; counted."""
    K, H = graphs.blocks, graphs.hidden()
    block, table, hidden = K * R * n, R * n, H * (R + n)
    if gradients:
        image = 2 * R * D + (2 * K + 50) * R * R
        caption = 4 * n * D + (3 * K + 12) * n * n
        pair = 4.5 * block + 9 * table + 7 * hidden
    else:
        image = R * D + (K + 30) * R * R
        caption = 3 * n * D + (2 * K + 6) * n * n
        pair = 3 * block + 4 * table + 2 * hidden
    return 4 * image, 4 * caption, 4 * pair


def cut_blocks(graphs, regions, lengths, limit):
    """How to cut all pairs; lengths of the captions in ascending order, limit in bytes.

    -> (images of a block, the captions of each block as a list of slices, each padded to its own longest).
    InputError if one image and one caption do not fit.
    """
    (images, R, D), gradients = regions.shape, torch.is_grad_enabled()
    a_step = gradients and regions.device.type != "cpu"
    parts = buckets(lengths, STEP_BUCKETS if a_step else BUCKETS)
    image, caption, _ = sizes(graphs, R, lengths[-1], D, gradients)
    pairs = sum((part.stop - part.start) * sizes(graphs, R, lengths[part.stop - 1], D, gradients)[2] for part in parts)
    if images * image + len(lengths) * caption + images * pairs <= limit:
        return images, [parts]
    each = [sizes(graphs, R, lengths[part.stop - 1], D, gradients) for part in parts]
    check_fits(sum(each[-1]), limit, R, lengths[-1])
    shapes = [block_shape(images, part.stop - part.start, *size, limit) for part, size in zip(parts, each)]
    rows = min(rows for rows, _ in shapes)
    return rows, [
        [slice(start, min(start + columns, part.stop))]
        for part, (_, columns) in zip(parts, shapes)
        for start in range(part.start, part.stop, columns)
    ]
