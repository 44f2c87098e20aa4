"""GSMN's scores of all pairs by compiled C (csrc/), on a CPU: graph.py's numbers, several times faster.

The kernel is compiled by the system's C compiler when it is first needed and kept in a cache folder, under a
name that depends on the source, the sizes and the processor: $GSMN_CACHE, or gsmn/ in $XDG_CACHE_HOME or
~/.cache.  Without a working compiler (one warning), and with GSMN_NATIVE=0, `kernel` returns None and the caller
uses graph.py.  docs/performance.md has the measurements.

Letters for shapes as in graph.py.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import subprocess
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

import graph

SOURCE = Path(__file__).resolve().parent / "csrc"
SOURCES = ("pairs.h", "edges.c", "structure.c", "forward.c", "backward.c")
COMPILER_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-w"]
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


# ---- compiling ----


def cache_folder():
    if os.environ.get("GSMN_CACHE"):
        return Path(os.environ["GSMN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gsmn"


def compiled(blocks, hidden):
    """Path of the shared library for these sizes, compiled now if it is not in the cache."""
    compiler = os.environ.get("CC", "cc")
    run = functools.partial(subprocess.run, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    # the predefined macros name the compiler's version and what -march=native means on this machine
    target = run([compiler, "-march=native", "-dM", "-E", "-xc", os.devnull]).stdout
    source = [SOURCE / name for name in SOURCES]
    command = [compiler, *COMPILER_FLAGS, f"-DK={blocks}", f"-DH={hidden}"]
    key = [target, *(path.read_bytes() for path in source), " ".join([platform.machine(), *command]).encode()]
    library = cache_folder() / f"pairs-{hashlib.sha256(b'|'.join(key)).hexdigest()[:20]}.so"
    if not library.exists():
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            fresh = Path(folder) / library.name
            run([*command, *map(str, source[1:]), "-o", str(fresh), "-lm"])
            os.replace(fresh, library)
    return library


class Kernel:
    """The loaded library and its constants: rows of a panel of regions, widths padded to whole vectors."""

    def __init__(self, blocks, hidden):
        self.library = ctypes.CDLL(str(compiled(blocks, hidden)))
        constants = (LONG * 4)()
        self.library.constants(constants)
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
def kernel(blocks, hidden):
    """The kernel for these numbers of blocks and hidden units, or None where it cannot be compiled."""
    if os.environ.get("GSMN_NATIVE") == "0":
        return None
    try:
        return Kernel(blocks, hidden)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        reason = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace").split("\n")[0]
        logging.warning("The similarity kernel cannot be compiled (%s); torch computes the same, slower", reason)
        return None


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


def links(depends, length):
    """graph.adjacency of captions of any lengths, triangle after triangle (entries,); None for the dense graph."""
    if depends is None:
        return None
    first, entries = begins(triangle(length))
    adjacency = torch.zeros(entries, dtype=torch.float32)
    caption, governor, dependent = graph.dependency_edges(depends, length)
    adjacency[entry(first, length, caption, governor, dependent)] = 1
    caption = torch.arange(len(length)).repeat_interleave(length)
    word = torch.arange(len(caption)) - begins(length)[0][caption]
    adjacency[entry(first, length, caption, word, word)] += 1
    return adjacency


def entry(first, length, caption, i, j):
    """Where (i, j) of a caption's triangle stands; its row i starts with (i, i)."""
    i, j = torch.minimum(i, j), torch.maximum(i, j)
    return first[caption] + i * length[caption] - i * (i + 1) // 2 + j


# ---- the scores ----


class Plan(NamedTuple):
    """The arguments without gradients: sizes, captions' lengths and first rows (C,), int64, and their `links`."""

    kernel: Kernel
    blocks: int
    smooth: float
    neighbors: bool
    length: torch.Tensor
    first: torch.Tensor
    links: torch.Tensor | None


SPARE_MEMORY = []  # blocks that a deleted Scratch returned


class Scratch(dict):
    """Tensors of the given shapes, in memory that later calls reuse: the system needs time for new pages."""

    def __init__(self, shapes):
        sizes = {name: -(-math.prod(shape) // 16) * 16 for name, shape in shapes.items()}  # whole vectors
        total, memory = sum(sizes.values()), torch.empty(0)
        with contextlib.suppress(IndexError):
            memory = SPARE_MEMORY.pop()
        if len(memory) < total:
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


class PairScores(torch.autograd.Function):
    """Scores (I, C) of both graphs: regions (I, R, D), boxes (I, R, 4), words (rows, D), parameters as above."""

    @staticmethod
    def forward(ctx, plan, regions, boxes, words, table, params_v, params_t):
        (I, R, _), C, dim = regions.shape, len(plan.length), regions.shape[2] // plan.blocks
        boxes, table = boxes.detach().contiguous(), aligned(table)
        images = side(
            plan, dim, torch.full((I,), R), torch.arange(I) * R, regions.flatten(0, 1), params_v, plan.kernel.panel,
            boxes=boxes, kernels=table,
        )  # fmt: skip
        captions = side(plan, dim, plan.length, plan.first, words, params_t, 1, links=plan.links)
        visual, textual = regions.new_empty(2, I, C)
        job = Job(
            images=Side(count=I, **addresses(images)), captions=Side(count=C, **addresses(captions)),
            dim=dim, neighbors=plan.neighbors, smooth=plan.smooth,
            visual=visual.data_ptr(), textual=textual.data_ptr(), tile_images=TILE[0], tile_captions=TILE[1],
        )  # fmt: skip
        plan.kernel.run("prepare", job)
        plan.kernel.run("forward", job)
        ctx.kernel, ctx.job, ctx.sides, ctx.shape = plan.kernel, job, (images, captions), regions.shape
        return visual, textual

    @staticmethod
    @once_differentiable
    def backward(ctx, d_visual, d_textual):
        d_visual, d_textual = d_visual.contiguous(), d_textual.contiguous()
        job, slots = ctx.job, min(max(SLOTS, 2 * torch.get_num_threads()), *d_visual.shape)
        images, captions = ctx.sides
        d_images = gradients(images, slots, True, kernels=d_visual.new_empty(len(d_visual), *images["kernels"].shape))
        d_captions = gradients(captions, slots, int(captions["length"].sum()) == len(captions["features"]))
        job.d_images, job.d_captions = Grad(**addresses(d_images)), Grad(**addresses(d_captions))
        job.d_visual, job.d_textual, job.slots = d_visual.data_ptr(), d_textual.data_ptr(), slots
        for stage in ("clear", "backward", "finish"):
            ctx.kernel.run(stage, job)
        d_table = d_images["kernels"].sum(0)
        d_table[:, graph.KERNELS :] = 0  # the repeated kernels' share is in the first 8 already
        features = d_images["features"].view(ctx.shape), None, d_captions["features"]
        return None, *features, d_table, d_images["params"].sum(0), d_captions["params"].sum(0)
