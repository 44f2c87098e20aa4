"""Measure what a shortlist loses in recall and saves in time: VSRN finds the nearest K, GSMN orders them.

    python tools/evaluate_cascade.py --model_path VSRN.pth.tar --rerank GSMN.pth.tar --split test
    python tools/evaluate_cascade.py --synthetic 1000000 --width 512

The first command prints, for each K: the recalls of both directions, the percentage of queries whose answer is in the
shortlist, and the time of a sentence, with GSMN's embeddings of the images stored and with the K images encoded anew.
The last row is GSMN over all pairs.  The second command compares the kinds of index on synthetic vectors.  Both write
their figures as JSON (--json), the first also as a picture (--out, needs matplotlib).
"""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import torch

import data
import evaluation
from checkpoints.evaluation_options import add_override_flags, overrides_of
from files.errors import InputError
from files.writing import atomic_write, check_writable
from reporting.explanation import Sentence
from reporting.figures import matplotlib_figure, need_matplotlib, save_figure
from runtime.commandline import Parser, whole
from tools.searching import faiss_index, index_benchmark
from tools.searching.collection import need_gsmn, need_vectors
from tools.searching.ranking import rerank

SHORTLISTS = [5, 10, 20, 50, 100, 200, 500, 1000]
TIMED_SENTENCES, SECONDS = 20, 5.0  # for each K: sentences timed at most, and seconds that all of them may take
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}


class EncodedSplit(NamedTuple):
    """A model and its embeddings of the split."""

    model: object
    dataset: data.PrecompDataset
    encoded: evaluation.Encoded


# ---- recalls


def ranks_at(scores, answers, near, k):
    """Ranks from 0 within shortlists of k candidates; a query without an answer in its shortlist ranks behind all.

    scores (Q, C); answers (Q, n): each query's true candidates; near (Q, at least k): candidates, nearest first, -1
    for none.  With k of C or more all candidates are in the shortlist: the ranks are those of evaluation.t2i and i2t.
    """
    n_candidates = scores.shape[1]
    ranks = np.full(len(scores), n_candidates)
    for q, row in enumerate(scores):
        short = np.arange(n_candidates) if k >= n_candidates else near[q, :k]
        true = answers[q][np.isin(answers[q], short)]
        if len(true):
            best = row[true].max()
            ranks[q] = np.count_nonzero(row[short[short >= 0]] >= best) - np.count_nonzero(row[true] >= best)
    return ranks


def cascade_recalls(sims, images, captions, kind="exact"):
    """Recalls against K -> rows {"k", "t2i": {...}, "i2t": {...}}.

    sims (N, 5N): GSMN's similarities; images (N, D), captions (5N, D): VSRN's vectors.  The first row, k 0, is
    VSRN's order; the last, None, is GSMN's over all pairs.
    """
    n, per = len(images), len(captions) // len(images)
    sizes = [k for k in SHORTLISTS if k < n]
    ways = {
        "t2i": (np.ascontiguousarray(sims.T), np.arange(n * per)[:, None] // per, captions, images),
        "i2t": (sims, np.arange(n * per).reshape(n, per), images, captions),
    }  # queries' scores, their true candidates, their vectors, the candidates' vectors
    rows = [{"k": k} for k in [0, *sizes, None]]
    for way, (scores, answers, queries, candidates) in ways.items():
        near = faiss_index.nearest(faiss_index.build_index(candidates, kind), queries, max(sizes, default=1))[0]
        for row in tqdm(rows, desc=DIRECTIONS[way], disable=None, leave=False):
            k = row["k"]
            if k == 0:
                row[way] = shortlist_recalls(
                    ranks_at(queries @ candidates.T, answers, None, len(candidates)), len(candidates)
                )
            else:
                row[way] = shortlist_recalls(ranks_at(scores, answers, near, k or len(candidates)), len(candidates))
    return rows


def shortlist_recalls(ranks, n_candidates):
    """R@1, R@5, R@10 in percent, and the percentage of queries that have an answer in the shortlist."""
    r1, r5, r10, *_ = evaluation.recalls(ranks)
    return {"r1": r1, "r5": r5, "r10": r10, "in_shortlist": 100 * float(np.mean(ranks < n_candidates))}


# ---- time


def time_sentences(vsrn, gsmn, built, k, stored):
    """Median milliseconds from a sentence's ids to GSMN's order of the nearest k images, or of all images (k None).

    built: faiss index of VSRN's images; stored: GSMN's embeddings of all images, or None to encode the k.
    """
    times, start = [], time.perf_counter()
    captions = np.linspace(0, len(gsmn.dataset) - 1, TIMED_SENTENCES).astype(int).tolist()
    for c in captions:
        times.append(index_benchmark.seconds_of(ask, vsrn, gsmn, built, k, stored, c))
        if time.perf_counter() - start > SECONDS:
            break
    return 1000 * float(np.median(times))


@torch.no_grad()
def ask(vsrn, gsmn, built, k, stored, c):
    """Caption c as a sentence of the search -> (numbers, scores) of the images it is compared with, best first."""
    if k is None:
        numbers = np.arange(gsmn.dataset.n_images)
    else:
        ids = torch.tensor([vsrn.dataset.tokens[c]])
        vector = vsrn.model.encode_captions(ids, [ids.shape[1]]).cpu().numpy()
        numbers, _ = faiss_index.shortlist(built, vector, k)
    pairs = None if gsmn.dataset.depends is None else gsmn.dataset.depends[c]
    return rerank(gsmn.model, gsmn.dataset, Sentence([], gsmn.dataset.tokens[c], pairs), numbers, None, stored)


def add_times(rows, vsrn, gsmn, kind):
    built = faiss_index.build_index(vsrn.encoded.img_embs.numpy(), kind)
    stored = gsmn.encoded.img_embs.numpy()
    for row in tqdm(rows[1:], desc="time", disable=None, leave=False):
        row["ms"] = time_sentences(vsrn, gsmn, built, row["k"], stored)
        row["ms_encoding"] = time_sentences(vsrn, gsmn, built, row["k"], None)


# ---- what is shown


def print_table(rows):
    print(f"{'':>6}  " + "  ".join(f"{title:^27}" for title in DIRECTIONS.values()) + "  milliseconds a sentence")
    print(f"{'K':>6}  " + "  ".join(["   R@1    R@5   R@10   in K"] * 2) + "    stored  encoded")
    for row in rows:
        name = {0: "VSRN", None: "all"}.get(row["k"], row["k"])
        figures = "  ".join(
            "{r1:6.1f} {r5:6.1f} {r10:6.1f} {in_shortlist:6.1f}".format(**row[way]) for way in DIRECTIONS
        )
        times = f"  {row['ms']:10.1f}  {row['ms_encoding']:8.1f}" if "ms" in row else ""
        print(f"{name:>6}  {figures}{times}")


def draw_cascade(rows):
    """Recalls of both directions against K, and R@1 text to image against time; dashed: GSMN over all pairs."""
    figure = matplotlib_figure((12, 3.6))
    inner = rows[1:-1]
    for place, way in enumerate(DIRECTIONS, start=1):
        axes = figure.add_subplot(1, 3, place, xscale="log", xlabel="shortlist K", ylabel="recall in %")
        for color, name in enumerate(("r1", "r5", "r10")):
            axes.plot(
                [r["k"] for r in inner],
                [r[way][name] for r in inner],
                "o-",
                color=f"C{color}",
                markersize=3,
                label=f"R@{name[1:]}",
            )
            axes.axhline(rows[-1][way][name], color=f"C{color}", linestyle="--", linewidth=1)
        axes.set_title(DIRECTIONS[way], fontsize=10, loc="left")
        axes.legend(frameon=False)
    axes = figure.add_subplot(1, 3, 3, xscale="log", xlabel="milliseconds a sentence", ylabel="R@1 in %")
    for style, name, label in (("o-", "ms", "embeddings stored"), ("s--", "ms_encoding", "images encoded")):
        axes.plot([r[name] for r in rows[1:]], [r["t2i"]["r1"] for r in rows[1:]], style, markersize=3, label=label)
    for row in rows[1:]:  # a label for each point: its K
        axes.annotate(
            row["k"] or "all", (row["ms"], row["t2i"]["r1"]), fontsize=7, xytext=(2, 3), textcoords="offset points"
        )
    axes.set_title("text to image", fontsize=10, loc="left")
    axes.legend(frameon=False)
    return figure


# ---- command line


def cascade_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", help="checkpoint of VSRN, which makes the shortlist")
    add("--rerank", metavar="PATH", help="checkpoint of GSMN, which orders the shortlist")
    add_override_flags(parser, boxes=True)
    add("--kind", default="exact", choices=faiss_index.INDEX_KINDS, help="kind of index (default: exact)")
    add("--out", metavar="FILE", help="figure to write: png, pdf or svg (default: none)")
    add("--json", metavar="FILE", help="write the figures as JSON (default: no file)")
    add("--synthetic", type=whole(), metavar="N", help="measure the kinds of index on N vectors instead")
    add("--width", default=1024, type=whole(), help="with --synthetic: numbers in a vector (default: 1024)")
    add(
        "--kinds",
        nargs="+",
        default=list(faiss_index.INDEX_KINDS),
        choices=faiss_index.INDEX_KINDS,
        help="with --synthetic: kinds to measure, beside exact (default: all)",
    )
    return parser.parse_args(arguments)


def encode_split(flags, path, need):
    """A checkpoint and the split it reads -> EncodedSplit; need(opt, path) raises InputError for the wrong model."""
    model, opt, vocab = evaluation.load_model(path, **overrides_of(flags))
    need(opt, path)
    loader = data.get_test_loader(flags.split, opt.data_name, vocab, opt.batch_size, 0, opt)
    return EncodedSplit(model, loader.dataset, evaluation.encode_data(model, loader))


def cascade(flags):
    vsrn, gsmn = encode_split(flags, flags.model_path, need_vectors), encode_split(flags, flags.rerank, need_gsmn)
    n, m = gsmn.dataset.n_images, len(gsmn.dataset)
    if (vsrn.dataset.n_images, len(vsrn.dataset)) != (n, m):
        raise InputError(
            f"{flags.rerank}: reads {n} images, {flags.model_path} {vsrn.dataset.n_images}; both need the "
            "same split: give --data_path and --data_name"
        )
    sims = evaluation.shard_xattn(gsmn.model, *gsmn.encoded)
    rows = cascade_recalls(sims, vsrn.encoded.img_embs.numpy(), vsrn.encoded.cap_embs.numpy(), flags.kind)
    add_times(rows, vsrn, gsmn, flags.kind)
    print(f"{flags.split}: {n} images, {m} captions, index {flags.kind}")
    print_table(rows)
    return rows


def main(arguments=None):
    flags = cascade_options(arguments)
    faiss_index.need_faiss()
    if not flags.synthetic and not (flags.model_path and flags.rerank):
        raise InputError("need --model_path, a checkpoint of VSRN, and --rerank, one of GSMN; or --synthetic")
    if flags.out:
        need_matplotlib()
    for output in filter(None, (flags.out, flags.json)):
        check_writable(output)
    if flags.synthetic:
        kinds = [kind for kind in faiss_index.INDEX_KINDS if kind in ("exact", *flags.kinds)]
        rows = index_benchmark.compare_kinds(flags.synthetic, flags.width, kinds)
    else:
        rows = cascade(flags)
    if flags.json:
        atomic_write(flags.json, lambda file: file.write(json.dumps(rows, indent=1).encode()))
    if flags.out and not flags.synthetic:
        save_figure(draw_cascade(rows), flags.out)


if __name__ == "__main__":
    run(main)
