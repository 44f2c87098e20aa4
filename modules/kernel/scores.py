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

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

import graph
from modules import blocks
from modules.kernel import building

SLOTS = 8  # parts that images and captions are cut into for the gradients; more where there are more threads
LONG, POINTER = ctypes.c_int64, ctypes.c_void_p


def fields(kind, names):
    return [(name, kind) for name in names.split()]


class Side(ctypes.Structure):
    """This struct and the next two are those of csrc/pairs.h."""

    _fields_ = fields(LONG, "count") + fields(
        POINTER, "length first packed gram edge features data grams norms edges params boxes kernels links"
    )


class Grad(ctypes.Structure):
    _fields_ = fields(POINTER, "data grams edges params features kernels")


class Job(ctypes.Structure):
    _fields_ = (
        [("sides", Side * 2), ("grads", Grad * 2)]
        + fields(LONG, "R n dim neighbors")
        + fields(ctypes.c_double, "smooth")
        + fields(POINTER * 2, "scores d_scores")
        + fields(LONG, "slots")
        + fields(POINTER, "memory")
        + fields(LONG, "room threads next done")
    )


class Kernel:
    """The loaded library and its constants: rows of a panel of regions, widths padded to whole vectors."""

    def __init__(self, library):
        self.library = library
        self.library.room.restype = LONG
        constants = (LONG * 3)()
        library.constants(constants)
        self.panel, self.blocks, self.hidden = constants

    def room(self, job, gradients):
        """Bytes of memory that a thread needs for a job, of which R, n and dim are set."""
        return self.library.room(ctypes.byref(job), gradients)

    def run(self, stage, job, gradients=False):
        """Runs one stage on as many threads as torch's; each takes the next piece of work until none is left."""
        threads = torch.get_num_threads()
        job.room, job.threads, job.next, job.done = self.room(job, gradients), 0, 0, 0
        memory = torch.empty(threads, job.room, dtype=torch.uint8)
        job.memory = memory.data_ptr()
        list(pool(os.getpid(), threads).map(getattr(self.library, stage), [ctypes.byref(job)] * threads))


@functools.lru_cache(maxsize=1)
def pool(process, threads):
    """Threads of this process: a forked one cannot use its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="pairs")


@functools.cache
def load(blocks, hidden):
    """The kernel for these numbers of blocks and hidden units, or None where it cannot be compiled."""
    library = building.library(blocks, hidden)
    return library and Kernel(library)


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


def stacked_params(match, k):
    """The structure-level parameters of one graph in a row, hidden unit c of kernel j at 8 c + j, padded."""
    weight, bias = match.convolution().stacked()  # (H, K), (H) or None
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


def kernel_table(match):
    """The visual graph's kernels (4, 8): mean and -1 / (2 variance) of rho, of theta."""
    conv = match.graph_convolution_1
    rho, theta = (-0.5 / (1e-14 + x.square()) for x in (conv.precision_rho, conv.precision_theta))
    return torch.cat([conv.mean_rho, rho, conv.mean_theta, theta], 1).t()


class Plan(NamedTuple):
    """The arguments without gradients: captions' lengths (C,), int64, and their adjacency (C, n, n), None if dense.

    keep: whether the packed features stay in memory for the backward pass, which else packs them again.
    """

    kernel: Kernel
    blocks: int
    smooth: float
    neighbors: bool
    length: torch.Tensor
    links: torch.Tensor | None
    keep: bool


def triangle(n):
    """Entries (i, j), i <= j < n, of a Gram matrix, row by row."""
    return n * (n + 1) // 2


def side(plan, length, features, params, panel, **more):
    """One side's tensors by their names in csrc/pairs.h; features (rows, D), one item's after the other's."""
    width, dim = plan.kernel.blocks, features.shape[1] // plan.blocks
    edges = length * length if plan.neighbors else length
    counts = {"first": length, "packed": -(-length // panel) * panel, "gram": triangle(length), "edge": edges}
    ends = {name: F.pad(count.cumsum(0), (1, 0)) for name, count in counts.items()}
    rows, entries, edges = (int(ends[name][-1]) for name in ("packed", "gram", "edge"))
    shapes = {"data": (rows, width * dim), "norms": (rows, width), "grams": (entries, width)}
    tensors = Scratch({**shapes, "edges": (edges, graph.KERNELS)})
    tensors.update(length=length, features=features.contiguous(), params=params, **ends, **more)
    return tensors


def addresses(tensors):
    return {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}


def prepared(plan, regions, boxes, words, table, *params):
    """Both sides packed, with their Gram matrices and edges -> (the Job, the tensors of images and of captions)."""
    I, R, _ = regions.shape
    boxes, table = boxes.contiguous(), table.contiguous()
    images = side(
        plan, torch.full((I,), R), regions.flatten(0, 1), params[0], plan.kernel.panel, boxes=boxes, kernels=table
    )
    captions = side(plan, plan.length, words, params[1], 1, links=plan.links)
    sides = tuple(Side(count=len(one["length"]), **addresses(one)) for one in (images, captions))
    sizes = {"R": R, "n": int(plan.length.max()), "dim": regions.shape[2] // plan.blocks}
    job = Job(sides=sides, **sizes, neighbors=plan.neighbors, smooth=plan.smooth)
    plan.kernel.run("prepare", job)
    return job, images, captions


def gradients(side, slots):
    grad = Scratch({name: side[name].shape for name in ("data", "grams", "edges")})
    for tensor in grad.values():
        tensor.zero_()
    params = side["params"].new_zeros(slots, len(side["params"]))
    grad.update(params=params, features=torch.empty_like(side["features"]))
    return grad


class PairScores(torch.autograd.Function):
    """Scores (2, I, C) of both graphs: regions (I, R, D), boxes (I, R, 4), words (rows, D), table, parameters."""

    @staticmethod
    def forward(ctx, plan, *inputs):
        scores = inputs[0].new_empty(2, len(inputs[0]), len(plan.length))
        job, *sides = prepared(plan, *inputs)
        job.scores[:] = [one.data_ptr() for one in scores]
        plan.kernel.run("forward", job)
        ctx.save_for_backward(*inputs)
        ctx.plan, ctx.kept = plan, (job, *sides) if plan.keep else None
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, d_scores):
        d_scores, regions = d_scores.contiguous(), ctx.saved_tensors[0]
        job, *sides = ctx.kept or prepared(ctx.plan, *ctx.saved_tensors)
        job.slots = min(max(SLOTS, 2 * torch.get_num_threads()), *d_scores.shape[1:])
        job.d_scores[:] = [one.data_ptr() for one in d_scores]
        d_images, d_captions = grads = [gradients(side, job.slots) for side in sides]
        d_images["kernels"] = regions.new_empty(len(regions), 4, graph.KERNELS)
        job.grads[:] = [Grad(**addresses(grad)) for grad in grads]
        for stage in ("backward", "finish"):
            ctx.plan.kernel.run(stage, job, gradients=True)
        d_params = [grad["params"].sum(0) for grad in grads]
        features = d_images["features"].view_as(regions), None, d_captions["features"]
        return None, *features, d_images["kernels"].sum(0), *d_params


def all_pairs(kernel, model, images, captions, limit):
    """Visual and textual scores (2, I, C) of two sides, with boxes; limit in bytes."""
    score, again = (functools.partial(block_scores, kernel, model, keep) for keep in (True, False))
    return blocks.all_pairs(score, functools.partial(sizes, kernel, model), images, captions, limit, again)


def block_scores(kernel, model, keep, images, words, depends, lengths, parts):
    """Both scores (2, I, C) of a block, as modules/blocks.py asks for them; keep: as in Plan."""
    visual, textual = model.i2t_match_G, model.t2i_match_G
    links = None if depends is None else graph.adjacency(depends, lengths)
    neighbors, length = visual.propagation == "neighbors", torch.from_numpy(lengths)
    plan = Plan(kernel, model.blocks, model.smooth, neighbors, length, links, keep)
    params = [stacked_params(match, kernel) for match in (visual, textual)]
    scores = PairScores.apply(plan, images.emb, images.boxes, words, kernel_table(visual), *params)
    return scores + torch.stack([visual.out_2.bias, textual.out_2.bias]).unsqueeze(2)


def sizes(kernel, model, R, lengths, D, gradients):
    """Bytes of a block's threads, of one image of R regions, of each caption, and of one of their pairs."""
    dim, copies = D // model.blocks, 1 + gradients

    def floats(nodes):
        squares = nodes**2 if model.i2t_match_G.propagation == "neighbors" else nodes
        rows = -(-nodes // kernel.panel) * kernel.panel
        return kernel.blocks * (rows * (dim + 1) + triangle(nodes)) + squares * graph.KERNELS

    threads = max(SLOTS, torch.get_num_threads())  # so that up to 8 threads cut alike, and sum up alike
    threads *= kernel.room(Job(R=R, n=int(lengths.max()), dim=dim), gradients)
    image = copies * floats(R) + gradients * R * D
    caption = copies * floats(lengths) + copies * lengths * D + lengths**2
    return threads, 4 * image, 4 * caption, 16 * copies
