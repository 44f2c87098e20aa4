"""GSMN's scores of all pairs by compiled C (csrc/), on a CPU: graph.py's numbers, several times faster.

The kernel is compiled by the system's C compiler when it is first needed and kept in a cache folder, under a
name that depends on the source, the sizes and the processor: $GSMN_CACHE, or gsmn/ in $XDG_CACHE_HOME or
~/.cache.  Where there is no compiler or it fails (said once), and with GSMN_NATIVE=0, `kernel` returns None and
the caller uses graph.py.  What was measured stands in docs/performance.md.

Letters for shapes as in graph.py.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).resolve().parent / "csrc"
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-w"]
SLOTS = 8  # parts that images and captions are cut into for the gradients; more where there are more threads
TILE = 4, 8  # images and captions a thread takes at once: their features fit its cache
LONG, POINTER = ctypes.c_int64, ctypes.c_void_p


# ---- csrc/pairs.h ----


def fields(kind, names):
    return [(name, kind) for name in names.split()]


class Side(ctypes.Structure):
    _fields_ = fields(LONG, "count") + fields(
        POINTER, "length first packed gram edge features data grams norms edges params"
    )


class Grad(ctypes.Structure):
    _fields_ = fields(POINTER, "data grams edges params features")


class Job(ctypes.Structure):
    _fields_ = (
        [("images", Side), ("captions", Side), ("d_images", Grad), ("d_captions", Grad)]
        + fields(LONG, "dim neighbors")
        + fields(ctypes.c_double, "smooth")
        + fields(POINTER, "visual textual d_visual d_textual")
        + fields(LONG, "tile_images tile_captions slots next done")
    )


class Edges(ctypes.Structure):
    _fields_ = fields(LONG, "count regions neighbors") + fields(POINTER, "boxes kernels rows d_rows d_kernels")
    _fields_ += fields(LONG, "next done")


# ---- compiling ----


def cache_folder():
    if os.environ.get("GSMN_CACHE"):
        return Path(os.environ["GSMN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gsmn"


def compiled(blocks, hidden):
    """Path of the shared library for these sizes, compiled now if it is not in the cache."""
    compiler = os.environ.get("CC", "cc")
    run = functools.partial(subprocess.run, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    # the compiler's own macros tell its version and what -march=native means on this machine
    target = run([compiler, "-march=native", "-dM", "-E", "-xc", os.devnull]).stdout
    source = [SOURCE / name for name in ("pairs.h", "structure.c", "forward.c", "backward.c")]
    command = [compiler, *FLAGS, f"-DK={blocks}", f"-DH={hidden}"]
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
        self.panel, self.blocks, self.edge, self.hidden = constants

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


# ---- parameters and edges as the kernel takes them (differentiable) ----


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


def edge_rows(edges, k):
    """(rows, 8) -> the 8 kernels repeated until they fill a vector."""
    return edges.repeat(1, k.edge // edges.shape[1])


def visual_edges(match, boxes, k):
    """VisualGraph.edges of boxes (I, R, 4) as edge_rows: (I·R, E), or (I·R·R, E) for neighbors."""
    conv = match.graph_convolution_1
    table = [
        conv.mean_rho, -0.5 / (1e-14 + conv.precision_rho.square()),
        conv.mean_theta, -0.5 / (1e-14 + conv.precision_theta.square()),
    ]  # fmt: skip
    table = torch.cat(table, 1).t()  # (4, 8)
    return VisualEdges.apply(k, match.propagation == "neighbors", boxes, edge_rows(table, k))


class VisualEdges(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, neighbors, boxes, table):
        I, R, _ = boxes.shape
        boxes, table = boxes.detach().contiguous(), aligned(table)
        rows = boxes.new_empty(I * R * (R if neighbors else 1), k.edge)
        ctx.kernel, ctx.tensors = k, (boxes, table)
        ctx.job = Edges(I, R, neighbors, boxes.data_ptr(), table.data_ptr(), rows.data_ptr())
        k.run("edges", ctx.job)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx, d_rows):
        d_rows, table = aligned(d_rows), ctx.tensors[1]
        d_table = table.new_empty(ctx.job.count, *table.shape)
        ctx.job.d_rows, ctx.job.d_kernels = d_rows.data_ptr(), d_table.data_ptr()
        ctx.kernel.run("edges_back", ctx.job)
        d_table = d_table.sum(0)
        d_table[:, 8:] = 0  # the repeated kernels' share is in the first 8 already
        return None, None, None, d_table


# ---- the scores ----


class Plan(NamedTuple):
    """What is no tensor of the graph: sizes, and where a caption's rows begin (C,), int64."""

    kernel: Kernel
    blocks: int
    smooth: float
    neighbors: bool
    length: torch.Tensor
    first: torch.Tensor
    edge: torch.Tensor


def begins(sizes):
    """Where each of consecutive pieces begins, and where the last one ends."""
    ends = F.pad(sizes.cumsum(0), (1, 0))
    return ends[:-1].contiguous(), int(ends[-1])


def aligned(x):
    """Contiguous and at an address that the kernel's vectors can be loaded from."""
    x = x.detach().contiguous()
    return x.clone() if x.data_ptr() % 64 else x


def packed(plan, dim, length, first, edge, features, edges, params, panel):
    """One side's tensors by their names in csrc/pairs.h; features (rows, D), an item's rows together."""
    at, rows = begins((length + panel - 1) // panel * panel)
    gram, entries = begins(length * (length + 1) // 2)
    width = plan.kernel.blocks
    new = features.new_empty
    return {
        "length": length, "first": first, "packed": at, "gram": gram, "edge": edge,
        "features": features.detach().contiguous(), "edges": aligned(edges), "params": aligned(params),
        "data": new(rows, width * dim), "norms": new(rows, width), "grams": new(entries, width),
    }  # fmt: skip


def addresses(tensors):
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def gradients(side, slots, whole):
    """whole: every row of the features is some item's node."""
    grad = {name: torch.empty_like(side[name]) for name in ("data", "grams", "edges", "features")}
    if not whole:
        grad["features"].zero_()
    return grad | {"params": side["params"].new_zeros(slots, len(side["params"]))}


class PairScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, regions, words, edges_v, edges_t, params_v, params_t):
        I, R, D = regions.shape
        dim, number = D // plan.blocks, torch.arange(I)
        images = (torch.full((I,), R), number * R, number * (R * R if plan.neighbors else R))
        images = packed(plan, dim, *images, regions.flatten(0, 1), edges_v, params_v, plan.kernel.panel)
        captions = (plan.length, plan.first, plan.edge)
        captions = packed(plan, dim, *captions, words, edges_t, params_t, 1)
        visual, textual = regions.new_empty(2, I, len(plan.length))
        job = Job(
            images=Side(count=I, **addresses(images)),
            captions=Side(count=len(plan.length), **addresses(captions)),
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
        d_images = gradients(images, slots, whole=True)
        d_captions = gradients(captions, slots, whole=int(captions["length"].sum()) == len(captions["features"]))
        job.d_images, job.d_captions = Grad(**addresses(d_images)), Grad(**addresses(d_captions))
        job.d_visual, job.d_textual, job.slots = d_visual.data_ptr(), d_textual.data_ptr(), slots
        ctx.kernel.run("clear", job)
        ctx.kernel.run("backward", job)
        ctx.kernel.run("finish", job)
        both = (d_images, d_captions)
        return (
            None,
            d_images["features"].view(ctx.shape),
            d_captions["features"],
            *(grad["edges"] for grad in both),
            *(grad["params"].sum(0) for grad in both),
        )
