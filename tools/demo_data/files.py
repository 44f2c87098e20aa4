"""Writes a split's files, as docs/method.md, section 1, describes them."""

import json
from pathlib import Path

import numpy as np

from vocab import Vocabulary, encode


def write_split(
    folder: Path, split: str, vocab: Vocabulary, features, boxes, sizes, captions: list[str], depends: list
) -> None:
    """Write SPLIT_ims.npy, SPLIT_ims_bbx.npy, SPLIT_ims_size.npy, SPLIT_caps.txt, SPLIT_caps.json and the word ids.

    features: (images, regions, numbers); boxes: (images, regions, 4) in pixels; sizes: (width, height) of each image;
    depends: of each caption [governor, dependent] pairs of word positions from 1, with 0 for ROOT.
    """
    sizes = np.array([tuple(size) for size in sizes], [("image_w", "<i8"), ("image_h", "<i8")])
    for name, array in (("ims", features), ("ims_bbx", boxes)):
        np.save(folder / f"{split}_{name}.npy", np.asarray(array, np.float32))
    np.save(folder / f"{split}_ims_size.npy", sizes)
    write_lines(folder / f"{split}_caps.txt", captions)
    write_lines(folder / f"{split}_precaps_stan.txt", [",".join(map(str, encode(text, vocab))) for text in captions])
    write_items(folder / f"{split}_caps.json", depends)


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_items(path: Path, items: list) -> None:
    """A JSON list, one item on a line."""
    path.write_text("[" + ",\n".join(json.dumps(item, separators=(",", ":")) for item in items) + "]\n")
