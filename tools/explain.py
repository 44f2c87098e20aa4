"""Show what GSMN matched in an image and a sentence: which word looked where, and what each adds to the score.

    python tools/explain.py --model_path runs/dense/checkpoint/model_best.pth.tar --image 3 --caption 17
    python tools/explain.py --model_path MODEL.pth.tar --image 3 --caption "two dogs run on grass" --images PICTURES

Images and captions are numbered from 0; caption 17 is one of image 3's own.  Writes NAME.html, a page that
needs nothing else (point at a word: its regions light up), and four figures NAME-*.png.  A sentence in words
is parsed by spaCy where the model is sparse.
"""

import base64
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
from evaluation import load_model
from files.errors import InputError, run, warn
from files.writing import atomic_write, check_writable
from reporting import thumbnails
from reporting.figures import need_matplotlib, save_figure
from reporting.pages import TEMPLATES, template
from runtime.commandline import Parser
from runtime.options import add_override_flags, overrides_of
from tools.explaining.explanation import explain
from tools.explaining.sentences import Reader, Sentence

SIDE = 960  # pixels of the picture's longer side, in the page


class Scene(NamedTuple):
    """The picture of a pair."""

    number: int
    name: str
    picture: object  # PIL image, or None where there is none
    size: tuple  # width, height in pixels
    boxes: np.ndarray  # (R, 4) as parts of width and height; cells of a grid where nobody knows them
    is_grid: bool


# ---- what is explained


def sentence_of(caption, dataset, reader):
    """A caption's number in the split, or a sentence -> Sentence."""
    if not caption.isdecimal():
        return reader()(caption)
    number = int(caption)
    if number >= len(dataset):
        raise InputError(f"--caption {number}: the split {dataset.split} has captions 0 to {len(dataset) - 1}")
    ids = dataset.tokens[number]
    pairs = None if dataset.depends is None else dataset.depends[number]
    return Sentence([dataset.vocab.idx2word[i] for i in ids], ids, pairs)


def scene_of(dataset, number, images=None):
    """An image of the split -> Scene; images: folder of picture files, or None."""
    name, picture = "", None
    if images:
        name, picture = open_picture(dataset, number, images)
    boxes, sizes = thumbnails.read_regions(dataset)
    size = (4, 3) if sizes is None else sizes[number]
    size = picture.size if picture else tuple(round(x * SIDE / max(size)) for x in size)
    regions = dataset.images.shape[1]
    boxes_here = grid(regions) if boxes is None else np.clip(boxes[number], 0, 1)
    return Scene(number, name, picture, size, boxes_here, boxes is None)


def open_picture(dataset, number, images):
    """(name, PIL image or None) of an image, from the folder `images`; what is missing is said."""
    if hasattr(dataset, "pictures"):
        return read_picture(Path(dataset.pictures[number]), Path(dataset.pictures[number]).name)
    if not Path(images).is_dir():
        raise InputError(f"--images {images}: no such folder")
    names = thumbnails.image_names(dataset)
    if names is None:
        warn(f"--images: no {dataset.folder / dataset.split}_imagename.txt tells the images' names; drawing regions")
        return "", None
    file = thumbnails.find(Path(images), names[number])
    if file is None:
        warn(f"{images}: {names[number]} is not there; drawing regions")
        return names[number], None
    return read_picture(file, names[number])


def read_picture(file, name):
    """(name, PIL image at most SIDE large, or None with a warning)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as picture:
            picture = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        warn(f"{file}: cannot be read as a picture; drawing regions")
        return name, None
    picture.thumbnail((SIDE, SIDE))
    return name, picture


def grid(regions):
    """Boxes (R, 4) side by side, for regions whose place is not known."""
    columns = int(np.ceil(np.sqrt(regions)))
    rows = int(np.ceil(regions / columns))
    x, y = np.arange(regions) % columns, np.arange(regions) // columns
    cells = np.stack([x + 0.05, y + 0.05, x + 0.95, y + 0.95], 1)
    return cells / [columns, rows, columns, rows]


@torch.no_grad()
def explain_pair(model, dataset, number, sentence):
    """Image `number` of the split and a Sentence -> Explanation."""
    regions = model.encode_images(dataset.image(number).unsqueeze(0))[0]
    words = model.encode_captions(torch.tensor([sentence.ids]), [len(sentence.ids)])[0]
    boxes = None if dataset.boxes is None else torch.from_numpy(dataset.boxes[number])
    return explain(model, regions, words, boxes, sentence.pairs)


# ---- the page


def page(title, explanation, sentence, scene):
    """One HTML file as text: data, style, script and picture within."""
    try:
        form = template("explain.html")
    except ImportError:
        raise InputError("the page needs the package jinja2: pip install jinja2") from None
    style, more, script = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "explain.css", "explain.js")
    )
    return form.render(
        title=title, scene=scene, data=page_data(explanation, sentence, scene),
        style=style + more, script=script,
        explanation=explanation, visual=float(explanation.regions.sum()), textual=float(explanation.words.sum()),
    )  # fmt: skip


def page_data(explanation, sentence, scene):
    """What the page's script draws."""
    numbers = {name: value for name, value in explanation._asdict().items() if isinstance(value, np.ndarray)}
    return {
        "tokens": sentence.words,
        "picture": picture_address(scene.picture),
        "size": [int(x) for x in scene.size],
        "boxes": np.round(scene.boxes, 4).tolist(),
        "score": explanation.score,
        "pairs": explanation.pairs,
        **{name: np.round(value.astype(float), 6).tolist() for name, value in numbers.items()},
    }


def picture_address(picture):
    """A PIL image as a data: address, or None."""
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---- command line


def parse(arguments=None):
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
    add("--spacy_model", metavar="NAME", help="spaCy's model for a sentence (default: any installed English one)")
    return parser.parse_args(arguments)


def load(flags):
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
    flags = parse(arguments)
    flags.caption = flags.caption or str(data.CAPTIONS_PER_IMAGE * flags.image)
    kinds = [kind for kind in flags.format if kind != "html"]
    if kinds:
        need_matplotlib()
    out = flags.out or f"explain-{flags.image}-{flags.caption if flags.caption.isdecimal() else 'sentence'}"
    check_writable(f"{out}.html")
    model, dataset, reader = load(flags)
    if not 0 <= flags.image < dataset.n_images:
        raise InputError(f"--image {flags.image}: the split {dataset.split} has images 0 to {dataset.n_images - 1}")
    sentence = sentence_of(flags.caption, dataset, reader)
    explanation = explain_pair(model, dataset, flags.image, sentence)
    scene = scene_of(dataset, flags.image, flags.images)
    title = f"Image {flags.image} and " + (f"caption {flags.caption}" if flags.caption.isdecimal() else "a sentence")
    print(
        f"{title}: score {explanation.score:.6f} = regions {explanation.regions.sum():.6f} "
        f"+ words {explanation.words.sum():.6f}"
    )
    if "html" in flags.format:
        text = page(title, explanation, sentence, scene)
        atomic_write(f"{out}.html", lambda file: file.write(text.encode()))
        print(f"{out}.html")
    for kind in kinds:
        write_figures(out, kind, explanation, sentence, scene, flags.region)


def write_figures(out, kind, explanation, sentence, scene, region):
    from tools.explaining import figures as explain_figures

    if region is None:
        region = int(explanation.regions.argmax())
    if not 0 <= region < len(explanation.regions):
        raise InputError(f"--region {region}: the image has regions 0 to {len(explanation.regions) - 1}")
    for name, figure in explain_figures.figures(explanation, sentence.words, scene, region):
        save_figure(figure, f"{out}-{name}.{kind}")
        print(f"{out}-{name}.{kind}")


if __name__ == "__main__":
    run(main)
