"""Show what GSMN matched in an image and a sentence: which regions each word attends to, and what it adds to the score.

    python tools/explain.py --model_path runs/dense/checkpoint/model_best.pth.tar --image 3 --caption 17
    python tools/explain.py --model_path MODEL.pth.tar --image 3 --caption "two dogs run on grass" --images PICTURES
    python tools/explain.py --model_path MODEL.pth.tar --image 3 --caption 17 85
    python tools/explain.py --model_path MODEL.pth.tar --image 3 9 --caption 17

Images and captions are numbered from 0; captions 15 to 19 are image 3's own.  Two captions, or two images, stand side
by side with the difference word by word.  Writes NAME.html, a page that loads nothing else (point at a word: its
regions light up); --format png writes figures NAME-*.png.  A sentence in words is parsed by spaCy where the model is
sparse.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runtime.openmp  # noqa: F401, before torch

from checkpoints.evaluation_options import add_override_flags
from files.errors import InputError, run
from files.text import CAPTIONS_PER_IMAGE
from files.writing import atomic_write, check_writable, text_as_name
from reporting.explain_page import explain_page
from reporting.figures import need_matplotlib, save_figure
from reporting.image_view import warn_of_notes
from runtime.commandline import Parser, whole
from tools.explaining.explainer import Explainer
from tools.explaining.figures import explanation_figures
from tools.explaining.sentences import add_spacy_flag
from tools.searching.collection import add_images_flag


def explain_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint of GSMN")
    add_override_flags(parser, boxes=True)
    add("--image", type=whole(0), nargs="+", required=True, metavar="I", help="number of one or two images, from 0")
    add(
        "--caption",
        nargs="+",
        metavar="J|SENTENCE",
        help="one or two captions: numbers, from 0, or sentences (default: the first image's first caption)",
    )
    add_images_flag(parser)
    add("--region", type=whole(0), metavar="R", help="figures: region of the spatial weights (default: what adds most)")
    add("--out", metavar="NAME", help="name of the files to write, without ending (default: explain-I-J)")
    add(
        "--format",
        nargs="+",
        default=["html"],
        choices=["html", "png", "pdf", "svg"],
        help="html: the page; png, pdf, svg: figures, which need matplotlib (default: html)",
    )
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
    kinds = [kind for kind in flags.format if kind != "html"]
    if kinds:
        need_matplotlib()
    out = flags.out or "-".join(["explain", *map(str, flags.image), *map(text_as_name, flags.caption)])
    check_writable(f"{out}.html")
    explainer = Explainer(flags)
    pairs = [explainer.pair(image, caption) for image in flags.image for caption in flags.caption]
    warn_of_notes(explainer.views.values())
    for pair in pairs:
        print_pair(pair)
    if "html" in flags.format:
        write_explanation(f"{out}.html", explainer, flags, pairs)
    for kind in kinds:
        for k, pair in enumerate(pairs, start=1):
            write_figures(out if len(pairs) == 1 else f"{out}-{k}", kind, pair, flags.region)


def print_pair(pair):
    score, regions, words = pair.explanation[:3]
    print(f"{pair.heading}: score {score:.6f} = regions {regions.sum():.6f} + words {words.sum():.6f}")
    print(f"    {pair.facts}")


def write_explanation(path, explainer, flags, pairs):
    """The page of one pair, titled by it, or of two."""
    if len(pairs) == 1:
        title, lead, pairs = pairs[0].heading, pairs[0].facts, [pairs[0]._replace(heading="", facts="")]
    elif len(flags.image) == 2:
        title = f"“{explainer.text(flags.caption[0])}”: image {flags.image[0]} beside image {flags.image[1]}"
        lead, pairs = "", [pair._replace(heading=f"Image {pair.view.number}") for pair in pairs]
    else:
        texts = [explainer.text(caption) for caption in flags.caption]
        title = f"Image {flags.image[0]}: two sentences"
        lead, pairs = "", [pair._replace(heading=f"“{text}”") for pair, text in zip(pairs, texts)]
    content = explain_page(title, lead, pairs).encode()
    atomic_write(path, lambda file: file.write(content))
    print(f"{path}: {len(content) / 1000:.0f} kB")


def write_figures(out, kind, pair, region):
    explanation = pair.explanation
    if region is None:
        region = int(explanation.regions.argmax())
    if region >= len(explanation.regions):
        raise InputError(f"--region {region}: the image has regions 0 to {len(explanation.regions) - 1}")
    for name, figure in explanation_figures(explanation, pair.sentence.words, pair.view, region):
        save_figure(figure, f"{out}-{name}.{kind}")
        print(f"{out}-{name}.{kind}")


if __name__ == "__main__":
    run(main)
