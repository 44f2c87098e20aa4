"""Put the images of a split into a FAISS index, so that tools/search.py need not compare a sentence with each.

    python tools/index.py --model_path VSRN.pth.tar --split test --out test.index
    python tools/search.py --index test.index --query "two dogs run on grass"

VSRN gives an image one vector, and its similarity with a sentence is their inner product.  'exact' compares the
sentence with every image; 'ivf' groups the vectors and looks into the nearest groups, 'hnsw' walks a graph of
neighbours: both are faster in large collections and may miss some.  The file is FAISS's own, with a description
at its end: model, split, checksums, names and first captions of the images.  Needs faiss (pip install faiss-cpu).
"""

import json
import math
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
import evaluation
from files.checksum import sha256
from files.errors import InputError, run
from files.writing import atomic_write, check_writable
from reporting import thumbnails
from runtime.checkpoint import BEST
from runtime.commandline import Parser
from runtime.options import add_override_flags, overrides_of

END = b"image index 1\n"  # the last bytes of a file; before them the description's length, 8 bytes
KINDS = ("exact", "ivf", "hnsw")
PROBES = 64  # ivf: groups looked into
LINKS, EFFORT = 32, 64  # hnsw: neighbours of a vector; candidates kept while building and searching
LEAST, TRAINING = 39, 64  # ivf: vectors of a group at least; vectors for each group that the groups are made of
PIECE = 1 << 14  # vectors added at once


class Index(NamedTuple):
    """An index and what it says about itself."""

    path: str
    faiss: object  # faiss.Index
    facts: dict  # model, checkpoint, data_path, data_name, split, features, names, captions


# ---- FAISS


def need_faiss():
    """The module; InputError saying what to install where it is missing."""
    try:
        import faiss
    except ImportError:
        raise InputError("an index needs the package faiss: pip install faiss-cpu") from None
    return faiss


def empty(kind, width, n):
    """An index of a kind, for about n vectors (N, width), that is still to be trained (ivf) and filled."""
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


def build(vectors, kind="exact"):
    """float32 (N, D) -> a faiss index of inner products, numbers as in vectors."""
    index = empty(kind, vectors.shape[1], len(vectors))
    if not index.is_trained:
        groups = index.nlist * TRAINING
        some = np.random.default_rng(0).permutation(len(vectors))[:groups]
        index.train(vectors[np.sort(some)])
    for i in tqdm(range(0, len(vectors), PIECE), desc="index", disable=None, leave=False):
        index.add(vectors[i : i + PIECE])
    return index


def set_breadth(index, breadth):
    """How far an index looks: groups (ivf) or candidates (hnsw); an exact one looks everywhere."""
    if hasattr(index, "nprobe"):
        index.nprobe = breadth
    elif hasattr(index, "hnsw"):
        index.hnsw.efSearch = breadth


def nearest(index, vectors, k):
    """The k nearest of each vector (Q, D) -> numbers (Q, k), scores (Q, k), best first.

    Where an approximate index finds fewer the rest is -1; k is cut to the number of vectors there are.
    """
    scores, numbers = index.search(np.ascontiguousarray(vectors, np.float32), min(k, index.ntotal))
    return numbers, scores


def shortlist(index, vector, k):
    """The nearest of one vector (1, D) -> numbers, scores, best first: at most k, fewer where the index finds fewer."""
    numbers, scores = (part[0] for part in nearest(index, vector, k))
    return numbers[numbers >= 0], scores[numbers >= 0]


# ---- the file


def write(path, index, facts):
    """The index and its description, a dict for JSON, into one file, whole or not at all."""
    faiss = need_faiss()

    def put(file):
        total = 0

        def part(content):
            nonlocal total
            total = zlib.crc32(content, total)
            return file.write(content)

        faiss.write_index(index, faiss.PyCallbackIOWriter(part, 1 << 24))
        text = json.dumps({**facts, "bytes": file.tell(), "crc32": total}).encode()
        file.write(text + len(text).to_bytes(8, "little") + END)

    atomic_write(path, put)


def read(path):
    """-> Index; InputError where there is none or it is damaged."""
    faiss = need_faiss()
    facts = read_facts(path)
    if checksum(path, facts["bytes"]) != facts["crc32"]:
        raise InputError(f"{path}: damaged, its checksum is another; build it again with tools/index.py")
    try:
        return Index(str(path), faiss.read_index(str(path)), facts)
    except RuntimeError as error:
        raise InputError(
            f"{path}: FAISS cannot read it ({str(error).splitlines()[-1]}); build it again with tools/index.py"
        ) from None


def read_facts(path):
    """The description at the end of an index file."""
    try:
        with open(path, "rb") as file:
            size, tail = file.seek(0, 2), len(END) + 8
            file.seek(max(0, size - tail))
            length = int.from_bytes(file.read(8), "little")
            if file.read() != END or length + tail > size:
                raise ValueError
            file.seek(size - tail - length)
            return json.loads(file.read(length))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; tools/index.py builds an index") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(f"{path}: not an index of tools/index.py, or cut off; build it again") from None


def checksum(path, size):
    """CRC-32 of the first `size` bytes."""
    total = 0
    with (
        open(path, "rb") as file,
        tqdm(total=size, desc="reading the index", unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        while size > 0 and (part := file.read(min(size, 1 << 24))):
            total = zlib.crc32(part, total)
            size -= len(part)
            bar.update(len(part))
    return total


# ---- what it belongs to


def checkpoint_file(path):
    """The file that a --model_path means."""
    return Path(path) / BEST if Path(path).is_dir() else Path(path)


def facts_of(model_path, opt, dataset):
    """What has to be known of an index to trust it, and to show what it finds."""
    return {
        "model": str(Path(model_path).resolve()), "checkpoint": sha256(checkpoint_file(model_path)),
        "data_path": str(Path(opt.data_path).resolve()), "data_name": opt.data_name, "split": dataset.split,
        "features": [state_of(path, dataset.folder) for path in features_of(dataset)],
        "names": names_of(dataset), "captions": first_captions(dataset),
    }  # fmt: skip


def features_of(dataset):
    """The files that the images come from: features, or what lists the pictures."""
    return [file for file in dataset.files if file.name.endswith("_ims.npy") or hasattr(dataset, "pictures")]


def state_of(path, folder):
    state = path.stat()
    name = str(path.relative_to(folder))
    return {"name": name, "bytes": state.st_size, "time": state.st_mtime_ns, "sha256": sha256(path)}


def names_of(dataset):
    """Names of the split's images where a file tells them, else empty."""
    if hasattr(dataset, "pictures"):
        return [Path(p).name for p in dataset.pictures]
    return thumbnails.image_names(dataset) or [""] * dataset.n_images


def first_captions(dataset):
    """The first caption of each image, or empty texts where there are none."""
    first = [""] * dataset.n_images
    for i in reversed(range(len(dataset.captions or ()))):
        first[dataset.image_of(i)] = dataset.captions[i]
    return first


def check_model(index, opt, model_path):
    """InputError unless the index was made with this checkpoint, whose flags are opt."""
    need_vectors(opt, model_path)
    if sha256(checkpoint_file(model_path)) != index.facts["checkpoint"]:
        raise InputError(
            f"{index.path}: made with another checkpoint, {index.facts['model']} as it was then; "
            f"for {model_path} build another index with tools/index.py"
        )


def check_features(index, folder):
    """InputError where features in `folder` are not those of the index; a copy with another time is read through."""
    for saved in index.facts["features"]:
        path = Path(folder) / saved["name"]
        if not path.exists():
            continue  # who needs it will say so
        now = path.stat()
        same = now.st_size == saved["bytes"]
        if not same or (now.st_mtime_ns != saved["time"] and sha256(path) != saved["sha256"]):
            raise InputError(f"{path}: is not what {index.path} was made from; build that again with tools/index.py")


def need_vectors(opt, path):
    """InputError unless a checkpoint's model gives one vector an image, compared by inner product."""
    if opt.model != "vsrn":
        raise InputError(
            f"{path}: holds {opt.model}, which scores pairs; an index needs VSRN's one vector an image, "
            f"and {opt.model} re-orders what it finds (tools/search.py --rerank)"
        )
    if opt.measure != "cosine":
        raise InputError(f"{path}: compares by --measure {opt.measure}; an index compares by inner product (cosine)")


@torch.no_grad()
def encode_images(model, dataset, only=None):
    """Embeddings of a split's images, or of the numbers in `only`: (N, R, D) of GSMN or (N, D) of VSRN."""
    numbers, embeddings, done = range(dataset.n_images) if only is None else only, None, 0
    for batch, _ in evaluation.progress(data.image_loader(dataset, only=only), "images"):
        here = slice(done, done + len(batch))
        part = evaluation.finite(model.encode_images(batch), "image", numbers[here])
        if embeddings is None:
            embeddings = torch.empty(len(numbers), *part.shape[1:])
        embeddings[here] = part
        done = here.stop
    return embeddings


# ---- command line


def parse(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint of VSRN")
    add_override_flags(parser)
    add("--kind", default="exact", choices=KINDS, help="how the nearest are found (default: exact)")
    add("--out", metavar="FILE", help="file to write (default: {split}.index)")
    return parser.parse_args(arguments)


def main(arguments=None):
    flags = parse(arguments)
    out = flags.out or f"{flags.split}.index"
    need_faiss()
    check_writable(out)
    model, opt, vocab = evaluation.load_model(flags.model_path, **overrides_of(flags))
    need_vectors(opt, flags.model_path)
    dataset = data.open_split(flags.split, opt.data_name, vocab, opt)
    facts = facts_of(flags.model_path, opt, dataset)
    vectors = encode_images(model, dataset).numpy()
    write(out, build(vectors, flags.kind), facts)
    print(
        f"{out}: {len(vectors)} images, {vectors.shape[1]} numbers each, {flags.kind}, "
        f"{Path(out).stat().st_size / 1e6:.3g} MB"
    )


if __name__ == "__main__":
    run(main)
