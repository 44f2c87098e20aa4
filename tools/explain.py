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

from functools import cache, cached_property

import numpy as np

from checkpoints.evaluation_options import add_images_flag, add_override_flags, add_spacy_flag, overrides_of
from files.errors import InputError
from files.pickles import with_checkpoints
from files.text import CAPTIONS_PER_IMAGE
from files.writing import atomic_write, check_writable, text_as_name
from runtime.commandline import Parser, whole
from systems.table import inputs_of


def explain_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint of a system that matches words and regions")
    add_override_flags(parser, boxes=True)
    add("--image", type=whole(0), nargs="+", required=True, metavar="I", help="number of one or two images, from 0")
    add(
        "--caption",
        nargs="+",
        metavar="J|SENTENCE",
        help="one or two captions: numbers, from 0, or sentences (default: the first image's first caption)",
    )
    add_images_flag(parser)
    add("--out", metavar="NAME", help="page to write; .html is added where it is missing (default: explain-I-J)")
    add(
        "--no_rank",
        dest="rank",
        action="store_false",
        help="leave out the image's rank for the sentence, for which all images of the split are encoded",
    )
    add_spacy_flag(parser)
    flags = with_checkpoints(parser.parse_args(arguments))
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


class Explainer:
    """explainer.pair(image, caption) -> ExplainedPair.

    An image is a number in the split, a caption a number or a sentence, both as text.  InputError for a model that
    does not match words and regions, and for numbers that the split does not have.
    """

    def __init__(self, flags):
        self.flags = flags
        self.model, opt, self.vocab = load_model(flags.model_path, **overrides_of(flags))
        self.reads_trees = inputs_of(opt).dependencies
        if any(caption.isdecimal() for caption in flags.caption):
            self.dataset = data.open_split(flags.split, opt.data_name, self.vocab, opt)
        else:  # the split needs no captions and no dependencies
            self.dataset = open_collection(flags.split, opt, self.vocab)
        self.about = about_model(flags.model_path, opt, self.dataset)
        self.view, self.sentence = cache(ImageViewer(self.dataset, flags.images)), cache(self.read_sentence)

    def pair(self, image, caption):
        if image >= self.dataset.n_images:
            raise InputError(f"--image {image}: {self.flags.split} has images 0 to {self.dataset.n_images - 1}")
        sentence, heading = self.sentence(caption), f"Image {image}, “{self.text(caption)}”"
        explanation = explain_pair(self.model, self.dataset, image, sentence)
        if explanation is None:
            raise InputError(f"{self.flags.model_path}: a {type(self.model).__name__} matches no words and regions")
        return ExplainedPair("", heading, self.facts(image, caption), self.view(image), sentence, explanation)

    def read_sentence(self, caption):
        if not caption.isdecimal():
            return Reader(self.vocab, self.reads_trees, self.flags.spacy_model)(caption)
        if int(caption) >= len(self.dataset):
            raise InputError(f"--caption {caption}: {self.flags.split} has captions 0 to {len(self.dataset) - 1}")
        return caption_sentence(self.dataset, int(caption))

    def text(self, caption):
        return caption_text(self.dataset, int(caption)) if caption.isdecimal() else caption

    def facts(self, image, caption):
        """Whether the sentence is the image's own, and the rank of the image for it; equal scores stand before it."""
        facts = "The sentence is not from the data."
        if caption.isdecimal():
            owner = self.dataset.image_of(int(caption))
            own = "the image's own" if owner == image else f"not the image's own, but of image {owner}"
            facts = f"Caption {caption} is {own}."
        if not self.flags.rank:
            return facts
        scores = score_images(self.model, self.embeddings, self.dataset.boxes, self.sentence(caption))
        rank = np.count_nonzero(scores >= scores[image])
        return f"{facts} The image has rank {rank:,} of {len(scores):,} for it."

    @cached_property
    def embeddings(self):
        return embed_images(self.model, self.dataset)


def main(arguments=None):
    flags = explain_options(arguments)
    out = flags.out or "-".join(["explain", *map(str, flags.image), *map(text_as_name, flags.caption)])
    out = f"{out.removesuffix('.html')}.html"
    check_writable(out)
    explainer = Explainer(flags)
    pairs = [explainer.pair(image, caption) for image in flags.image for caption in flags.caption]
    for pair in pairs:
        print_pair(pair)
    content = explain_page(*headed(explainer, flags, pairs), explainer.about).encode()
    atomic_write(out, lambda file: file.write(content))
    print(f"{out}: {len(content) / 1000:.0f} kB")


def print_pair(pair):
    found = pair.explanation
    parts = [(name, getattr(found, name)) for name in ("regions", "words") if found.adds]
    parts = " + ".join(f"{name} {part.sum():.6f}" for name, part in parts if part is not None)
    print(f"{pair.heading}: score {found.score:.6f}{' = ' if parts else ''}{parts}\n    {pair.facts}")


def headed(explainer, flags, pairs):
    """(title, line under it, the pairs with headings of their own) of a page."""
    if len(pairs) == 1:
        return pairs[0].heading, pairs[0].facts, [pairs[0]._replace(heading="", facts="")]
    if len(flags.image) == 2:
        title = f"“{explainer.text(flags.caption[0])}”: image {flags.image[0]} beside image {flags.image[1]}"
        names = headings = [f"Image {image}" for image in flags.image]
    else:
        title, names = f"Image {flags.image[0]}: two sentences", ["First", "Second"]
        headings = [f"“{explainer.text(caption)}”" for caption in flags.caption]
    return title, "", [pair._replace(name=name, heading=heading) for pair, name, heading in zip(pairs, names, headings)]


if __name__ == "__main__":
    run(main)
