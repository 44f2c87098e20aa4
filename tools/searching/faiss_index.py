"""FAISS indexes of image vectors: build, ask, write and read.

An index is two files: FAISS's own, and a JSON of the same name with `.json` behind it, which says what the vectors
are: model, data set, split, names and first captions of the images, and the index file's SHA-256.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from files.checksum import sha256
from files.errors import InputError, optional_package, reason
from files.text import read_json
from files.writing import atomic_write

INDEX_KINDS = ("exact", "ivf", "hnsw")
PROBES = 64  # ivf: groups that a search looks into
LINKS, EFFORT = 32, 64  # hnsw: neighbours of a vector; candidates kept while building and searching
LEAST, TRAINING = 39, 64  # ivf: vectors in a group at least; vectors per group that k-means is trained on
VECTORS_ADDED = 1 << 14  # vectors added at once
BYTES_WRITTEN = 1 << 24  # bytes that FAISS writes at once
FACTS = {  # what the JSON holds, and each entry's type
    "model": str,
    "checkpoint": str,
    "data_path": str,
    "data_name": str,
    "split": str,
    "features": list,
    "names": list,
    "captions": list,
    "sha256": str,
}


class ImageIndex(NamedTuple):
    """An index and the facts about its images."""

    path: str
    faiss: object  # faiss.Index
    facts: dict  # as FACTS


# ---- build and ask


def need_faiss():
    """The module faiss; InputError that says what to install where it is missing."""
    return optional_package("faiss", "an index", "faiss-cpu")


def empty_index(kind, width, n):
    """An index for about n vectors of `width` numbers; an ivf has to be trained before vectors are added."""
    faiss = need_faiss()
    if kind == "exact":
        return faiss.IndexFlatIP(width)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = index.hnsw.efSearch = EFFORT
        return index
    groups = max(1, min(round(4 * math.sqrt(n)), n // LEAST))
    index = faiss.index_factory(width, f"IVF{groups},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, TRAINING
    index.nprobe = min(PROBES, groups)
    return index


def build_index(vectors, kind="exact"):
    """float32 (N, D) -> a FAISS index of inner products that numbers the vectors from 0."""
    index = empty_index(kind, vectors.shape[1], len(vectors))
    if not index.is_trained:
        sample = np.random.default_rng(0).permutation(len(vectors))[: index.nlist * TRAINING]
        index.train(vectors[np.sort(sample)])
    for i in tqdm(range(0, len(vectors), VECTORS_ADDED), desc="index", disable=None, leave=False):
        index.add(vectors[i : i + VECTORS_ADDED])
    return index


def set_breadth(index, breadth):
    """Set how many groups of an ivf, or candidates of an hnsw, a search looks at; an exact index is searched whole."""
    if hasattr(index, "nprobe"):
        index.nprobe = breadth
    elif hasattr(index, "hnsw"):
        index.hnsw.efSearch = breadth


def nearest(index, vectors, k):
    """The k nearest of each vector (Q, D) -> numbers (Q, k), scores (Q, k), best first.

    k is cut to the size of the index.  Where an approximate index finds fewer than k, the rest is -1.
    """
    scores, numbers = index.search(np.ascontiguousarray(vectors, np.float32), min(k, index.ntotal))
    return numbers, scores


def shortlist(index, vector, k):
    """The nearest of one vector (1, D) -> numbers, scores, best first; at most k."""
    numbers, scores = (part[0] for part in nearest(index, vector, k))
    return numbers[numbers >= 0], scores[numbers >= 0]


# ---- the two files


def facts_file(path):
    """The JSON beside an index file."""
    return Path(f"{path}.json")


def write_index(path, index, facts):
    """Write an index and its facts, a dict for JSON, each file whole or not at all.

    The JSON names the SHA-256 of the index file, so that after an interruption between the two the old JSON does
    not pass for the new index's.
    """
    faiss, digest = need_faiss(), hashlib.sha256()
    text = json.dumps(facts)  # before anything is written: what cannot be described is not replaced

    def put(file):
        def part(content):
            digest.update(content)
            return file.write(content)

        faiss.write_index(index, faiss.PyCallbackIOWriter(part, BYTES_WRITTEN))

    atomic_write(path, put)
    text = json.dumps({**json.loads(text), "sha256": digest.hexdigest()}, indent=1)
    atomic_write(facts_file(path), lambda file: file.write(text.encode()))


def read_index(path):
    """An index file and its JSON -> ImageIndex; InputError where one is missing or damaged, or they are no pair."""
    faiss = need_faiss()
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; tools/index.py builds an index")
    facts = read_facts(facts_file(path))
    if file_sha256(path) != facts["sha256"]:
        raise InputError(
            f"{path}: not the index that {facts_file(path)} describes, or damaged; build it again with tools/index.py"
        )
    try:
        return ImageIndex(str(path), faiss.read_index(str(path)), facts)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise InputError(f"{path}: FAISS cannot read it ({reason}); build it again with tools/index.py") from None


def read_facts(path):
    if not path.exists():
        raise InputError(f"{path}: no such file; tools/index.py writes it beside the index: build that again")
    facts = read_json(path)
    wrong = [name for name, kind in FACTS.items() if not isinstance(facts, dict) or type(facts.get(name)) is not kind]
    if wrong:
        raise InputError(f"{path}: does not describe an index ({wrong[0]} is missing); build it again")
    return facts


def file_sha256(path):
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
