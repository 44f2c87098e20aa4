"""Compares the kinds of index on synthetic vectors: time to build, size, latency, recall of the true neighbours.

`tools/evaluate_cascade.py --synthetic` runs it.
"""

import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.searching.faiss_index import (
    INDEX_KINDS,
    TRAINING,
    VECTORS_ADDED,
    empty_index,
    nearest,
    set_breadth,
    write_index,
)

BREADTHS = {"exact": [None], "ivf": [16, 64, 256], "hnsw": [32, 64, 128, 256]}
LATENT = 32  # rank of the vectors: embeddings, too, fill fewer dimensions than they have numbers
NOISE = 0.5  # added to a vector to make a question of it, in standard deviations of the vectors
QUESTIONS, TIMED_QUESTIONS = 1000, 200
K = 100  # neighbours asked for


def block(number, width, n=VECTORS_ADDED):
    """Block `number` of the vectors (n, width), of length 1: always the same ones."""
    return unit_rows(latent(number, n) @ axes(width))


def latent(number, n=VECTORS_ADDED):
    return np.random.default_rng([1, number]).standard_normal((n, LATENT), np.float32)


def axes(width):
    return np.random.default_rng(0).standard_normal((LATENT, width), np.float32)


def unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def questions(width):
    """Vectors (Q, width) near the first ones of block 0."""
    noise = np.random.default_rng(2).standard_normal((QUESTIONS, LATENT), np.float32)
    return unit_rows((latent(0)[:QUESTIONS] + NOISE * noise) @ axes(width))


def blocks(n, width):
    for number, start in enumerate(range(0, n, VECTORS_ADDED)):
        yield block(number, width)[: n - start]


def timed_build(kind, n, width):
    """An index of n vectors, and the seconds that training and adding took, not making the vectors."""
    index, seconds = empty_index(kind, width, n), 0.0
    if not index.is_trained:
        count = -(-min(n, index.nlist * TRAINING) // VECTORS_ADDED)
        sample = np.concatenate(list(islice(blocks(n, width), count)))
        seconds += seconds_of(index.train, sample)
    for part in tqdm(blocks(n, width), kind, -(-n // VECTORS_ADDED), disable=None, leave=False):
        seconds += seconds_of(index.add, part)
    return index, seconds


def seconds_of(call, *arguments):
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


READER = """
import sys, faiss
def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])
before = resident()
index = faiss.read_index(sys.argv[1])
print(resident() - before)
"""


def memory_of(path):
    """Bytes of memory that a fresh process takes to read an index file; 0 where the system does not tell."""
    done = subprocess.run([sys.executable, "-c", READER, str(path)], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else 0


def compare_kinds(n, width, kinds=INDEX_KINDS, folder=None):
    """Rows of figures, one for each kind and breadth: dicts of numbers; printed as they come.  'exact' comes first."""
    asked, truth, rows = questions(width), None, []
    print(
        f"{n} vectors of {width} numbers, {LATENT} dimensions; {K} neighbours a question\n"
        f"{'kind':>6} {'breadth':>8} {'build s':>8} {'disk GB':>8} {'memory GB':>9} {'ms':>8} {'ms 95 %':>8} "
        f"{'of 10':>7} {'of 100':>7}"
    )
    for kind in kinds:
        index, seconds = timed_build(kind, n, width)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            write_index(Path(place) / "index", index, {})
            disk, memory = (Path(place) / "index").stat().st_size, memory_of(Path(place) / "index")
        for breadth in BREADTHS[kind]:
            set_breadth(index, breadth)
            found = nearest(index, asked, K)[0]
            truth = found if kind == "exact" else truth
            times = [1000 * seconds_of(nearest, index, one[None], K) for one in asked[:TIMED_QUESTIONS]]
            rows.append({
                "kind": kind, "breadth": breadth, "build_s": seconds, "disk": disk, "memory": memory,
                "ms": float(np.median(times)), "ms95": float(np.quantile(times, 0.95)),
                "of10": neighbours_found(truth, found, 10), "of100": neighbours_found(truth, found, K),
            })  # fmt: skip
            row = rows[-1]
            print(
                f"{kind:>6} {breadth or '':>8} {seconds:8.1f} {disk / 1e9:8.3f} {memory / 1e9:9.3f} "
                f"{row['ms']:8.2f} {row['ms95']:8.2f} {row['of10']:7.1%} {row['of100']:7.1%}",
                flush=True,
            )
        del index
    return rows


def neighbours_found(truth, found, k):
    """Of the k nearest vectors, the part that an index gives among its first k."""
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(truth[:, :k], found[:, :k])]))
