"""Find the images of a split that fit a sentence of your own.

    python tools/search.py --model_path MODEL.pth.tar --query "two dogs run on grass" --images PICTURES
    python tools/search.py --model_path MODEL.pth.tar

Without --query it asks for one sentence after another, until an empty line.  The images are encoded once; their
embeddings are kept in --cache, in a file named by the checkpoint's content and the features' file.  A sparse
GSMN parses the sentence with spaCy.
"""

import argparse
import hashlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
import evaluation
import thumbnails
from files import InputError, atomic_write, check_writable, make_folder, open_array, run, warn
from flags import whole
from options import default_device, device
from tools.explain import grid, open_picture
from tools.plotting import matplotlib_figure, need_matplotlib, save_figure
from tools.sentences import Reader

COLUMNS = 5


# ---- the images


def cache_name(model_path, dataset):
    """A name that changes with the checkpoint's bytes and with the features' file (path, bytes, time)."""
    key = hashlib.sha256()
    path = Path(model_path) / "model_best.pth.tar" if Path(model_path).is_dir() else Path(model_path)
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            key.update(part)
    for file in dataset.files:
        if "ims" in file.name or hasattr(dataset, "pictures"):
            state = file.stat()
            key.update(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
    return f"{dataset.split}-{dataset.n_images}-{key.hexdigest()[:24]}.npy"


def image_embeddings(model, dataset, path=None):
    """(N, R, D) of GSMN or (N, D) of VSRN; read from `path` where they are there, else computed and written there."""
    if path and path.exists():
        try:
            return torch.from_numpy(np.array(open_array(path)))
        except InputError as error:
            warn(f"{error}; the images are encoded anew")
    embeddings = encode_images(model, dataset)
    if path:
        try:
            make_folder(path.parent)
            atomic_write(path, lambda file: np.save(file, embeddings.numpy()))
        except InputError as error:
            warn(f"{error}; the images will be encoded again next time")
    return embeddings


@torch.no_grad()
def encode_images(model, dataset):
    parts = []
    for batch, _ in evaluation.progress(data.image_loader(dataset), "images"):
        first = sum(map(len, parts))
        numbers = range(first, first + len(batch))
        parts.append(evaluation.finite(model.encode_images(batch), "image", numbers).cpu())
    return torch.cat(parts)


# ---- the sentence


@torch.no_grad()
def search(model, images, boxes, sentence, top):
    """All images' embeddings and normalised boxes (or None), a Sentence -> (numbers, scores) of the `top` best."""
    length = len(sentence.ids)
    words = model.encode_captions(torch.tensor([sentence.ids]), [length]).cpu()
    boxes = None if boxes is None else torch.from_numpy(boxes)
    pairs = None if sentence.pairs is None else [sentence.pairs]
    scores = evaluation.shard_xattn(model, images, words if words.dim() == 2 else list(words), boxes, pairs, [length])
    scores = scores[:, 0]
    best = np.argsort(-scores, kind="stable")[:top]
    return best, scores[best]


def names_of(dataset):
    """Names of the split's images where a file tells them, else empty."""
    if hasattr(dataset, "pictures"):
        return [Path(p).name for p in dataset.pictures]
    return thumbnails.image_names(dataset) or [""] * dataset.n_images


def report(dataset, names, best, scores):
    """A line for each image found: its place, score, number, name and first caption."""
    for place, (g, score) in enumerate(zip(best, scores), start=1):
        caption = dataset.captions[g * data.CAPTIONS_PER_IMAGE] if dataset.captions else ""
        print(f"{place:4}  {score:8.4f}  image {g}  {names[g]}  {caption}")


def draw(text, dataset, best, scores, images=None):
    """A figure of the images found, pictures or, where there is none, their regions."""
    from matplotlib.patches import Rectangle

    columns = min(COLUMNS, len(best))
    rows = -(-len(best) // columns)
    figure = matplotlib_figure((2.6 * columns, 2.3 * rows + 0.5))
    boxes, sizes = thumbnails.read_regions(dataset)
    for place, (g, score) in enumerate(zip(best, scores), start=1):
        axes = figure.add_subplot(rows, columns, place, xticks=[], yticks=[])
        known = hasattr(dataset, "pictures")  # a data set of pictures, without regions
        picture = open_picture(dataset, g, images)[1] if images or known else None
        width, height = (4, 3) if sizes is None else sizes[g]
        if picture is not None:
            axes.imshow(np.asarray(picture))
        else:
            axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
            here = boxes[g] if boxes is not None else grid(1 if known else dataset.images.shape[1])
            for x, y, x2, y2 in here * [width, height, width, height]:
                axes.add_patch(Rectangle((x, y), x2 - x, y2 - y, fill=False, edgecolor="#1f6fc4", alpha=0.5))
        axes.spines[:].set_color("0.8")
        axes.set_title(f"{place}. image {g}: {score:.3f}", fontsize=8)
    figure.suptitle(text, fontsize=11)
    return figure


# ---- command line


def parse(arguments=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint of GSMN or VSRN")
    add("--data_path", help="folder of the data sets (default: the checkpoint's)")
    add("--data_name", help="data set (default: the checkpoint's)")
    add("--vocab_path", help="folder of the vocabulary (default: the checkpoint's)")
    add("--boxes", choices=["normalized", "none"], help="GSMN's boxes, or no geometry (default: the checkpoint's)")
    add("--split", default="test", help="train, dev, test or testall (default: test)")
    add("--query", metavar="SENTENCE", help="what to look for (default: ask)")
    add("--top", default=10, type=whole(), metavar="K", help="images to show (default: 10)")
    add("--images", metavar="DIR", help="folder of the picture files: draw what was found")
    add("--out", metavar="FILE", help="figure to write: png, pdf or svg (default with --images: search-SENTENCE.png)")
    add("--cache", default="search_cache", metavar="DIR",
        help="folder for the images' embeddings; '' for none (default: search_cache)")
    add("--spacy_model", metavar="NAME", help="spaCy's model (default: any installed English one)")
    add("--device", default=default_device(), type=device, help="cpu, cuda, cuda:1, ...")
    return parser.parse_args(arguments)


def load(flags):
    """-> model, data set, Reader of sentences."""
    names = ("data_path", "data_name", "vocab_path", "boxes", "device")
    overrides = {name: getattr(flags, name) for name in names}
    model, opt, vocab = evaluation.load_model(flags.model_path, **overrides)
    is_sparse = opt.model == "gsmn" and opt.is_sparse
    reader = Reader(vocab, is_sparse, flags.spacy_model)
    opt = SimpleNamespace(**{**vars(opt), "is_sparse": False})  # the split's own dependencies are not needed
    return model, data.open_split(flags.split, opt.data_name, vocab, opt), reader


def queries():
    """Sentences from the keyboard, or the lines of a pipe."""
    prompt = "sentence: " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(prompt).strip()
        except EOFError:
            return
        if not text:
            return
        yield text


def main(arguments=None):
    flags = parse(arguments)
    if flags.images or flags.out:
        need_matplotlib()
    if flags.images and not Path(flags.images).is_dir():
        raise InputError(f"--images {flags.images}: no such folder")
    if flags.out:
        check_writable(flags.out)
    model, dataset, reader = load(flags)
    path = Path(flags.cache) / cache_name(flags.model_path, dataset) if flags.cache else None
    images, names = image_embeddings(model, dataset, path), names_of(dataset)
    for text in [flags.query] if flags.query is not None else queries():
        try:
            sentence = reader(text)
        except InputError as error:
            if flags.query is not None:
                raise
            warn(error)
            continue
        best, scores = search(model, images, dataset.boxes, sentence, flags.top)
        report(dataset, names, best, scores)
        if flags.images or flags.out:
            out = flags.out or f"search-{re.sub('[^a-z0-9]+', '-', text.lower()).strip('-')[:60] or 'sentence'}.png"
            save_figure(draw(text, dataset, best, scores, flags.images), out)
            print(out)


if __name__ == "__main__":
    run(main)
