"""GSMN's scores of all pairs of images and captions within a memory budget, by the device's fastest implementation.

On a CPU that is the C kernel (modules/kernel/); without a C compiler, and on a GPU, graph.py by blocks.py.
Both compute docs/method.md, section 7.  Letters for shapes as in graph.py.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

import graph
from modules.blocks import all_pairs, padded
from modules.kernel import scores as compiled
from modules.memory import for_computing, joined
from modules.sides import ImageSide
from runtime.transfer import send


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


def pair_scores(graphs, images, captions):
    """Visual and textual scores (I, C), (I, C) of every image with every caption.

    images, captions: sides; without `depends` the word graph is dense, without `boxes` there is no geometry.  A pair's
    scores do not depend on the other pairs.  InputError if one image and one caption exceed the memory.
    """
    regions, dtype = images.emb, graphs.visual.out_1.bias.dtype
    device = regions.device
    with without_autocast(device.type):
        boxes = torch.zeros(*regions.shape[:2], 4) if images.boxes is None else images.boxes
        images = ImageSide(regions.to(dtype), send(boxes, device).to(dtype))
        if not regions.numel() or not len(captions):
            return regions.new_zeros(2, len(images), len(captions)).unbind()
        limit, kernel = for_computing(graphs.memory, device), None
        if graphs.kernel == "auto" and device.type == "cpu" and dtype == torch.float32:
            kernel = compiled.load(graphs.blocks, graphs.hidden())
        if kernel:
            return compiled.all_pairs(kernel, graphs, images, captions, limit)
        return all_pairs(partial(block_scores, graphs), partial(sizes, graphs), images, captions, limit).unbind()


def without_autocast(device):
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def block_scores(graphs, images, words, depends, lengths, parts):
    """Both scores (I, C) of a block, as modules/blocks.py asks for them."""
    texts, regions = padded(words, lengths), graph.nodes(images.emb, graphs.blocks)
    adjacency = None
    if depends is not None:
        adjacency = send(graph.adjacency(depends, lengths).to(words.dtype), words.device)
    text_edges = graphs.textual.edges(texts.words, adjacency, graphs.smooth, texts.mask)
    nodes = graph.nodes(texts.words, graphs.blocks)
    visual, textual, n = [], [], texts.mask.shape[1]
    for part in parts:
        longest = int(lengths[part.stop - 1])
        mask = texts.mask[part, :longest].contiguous()
        match = graphs.node_matching(regions, nodes.part(part, longest), graphs.smooth, mask)
        visual.append(match[0])
        textual.append(F.pad(match[1].transpose(0, 1), (0, 0, 0, n - longest)))  # (C, I, n, K)
    visual = graphs.visual(joined(visual, 1), graphs.visual.edges(images.boxes))
    return visual, graphs.textual(joined(textual, 0), text_edges, texts.share).t()


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
