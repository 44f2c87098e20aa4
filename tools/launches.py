"""Kernels and bytes of GSMN's similarity, loss and backward pass on a GPU, counted on the CPU; needs no GPU.

    python tools/launches.py --batch_size 64 128
    python tools/launches.py --data_path DATA --data_name f30k_precomp      # lengths of real captions
    python tools/launches.py --batch_size 128 --evaluation                  # 128 images and 640 captions, no gradients

Random embeddings and weights go through the code that a GPU runs.  The last column is a model, not a measurement:
the longer of 4.5 us a kernel and the bytes at 2.5 TB/s.  docs/scaling.md.
"""

import contextlib
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import runtime.openmp  # noqa: F401, before torch

import torch

import graph
import model
from files.errors import InputError, reason, run
from modules import similarity
from runtime.commandline import Parser
from systems.options import defaults
from tools.measuring import random_data
from tools.measuring.counting import Counter

HEADER = f"{'batch':>6} {'':9} {'':6} {'launches':>9} {'(forward)':>10} {'GB':>7} {'MB/pair':>8} {'model, ms':>10}"


def options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--batch_size", nargs="+", default=[64], type=int, help="pairs in a batch")
    add("--regions", default=36, type=int, help="regions of an image")
    add("--embed_size", default=1024, type=int, help="width of the embeddings")
    add("--sim_memory", default=40000, type=float, metavar="MB", help="for the similarity: half of a card's, of 80 GB")
    add("--buckets", type=int, metavar="N", help="other than the default: lengths that captions are padded to")
    add("--evaluation", action="store_true", help="only similarities, without gradients, five captions an image")
    add("--propagation", nargs="+", default=["self", "neighbors"], help="what a node receives")
    add("--is_sparse", action="store_true", help="join words along (made-up) dependencies")
    add("--data_path", help="folder of data sets: take captions' lengths from a real split")
    add("--data_name", default="f30k_precomp", help="which data set")
    add("--split", default="train", help="which split")
    add("--top", default=0, type=int, metavar="N", help="also list the N operators that touch most bytes")
    return parser.parse_args(argv)


def caption_lengths(opt, count):
    """Lengths of `count` captions drawn from a split, seed 0; without --data_path made up."""
    if not opt.data_path:
        return random_data.caption_lengths(count)
    path = Path(opt.data_path) / opt.data_name / f"{opt.split}_precaps_stan.txt"
    try:
        lengths = [line.count(",") + 1 for line in path.read_text().splitlines() if line]
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}; --data_path names the folder that holds data sets") from None
    return np.random.default_rng(0).choice(lengths, count).tolist()


@contextlib.contextmanager
def as_on_a_gpu(buckets):
    """Inside, a CPU takes the ways of a GPU where the two differ."""
    weight_norm = partial(torch._weight_norm, dim=0)
    with (
        patch.object(similarity, "BUCKETS", buckets or similarity.BUCKETS),
        patch.dict(similarity.STEP_BUCKETS, cpu=buckets or similarity.STEP_BUCKETS["gpu"]),
        patch.object(graph, "weight_norm", weight_norm),
    ):
        yield


def count(opt, batch, propagation):
    """Counters of one training step: (similarity and loss, their backward pass), the latter empty for --evaluation."""
    torch.manual_seed(0)
    flags = {"vocab_size": 9, "lambda_softmax": 20.0, "max_violation": True, "kernel": "torch"}
    flags |= {name: getattr(opt, name) for name in ("embed_size", "sim_memory", "is_sparse")}
    net = model.GSMN(SimpleNamespace(**defaults("gsmn") | flags | {"propagation": propagation}))
    lengths = caption_lengths(opt, batch * (5 if opt.evaluation else 1))
    regions = model.l2norm(torch.randn(batch, opt.regions, opt.embed_size)).requires_grad_()
    words = model.l2norm(torch.randn(len(lengths), max(lengths), opt.embed_size)).requires_grad_()
    depends = [[[0, 0]] + [[word // 2, word] for word in range(1, n)] for n in lengths]
    forward, backward = Counter(), Counter()
    with as_on_a_gpu(opt.buckets), torch.set_grad_enabled(not opt.evaluation), forward:
        scores = net.forward_sim(regions, words, torch.rand(batch, opt.regions, 4), depends, lengths)
        loss = None if opt.evaluation else net.forward_loss(scores)
    with backward:
        if loss is not None:
            loss.backward()
    return forward, backward


def table(opt):
    print(HEADER)
    for batch in opt.batch_size:
        for propagation in opt.propagation:
            parts = count(opt, batch, propagation)
            total, pairs = Counter(), batch**2 * (5 if opt.evaluation else 1)
            total.launches, total.bytes = (sum(getattr(c, name) for c in parts) for name in ("launches", "bytes"))
            print(
                f"{batch:6} {propagation:9} {'sparse' if opt.is_sparse else 'dense':6} {total.launches:9,} "
                f"{parts[0].launches:10,} {total.bytes / 1e9:7.1f} {total.bytes / pairs / 1e6:8.2f} "
                f"{1e3 * total.seconds():10.1f}",
                flush=True,
            )
            for name, part in zip(("forward", "backward"), parts):
                for operator, times, size in part.most(opt.top):
                    print(f"    {name:9} {operator:40} {times:6,} {size / 1e9:8.2f} GB")


def main(argv=None):
    table(options(argv))


if __name__ == "__main__":
    run(main)
