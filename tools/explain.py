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

from runtime.start import run

from checkpoints.evaluation_options import add_override_flags
from files.text import CAPTIONS_PER_IMAGE
from files.writing import atomic_write, check_writable, text_as_name
from reporting.explain_page import explain_page
from reporting.image_view import warn_of_notes
from runtime.commandline import Parser, whole
from tools.explaining.explainer import Explainer
from tools.explaining.sentences import add_spacy_flag
from tools.searching.collection import add_images_flag


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
    add("--out", metavar="NAME", help="name of the page to write, without ending (default: explain-I-J)")
    add(
        "--no_rank",
        dest="rank",
        action="store_false",
        help="leave out the image's rank for the sentence, for which all images of the split are encoded",
    )
    add_spacy_flag(parser)
    flags = parser.parse_args(arguments)
    flags.caption = flags.caption or [str(CAPTIONS_PER_IMAGE * flags.image[0])]
    if len(flags.image) * len(flags.caption) > 2:
        parser.error("--image, --caption: a page shows two pairs at most; give two images, or two captions")
    return flags


def main(arguments=None):
    flags = explain_options(arguments)
    out = flags.out or "-".join(["explain", *map(str, flags.image), *map(text_as_name, flags.caption)])
    check_writable(f"{out}.html")
    explainer = Explainer(flags)
    pairs = [explainer.pair(image, caption) for image in flags.image for caption in flags.caption]
    warn_of_notes({pair.view.number: pair.view for pair in pairs}.values())
    for pair in pairs:
        print_pair(pair)
    content = explain_page(*headed(explainer, flags, pairs), explainer.about).encode()
    atomic_write(f"{out}.html", lambda file: file.write(content))
    print(f"{out}.html: {len(content) / 1000:.0f} kB")


def print_pair(pair):
    score, regions, words = pair.explanation[:3]
    parts = [f"{name} {part.sum():.6f}" for name, part in (("regions", regions), ("words", words)) if part is not None]
    print(f"{pair.heading}: score {score:.6f} = {' + '.join(parts)}\n    {pair.facts}")


def headed(explainer, flags, pairs):
    """(title, line under it, the pairs with headings of their own) of a page."""
    if len(pairs) == 1:
        return pairs[0].heading, pairs[0].facts, [pairs[0]._replace(heading="", facts="")]
    if len(flags.image) == 2:
        title = f"“{explainer.text(flags.caption[0])}”: image {flags.image[0]} beside image {flags.image[1]}"
        names = headings = [f"Image {image}" for image in flags.image]
    else:
        title = f"Image {flags.image[0]}: two sentences"
        headings = [f"“{explainer.text(caption)}”" for caption in flags.caption]
        names = [
            f"Caption {caption}" if caption.isdecimal() else f"Sentence {k}"
            for k, caption in enumerate(flags.caption, 1)
        ]
    return title, "", [pair._replace(name=name, heading=heading) for pair, name, heading in zip(pairs, names, headings)]


if __name__ == "__main__":
    run(main)
