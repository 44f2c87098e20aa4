"""Reference data where they are present, and a tiny data set, for tests."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import vocab

SHARED = Path(os.environ.get("GSMN_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def shared(path):
    """A file or folder of the shared reference data; the test is skipped where there is none."""
    if not (SHARED / path).exists():
        pytest.skip(f"{SHARED / path} is not here")
    return SHARED / path


COLOURS = ("red", "green", "blue", "white")
THINGS = ("dog", "car", "ball", "house")
TEMPLATES = (
    "a {} {} .",
    "there is a {} {} on the grass .",
    "it's the {} one , a {} .",
    "a picture of a {} {} .",
    "the {} {} stands alone",
)
SPLITS = {"train": 40, "dev": 10, "test": 10, "testall": 10}


def make_tiny(root, regions=4, width=8, splits=SPLITS):
    """A complete data set of a few images in root/data/tiny_precomp, its vocabulary in root/vocab.

    The features say colour and thing, so that it can be learnt. Returns a namespace: data_path, vocab_path,
    data_name, folder, and args, the flags that scripts need for it.
    """
    folder, vocab_path = root / "data" / "tiny_precomp", root / "vocab"
    folder.mkdir(parents=True)
    vocab_path.mkdir()
    for seed, (split, n) in enumerate(splits.items()):
        _write_split(folder, split, n, regions, width, np.random.default_rng(seed))
    captions = [text.format(colour, thing) for text in TEMPLATES for colour in COLOURS for thing in THINGS]
    words = vocab.vocab_of_captions(captions)
    vocab.serialize_vocab(words, vocab_path / "tiny_precomp_vocab.json")
    for split in splits:
        ids = [vocab.encode(text, words) for text in (folder / f"{split}_caps.txt").read_text().splitlines()]
        lines = [",".join(map(str, one)) + "\n" for one in ids]
        (folder / f"{split}_precaps_stan.txt").write_text("".join(lines))
        # every word depends on the one before it, the first on ROOT
        depends = [[[i, i + 1] for i in range(len(one) - 2)] for one in ids]
        (folder / f"{split}_caps.json").write_text(json.dumps(depends))
    args = [
        "--data_path",
        str(root / "data"),
        "--vocab_path",
        str(vocab_path),
        "--data_name",
        "tiny_precomp",
        "--img_dim",
        str(width),
    ]
    return SimpleNamespace(
        data_path=str(root / "data"),
        vocab_path=str(vocab_path),
        data_name="tiny_precomp",
        folder=folder,
        img_dim=width,
        args=args,
    )


def _write_split(folder, split, n, regions, width, rng):
    colours, things = rng.integers(0, 4, n), rng.integers(0, 4, n)
    features = rng.normal(0, 0.1, (n, regions, width)).astype(np.float32)
    features[np.arange(n), :, colours] += 1
    features[np.arange(n), :, 4 + things] += 1
    sizes = np.array([(200 + i, 100 + i) for i in range(n)], [("image_w", "i8"), ("image_h", "i8")])
    corners = np.sort(rng.uniform(0, 100, (n, regions, 2, 2)), axis=2)
    np.save(folder / f"{split}_ims.npy", features)
    np.save(folder / f"{split}_ims_size.npy", sizes)
    np.save(folder / f"{split}_ims_bbx.npy", corners.reshape(n, regions, 4).astype(np.float32))
    captions = [text.format(COLOURS[c], THINGS[t]) for c, t in zip(colours, things) for text in TEMPLATES]
    (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")


def picture_folder(tiny, root, size=lambda i: (200 + i, 100 + i), count=6):
    """Picture files for the test split, half of each black and half white; size: of picture i, as in the data."""
    from PIL import Image

    root.mkdir()
    for i in range(count):
        w, h = size(i)
        picture = Image.new("RGB", (w, h), "black")
        picture.paste("white", (w // 2, 0, w, h))
        picture.save(root / f"{i}.png")
    (tiny.folder / "test_imagename.txt").write_text("".join(f"{i}.png\n" for i in range(count)))
    return str(root)
