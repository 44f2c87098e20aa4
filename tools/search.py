"""Find the images of a split that fit a sentence of your own.

    python tools/search.py --model_path MODEL.pth.tar --query "two dogs run on grass" --images PICTURES
    python tools/search.py --index test.index --query "two dogs run on grass" --rerank GSMN.pth.tar --shortlist 100

Without --query it asks for one sentence after another, until an empty line.  With --model_path alone, a model is
asked about every image: they are encoded once, and their embeddings are kept in --cache, in a file named by the
checkpoint's content and the features' file.  An --index of tools/index.py is much faster in a large collection;
with --rerank GSMN looks at the nearest K images of the index again, at a cost that grows with K alone.  A sparse
GSMN parses the sentence with spaCy.
"""

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
from files.arrays import open_array
from files.checksum import sha256
from files.errors import InputError, run, warn
from files.writing import atomic_write, check_writable, make_folder
from reporting import thumbnails
from reporting.figures import matplotlib_figure, need_matplotlib, save_figure
from runtime.commandline import Parser, whole
from runtime.options import add_override_flags, overrides_of
from tools import index
from tools.explain import grid, open_picture
from tools.explaining.sentences import Reader
from tools.index import checkpoint_file, encode_images, features_of, first_captions, names_of

COLUMNS = 5


# ---- the images


def cache_name(model_path, dataset):
    """A name that changes with the checkpoint's bytes and with the features' file (path, bytes, time)."""
    key = hashlib.sha256(sha256(checkpoint_file(model_path)).encode())
    for file in features_of(dataset):
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


class Everything:
    """finder(text) -> (numbers, scores) of the best images; the model is asked about every image of the split."""

    def __init__(self, flags):
        self.model, opt, vocab = evaluation.load_model(flags.model_path, **overrides_of(flags))
        self.reader = reader_of(opt, vocab, flags)
        self.dataset = open_images(flags, opt, vocab)
        path = Path(flags.cache) / cache_name(flags.model_path, self.dataset) if flags.cache else None
        self.images, self.top = image_embeddings(self.model, self.dataset, path), flags.top
        self.names, self.captions = names_of(self.dataset), first_captions(self.dataset)

    def __call__(self, text):
        return search(self.model, self.images, self.dataset.boxes, self.reader(text), self.top)


class FromIndex:
    """finder(text) -> (numbers, scores) of the best images; VSRN's from an index, or GSMN's of a shortlist from it."""

    def __init__(self, flags):
        self.index, self.top, self.again = index.read(flags.index), flags.top, None
        if flags.breadth:
            index.set_breadth(self.index.faiss, flags.breadth)
        facts = self.index.facts
        if flags.split not in (None, facts["split"]):
            raise InputError(f"--split {flags.split}: {flags.index} holds the split {facts['split']}")
        for name in ("data_path", "data_name", "split"):
            setattr(flags, name, getattr(flags, name) or facts[name])
        path = flags.model_path or facts["model"]
        self.model, opt, vocab = evaluation.load_model(path, **overrides_of(flags))
        index.check_model(self.index, opt, path)
        index.check_features(self.index, Path(flags.data_path) / flags.data_name)
        self.names, self.captions = facts["names"], facts["captions"]
        self.reader, self.dataset = Reader(vocab), None
        if flags.rerank:
            self.again = Reranker(flags, vocab)
            self.dataset = self.again.dataset
        elif flags.images or flags.out:
            self.dataset = open_images(flags, opt, vocab)

    def __call__(self, text):
        sentence = self.reader(text)
        ids = torch.tensor([sentence.ids])
        with torch.no_grad():
            vector = self.model.encode_captions(ids, [ids.shape[1]]).cpu().numpy()
        k = self.again.k if self.again else self.top
        numbers, scores = index.shortlist(self.index.faiss, vector, k)
        return self.again(text, numbers, self.top) if self.again else (numbers, scores)


class Reranker:
    """reranker(text, numbers, top) -> (numbers, scores) of the `top` best by GSMN of the images `numbers`.

    Only these images are encoded, or, where --cache has GSMN's embeddings already, read.  known: the vocabulary whose
    missing words are already told.
    """

    def __init__(self, flags, known):
        self.k = flags.shortlist
        self.model, opt, vocab = evaluation.load_model(flags.rerank, **overrides_of(flags))
        need_gsmn(opt, flags.rerank)
        self.reader = reader_of(opt, vocab, flags)
        self.reader.quiet = vocab.word2idx == known.word2idx
        self.dataset = open_images(flags, opt, vocab)
        stored = Path(flags.cache) / cache_name(flags.rerank, self.dataset) if flags.cache else None
        self.stored = open_array(stored) if stored and stored.exists() else None

    def __call__(self, text, numbers, top):
        n = self.dataset.n_images
        numbers = np.arange(n) if self.k >= n else numbers  # all are all, even where an index misses some
        return rerank(self.model, self.dataset, self.reader(text), numbers, top, self.stored)


def need_gsmn(opt, path):
    """InputError unless a checkpoint holds GSMN."""
    if opt.model != "gsmn":
        raise InputError(f"{path}: holds {opt.model}; --rerank takes a checkpoint of GSMN")


def rerank(model, dataset, sentence, numbers, top, stored=None):
    """The `top` best of the images `numbers` by GSMN -> (numbers, scores).

    stored: all images' embeddings (N, R, D), of which some rows are read; else the images are encoded.
    """
    numbers = np.sort(numbers)  # equal scores keep the order of the split, as in a search through all
    images = encode_images(model, dataset, numbers) if stored is None else torch.from_numpy(stored[numbers])
    boxes = None if dataset.boxes is None else dataset.boxes[numbers]
    best, scores = search(model, images, boxes, sentence, top)
    return numbers[best], scores


def reader_of(opt, vocab, flags):
    return Reader(vocab, opt.model == "gsmn" and opt.is_sparse, flags.spacy_model)


def open_images(flags, opt, vocab):
    """The split; its own dependencies are not needed."""
    opt = SimpleNamespace(**{**vars(opt), "is_sparse": False})
    return data.open_split(flags.split or "test", opt.data_name, vocab, opt)


# ---- what is shown


def report(finder, best, scores):
    """A line for each image found: its place, score, number, name and first caption."""
    for place, (g, score) in enumerate(zip(best, scores), start=1):
        print(f"{place:4}  {score:8.4f}  image {g}  {finder.names[g]}  {finder.captions[g]}")


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
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", help="checkpoint of GSMN or VSRN; with --index not needed: that names its own")
    add(
        "--index",
        metavar="FILE",
        help="index of tools/index.py, which answers in place of a look at every image; without one, --split is test",
    )
    add("--rerank", metavar="PATH", help="with --index: checkpoint of GSMN that re-orders the nearest images")
    add(
        "--shortlist",
        default=100,
        type=whole(),
        metavar="K",
        help="with --rerank: images of the index that GSMN looks at (default: 100)",
    )
    add(
        "--breadth",
        type=whole(),
        metavar="N",
        help=f"with --index: groups that an ivf looks into (default: {index.PROBES}), or candidates that an hnsw keeps "
        f"(default: {index.EFFORT}); more miss less and take longer",
    )
    add_override_flags(parser, split=None, boxes=True)
    add("--query", metavar="SENTENCE", help="what to look for (default: ask)")
    add("--top", default=10, type=whole(), metavar="K", help="images to show (default: 10)")
    add("--images", metavar="DIR", help="folder of the picture files: draw what was found")
    add("--out", metavar="FILE", help="figure to write: png, pdf or svg (default with --images: search-SENTENCE.png)")
    add(
        "--cache",
        default="search_cache",
        metavar="DIR",
        help="folder for the images' embeddings; '' for none (default: search_cache)",
    )
    add("--spacy_model", metavar="NAME", help="spaCy's model (default: any installed English one)")
    return parser.parse_args(arguments)


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


def check(flags):
    """InputError, before anything is read, for flags that do not go together or cannot be followed."""
    if not flags.index and not flags.model_path:
        raise InputError("need --model_path, a checkpoint, or --index, a file of tools/index.py")
    if flags.rerank and not flags.index:
        raise InputError("--rerank: goes with --index, which gives the images to re-order")
    if flags.rerank and flags.shortlist < flags.top:
        raise InputError(f"--shortlist {flags.shortlist}: less than the --top {flags.top} images to show")
    if flags.images or flags.out:
        need_matplotlib()
    if flags.images and not Path(flags.images).is_dir():
        raise InputError(f"--images {flags.images}: no such folder")
    if flags.out:
        check_writable(flags.out)


def main(arguments=None):
    flags = parse(arguments)
    check(flags)
    finder = FromIndex(flags) if flags.index else Everything(flags)
    for text in [flags.query] if flags.query is not None else queries():
        try:
            best, scores = finder(text)
        except InputError as error:
            if flags.query is not None:
                raise
            warn(error)
            continue
        report(finder, best, scores)
        if flags.images or flags.out:
            out = flags.out or f"search-{re.sub('[^a-z0-9]+', '-', text.lower()).strip('-')[:60] or 'sentence'}.png"
            save_figure(draw(text, finder.dataset, best, scores, flags.images), out)
            print(out)


if __name__ == "__main__":
    run(main)
