"""The images of a split as pages show them: the picture where there is one, else the regions' boxes on a blank page."""

import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from files.arrays import read_boxes, read_sizes
from files.errors import InputError, warn
from files.pictures import are_stretched, open_picture, picture_size, proportions_differ
from files.text import CAPTIONS_PER_IMAGE
from reporting.rendering import template

THUMBNAIL, PICTURE = 320, 800  # pixels of the longer side


class ImageView(NamedTuple):
    """An image to show."""

    number: int
    name: str
    picture: object  # PIL image, or None
    size: tuple  # width, height in pixels
    boxes: np.ndarray  # (R, 4) as parts of width and height; cells of a grid where the boxes are not known
    is_grid: bool
    note: str = ""  # a sentence about a picture that does not fit the boxes

    def address(self):
        """The picture, or the drawing of the boxes, as a data: address."""
        if self.picture is None:
            content, kind = draw_boxes(self.boxes, self.size).encode(), "svg+xml"
        else:
            self.picture.save(buffer := io.BytesIO(), "JPEG", quality=85)
            content, kind = buffer.getvalue(), "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


class ImageViewer:
    """viewer(number) -> ImageView of an image of the split.

    images: folder of picture files, or None; side: of a picture's longer side, at most.  A warning counts missing
    pictures.  A picture whose proportions differ from the size in {split}_ims_size.npy is another one, or was cut: the
    view's note says so, since the boxes are then not where they belong.  InputError without the folder.
    """

    def __init__(self, dataset, images=None, side=PICTURE):
        if images and not Path(images).is_dir():
            raise InputError(f"--images {images}: no such folder")
        self.dataset, self.side, (self.boxes, self.sizes) = dataset, side, read_regions(dataset)
        self.names, self.files = dataset.names() or [""] * dataset.n_images, dataset.picture_files(images)
        missing = [name for name, file in zip(self.names, self.files) if file is None]
        if images and missing:
            what = missing[0] or f"no names, which {dataset.folder / dataset.split}_imagename.txt has, one a line"
            count = f"{len(missing)} of {len(self.files)} images are not there"
            warn(f"{images}: {count} (first: {what}); drawing their regions")

    def __call__(self, number):
        picture, note = self.picture(number, self.side), ""
        if picture and self.sizes is not None and not are_stretched(self.sizes):
            (w, h), (w2, h2) = picture_size(self.files[number]), (round(float(x)) for x in self.sizes[number])
            if proportions_differ((w, h), self.sizes[number]):
                note = f"The picture is {w} × {h}, but the data's size is {w2} × {h2}: the boxes may not fit it."
                warn(f"image {number}, {self.names[number]}: {note}")
        size = picture.size if picture else self.size(number, self.side)
        is_grid = self.boxes is None
        boxes = grid(self.dataset.region_count) if is_grid else np.clip(self.boxes[number], 0, 1)
        return ImageView(number, self.names[number], picture, size, boxes, is_grid, note)

    def picture(self, number, side):
        """An image's picture as a PIL image; None where there is none, or, after a warning, none that can be read."""
        try:
            return self.files[number] and open_picture(self.files[number], side)[0]
        except InputError as error:
            warn(f"{error}; drawing its regions")
            return None

    def size(self, number, side):
        """Width and height of an image, from the data, the longer of which is `side` pixels."""
        size = (4, 3) if self.sizes is None else self.sizes[number].tolist()
        return tuple(max(1, round(x * side / max(size))) for x in size)

    def write_thumbnails(self, folder, words):
        """Write a small picture of every image -> their files' names; words: for each image, what its drawing says."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tasks = pool.map(partial(self.write_thumbnail, folder), range(len(self.files)), words)
            return list(tqdm(tasks, desc="thumbnails", total=len(self.files), disable=None, leave=False))

    def write_thumbnail(self, folder, number, words):
        if picture := self.picture(number, THUMBNAIL):
            name = f"{number}.jpg"
            picture.save(folder / name, quality=80)
        else:
            name, boxes = f"{number}.svg", () if self.boxes is None else self.boxes[number]
            drawing = draw_boxes(boxes, self.size(number, THUMBNAIL), words)
            (folder / name).write_text(drawing, encoding="utf-8")
        return name


def read_regions(dataset):
    """(boxes (N, R, 4) as parts of the image, sizes (N, 2)), each None where unknown."""
    paths = [dataset.folder / f"{dataset.split}_{kind}.npy" for kind in ("ims_bbx", "ims_size")]
    if dataset.boxes is not None or not all(path.exists() for path in paths):
        return dataset.boxes, dataset.sizes
    sizes = read_sizes(paths[1])
    boxes = read_boxes(paths[0], sizes)
    step = CAPTIONS_PER_IMAGE if len(boxes) == len(dataset.tokens) else 1
    return boxes[::step], sizes[::step]


def draw_boxes(boxes, size, words=""):
    """Boxes (R, 4) as parts of an image on a blank page of its size, and words over them -> SVG."""
    corners = np.round(np.reshape(boxes, (-1, 4)) * np.tile(size, 2)).astype(int).tolist()
    words = "".join(filter(str.isprintable, words))  # XML has no control characters
    return template("regions.svg").render(size=size, corners=corners, words=words)


def grid(regions):
    """Boxes (R, 4) side by side, for regions whose place is not known."""
    columns = int(np.ceil(np.sqrt(regions))) or 1
    rows = int(np.ceil(regions / columns)) or 1
    x, y = np.arange(regions) % columns, np.arange(regions) // columns
    cells = np.stack([x + 0.05, y + 0.05, x + 0.95, y + 0.95], 1)
    return cells / [columns, rows, columns, rows]
