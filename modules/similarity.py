"""Scores of all pairs of images and captions, within a memory budget, by the device's fastest implementation.

On a CPU that is the compiled kernel (cpu_kernel.py); without a C compiler, and on a GPU, graph.py on captions padded
to a few common lengths, in as few calls as the memory allows.  Both compute docs/method.md, section 7.  Letters for
shapes as in graph.py.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import graph
from modules import cpu_kernel
from runtime.transfer import send

MEMORY = 256  # MB, where the budget is not given and the device is no GPU
BUCKETS = 4  # lengths that captions are padded to: few pad much, many cost kernel launches
STEP_BUCKETS = {"cpu": BUCKETS, "gpu": 2}  # the same where all pairs and their gradients fit the memory at once


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


def budget(memory, device):
    """Bytes for the similarity: `memory` MB or, where that is 0, the device's default."""
    return memory * 2**20 if memory else default_budget(torch.device(device))


@cache
def default_budget(device):
    """256 MB; on a GPU half of what is free when it is first asked for, so that all steps are cut alike."""
    if device.type != "cuda":
        return MEMORY * 2**20
    free = torch.cuda.mem_get_info(device)[0]
    return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) / 2


class Captions(NamedTuple):
    """Ragged captions: caption c is rows first[c] ... first[c] + length[c] of features (rows, D)."""

    features: torch.Tensor
    first: torch.Tensor
    length: torch.Tensor


def ragged(cap_emb, cap_lens):
    """Padded (C, n, D), or a list of (at least n_c, D), and the captions' lengths -> Captions."""
    length = torch.as_tensor(cap_lens, dtype=torch.int64).cpu()
    if isinstance(cap_emb, torch.Tensor):
        return Captions(cap_emb.flatten(0, 1), torch.arange(len(length)) * cap_emb.shape[1], length)
    features = torch.cat([words[:n] for words, n in zip(cap_emb, length.tolist())])
    return Captions(features, cpu_kernel.begins(length)[0], length)


def pair_scores(graphs, regions, cap_emb, boxes, depends, cap_lens):
    """Visual and textual scores (I, C), (I, C) of every image with every caption.

    regions (I, R, D); cap_emb (C, n, D) padded, or a list of (n_c, D); boxes (I, R, 4), normalised;
    depends: every caption's dependency pairs, or None for the dense graph; cap_lens: words of each.
    A pair's scores do not depend on the other pairs.
    """
    device = regions.device.type
    dtype = graphs.visual.out_1.bias.dtype
    with torch.autocast(device, enabled=False):
        boxes = send(boxes, regions.device).to(dtype)
        regions, captions = regions.to(dtype), ragged(cap_emb, cap_lens)
        captions = captions._replace(features=captions.features.to(dtype))
        kernel = usable_kernel(graphs, regions, captions)
        if kernel is None:
            return padded_scores(graphs, regions, captions, boxes, depends)
        return native_scores(kernel, graphs, regions, captions, boxes, depends)


# ---- graph.py, on padded captions ----


class Padded(NamedTuple):
    """Captions in order of their length, padded with zeros to the longest."""

    nodes: graph.Nodes
    length: torch.Tensor  # (C,)
    mask: torch.Tensor  # (C, n): 0 for words, -inf for padding
    share: torch.Tensor  # (C, n): of a word in its caption's mean, 0 for padding
    edges: torch.Tensor | None  # of their graphs, as graph.StructureMatching takes them
    back: torch.Tensor  # (C,): where each caption of the given order stands

    def part(self, some):
        """mask, share and edges of some of the captions, chosen by a slice."""
        return self.mask[some], self.share[some], None if self.edges is None else graph.part(self.edges, some)


def padded(graphs, captions, order, depends):
    """Captions -> Padded; order (C,): their numbers, shortest first, an array.

    One copy to the device, and one more of the adjacency matrices for the sparse graph.
    """
    device = captions.features.device
    lengths, first = captions.length.numpy()[order], captions.first.numpy()[order]  # (C,), on the host
    place = np.arange(lengths[-1])
    rows = np.where(place < lengths[:, None], first[:, None] + place, -1)  # (C, n)
    sent = send(torch.from_numpy(np.column_stack([rows, lengths, order.argsort()])), device)
    rows, length, back = sent[:, :-2], sent[:, -2:-1], sent[:, -1]
    padding = rows < 0
    words = captions.features.index_select(0, rows.clamp_min(0).flatten()).view(*rows.shape, -1)
    words = words.masked_fill(padding.unsqueeze(2), 0)  # (C, n, D)
    mask = words.new_zeros(padding.shape).masked_fill(padding, -math.inf)
    share = length.to(words.dtype).reciprocal().masked_fill(padding, 0)
    adjacency = None
    if depends is not None:
        adjacency = graph.adjacency([depends[c] for c in order], lengths)
        adjacency = send(adjacency.to(words.dtype), device)
    edges = graphs.textual.edges(words, adjacency, graphs.smooth, mask)
    return Padded(graph.nodes(words, graphs.blocks), length.squeeze(1), mask, share, edges, back)


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


def pair_bytes(graphs, regions, n, gradients):
    """Memory that graph.py takes at its peak for one pair of `regions` regions and n words, counted."""
    block, table = graphs.blocks * regions * n, regions * n  # one (K, R, n), one (R, n)
    hidden = graphs.visual.out_1.weight_v.shape[0] * (regions + n)
    return 4 * (4.5 * block + 9 * table + 7 * hidden if gradients else 3 * block + 4 * table + 2 * hidden)


def tile_shape(images, captions, pairs):
    """(images, captions) of a tile of at most `pairs` pairs, at least one, as square as they allow."""
    some = min(captions, max(1, math.isqrt(max(1, pairs))))
    rows = min(images, max(1, pairs // some))
    return rows, min(captions, max(1, pairs // rows))


def tile_scores(graphs, regions, edges, words, mask, share, text_edges):
    """Scores (I, C), (I, C) of regions (Nodes of I images) and buckets of captions, shortest first.

    words: Nodes of each bucket, padded to its own length; mask and share (C, n), text_edges: as in Padded, of all.
    """
    visual, textual, first, n = [], [], 0, share.shape[1]
    for bucket in words:
        count, longest = bucket.features.shape[:2]
        own = mask[first : first + count, :longest].contiguous()
        match = graphs.node_matching(regions, bucket, graphs.smooth, own)
        visual.append(match[0])
        textual.append(F.pad(match[1].transpose(0, 1), (0, 0, 0, n - longest)))  # (C, I, n, K)
        first += count
    return graphs.visual(torch.cat(visual, 1), edges), graphs.textual(torch.cat(textual), text_edges, share).t()


def cut_pairs(graphs, regions, lengths, memory, gradients):
    """How to cut all pairs; regions: Nodes, lengths of the captions in ascending order, memory in bytes.

    -> (whether to keep what gradients need, [(slices of the images, buckets of captions to compute at once)]).
    Everything goes in one tile where memory allows; else there are tiles of pieces of one bucket, which the backward
    pass computes again.
    """
    images, R = regions.features.shape[:2]

    def pair(part):
        return pair_bytes(graphs, R, lengths[part.stop - 1], gradients)

    device = "cpu" if regions.features.device.type == "cpu" else "gpu"
    parts = buckets(lengths, STEP_BUCKETS[device] if gradients else BUCKETS)
    if sum(images * (part.stop - part.start) * pair(part) for part in parts) <= memory:
        return True, [([slice(0, images)], parts)]
    cut = []
    for part in buckets(lengths, BUCKETS):
        rows, columns = tile_shape(images, part.stop - part.start, int(memory / pair(part)))
        across = [slice(i, i + rows) for i in range(0, images, rows)]
        cut += [(across, [slice(c, min(c + columns, part.stop))]) for c in range(part.start, part.stop, columns)]
    return not gradients, cut


def padded_scores(graphs, regions, captions, boxes, depends):
    """Both scores (I, C) by graph.py, arguments as pair_scores."""
    order = captions.length.numpy().argsort(kind="stable")
    lengths = captions.length.numpy()[order].tolist()
    texts, edges = padded(graphs, captions, order, depends), graphs.visual.edges(boxes)
    regions = graph.nodes(regions, graphs.blocks)
    memory = budget(graphs.memory, boxes.device)
    columns = tiled_scores(graphs, regions, edges, texts, lengths, memory)
    both = torch.stack([joined(side, 1) for side in zip(*columns)])  # (2, I, C)
    return both.index_select(2, texts.back).unbind()


def tiled_scores(graphs, regions, edges, texts, lengths, memory):
    """Both scores as tile_scores gives them, tile by tile: for groups of captions, shortest first, (I, C) each."""
    gradients = torch.is_grad_enabled()
    keep, cut = cut_pairs(graphs, regions, lengths, memory, gradients)
    run = tile_scores if keep else partial(checkpoint, tile_scores, use_reentrant=False)
    image_part = cache(lambda *ends: (regions.part(slice(*ends)), graph.part(edges, slice(*ends))))
    columns = []
    for images, parts in cut:
        words = [texts.nodes.part(part, lengths[part.stop - 1]) for part in parts]
        others = texts.part(slice(parts[0].start, parts[-1].stop))
        rows = [run(graphs, *image_part(i.start, i.stop), words, *others) for i in images]
        columns.append([joined(side, 0) for side in zip(*rows)])
    return columns


def joined(parts, dim):
    """torch.cat, which would copy a single part."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


# ---- the compiled kernel, in tiles ----


def usable_kernel(graphs, regions, captions):
    """The compiled kernel where these tensors can go through it, else None."""
    if graphs.kernel != "auto" or regions.device.type != "cpu" or regions.dtype != torch.float32:
        return None
    if not regions.numel() or not len(captions.length):
        return None
    return cpu_kernel.kernel(graphs.blocks, graphs.visual.out_1.weight_v.shape[0])


def chunks(count, bytes_each, budget):
    step = max(1, int(budget // bytes_each))
    return [slice(i, i + step) for i in range(0, count, step)]


def native_scores(kernel, graphs, regions, captions, boxes, depends):
    (I, R, D), C = regions.shape, len(captions.length)
    share = 3 / 8 * budget(graphs.memory, regions.device)
    images = texts = [slice(None)]
    if not torch.is_grad_enabled():  # the kernel packs a copy of the features; gradients need it whole
        images = chunks(I, 4 * (R * D + R * R * (graphs.blocks + graph.KERNELS)), share)
        texts = chunks(C, 8 * int(captions.length.max()) * D, share)
    visual, textual = regions.new_empty(2, I, C) if len(images) * len(texts) > 1 else (None, None)
    params = [cpu_kernel.stacked_params(side, kernel) for side in graphs[:2]]
    table = cpu_kernel.kernel_table(graphs.visual, kernel)
    for text in texts:
        plan = text_plan(kernel, graphs, captions, text, depends)
        for image in images:
            some = cpu_kernel.PairScores.apply(plan, regions[image], boxes[image], captions.features, table, *params)
            if visual is None:
                visual, textual = some
            else:
                visual[image, text], textual[image, text] = some
    return visual + graphs.visual.out_2.bias, textual + graphs.textual.out_2.bias


def text_plan(kernel, graphs, captions, text, depends):
    """cpu_kernel.Plan of some captions."""
    length, first = captions.length[text].clone(), captions.first[text].clone()
    links = cpu_kernel.links(None if depends is None else depends[text], length)
    neighbors = graphs.textual.propagation == "neighbors"
    return cpu_kernel.Plan(kernel, graphs.blocks, graphs.smooth, neighbors, length, first, links)
