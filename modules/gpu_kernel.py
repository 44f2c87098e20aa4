"""GSMN's scores of all pairs by one fused Triton kernel, on a GPU and without gradients: for evaluation.

One program computes both scores of one image and one caption from features, Gram matrices and edges; products of
regions and words never reach memory.  It has not run on a GPU yet: tests run it in Triton's interpreter, and Triton
compiles it for sm_80 and sm_90.  So it has to earn its place: at first use it is compared with graph.py on a small
problem and timed against it (`trial`); where it fails, differs or is slower, graph.py computes, and a warning says
so once.

Letters for shapes as in graph.py; RP, NP, BP, KP and HP are R, n, d, K and H, padded to powers of two that the
matrix units take.  Source: docs/method.md, section 7.
"""

import logging
import os
import time

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without it
    triton = None

LONGEST = 32  # words; longer captions go through graph.py: their tiles do not fit the registers
TOLERANCE = 2e-5  # largest difference of a score from graph.py's that passes as rounding


def padded_size(n):
    """The power of two, at least 16, that n nodes are padded to."""
    return max(16, 1 << (n - 1).bit_length())


if triton is not None:

    @triton.jit
    def tanh(x):
        """Without overflow, for any x."""
        e = tl.exp(-2 * tl.abs(x))
        return tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e)

    @triton.jit
    def block_product(v, t, r, w, k, R, n, D, d: tl.constexpr, BP: tl.constexpr, PRECISION: tl.constexpr):
        """Block k of regions at v (R, D) times words at t (n, D) -> (RP, NP)."""
        j = tl.arange(0, BP)
        x = tl.load(v + r[:, None] * D + k * d + j[None, :], (r < R)[:, None] & (j < d)[None, :], 0.0)
        y = tl.load(t + w[None, :] * D + k * d + j[:, None], (w < n)[None, :] & (j < d)[:, None], 0.0)
        return tl.dot(x, y, input_precision=PRECISION)

    @triton.jit
    def side_score(z, edges, params, nodes, N, stride, K: tl.constexpr, H: tl.constexpr, HP: tl.constexpr,
                   NEIGHBORS: tl.constexpr, PER_KERNEL: tl.constexpr, EDGES: tl.constexpr):  # fmt: skip
        """Mapped matching vectors z (padded nodes, HP) of one graph of N nodes -> the mean of its nodes' scores.

        edges of this graph, padded to `stride` nodes: (stride, 8), with NEIGHBORS (stride, stride) or, with
        PER_KERNEL, (8, stride, stride); without EDGES 1.  params: as `flat_params` gives them.
        """
        h, g = tl.arange(0, HP), tl.arange(0, HP)
        params += K * H
        if NEIGHBORS:
            inside = (nodes < N)[:, None] & (nodes < N)[None, :]
            at = nodes[:, None] * stride + nodes[None, :]
            if PER_KERNEL:
                mixed = tl.zeros_like(z)
                for kernel in range(8):
                    e = tl.load(edges + kernel * stride * stride + at, inside, 0.0)
                    own = (h // (H // 8) == kernel)[None, :]
                    mixed += tl.dot(e, tl.where(own, z, 0.0), input_precision="ieee")
                z = mixed
            else:
                z = tl.dot(tl.load(edges + at, inside, 0.0), z, input_precision="ieee")
        elif EDGES:
            here = (nodes < N)[:, None] & (h < H)[None, :]
            z *= tl.load(edges + nodes[:, None] * 8 + (h // (H // 8))[None, :], here, 0.0)
        z += tl.load(params + h, h < H, 0.0)[None, :]
        if NEIGHBORS:
            z = tanh(z)
        params += H
        weight = tl.load(params + g[None, :] * H + h[:, None], (g < H)[None, :] & (h < H)[:, None], 0.0)
        out = tl.dot(z, weight, input_precision="ieee") + tl.load(params + H * H + g, g < H, 0.0)[None, :]
        params += H * H + H
        last = tl.load(params + g, g < H, 0.0)[None, :]
        score = tl.sum(tanh(out) * last, 1)
        return tl.sum(tl.where(nodes < N, score, 0.0), 0) / N + tl.load(params + H)

    # sizes that differ from call to call: a program for each that is 1 or divisible by 16 would be compiled anew
    @triton.jit(do_not_specialize=["R", "longest", "C", "lengths", "word_edges"])
    def pair_kernel(
        regions, region_gram, region_edges, words, word_gram, word_edges, lengths, params_v, params_t,
        visual, textual, R, longest, C, smooth,
        D: tl.constexpr, K: tl.constexpr, H: tl.constexpr, d: tl.constexpr,
        RP: tl.constexpr, NP: tl.constexpr, BP: tl.constexpr, HP: tl.constexpr,
        NEIGHBORS: tl.constexpr, EDGES: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Scores of image program_id(1) and caption program_id(0) -> visual and textual, rows of C numbers.

        regions (I, R, D), words (C, longest, D) padded with zeros, Gram matrices (I, K, R, R), (C, K, longest,
        longest), lengths (C,).  Region edges (I, R, 8) or, with NEIGHBORS, (I, 8, R, R); word edges (C, longest, 8),
        read only with EDGES, or (C, longest, longest).
        """
        caption, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
        n = tl.load(lengths + caption)
        r, w, h = tl.arange(0, RP), tl.arange(0, NP), tl.arange(0, HP)
        is_region, is_word = (r < R)[:, None], (w < n)[None, :]
        regions += image * R * D
        words += caption * longest * D
        region_gram += image * K * R * R
        word_gram += caption * K * longest * longest

        affinity = tl.zeros((RP, NP), tl.float32)
        for k in range(K):
            affinity += block_product(regions, words, r, w, k, R, n, D, d, BP, PRECISION)
        affinity = tl.where(affinity > 0, affinity, 0.1 * affinity)
        norm = tl.sqrt(tl.sum(affinity * affinity, 0)) + 1e-8  # (NP,)
        logits = tl.where(is_word, affinity * (smooth / norm)[None, :], float("-inf"))
        to_words = tl.exp(logits - tl.max(logits, 1)[:, None])
        to_words /= tl.sum(to_words, 1)[:, None]  # (RP, NP): regions ask
        norm = tl.sqrt(tl.sum(affinity * affinity, 1)) + 1e-8  # (RP,)
        logits = tl.where(is_region, affinity * (smooth / norm)[:, None], float("-inf"))
        to_regions = tl.exp(logits - tl.max(logits, 0)[None, :])
        to_regions /= tl.sum(to_regions, 0)[None, :]  # (RP, NP): words ask

        z_v, z_t = tl.zeros((RP, HP), tl.float32), tl.zeros((NP, HP), tl.float32)
        for k in range(K):
            products = block_product(regions, words, r, w, k, R, n, D, d, BP, PRECISION)
            gram = word_gram + k * longest * longest
            g = tl.load(gram + w[:, None] * longest + w[None, :], (w < n)[:, None] & is_word, 0.0)
            form = tl.sum(tl.dot(to_words, g, input_precision=PRECISION) * to_words, 1)  # (RP,): α G α
            word_square = tl.load(gram + w * (longest + 1), w < n, 0.0)
            gram = region_gram + k * R * R
            region_square = tl.load(gram + r * (R + 1), r < R, 0.0)
            match = tl.sum(to_words * products, 1) / tl.sqrt(tl.maximum(form * region_square, 1e-16))
            z_v += match[:, None] * tl.load(params_v + k * H + h, h < H, 0.0)[None, :]
            g = tl.load(gram + r[:, None] * R + r[None, :], is_region & (r < R)[None, :], 0.0)
            form = tl.sum(tl.dot(g, to_regions, input_precision=PRECISION) * to_regions, 0)  # (NP,): β G β
            match = tl.sum(to_regions * products, 0) / tl.sqrt(tl.maximum(form * word_square, 1e-16))
            z_t += match[:, None] * tl.load(params_t + k * H + h, h < H, 0.0)[None, :]

        at = image * C + caption
        if NEIGHBORS:
            region_edges += image * 8 * R * R
            word_edges += caption * longest * longest
        else:
            region_edges += image * R * 8
            word_edges += caption * longest * 8
        score = side_score(z_v, region_edges, params_v, r, R, R, K, H, HP, NEIGHBORS, True, True)
        tl.store(visual + at, score)
        score = side_score(z_t, word_edges, params_t, w, n, longest, K, H, HP, NEIGHBORS, False, EDGES)
        tl.store(textual + at, score)


def flat_params(side):
    """The parameters of one side's structure level in a row: (K, H), (H), (H, H), (H), (H), (1)."""
    weight, bias = side.kernels().stacked()  # (H, K), (H) or None
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    parts = [weight.t(), bias, side.out_1.weight(), side.out_1.bias, side.out_2.weight(), side.out_2.bias]
    return torch.cat([part.flatten() for part in parts])


def available(device):
    """Whether Triton can run there: on a GPU, or anywhere in its interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")
    return triton is not None and (device.type == "cuda" or interpreted)


def groups(lengths):
    """Lengths in ascending order -> slices of captions that are padded to the same power of two."""
    sizes = [padded_size(n) for n in lengths]
    starts = [i for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(sizes)])]


def scores(graphs, regions, edges, words, word_edges, length, most):
    """Visual and textual scores (I, C) of all pairs, without gradients, of captions of one of the `groups`.

    graphs: similarity.Graphs; regions, words: graph.Nodes, words padded with zeros; edges and word_edges as
    graph.StructureMatching takes them; length (C,): words of each caption, at most `most`.
    """
    (I, R, D), (C, longest, _) = regions.features.shape, words.features.shape
    K, H = graphs.blocks, graphs.visual.out_1.weight_v.shape[0]
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    visual, textual = (regions.features.new_empty(I, C) for _ in range(2))  # each at an aligned address
    neighbors, has_edges = graphs.textual.propagation == "neighbors", word_edges is not None
    with torch.cuda.device_of(visual):  # Triton starts a kernel on the current device, wherever its arguments are
        pair_kernel[C, I](
            regions.features.contiguous(), regions.gram.contiguous(), edges.contiguous(),
            words.features.contiguous(), words.gram.contiguous(), (word_edges if has_edges else edges).contiguous(),
            length.contiguous(), flat_params(graphs.visual), flat_params(graphs.textual), visual, textual,
            R, longest, C, graphs.smooth, D, K, H, D // K,
            padded_size(R), padded_size(most), padded_size(D // K), padded_size(H),
            neighbors, has_edges, precision, num_warps=8,
        )  # fmt: skip
    return visual, textual


# ---- earning its place ----

TRIALS = {}  # sizes, precision and device of a kernel -> whether it is used


def trial(fused, reference):
    """Whether `fused` gives the scores that `reference` gives, and sooner; a warning says where not."""
    try:
        difference = max((a - b).abs().max().item() for a, b in zip(fused(), reference()))
        reason = f"differs from torch by {difference:.1g}"
        if difference <= TOLERANCE:
            times = best_time(fused), best_time(reference)
            reason = f"takes {1e3 * times[0]:.1f} ms for what torch does in {1e3 * times[1]:.1f} ms"
            if times[0] < times[1]:
                return True
    except Exception as error:  # a compiler fails in many ways; evaluation goes on without it
        reason = f"does not run: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    logging.warning("The Triton kernel %s; torch computes the similarity instead", reason)
    return False


def best_time(task, repeat=3):
    """Best time of some runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        for scores in task():
            scores.sum().item()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times)
