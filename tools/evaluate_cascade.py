"""Measure what a shortlist loses in recall and saves in time: one model finds the nearest K, another orders them.

    python tools/evaluate_cascade.py --model_path VSRN.pth.tar --rerank GSMN.pth.tar --split test

Prints for each K: the recalls of both directions, the percentage of queries whose answer is in the shortlist, and the
time of a sentence, with the second model's embeddings of the images stored and with the K images encoded anew. The
first row is the first model alone, the last one the second model over all pairs. Needs faiss.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import guarded, run

import json
import time
from functools import partial

import numpy as np
from tqdm import tqdm

from checkpoints.evaluation_options import add_override_flags, existing, overrides_of
from files.writing import atomic_write, check_writable
from runtime.commandline import Parser
from tools.searching import faiss_index


def cascade_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", type=existing, required=True, help="checkpoint that searches: one vector an image, as VSRN")
    add("--rerank", type=existing, required=True, metavar="PATH", help="checkpoint that orders them, such as GSMN")
    add_override_flags(parser, boxes=True)
    add("--kind", default="exact", choices=faiss_index.INDEX_KINDS, help="kind of index (default: exact)")
    add("--json", metavar="FILE", help="write the figures as JSON (default: no file)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    guarded(cascade_options)  # before torch is loaded

import torch

import evaluation
from checkpoints.loading import open_members
from reporting.explanation import Sentence
from reporting.metrics import recall
from reporting.outputs import provenance
from tools.searching.collection import best_images

SHORTLISTS = [5, 10, 20, 50, 100, 200, 500, 1000]
TIMED_SENTENCES, SECONDS = 20, 5.0  # for each K: sentences timed at most, and seconds that all of them may take


def shortlisted(scores, near):
    """Scores (Q, C), those outside the shortlists below the rest; near (Q, K): numbers of candidates, -1 for none."""
    kept = np.full_like(scores, scores.min() - 1)
    queries, places = np.nonzero(near >= 0)
    kept[queries, near[queries, places]] = scores[queries, near[queries, places]]
    return kept


def recall_row(k, of_images, of_captions):
    """The recalls of one K: {"k", "i2t": {"r1", "r5", "r10", "in_shortlist"}, "t2i": {...}}, all in percent.

    of_images, of_captions: similarities (N, 5N) as images rank captions, and as captions rank images.  in_shortlist:
    images and captions with an answer in the shortlist, which stands before all candidates outside.
    """
    row = {"k": k}
    for way, count, sims in (("i2t", evaluation.i2t, of_images), ("t2i", evaluation.t2i, of_captions)):
        figures, (ranks, _) = count(sims, return_ranks=True)
        row[way] = {**dict(zip(("r1", "r5", "r10"), figures)), "in_shortlist": recall(ranks, k) if k else 100.0}
    return row


def cascade_recalls(sims, images, captions, kind="exact"):
    """[recall_row] against K, from k 0, the order of the first model alone, to None, the second one's over all pairs.

    sims (N, 5N): similarities of the second model; images (N, D), captions (5N, D): vectors of the first.
    """
    sizes, first = [k for k in SHORTLISTS if k < len(images)], images @ captions.T
    near_captions, near_images = (  # (N, most), (5N, most)
        faiss_index.nearest(faiss_index.build_index(there, kind), queries, max(sizes, default=1))[0]
        for there, queries in ((captions, images), (images, captions))
    )
    rows = [recall_row(0, first, first)]
    for k in tqdm(sizes, desc="recall", disable=None, leave=False):
        rows.append(recall_row(k, shortlisted(sims, near_captions[:, :k]), shortlisted(sims.T, near_images[:, :k]).T))
    return [*rows, recall_row(None, sims, sims)]


@torch.no_grad()
def ask(first, second, index, k, stored, c):
    """Caption c, from its ids, as a sentence of the search -> (numbers, scores) of the second model, best first.

    first, second: checkpoints.loading.Members.  k: images of the index to order, None for all.  stored: the second
    model's embeddings of all images, or None to encode the k.
    """
    dataset, numbers = second.loader.dataset, None
    if k is not None:
        ids = torch.tensor([first.loader.dataset.tokens[c]])
        vector = first.model.encode_captions(ids, [ids.shape[1]]).cpu().numpy()
        numbers = np.sort(faiss_index.shortlist(index, vector, k)[0])
        stored = None if stored is None else stored[numbers]
    sentence = Sentence([], dataset.tokens[c], None if dataset.depends is None else dataset.depends[c])
    return best_images(second.model, dataset, sentence, numbers, stored)


def milliseconds(answer, count):
    """The median time of answer(c) for some of `count` captions."""
    times, end = [], time.perf_counter() + SECONDS
    for c in np.linspace(0, count - 1, TIMED_SENTENCES).astype(int).tolist():
        start = time.perf_counter()
        if times and start > end:
            break
        answer(c)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def print_table(rows):
    print(f"{'':>6}  {'text to image':^27}  {'image to text':^27}  milliseconds a sentence")
    print(f"{'K':>6}  " + "  ".join(["   R@1    R@5   R@10   in K"] * 2) + "    stored  encoded")
    for row in rows:
        name = {0: "first", None: "all"}.get(row["k"], row["k"])
        figures = "  ".join(" ".join(f"{value:6.1f}" for value in row[way].values()) for way in ("t2i", "i2t"))
        times = f"  {row['ms']:10.1f}  {row['ms_encoding']:8.1f}" if "ms" in row else ""
        print(f"{name:>6}  {figures}{times}")


def main(arguments=None):
    flags = cascade_options(arguments)
    faiss_index.need_faiss()
    if flags.json:
        check_writable(flags.json)
    first, second = open_members((flags.model_path, flags.rerank), flags.split, False, overrides_of(flags))
    faiss_index.need_vectors(first.model, flags.model_path)
    dataset = second.loader.dataset
    images, captions = (side.emb.numpy() for side in evaluation.encode_split(first.model, first.loader))
    sides = evaluation.encode_split(second.model, second.loader)
    rows = cascade_recalls(evaluation.score_all(second.model, *sides), images, captions, flags.kind)
    index = faiss_index.build_index(images, flags.kind)
    for row in tqdm(rows[1:], desc="time", disable=None, leave=False):
        for name, stored in (("ms", sides[0].emb), ("ms_encoding", None)):
            row[name] = milliseconds(partial(ask, first, second, index, row["k"], stored), len(captions))
    print(f"{flags.split}: {dataset.n_images} images, {len(dataset)} captions, index {flags.kind}")
    print_table(rows)
    if flags.json:
        result = {**provenance(dataset), "first": first.about, "second": second.about, "rows": rows}
        atomic_write(flags.json, lambda file: file.write(json.dumps(result, indent=1).encode()))


if __name__ == "__main__":
    run(main)
