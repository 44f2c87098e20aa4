"""GSMN's scores of all pairs by the C kernel, with gradients: graph.py's numbers, several times faster on a CPU.

Letters for shapes as in graph.py.
"""

import ctypes
import functools
import math
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

import graph
from modules.kernel import building
from modules.memory import check_fits, joined, runs

SLOTS = 8  # parts that images and captions are cut into for the gradients; more where there are more threads
TILE = 4, 8  # images and captions a thread takes at once: their features fit its cache
LONG, POINTER = ctypes.c_int64, ctypes.c_void_p


# ---- csrc/pairs.h ----


def fields(kind, names):
    return [(name, kind) for name in names.split()]


class Side(ctypes.Structure):
    _fields_ = fields(LONG, "count") + fields(
        POINTER, "length first packed gram edge features data grams norms edges params boxes kernels links"
    )


class Grad(ctypes.Structure):
    _fields_ = fields(POINTER, "data grams edges params features kernels")


class Job(ctypes.Structure):
    _fields_ = (
        [("images", Side), ("captions", Side), ("d_images", Grad), ("d_captions", Grad)]
        + fields(LONG, "dim neighbors")
        + fields(ctypes.c_double, "smooth")
        + fields(POINTER, "visual textual d_visual d_textual")
        + fields(LONG, "tile_images tile_captions slots next done")
    )


# ---- the library ----


class Kernel:
    """The loaded library and its constants: rows of a panel of regions, widths padded to whole vectors."""

    def __init__(self, library):
        self.library = library
        constants = (LONG * 4)()
        library.constants(constants)
        self.panel, self.blocks, self.table, self.hidden = constants

    def run(self, stage, job):
        """Runs one stage on all of torch's threads; each takes the next piece of work until none is left."""
        job.next = job.done = 0
        threads, work, job = torch.get_num_threads(), getattr(self.library, stage), ctypes.byref(job)
        others = [pool(os.getpid(), threads).submit(work, job) for _ in range(threads - 1)]
        if any([work(job), *(other.result() for other in others)]):
            raise MemoryError(f"no memory left for the similarity kernel ({stage})")


@functools.lru_cache(maxsize=1)
def pool(process, threads):
    """Threads of this process: a forked one cannot use its parent's."""
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="pairs")


@functools.cache
def load(blocks, hidden):
    """The kernel for these numbers of blocks and hidden units, or None where it cannot be compiled."""
    library = building.library(blocks, hidden)
    return library and Kernel(library)


# ---- parameters and sentences as the kernel takes them ----


def stacked_params(match, k):
    """The structure-level parameters of one graph in a row, hidden unit c of kernel j at 8 c + j, padded."""
    weight, bias = match.kernels().stacked()  # (H, K), (H) or None
    H, K = weight.shape
    order = torch.arange(H).view(-1, H // 8).t().flatten()
    more = k.hidden - H
    bias = weight.new_zeros(H) if bias is None else bias[order]
    parts = [
        F.pad(weight[order].t(), (0, more, 0, k.blocks - K)),
        F.pad(bias, (0, more)),
        F.pad(match.out_1.weight()[:, order].t(), (0, more, 0, more)),
        F.pad(match.out_1.bias, (0, more)),
        F.pad(match.out_2.weight()[0], (0, more)),
    ]
    return torch.cat([part.flatten() for part in parts])


def kernel_table(match, k):
    """The visual graph's kernels (4, T): mean and -1 / (2 variance) of rho, of theta; repeated to fill a vector."""
    conv = match.graph_convolution_1
    table = [
        conv.mean_rho, -0.5 / (1e-14 + conv.precision_rho.square()),
        conv.mean_theta, -0.5 / (1e-14 + conv.precision_theta.square()),
    ]  # fmt: skip
    return torch.cat(table, 1).t().repeat(1, k.table // graph.KERNELS)


def begins(sizes):
    """Where each of consecutive pieces begins, and where the last one ends."""
    ends = F.pad(sizes.cumsum(0), (1, 0))
    return ends[:-1].contiguous(), int(ends[-1])


def triangle(n):
    """Entries (i, j), i <= j < n, in the order of csrc/: row by row."""
    return n * (n + 1) // 2


def links(depends, lengths):
    """graph.adjacency of captions of any lengths, triangle after triangle (entries,); None for the dense graph."""
    if depends is None:
        return None
    adjacency = graph.adjacency(depends, lengths.tolist())  # (C, n, n)
    word = torch.arange(adjacency.shape[1])
    return adjacency[(word[:, None] <= word) & (word < lengths[:, None, None])]


# ---- the scores ----


class Plan(NamedTuple):
    """The arguments without gradients: sizes, captions' lengths and first rows (C,), int64, and their `links`.

    keep: whether the packed features stay in memory for the backward pass, which else packs them again.
    """

    kernel: Kernel
    blocks: int
    smooth: float
    neighbors: bool
    length: torch.Tensor
    first: torch.Tensor
    links: torch.Tensor | None
    keep: bool


SPARE_MEMORY = []  # blocks that a deleted Scratch returned


class Scratch(dict):
    """Tensors of the given shapes, in memory that later calls reuse: the system needs time for new pages."""

    def __init__(self, shapes):
        sizes = {name: -(-math.prod(shape) // 16) * 16 for name, shape in shapes.items()}  # whole vectors
        total, memory = sum(sizes.values()), SPARE_MEMORY.pop() if SPARE_MEMORY else torch.empty(0)
        if len(memory) < total:
            del memory  # before the new one is made
            memory = torch.empty(total + 16, dtype=torch.float32)
            memory = memory[-memory.data_ptr() % 64 // 4 :]
        weakref.finalize(self, SPARE_MEMORY.append, memory)
        pieces = zip(shapes.items(), memory[:total].split(list(sizes.values())))
        super().__init__({name: piece[: math.prod(shape)].view(shape) for (name, shape), piece in pieces})


def aligned(x):
    """Contiguous and at an address that the kernel's vectors can be loaded from."""
    x = x.detach().contiguous()
    return x.clone() if x.data_ptr() % 64 else x


def side(plan, dim, length, first, features, params, panel, **more):
    """One side's tensors by their names in csrc/pairs.h; features (rows, D), an item's rows together."""
    at, rows = begins((length + panel - 1) // panel * panel)
    gram, entries = begins(triangle(length))
    edge, pairs = begins(length * length if plan.neighbors else length)
    width, edges = plan.kernel.blocks, (pairs, graph.KERNELS)
    tensors = Scratch({"data": (rows, width * dim), "norms": (rows, width), "grams": (entries, width), "edges": edges})
    tensors.update(
        length=length, first=first, packed=at, gram=gram, edge=edge, features=features.detach().contiguous(),
        params=aligned(params), **more,
    )  # fmt: skip
    return tensors


def addresses(tensors):
    return {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}


def gradients(side, slots, whole, **more):
    """whole: every row of the features is some item's node."""
    grad = Scratch({name: side[name].shape for name in ("data", "grams", "edges")})
    features = torch.empty_like(side["features"]) if whole else torch.zeros_like(side["features"])
    grad.update(features=features, params=side["params"].new_zeros(slots, len(side["params"])), **more)
    return grad


def prepared(plan, regions, boxes, words, table, params_v, params_t):
    """Both sides packed, with their Gram matrices and edges -> (the Job, the tensors of images and of captions)."""
    (I, R, _), C, dim = regions.shape, len(plan.length), regions.shape[2] // plan.blocks
    boxes, table = boxes.detach().contiguous(), aligned(table)
    images = side(
        plan, dim, torch.full((I,), R), torch.arange(I) * R, regions.flatten(0, 1), params_v, plan.kernel.panel,
        boxes=boxes, kernels=table,
    )  # fmt: skip
    captions = side(plan, dim, plan.length, plan.first, words, params_t, 1, links=plan.links)
    job = Job(
        images=Side(count=I, **addresses(images)), captions=Side(count=C, **addresses(captions)),
        dim=dim, neighbors=plan.neighbors, smooth=plan.smooth, tile_images=TILE[0], tile_captions=TILE[1],
    )  # fmt: skip
    plan.kernel.run("prepare", job)
    return job, images, captions


class PairScores(torch.autograd.Function):
    """Scores (I, C) of both graphs: regions (I, R, D), boxes (I, R, 4), words (rows, D), parameters as above."""

    @staticmethod
    def forward(ctx, plan, *inputs):
        regions = inputs[0]
        visual, textual = regions.new_empty(2, len(regions), len(plan.length))
        job, images, captions = prepared(plan, *inputs)
        job.visual, job.textual = visual.data_ptr(), textual.data_ptr()
        plan.kernel.run("forward", job)
        ctx.save_for_backward(*inputs)
        ctx.plan, ctx.kept = plan, (job, images, captions) if plan.keep else None
        return visual, textual

    @staticmethod
    @once_differentiable
    def backward(ctx, d_visual, d_textual):
        d_visual, d_textual = d_visual.contiguous(), d_textual.contiguous()
        job, images, captions = ctx.kept or prepared(ctx.plan, *ctx.saved_tensors)
        slots = min(max(SLOTS, 2 * torch.get_num_threads()), *d_visual.shape)
        d_images = gradients(images, slots, True, kernels=d_visual.new_empty(len(d_visual), *images["kernels"].shape))
        d_captions = gradients(captions, slots, int(captions["length"].sum()) == len(captions["features"]))
        job.d_images, job.d_captions = Grad(**addresses(d_images)), Grad(**addresses(d_captions))
        job.d_visual, job.d_textual, job.slots = d_visual.data_ptr(), d_textual.data_ptr(), slots
        for stage in ("clear", "backward", "finish"):
            ctx.plan.kernel.run(stage, job)
        d_table = d_images["kernels"].sum(0)
        d_table[:, graph.KERNELS :] = 0  # the repeated kernels' share is in the first 8 already
        features = d_images["features"].view(ctx.saved_tensors[0].shape), None, d_captions["features"]
        return None, *features, d_table, d_images["params"].sum(0), d_captions["params"].sum(0)


# ---- all pairs, in the memory that is allowed ----


def all_pairs(kernel, graphs, images, captions, limit):
    """Visual and textual scores (I, C) of two sides, with boxes; limit in bytes."""
    regions, boxes, cap_emb, depends = images.emb, images.boxes, captions.emb, captions.depends
    length = torch.as_tensor(captions.lengths, dtype=torch.int64)
    if isinstance(cap_emb, torch.Tensor):
        words, first = cap_emb.flatten(0, 1), torch.arange(len(length)) * cap_emb.shape[1]
    else:
        words = torch.cat([rows[:n] for rows, n in zip(cap_emb, captions.lengths)])
        first = begins(length)[0]
    images, texts = cut(kernel, graphs, regions, length.numpy(), limit)
    params = [stacked_params(side, kernel) for side in graphs[:2]]
    table = kernel_table(graphs.visual, kernel)
    neighbors, keep = graphs.textual.propagation == "neighbors", len(images) == len(texts) == 1
    ends = [*first[[text.start for text in texts[1:]]].tolist(), len(words)]
    columns = []
    for text, own in zip(texts, words.split(np.diff(ends, prepend=0).tolist())):
        pairs = links(None if depends is None else depends[text], length[text])
        where = length[text].clone(), first[text] - first[text.start]
        plan = Plan(kernel, graphs.blocks, graphs.smooth, neighbors, *where, pairs, keep)
        parts = [torch.split(x, [len(range(len(x))[image]) for image in images]) for x in (regions, boxes)]
        blocks = [PairScores.apply(plan, *image, own, table, *params) for image in zip(*parts)]
        columns.append([joined(side, 0) for side in zip(*blocks)])
    visual, textual = (joined(side, 1) for side in zip(*columns))
    return visual + graphs.visual.out_2.bias, textual + graphs.textual.out_2.bias


def cut(kernel, graphs, regions, lengths, limit):
    """Slices of the images and of the captions whose pairs are computed at once.

    InputError if one image and one caption do not fit.
    """
    I, R, D = regions.shape
    image, *captions = item_bytes(kernel, graphs, np.array([R, *lengths]), D).tolist()
    threads = max(SLOTS, torch.get_num_threads())  # so that up to 8 threads cut alike, and sum up alike
    threads *= thread_bytes(kernel, R, int(lengths.max()), D // graphs.blocks)
    largest = max(captions)
    check_fits(image + largest + threads, limit, R, lengths.max())
    limit -= threads
    if I * image + sum(captions) <= limit:
        return [slice(0, I)], [slice(0, len(captions))]
    for_captions = min(max(limit / 2, largest), limit - image)
    return runs([image] * I, limit - for_captions), runs(captions, for_captions)


def item_bytes(kernel, graphs, nodes, D):
    """Of images or captions with so many nodes each: packed features, Gram matrices, edges and their gradients."""
    width, rows = kernel.blocks, nodes + kernel.panel - 1
    squares = nodes**2 if graphs.visual.propagation == "neighbors" else nodes
    floats = rows * width * (D // graphs.blocks + 1) + triangle(nodes) * width + squares * graph.KERNELS
    if torch.is_grad_enabled():
        floats = 2 * floats + nodes * D
    return 4 * (floats + 3 * triangle(nodes))  # links


def thread_bytes(kernel, R, n, dim):
    """What one thread takes (`memory` in csrc/forward.c and backward.c, `prepare`)."""
    R, n, width = R + 16, n + 16, kernel.blocks
    if torch.is_grad_enabled():
        floats = 3 * R * n * width + 6 * R * n + (R + n) * (5 * width + 4 * kernel.hidden)
    else:
        floats = R * n * width + 2 * R * n + (R + n) * (width + 2 * kernel.hidden)
    return 4 * max(floats, max(R, n) * width * dim)
