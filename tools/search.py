"""Find the images of a split that fit a sentence of your own.

    python tools/search.py --model_path MODEL.pth.tar --query "two dogs run on grass" --images PICTURES
    python tools/search.py --index test.index --query "two dogs run on grass" --rerank GSMN.pth.tar --shortlist 100

Without --query it asks for one sentence after another, until an empty line.  With --model_path alone, the model
scores every image: the images are encoded once, and their embeddings are kept in --cache, which --cache_size
bounds.  An --index of tools/index.py is much faster in a large collection; with --rerank GSMN re-orders the nearest K
images of the index, at a cost that grows with K alone.  A sparse GSMN parses the sentence with spaCy.
With --images, or --out FILE.html, a page shows the images found.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

from checkpoints.evaluation_options import add_override_flags
from files.errors import InputError, warn
from files.writing import atomic_write, check_writable, text_as_name
from reporting.figures import need_matplotlib, save_figure
from reporting.image_view import ImageViewer
from runtime.commandline import Parser, whole
from tools.explaining.sentences import add_spacy_flag
from tools.searching.collection import add_cache_flags, add_images_flag
from tools.searching.faiss_index import EFFORT, PROBES
from tools.searching.figure import draw_found
from tools.searching.finders import EveryImage, IndexedImages
from tools.searching.page import search_page


def print_found(finder, best, scores):
    """A line for each image found: its place, score, number, name and first caption."""
    for place, (g, score) in enumerate(zip(best, scores), start=1):
        print(f"{place:4}  {score:8.4f}  image {g}  {finder.names[g]}  {finder.captions[g]}")


# ---- command line


def search_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", help="checkpoint of GSMN or VSRN (default with --index: the one that made it)")
    add(
        "--index",
        metavar="FILE",
        help="index of tools/index.py to search, with its own split; without it the model scores every image of "
        "--split, by default test",
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
        help=f"with --index: groups that an ivf looks into (default: {PROBES}), or candidates that an hnsw keeps "
        f"(default: {EFFORT}); more find more and take longer",
    )
    add_override_flags(parser, split=None, boxes=True)
    add("--query", metavar="SENTENCE", help="what to look for (default: ask)")
    add("--top", default=10, type=whole(), metavar="K", help="images to show (default: 10)")
    add_images_flag(parser)
    add(
        "--out",
        metavar="FILE",
        help="what to write: a page (html), or a figure (png, pdf, svg; needs matplotlib); several sentences get FILE, "
        "FILE-2, ... (default with --images: search-SENTENCE.html)",
    )
    add_cache_flags(parser)
    add_spacy_flag(parser)
    return parser.parse_args(arguments)


def queries():
    """Sentences from the keyboard, or the lines of a pipe."""
    prompt = "sentence: " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(prompt).strip()
        except EOFError:
            return
        except UnicodeDecodeError:
            raise InputError(f"the sentence is not {sys.stdin.encoding}; PYTHONIOENCODING=utf-8 reads UTF-8") from None
        if not text:
            return
        yield text


def check_flags(flags):
    """InputError, before anything is read, for flags that do not go together or cannot be followed."""
    if not flags.index and not flags.model_path:
        raise InputError("need --model_path, a checkpoint, or --index, a file of tools/index.py")
    if flags.rerank and not flags.index:
        raise InputError("--rerank: goes with --index, which gives the images to re-order")
    if flags.rerank and flags.shortlist < flags.top:
        raise InputError(f"--shortlist {flags.shortlist}: less than the --top {flags.top} images to show")
    if is_figure(flags.out):
        need_matplotlib()
    if flags.images and not Path(flags.images).is_dir():
        raise InputError(f"--images {flags.images}: no such folder")
    if flags.out:
        check_writable(flags.out)


def is_figure(out):
    return bool(out) and not out.lower().endswith((".html", ".htm"))


def output_name(out, text, number):
    """The file for the sentence `number`, from 1: --out, numbered from the second on, or a name from the sentence."""
    if not out:
        return f"search-{text_as_name(text)}.html"
    path = Path(out)
    return out if number == 1 else str(path.with_name(f"{path.stem}-{number}{path.suffix}"))


def write_found(path, text, finder, viewer, best, scores):
    if is_figure(path):
        save_figure(draw_found(text, viewer, best, scores), path)
        print(path)
        return
    content = search_page(text, finder, viewer, best, scores).encode()
    atomic_write(path, lambda file: file.write(content))
    print(f"{path}: {len(content) / 1000:.0f} kB")


def main(arguments=None):
    flags = search_options(arguments)
    check_flags(flags)
    finder, written = IndexedImages(flags) if flags.index else EveryImage(flags), 0
    viewer = ImageViewer(finder.dataset, flags.images) if flags.images or flags.out else None
    for text in [flags.query] if flags.query is not None else queries():
        try:
            best, scores = finder(text)
        except InputError as error:
            if flags.query is not None:
                raise
            warn(error)
            continue
        print_found(finder, best, scores)
        if viewer:
            written += 1
            write_found(output_name(flags.out, text, written), text, finder, viewer, best, scores)


if __name__ == "__main__":
    run(main)
