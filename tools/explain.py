"""Show what a model matched in an image and a sentence: which regions each word attends to, and what it adds.

    python tools/explain.py --model_path runs/dense/checkpoint/model_best.pth.tar --image 3 --caption 17
    python tools/explain.py --model_path MODEL.pth.tar --image 3 --caption "two dogs run on grass" --images PICTURES
    python tools/explain.py --model_path MODEL.pth.tar --image 3 --caption 17 85
    python tools/explain.py --model_path MODEL.pth.tar --image 3 9 --caption 17

Images and captions are numbered from 0; captions 15 to 19 are image 3's own.  Two captions, or two images, stand side
by side with the difference word by word.  Writes NAME.html, a page that loads nothing else: point at a word, and its
regions light up.  Print the page for a figure.  A sentence in words is parsed by spaCy where the model is sparse.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import guarded, run

import numpy as np

from checkpoints.evaluation_options import add_images_flag, add_override_flags, add_spacy_flag, existing, overrides_of
from files.errors import InputError
from files.text import CAPTIONS_PER_IMAGE
from files.writing import atomic_write, check_writable, text_as_name
from runtime.commandline import Parser, whole
from systems.table import inputs_of


def explain_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", type=existing, required=True, help="checkpoint of a system that matches words and regions")
    add_override_flags(parser, boxes=True)
    add("--image", type=whole(0), nargs="+", required=True, metavar="I", help="number of one or two images, from 0")
    captions = "one or two captions: numbers, from 0, or sentences (default: the first image's first caption)"
    add("--caption", nargs="+", metavar="J|SENTENCE", help=captions)
    add_images_flag(parser)
    add("--out", metavar="NAME", help="page to write; .html is added where it is missing (default: explain-I-J)")
    no_rank = "leave out the image's rank for the sentence, for which all images of the split are encoded"
    add("--no_rank", dest="rank", action="store_false", help=no_rank)
    add_spacy_flag(parser)
    flags = parser.parse_args(arguments)
    flags.caption = flags.caption or [str(CAPTIONS_PER_IMAGE * flags.image[0])]
    if len(flags.image) * len(flags.caption) > 2:
        parser.error("--image, --caption: a page shows two pairs at most; give two images, or two captions")
    return flags


if __name__ == "__main__":
    guarded(explain_options)  # before torch is loaded

import data
from checkpoints.loading import load_model
from reporting.explain_page import ExplainedPair, about_model, explain_page
from reporting.explanation import caption_sentence, caption_text, explain_pair
from reporting.image_view import ImageViewer
from tools.searching.collection import Reader, embed_images, open_collection, score_images


def read_asked(caption, dataset, opt, vocab, spacy_model):
    """A caption's number or a sentence, as the user gives it -> (Sentence, its text, number or None)."""
    if not caption.isdecimal():
        return Reader(vocab, inputs_of(opt).dependencies, spacy_model)(caption), caption, None
    number = int(caption)
    if number >= len(dataset):
        raise InputError(f"--caption {number}: {dataset.split} has captions 0 to {len(dataset) - 1}")
    return caption_sentence(dataset, number), caption_text(dataset, number), number


def facts_of(image, number, dataset, scores):
    """Whether caption `number` is the image's own, and the image's rank for it; equal scores stand before it."""
    facts = "The sentence is not from the data."
    if number is not None:
        owner = dataset.image_of(number)
        own = "the image's own" if owner == image else f"not the image's own, but of image {owner}"
        facts = f"Caption {number} is {own}."
    if scores is None:
        return facts
    return f"{facts} The image has rank {np.count_nonzero(scores >= scores[image]):,} of {len(scores):,} for it."


def main(arguments=None):
    flags = explain_options(arguments)
    out = flags.out or "-".join(["explain", *map(str, flags.image), *map(text_as_name, flags.caption)])
    out = f"{out.removesuffix('.html')}.html"
    check_writable(out)
    model, opt, vocab = load_model(flags.model_path, **overrides_of(flags))
    if any(caption.isdecimal() for caption in flags.caption):
        dataset = data.open_split(flags.split, opt.data_name, vocab, opt)
    else:  # the split needs no captions and no dependencies
        dataset = open_collection(flags.split, opt, vocab)
    if max(flags.image) >= dataset.n_images:
        raise InputError(f"--image {max(flags.image)}: {flags.split} has images 0 to {dataset.n_images - 1}")
    asked = [read_asked(caption, dataset, opt, vocab, flags.spacy_model) for caption in flags.caption]
    if explain_pair(model, dataset, flags.image[0], asked[0][0]) is None:
        raise InputError(f"{flags.model_path}: a {type(model).__name__} matches no words and regions")
    views = list(map(ImageViewer(dataset, flags.images), flags.image))
    embeddings, pairs = embed_images(model, dataset) if flags.rank else None, []
    for sentence, text, number in asked:
        scores = score_images(model, embeddings, dataset.boxes, sentence) if flags.rank else None
        for view in views:
            facts = facts_of(view.number, number, dataset, scores)
            explanation = explain_pair(model, dataset, view.number, sentence)
            pairs.append(ExplainedPair("", f"Image {view.number}, “{text}”", facts, view, sentence, explanation))
            print_pair(pairs[-1])
    if len(pairs) == 2:
        pairs = [pair._replace(name=name) for pair, name in zip(pairs, ("Left", "Right"))]
    title, about = " · ".join(pair.heading for pair in pairs), about_model(flags.model_path, opt, dataset)
    content = explain_page(title, "", pairs, about).encode()
    atomic_write(out, lambda file: file.write(content))
    print(f"{out}: {len(content) / 1000:.0f} kB")


def print_pair(pair):
    found = pair.explanation
    parts = [(name, getattr(found, name)) for name in ("regions", "words") if found.adds]
    parts = " + ".join(f"{name} {part.sum():.6f}" for name, part in parts if part is not None)
    print(f"{pair.heading}: score {found.score:.6f}{' = ' if parts else ''}{parts}\n    {pair.facts}")


if __name__ == "__main__":
    run(main)
