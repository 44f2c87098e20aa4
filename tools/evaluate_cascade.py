"""Measure what a shortlist loses in recall and saves in time: one model finds the nearest K, another orders them.

    python tools/evaluate_cascade.py --model_path VSRN.pth.tar --rerank GSMN.pth.tar --split test

Prints for each K: the recalls of both directions, the percentage of queries whose answer is in the shortlist, and the
time of a sentence, with the second model's embeddings of the images stored and with the K images encoded anew. The
first row is the first model alone, the last one the second model over all pairs. Needs faiss.
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

import evaluation
from checkpoints.evaluation_options import add_override_flags, overrides_of
from checkpoints.loading import open_members
from files.errors import InputError
from files.identity import data_identity, difference
from files.writing import atomic_write, check_writable
from modules.sides import CaptionSide, ImageSide
from reporting.explanation import Sentence
from reporting.provenance import provenance
from runtime.commandline import Parser
from tools.searching import faiss_index
from tools.searching.collection import best_images

SHORTLISTS = [5, 10, 20, 50, 100, 200, 500, 1000]
TIMED_SENTENCES, SECONDS = 20, 5.0  # for each K: sentences timed at most, and seconds that all of them may take
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}


class EncodedSplit(NamedTuple):
    """A model, its split, and the embeddings of the split."""

    model: torch.nn.Module
    dataset: torch.utils.data.Dataset
    images: ImageSide
    captions: CaptionSide


# ---- recalls


def shortlisted(scores, near):
    """Scores (Q, C) with those of all candidates outside the shortlists below the rest -> (scores, their value there).

    near (Q, K): numbers of candidates, -1 for none.
    """
    outside = scores.min() - 1
    kept = np.full_like(scores, outside)
    queries, places = np.nonzero(near >= 0)
    kept[queries, near[queries, places]] = scores[queries, near[queries, places]]
    return kept, outside


def recall_row(k, of_images, of_captions, outside=-np.inf):
    """The recalls of one K: {"k", "i2t": {"r1", "r5", "r10", "in_shortlist"}, "t2i": {...}}, all in percent.

    of_images, of_captions: similarities (N, 5N) as images rank captions, and as captions rank images. outside: the
    score of what is in no shortlist.
    """
    captions = np.arange(of_images.shape[1])
    owners = captions // (len(captions) // len(of_images))
    there = {"i2t": of_images[owners, captions] > outside, "t2i": of_captions[owners, captions] > outside}
    there["i2t"] = there["i2t"].reshape(len(of_images), -1).any(axis=1)
    row = {"k": k}
    for way, found in (("i2t", evaluation.i2t(of_images)), ("t2i", evaluation.t2i(of_captions))):
        row[way] = {**dict(zip(("r1", "r5", "r10"), found)), "in_shortlist": 100 * float(there[way].mean())}
    return row


def cascade_recalls(sims, images, captions, kind="exact"):
    """[recall_row] against K, from k 0, the order of the first model alone, to None, the second one's over all pairs.

    sims (N, 5N): similarities of the second model; images (N, D), captions (5N, D): vectors of the first.
    """
    sizes = [k for k in SHORTLISTS if k < len(images)]
    most = max(sizes, default=1)
    near_captions, _ = faiss_index.nearest(faiss_index.build_index(captions, kind), images, most)  # (N, most)
    near_images, _ = faiss_index.nearest(faiss_index.build_index(images, kind), captions, most)  # (5N, most)
    first = images @ captions.T
    rows = [recall_row(0, first, first)]
    for k in tqdm(sizes, desc="recall", disable=None, leave=False):
        of_images, outside = shortlisted(sims, near_captions[:, :k])
        of_captions, _ = shortlisted(sims.T, near_images[:, :k])
        rows.append(recall_row(k, of_images, of_captions.T, outside))
    return [*rows, recall_row(None, sims, sims)]


# ---- time


def add_times(rows, first, second, kind):
    """Adds the milliseconds of a sentence to all rows but the first model's."""
    index = faiss_index.build_index(first.images.emb.numpy(), kind)
    for row in tqdm(rows[1:], desc="time", disable=None, leave=False):
        row["ms"] = time_sentences(first, second, index, row["k"], second.images.emb)
        row["ms_encoding"] = time_sentences(first, second, index, row["k"], None)


def time_sentences(first, second, index, k, stored):
    """Median milliseconds from a sentence's ids to the second model's order of the nearest k images, or of all (None).

    stored: its embeddings of all images, or None to encode the k.
    """
    times, end = [], time.perf_counter() + SECONDS
    for c in np.linspace(0, len(second.dataset) - 1, TIMED_SENTENCES).astype(int).tolist():
        start = time.perf_counter()
        ask(first, second, index, k, stored, c)
        times.append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return 1000 * float(np.median(times))


@torch.no_grad()
def ask(first, second, index, k, stored, c):
    """Caption c as a sentence of the search -> (numbers, scores) of the images it is compared with, best first."""
    numbers = np.arange(second.dataset.n_images)
    if k is not None:
        ids = torch.tensor([first.dataset.tokens[c]])
        vector = first.model.encode_captions(ids, [ids.shape[1]]).cpu().numpy()
        numbers = np.sort(faiss_index.shortlist(index, vector, k)[0])
    pairs = None if second.dataset.depends is None else second.dataset.depends[c]
    sentence = Sentence([], second.dataset.tokens[c], pairs)
    return best_images(second.model, second.dataset, sentence, numbers, None if stored is None else stored[numbers])


# ---- command line


def print_table(rows):
    print(f"{'':>6}  " + "  ".join(f"{title:^27}" for title in DIRECTIONS.values()) + "  milliseconds a sentence")
    print(f"{'K':>6}  " + "  ".join(["   R@1    R@5   R@10   in K"] * 2) + "    stored  encoded")
    for row in rows:
        name = {0: "first", None: "all"}.get(row["k"], row["k"])
        figures = "  ".join(
            "{r1:6.1f} {r5:6.1f} {r10:6.1f} {in_shortlist:6.1f}".format(**row[way]) for way in DIRECTIONS
        )
        times = f"  {row['ms']:10.1f}  {row['ms_encoding']:8.1f}" if "ms" in row else ""
        print(f"{name:>6}  {figures}{times}")


def cascade_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint of one vector an image, such as VSRN, which finds the nearest")
    add("--rerank", required=True, metavar="PATH", help="checkpoint that orders the nearest, such as GSMN")
    add_override_flags(parser, boxes=True)
    add("--kind", default="exact", choices=faiss_index.INDEX_KINDS, help="kind of index (default: exact)")
    add("--json", metavar="FILE", help="write the figures as JSON (default: no file)")
    return parser.parse_args(arguments)


def cascade(flags):
    """Evaluate and print -> what --json holds."""
    paths = (flags.model_path, flags.rerank)
    members = open_members(paths, flags.split, False, overrides_of(flags))
    faiss_index.need_vectors(members[0].model, paths[0])
    datasets = [member.loader.dataset for member in members]
    if other := difference(*map(data_identity, datasets)):
        raise InputError(f"{paths[1]}: its data are not those of {paths[0]} ({other}); give --data_path")
    first, second = (
        EncodedSplit(member.model, member.loader.dataset, *evaluation.encode_split(member.model, member.loader))
        for member in members
    )
    sims = evaluation.score_all(second.model, second.images, second.captions)
    rows = cascade_recalls(sims, first.images.emb.numpy(), first.captions.emb.numpy(), flags.kind)
    add_times(rows, first, second, flags.kind)
    print(f"{flags.split}: {datasets[1].n_images} images, {len(datasets[1])} captions, index {flags.kind}")
    print_table(rows)
    return {**provenance(datasets[1]), "first": members[0].about, "second": members[1].about, "rows": rows}


def main(arguments=None):
    flags = cascade_options(arguments)
    faiss_index.need_faiss()
    if flags.json:
        check_writable(flags.json)
    result = cascade(flags)
    if flags.json:
        atomic_write(flags.json, lambda file: file.write(json.dumps(result, indent=1).encode()))


if __name__ == "__main__":
    run(main)
