"""The images that a search looks through: names, captions, the files they come from, embeddings and their cache."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import data
import evaluation
from checkpoints.checkpoint import BEST
from files.arrays import open_array
from files.checksum import sha256
from files.errors import InputError, warn
from files.names import image_names
from files.writing import atomic_write, make_folder
from runtime.commandline import positive

CACHE_SUFFIX = ".embeddings.npy"


def open_collection(flags, opt, vocab):
    """The split whose images are searched.  Its captions' dependencies are not read."""
    opt = SimpleNamespace(**{**vars(opt), "is_sparse": False})
    return data.open_split(flags.split or "test", opt.data_name, vocab, opt)


def image_labels(dataset):
    """The file name of each image, or empty texts where no file lists them."""
    return image_names(dataset) or [""] * dataset.n_images


def first_captions(dataset):
    """The first caption of each image, or empty texts for a split without captions."""
    first = [""] * dataset.n_images
    for i in reversed(range(len(dataset.captions or ()))):
        first[dataset.image_of(i)] = dataset.captions[i]
    return first


# ---- the files


def checkpoint_file(path):
    """The file that a --model_path means: a checkpoint, or the best one in a folder."""
    return Path(path) / BEST if Path(path).is_dir() else Path(path)


def feature_files(dataset):
    """The features' file; for a data set of pictures, the files that list them."""
    return [file for file in dataset.files if file.name.endswith("_ims.npy") or hasattr(dataset, "pictures")]


def facts_of(model_path, opt, dataset):
    """What an index records of its images (faiss_index.FACTS, but for the index file's own checksum)."""
    return {
        "model": str(Path(model_path).resolve()),
        "checkpoint": sha256(checkpoint_file(model_path)),
        "data_path": str(Path(opt.data_path).resolve()),
        "data_name": opt.data_name,
        "split": dataset.split,
        "features": [file_facts(path, dataset.folder) for path in feature_files(dataset)],
        "names": image_labels(dataset),
        "captions": first_captions(dataset),
    }


def file_facts(path, folder):
    state = path.stat()
    return {
        "name": str(path.relative_to(folder)),
        "bytes": state.st_size,
        "time": state.st_mtime_ns,
        "sha256": sha256(path),
    }


def check_model(index, opt, model_path):
    """InputError unless the ImageIndex was made with this checkpoint, whose flags are opt."""
    need_vectors(opt, model_path)
    if sha256(checkpoint_file(model_path)) != index.facts["checkpoint"]:
        raise InputError(
            f"{index.path}: made with another checkpoint, {index.facts['model']} as it was then; "
            f"for {model_path} build another index with tools/index.py"
        )


def check_features(index, folder):
    """InputError where a features' file in `folder` differs from the one that the index was made from.

    A file of the same size and another time, as a copy has it, is compared by its checksum.  Missing files are left
    to whoever opens them.
    """
    for saved in index.facts["features"]:
        path = Path(folder) / saved["name"]
        if not path.exists():
            continue
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


def need_gsmn(opt, path):
    """InputError unless a checkpoint holds GSMN."""
    if opt.model != "gsmn":
        raise InputError(f"{path}: holds {opt.model}; --rerank takes a checkpoint of GSMN")


# ---- embeddings


@torch.no_grad()
def embed_images(model, dataset, only=None):
    """Embeddings of a split's images, or of the numbers in `only`: (N, R, D) of GSMN or (N, D) of VSRN."""
    numbers, embeddings, done = range(dataset.n_images) if only is None else only, None, 0
    for batch, _ in evaluation.progress(data.image_loader(dataset, only=only), "images"):
        rows = slice(done, done + len(batch))
        part = evaluation.finite(model.encode_images(batch), "image", numbers[rows])
        if embeddings is None:
            embeddings = torch.empty(len(numbers), *part.shape[1:])
        embeddings[rows] = part
        done = rows.stop
    return embeddings


class EmbeddingCache:
    """A folder of image embeddings, a file for each checkpoint and split.

    A file's name changes with the checkpoint's bytes and with the features' file (path, size, time).  The folder holds
    at most `limit` bytes of such files: those unused for longest go first.
    """

    def __init__(self, folder, limit):
        self.folder, self.limit = Path(folder), limit

    def path(self, model_path, opt, dataset):
        key = hashlib.sha256(sha256(checkpoint_file(model_path)).encode())
        for file in feature_files(dataset):
            state = file.stat()
            key.update(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
        name = f"{opt.data_name}-{dataset.split}-{dataset.n_images}-{opt.model}-{key.hexdigest()[:16]}"
        return self.folder / f"{name}{CACHE_SUFFIX}"

    def open(self, path):
        """A memory map of a file of the cache, or None where there is none or it is damaged."""
        if not path.exists():
            return None
        try:
            array = open_array(path)
            os.utime(path)  # used now
        except (InputError, OSError) as error:
            warn(f"{error}; the images are encoded anew")
            return None
        return array

    def keep(self, path, embeddings):
        """Write embeddings and make room for them; a warning where that fails."""
        size = embeddings.numel() * embeddings.element_size()
        if size > self.limit:
            warn(
                f"the images' embeddings take {size / 1e9:.3g} GB, more than --cache_size {self.limit / 1e9:g}; "
                "they are not kept"
            )
            return
        try:
            make_folder(self.folder)
            self.make_room(self.limit - size)
            atomic_write(path, lambda file: np.save(file, embeddings.numpy()))
        except (InputError, OSError) as error:
            warn(f"{error}; the images will be encoded again next time")
            return
        print(f"{path}: {size / 1e6:.3g} MB of embeddings kept for the next search")

    def make_room(self, limit):
        """Remove the files unused for longest until the rest takes at most `limit` bytes."""
        files = sorted(self.folder.glob(f"*{CACHE_SUFFIX}"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > limit:
                file.unlink()
                print(f"{file}: removed, --cache_size is {self.limit / 1e9:g} GB")


def cache_of(flags):
    """The EmbeddingCache of --cache and --cache_size, or None."""
    return EmbeddingCache(flags.cache, flags.cache_size * 1e9) if flags.cache else None


def cached_embeddings(model, dataset, cache=None, path=None):
    """Embeddings of all images of a split, from the EmbeddingCache where it has them."""
    stored = cache.open(path) if cache else None
    if stored is not None:
        return torch.from_numpy(np.array(stored))
    embeddings = embed_images(model, dataset)
    if cache:
        cache.keep(path, embeddings)
    return embeddings


# ---- flags


def add_images_flag(parser):
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the picture files, named in {split}_imagename.txt beside the data; the regions of an image "
        "without a picture are drawn",
    )


def add_cache_flags(parser):
    add = parser.add_argument
    add(
        "--cache",
        default="search_cache",
        metavar="DIR",
        help="folder that keeps the images' embeddings; '' for none (default: search_cache)",
    )
    add(
        "--cache_size",
        default=4.0,
        type=positive,
        metavar="GB",
        help="what --cache may hold; the embeddings unused for longest are removed (default: 4)",
    )
