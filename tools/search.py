"""Find the images of a split that fit a sentence of your own.

    python tools/search.py --model_path MODEL.pth.tar --query "two dogs run on grass" --images PICTURES
    python tools/search.py --model_path VSRN.pth.tar --split test --save_index test.index
    python tools/search.py --index test.index --query "two dogs run on grass" --rerank GSMN.pth.tar --shortlist 100

Without --query it asks for one sentence after another, until an empty line. The split needs no captions. With
--model_path the model scores every image. A model of one vector an image, such as VSRN, can also put the vectors into
a FAISS index (--save_index; needs faiss: pip install faiss-cpu), and --index asks that: 'exact' compares the sentence
with every vector, 'ivf' looks into the nearest groups of them, 'hnsw' walks a graph of neighbours; both are faster in
large collections and may miss some images. With --rerank another model re-orders the nearest K images of the index, at
a cost that grows with K alone. A sparse GSMN parses the sentence with spaCy. With --images or --out a page shows the
images found.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import guarded, run

from functools import cached_property

from checkpoints.evaluation_options import add_images_flag, add_override_flags, add_spacy_flag, existing, overrides_of
from files.errors import InputError, warn
from files.writing import atomic_write, check_writable, text_as_name
from runtime.commandline import Parser, whole
from tools.searching import faiss_index


def search_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", type=existing, help="checkpoint that searches (default with --index: the one that made it)")
    add("--query", metavar="SENTENCE", help="what to look for (default: ask)")
    add("--top", default=10, type=whole(), metavar="K", help="images to show")
    add_images_flag(parser)
    add("--out", metavar="FILE.html", help="page to write, FILE-2 ... further on (with --images: search-SENTENCE.html)")
    add_override_flags(parser, split=None, boxes=True)
    add_spacy_flag(parser)
    add = parser.add_argument_group("index").add_argument
    add("--save_index", metavar="FILE", help="write an index of the split's images, and FILE.json beside it, and end")
    add("--kind", default="exact", choices=faiss_index.INDEX_KINDS, help="with --save_index: kind of index")
    add("--index", metavar="FILE", help="search this index, which knows its data and split")
    add("--rerank", type=existing, metavar="PATH", help="with --index: checkpoint that re-orders the nearest images")
    add("--shortlist", default=100, type=whole(), metavar="K", help="with --rerank: images of the index to re-order")
    kinds = f"ivf's groups (default: {faiss_index.PROBES}) or hnsw's candidates (default: {faiss_index.EFFORT})"
    add("--breadth", type=whole(), metavar="N", help=f"with --index: {kinds} to look at; more find more, slower")
    flags = parser.parse_args(arguments)
    if not flags.model_path and (flags.save_index or not flags.index):
        raise InputError("need --model_path, a checkpoint, or --index, a file that --save_index wrote")
    if flags.rerank and not flags.index:
        raise InputError("--rerank: goes with --index, which gives the images to re-order")
    if flags.rerank and flags.shortlist < flags.top:
        raise InputError(f"--shortlist {flags.shortlist}: less than the --top {flags.top} images to show")
    if flags.images and not Path(flags.images).is_dir():
        raise InputError(f"--images {flags.images}: no such folder")
    if flags.save_index:
        check_writable(faiss_index.facts_file(flags.save_index))
    for path in filter(None, (flags.out, flags.save_index)):
        check_writable(path)
    return flags


if __name__ == "__main__":
    guarded(search_options)  # before torch is loaded

import torch

from checkpoints.loading import describe_checkpoint, open_checkpoint, trained_model
from files.identity import data_identity, difference
from reporting.image_view import THUMBNAIL, ImageViewer
from reporting.outputs import provenance
from reporting.rendering import template
from systems.table import inputs_of
from tools.searching.collection import Reader, best_images, embed_images, labels, open_collection

# ---- finders: called with a text and a number -> (numbers, scores) of so many images, best first.  They have `names`
# and `captions` of all images, `dataset` (None where it is not needed) and `provenance`, the record for the page.


class Scorer:
    """A finder whose model scores all images of the split, or those in `numbers`, which alone are then encoded."""

    def __init__(self, path, flags):
        loaded, opt, vocab = open_checkpoint(path, overrides_of(flags))
        self.model = trained_model(loaded, opt, path)
        self.dataset = open_collection(flags.split or "test", opt, vocab)
        self.names, self.captions = labels(self.dataset)
        self.provenance = {**provenance(self.dataset), "checkpoint": describe_checkpoint(path, loaded, opt)}
        self.reader = Reader(vocab, inputs_of(opt).dependencies, flags.spacy_model)

    @cached_property
    def embeddings(self):
        return embed_images(self.model, self.dataset)

    def __call__(self, text, top, numbers=None):
        sentence = self.reader(text)
        images = self.embeddings if numbers is None else None
        found, scores = best_images(self.model, self.dataset, sentence, numbers, images)
        return found[:top], scores[:top]


class IndexedImages:
    """A finder with a FAISS index of vectors; with --rerank another model orders the index's shortlist."""

    def __init__(self, flags):
        self.index, facts = faiss_index.read_index(flags.index)
        if flags.split not in (None, facts["split"]):
            raise InputError(f"--split {flags.split}: {flags.index} holds the split {facts['split']}")
        place, path = Path(facts["data"]), flags.model_path or facts["checkpoint"]["path"]
        flags.split, flags.data_name = facts["split"], flags.data_name or place.name  # where they are not given
        flags.data_path = flags.data_path or str(place.parent)
        loaded, opt, vocab = open_checkpoint(path, overrides_of(flags))
        self.model, self.reader = trained_model(loaded, opt, path), Reader(vocab)
        faiss_index.need_vectors(self.model, path)
        if faiss_index.weights_identity(self.model) != facts["weights"]:
            raise InputError(f"{flags.index}: made with other weights than those of {path}; {faiss_index.BUILD_AGAIN}")
        self.names, self.captions = facts["names"], facts["captions"]
        self.provenance = {name: value for name, value in facts.items() if name not in ("names", "captions")}
        self.dataset = None  # a list of names needs no images
        if flags.rerank or flags.images or flags.out or (Path(flags.data_path) / flags.data_name).is_dir():
            self.dataset = open_collection(flags.split, opt, vocab)
            if other := difference(facts["identity"], data_identity(self.dataset), features=True):
                made = f"not what {flags.index} was made from ({other})"
                raise InputError(f"{self.dataset.folder}: {made}; {faiss_index.BUILD_AGAIN}")
        self.scorer, self.shortlist = Scorer(flags.rerank, flags) if flags.rerank else None, flags.shortlist
        if flags.breadth:
            faiss_index.set_breadth(self.index, flags.breadth)

    @torch.no_grad()
    def __call__(self, text, top):
        ids = torch.tensor([self.reader(text).ids])
        vector = self.model.encode_captions(ids, [ids.shape[1]]).cpu().numpy()
        numbers, scores = faiss_index.shortlist(self.index, vector, self.shortlist if self.scorer else top)
        return self.scorer(text, top, numbers) if self.scorer else (numbers, scores)


def save_index(flags):
    """Write the index of a split's images (--save_index)."""
    faiss_index.need_faiss()
    scorer = Scorer(flags.model_path, flags)
    faiss_index.need_vectors(scorer.model, flags.model_path)
    vectors = scorer.embeddings.numpy()
    facts = {
        **scorer.provenance,
        "checkpoint": {**scorer.provenance["checkpoint"], "path": str(Path(flags.model_path).resolve())},
        "weights": faiss_index.weights_identity(scorer.model),
        "identity": data_identity(scorer.dataset),
        "names": scorer.names,
        "captions": scorer.captions,
    }
    faiss_index.write_index(flags.save_index, faiss_index.build_index(vectors, flags.kind), facts)
    size = Path(flags.save_index).stat().st_size / 1e6
    print(f"{flags.save_index}: {len(vectors)} images, {vectors.shape[1]} numbers each, {flags.kind}, {size:.3g} MB")


# ---- sentences and answers


def queries():
    """Sentences from the keyboard, or the lines of a pipe."""
    prompt = "sentence: " if sys.stdin.isatty() else ""
    try:
        while text := input(prompt).strip():
            yield text
    except EOFError:
        return
    except UnicodeDecodeError:
        raise InputError(f"the sentence is not {sys.stdin.encoding}; PYTHONIOENCODING=utf-8 reads UTF-8") from None


def answer(finder, text, flags, viewer, number):
    """Print the images found for a sentence, best first; with an ImageViewer write its page, of this number from 1."""
    best, scores = finder(text, flags.top)
    for place, (g, score) in enumerate(zip(best, scores), start=1):
        print(f"{place:4}  {score:8.4f}  image {g}  {finder.names[g]}  {finder.captions[g]}")
    if viewer:
        path = Path(flags.out or f"search-{text_as_name(text)}.html")
        path = path.with_name(f"{path.stem}-{number}{path.suffix}") if flags.out and number > 1 else path
        page = template("search.html").render(
            text=text,
            found=list(zip(map(viewer, best.tolist()), scores.tolist())),
            names=finder.names,
            captions=finder.captions,
            provenance=finder.provenance,
        )
        content = page.encode()
        atomic_write(path, lambda file: file.write(content))
        print(f"{path}: {len(content) / 1000:.0f} kB")


def main(arguments=None):
    flags = search_options(arguments)
    if flags.save_index:
        save_index(flags)
        return
    finder = IndexedImages(flags) if flags.index else Scorer(flags.model_path, flags)
    viewer = ImageViewer(finder.dataset, flags.images, THUMBNAIL) if flags.images or flags.out else None
    for number, text in enumerate(queries() if flags.query is None else [flags.query], start=1):
        try:
            answer(finder, text, flags, viewer, number)
        except InputError as error:
            if flags.query is not None:
                raise
            warn(error)


if __name__ == "__main__":
    run(main)
