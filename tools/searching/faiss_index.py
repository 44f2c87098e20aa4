"""FAISS indexes of image vectors: build, ask, write and read.

An index is two files: FAISS's own, and a JSON of the same name with `.json` behind it, which says what the vectors
are: checkpoint, data set, split, names and first captions of the images, and what identifies weights and images.
"""

import json
import math
from pathlib import Path

import numpy as np

from files.errors import InputError, optional_package
from files.identity import SAMPLED, digest
from files.opening import open_regular
from files.text import read_json
from files.writing import atomic_write

INDEX_KINDS = ("exact", "ivf", "hnsw")
PROBES = 64  # ivf: groups that a search looks into
LINKS, EFFORT = 32, 64  # hnsw: neighbours of a vector; candidates kept while building and searching
LEAST, TRAINING = 39, 64  # ivf: vectors in a group at least; vectors per group that k-means is trained on
BYTES_WRITTEN = 1 << 24  # bytes that FAISS writes at once
BUILD_AGAIN = "build it again with tools/search.py --save_index"
FACTS = {"checkpoint": dict, "identity": dict, "names": list, "captions": list}  # what the JSON holds: types by name
FACTS |= {"weights": str, "data": str, "split": str}


# ---- build and ask


def need_faiss():
    """The module faiss; InputError that says what to install where it is missing."""
    return optional_package("faiss", "an index", "faiss-cpu")


def build_index(vectors, kind="exact"):
    """float32 (N, D) -> a FAISS index of inner products that numbers the vectors from 0."""
    faiss, (n, width) = need_faiss(), vectors.shape
    groups = max(1, min(round(4 * math.sqrt(n)), n // LEAST))
    form = {"exact": "Flat", "hnsw": f"HNSW{LINKS},Flat", "ivf": f"IVF{groups},Flat"}[kind]
    index = faiss.index_factory(width, form, faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index.hnsw.efConstruction = index.hnsw.efSearch = EFFORT
    if kind == "ivf":
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, TRAINING
        index.nprobe = min(PROBES, groups)
    index.train(vectors)
    index.add(vectors)
    return index


def set_breadth(index, breadth):
    """Set how many groups of an ivf, or candidates of an hnsw, a search looks at; an exact index is searched whole."""
    if hasattr(index, "nprobe"):
        index.nprobe = breadth
    elif hasattr(index, "hnsw"):
        index.hnsw.efSearch = breadth


def nearest(index, vectors, k):
    """The k nearest of each vector (Q, D) -> numbers (Q, k), scores (Q, k), best first.

    k is cut to the size of the index. Where an approximate index finds fewer than k, the rest is -1.
    """
    scores, numbers = index.search(np.ascontiguousarray(vectors, np.float32), min(k, index.ntotal))
    return numbers, scores


def shortlist(index, vector, k):
    """The nearest of one vector (1, D) -> numbers, scores, best first; at most k."""
    numbers, scores = (part[0] for part in nearest(index, vector, k))
    return numbers[numbers >= 0], scores[numbers >= 0]


# ---- what the vectors are of


def need_vectors(model, path):
    """InputError unless a checkpoint's model gives one vector an image, compared by inner product."""
    if not model.inner_product:
        raise InputError(
            f"{path}: an index needs a model that compares one vector of each image by inner product; this one can "
            "order what such an index finds (tools/search.py --rerank)"
        )


def weights_identity(model):
    """A digest of some numbers of each weight."""
    weights = (value for part in model.state_list() for value in part.values())
    return digest(value.flatten()[:SAMPLED].float().cpu().numpy().tobytes() for value in weights)


# ---- the two files


def facts_file(path):
    """The JSON beside an index file."""
    return Path(f"{path}.json")


def write_index(path, index, facts):
    """Write an index and its facts, a dict for JSON.

    The old JSON goes before the new index stands in its place: after an interruption no JSON describes another index.
    """
    faiss, text = need_faiss(), json.dumps(facts, indent=1)

    def put(file):
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write, BYTES_WRITTEN))
        facts_file(path).unlink(missing_ok=True)

    atomic_write(path, put)
    atomic_write(facts_file(path), lambda file: file.write(text.encode()))


def read_index(path):
    """An index file and its JSON -> (index, facts); InputError where one is missing or damaged, or they are no pair."""
    faiss = need_faiss()
    for file in (path, facts_file(path)):
        open_regular(file, f"no such file, and an index is two; {BUILD_AGAIN}").close()
    facts = read_json(facts_file(path))
    if not isinstance(facts, dict) or any(type(facts.get(name)) is not kind for name, kind in FACTS.items()):
        raise InputError(f"{facts_file(path)}: does not describe an index, whose JSON has {[*FACTS]}; {BUILD_AGAIN}")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: FAISS cannot read it ({str(error).splitlines()[-1]}); {BUILD_AGAIN}") from None
    if not index.ntotal == len(facts["names"]) == len(facts["captions"]):
        raise InputError(f"{path}: {index.ntotal} vectors for {len(facts['names'])} names in its JSON; {BUILD_AGAIN}")
    return index, facts
