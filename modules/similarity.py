"""Scores of all pairs of images and captions: ragged, within a memory budget, the fastest way a device has.

On a CPU that is the compiled kernel (cpu_kernel.py); without a C compiler, and on a GPU, graph.py in tiles.
Both compute docs/method.md, section 7.  Letters for shapes as in graph.py.
"""

import math
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

import graph
from modules import cpu_kernel

MEMORY = 256  # default budget, MB


class Graphs(NamedTuple):
    """What scores a pair: the structure-level modules, number of blocks, lambda, budget in MB.

    block_dtype: precision of the block product in graph.py, None for the modules' own.
    """

    visual: graph.VisualGraph
    textual: graph.TextualGraph
    blocks: int
    smooth: float
    memory: float = MEMORY
    block_dtype: torch.dtype | None = None


class Captions(NamedTuple):
    """Ragged captions: caption c is rows first[c] ... first[c] + length[c] of features (rows, D)."""

    features: torch.Tensor
    first: torch.Tensor
    length: torch.Tensor

    def words(self, groups):
        """Groups as by_length gives them -> each one's words (C, n, D), read in one go."""
        rows = [(self.first[members].unsqueeze(1) + torch.arange(n)).flatten() for n, members in groups]
        words = self.features.index_select(0, torch.cat(rows).to(self.features.device))
        parts = words.split([len(r) for r in rows])
        return [part.view(len(members), n, -1) for part, (n, members) in zip(parts, groups)]


def ragged(cap_emb, cap_lens):
    """Padded (C, n, D), or a list of (at least n_c, D), and the captions' lengths -> Captions."""
    length = torch.as_tensor(cap_lens, dtype=torch.int64).cpu()
    if isinstance(cap_emb, torch.Tensor):
        return Captions(cap_emb.flatten(0, 1), torch.arange(len(length)) * cap_emb.shape[1], length)
    features = torch.cat([words[:n] for words, n in zip(cap_emb, length.tolist())])
    return Captions(features, cpu_kernel.begins(length)[0], length)


def by_length(lengths):
    """(length, numbers of the captions that have it), shortest first."""
    groups = {}
    for caption, length in enumerate(lengths):
        groups.setdefault(int(length), []).append(caption)
    return sorted(groups.items())


def pair_scores(graphs, regions, cap_emb, boxes, depends, cap_lens):
    """Visual and textual scores (I, C), (I, C) of every image with every caption.

    regions (I, R, D); cap_emb (C, n, D) padded, or a list of (n_c, D); boxes (I, R, 4), normalised;
    depends: every caption's dependency pairs, or None for the dense graph; cap_lens: words of each.
    A pair's scores do not depend on what they are computed with.
    """
    device = regions.device.type
    dtype = graphs.visual.out_1.bias.dtype
    with torch.autocast(device, enabled=False):
        boxes = boxes.to(regions.device, dtype)
        regions, captions = regions.to(dtype), ragged(cap_emb, cap_lens)
        captions = captions._replace(features=captions.features.to(dtype))
        kernel = usable_kernel(graphs, regions, captions)
        if kernel is None:
            return eager_scores(graphs, regions, captions, boxes, depends)
        return native_scores(kernel, graphs, regions, captions, boxes, depends)


def text_edges(graphs, words, depends, members):
    """TextualGraph.edges of captions of one length."""
    adjacency = None
    if depends is not None:
        adjacency = graph.adjacency([depends[c] for c in members], words.shape[1]).to(words)
    return graphs.textual.edges(words, adjacency, graphs.smooth)


# ---- graph.py, in tiles ----


def pair_bytes(graphs, regions, n):
    """Memory that graph.py takes at its peak for one pair of `regions` regions and n words, measured."""
    hidden = graphs.visual.out_1.weight_v.shape[0]
    return 4 * (3 * graphs.blocks * regions * n + regions * n * (regions + n) + 4 * hidden * (regions + n))


def tile_shape(images, captions, pairs):
    """(images, captions) of a tile of at most `pairs` pairs, at least one, as square as they allow."""
    some = min(captions, max(1, math.isqrt(max(1, pairs))))
    rows = min(images, max(1, pairs // some))
    return rows, min(captions, max(1, pairs // rows))


def tile_scores(graphs, regions, words, edges, text_edges):
    """Scores (I, C), (I, C) of captions of one length, words (C, n, D)."""
    visual, textual = graph.node_matching(regions, words, graphs.blocks, graphs.smooth, graphs.block_dtype)
    return graphs.visual(visual, edges), graphs.textual(textual.transpose(0, 1), text_edges).t()


def group_scores(graphs, regions, words, edges, text_edges, tile, keep):
    """tile_scores of any number of pairs; keep: what the gradient needs, instead of computing it again."""
    rows = []
    for i in range(0, len(regions), tile[0]):
        row = []
        for c in range(0, len(words), tile[1]):
            some = slice(c, c + tile[1])
            arguments = (
                graphs, regions[i : i + tile[0]], words[some], edges[i : i + tile[0]],
                None if text_edges is None else text_edges[some],
            )  # fmt: skip
            if keep:
                row.append(tile_scores(*arguments))
            else:
                row.append(checkpoint(tile_scores, *arguments, use_reentrant=False))
        rows.append([torch.cat(side, 1) for side in zip(*row)])
    return [torch.cat(side) for side in zip(*rows)]


def eager_scores(graphs, regions, captions, boxes, depends):
    edges, budget = graphs.visual.edges(boxes), graphs.memory * 2**20
    groups = by_length(captions.length.tolist())
    each = {n: pair_bytes(graphs, regions.shape[1], n) for n, _ in groups}
    # what gradients need is kept while it fits, else each tile is computed again on the way back
    total = 2 * len(regions) * sum(each[n] * len(members) for n, members in groups)
    keep = not torch.is_grad_enabled() or total <= budget
    order, visual, textual = [], [], []
    for (n, members), words in zip(groups, captions.words(groups)):
        tile = tile_shape(len(regions), len(members), int(budget / each[n] / (1 if keep else 3)))
        words_edges = text_edges(graphs, words, depends, members)
        scores = group_scores(graphs, regions, words, edges, words_edges, tile, keep)
        visual.append(scores[0])
        textual.append(scores[1])
        order.extend(members)
    back = torch.tensor(order, device=regions.device).argsort()
    return torch.cat(visual, 1)[:, back], torch.cat(textual, 1)[:, back]


# ---- the compiled kernel, in tiles ----


def usable_kernel(graphs, regions, captions):
    """The compiled kernel where these tensors can go through it, else None."""
    if regions.device.type != "cpu" or regions.dtype != torch.float32:
        return None
    if not regions.numel() or not len(captions.length):
        return None
    return cpu_kernel.kernel(graphs.blocks, graphs.visual.out_1.weight_v.shape[0])


def chunks(count, bytes_each, budget):
    step = max(1, int(budget // bytes_each))
    return [slice(i, i + step) for i in range(0, count, step)]


def native_scores(kernel, graphs, regions, captions, boxes, depends):
    (I, R, D), C, share = regions.shape, len(captions.length), 3 / 8 * graphs.memory * 2**20
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
