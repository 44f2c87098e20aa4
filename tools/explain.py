"""Show what GSMN matched in an image and a sentence: which word looked where, and what each adds to the score.

    python tools/explain.py --model_path runs/dense/checkpoint/model_best.pth.tar --image 3 --caption 17
    python tools/explain.py --model_path MODEL.pth.tar --image 3 --caption "two dogs run on grass" --images PICTURES

Images and captions are numbered from 0; caption 17 is one of image 3's own.  Writes NAME.html, a page that
needs nothing else (point at a word: its regions light up), and four figures NAME-*.png.  A sentence in words
is parsed by spaCy where the model is sparse.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runtime.openmp  # noqa: F401, before torch

import data
from evaluation import load_model
from files.errors import InputError, run
from files.writing import atomic_write, check_writable
from reporting.explain_page import page
from reporting.explanation import caption_sentence, explain_pair
from reporting.figures import need_matplotlib, save_figure
from reporting.image_view import view_image
from runtime.commandline import Parser
from runtime.options import add_override_flags, overrides_of
from tools.explaining import figures
from tools.explaining.sentences import Reader, add_spacy_flag


def sentence_of(caption, dataset, reader):
    """A caption's number in the split, or a sentence -> Sentence."""
    if not caption.isdecimal():
        return reader()(caption)
    number = int(caption)
    if number >= len(dataset):
        raise InputError(f"--caption {number}: the split {dataset.split} has captions 0 to {len(dataset) - 1}")
    return caption_sentence(dataset, number)


# ---- command line


def explain_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint of GSMN")
    add_override_flags(parser, boxes=True)
    add("--image", type=int, required=True, metavar="I", help="number of the image, from 0")
    add(
        "--caption",
        metavar="J|SENTENCE",
        help="number of a caption, from 0, or a sentence (default: the image's first caption)",
    )
    add("--images", metavar="DIR", help="folder of the picture files; {split}_imagename.txt beside the data names them")
    add("--region", type=int, metavar="R", help="region whose spatial weights are drawn (default: what adds most)")
    add("--out", metavar="NAME", help="name of what is written (default: explain-I-J)")
    add(
        "--format",
        nargs="+",
        default=["html", "png"],
        choices=["html", "png", "pdf", "svg"],
        help="the page, and kinds of figures, which need matplotlib (default: html png)",
    )
    add_spacy_flag(parser)
    return parser.parse_args(arguments)


def load_pair_reader(flags):
    """The model, the split and what reads a sentence; InputError for a model without graphs to show."""
    model, opt, vocab = load_model(flags.model_path, **overrides_of(flags))
    if opt.model != "gsmn":
        raise InputError(
            f"{flags.model_path}: holds {opt.model}, which matches whole vectors; words and regions are "
            "matched by GSMN alone"
        )
    numbered = flags.caption.isdecimal()
    opt_data = SimpleNamespace(**{**vars(opt), "is_sparse": opt.is_sparse and numbered})
    dataset = data.open_split(flags.split, opt.data_name, vocab, opt_data)
    return model, dataset, lambda: Reader(vocab, opt.is_sparse, flags.spacy_model)


def main(arguments=None):
    flags = explain_options(arguments)
    flags.caption = flags.caption or str(data.CAPTIONS_PER_IMAGE * flags.image)
    kinds = [kind for kind in flags.format if kind != "html"]
    if kinds:
        need_matplotlib()
    out = flags.out or f"explain-{flags.image}-{flags.caption if flags.caption.isdecimal() else 'sentence'}"
    check_writable(f"{out}.html")
    model, dataset, reader = load_pair_reader(flags)
    if not 0 <= flags.image < dataset.n_images:
        raise InputError(f"--image {flags.image}: the split {dataset.split} has images 0 to {dataset.n_images - 1}")
    sentence = sentence_of(flags.caption, dataset, reader)
    explanation = explain_pair(model, dataset, flags.image, sentence)
    view = view_image(dataset, flags.image, flags.images)
    title = f"Image {flags.image} and " + (f"caption {flags.caption}" if flags.caption.isdecimal() else "a sentence")
    print(
        f"{title}: score {explanation.score:.6f} = regions {explanation.regions.sum():.6f} "
        f"+ words {explanation.words.sum():.6f}"
    )
    if "html" in flags.format:
        text = page(title, explanation, sentence, view)
        atomic_write(f"{out}.html", lambda file: file.write(text.encode()))
        print(f"{out}.html")
    for kind in kinds:
        write_figures(out, kind, explanation, sentence, view, flags.region)


def write_figures(out, kind, explanation, sentence, view, region):
    if region is None:
        region = int(explanation.regions.argmax())
    if not 0 <= region < len(explanation.regions):
        raise InputError(f"--region {region}: the image has regions 0 to {len(explanation.regions) - 1}")
    for name, figure in figures.explanation_figures(explanation, sentence.words, view, region):
        save_figure(figure, f"{out}-{name}.{kind}")
        print(f"{out}-{name}.{kind}")


if __name__ == "__main__":
    run(main)
