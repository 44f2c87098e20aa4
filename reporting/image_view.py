"""One image as pages and figures show it: its picture where there is one, its regions' boxes, its size."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from files.errors import InputError, warn
from files.names import find_pictures, image_names
from files.pictures import read_picture
from reporting import thumbnails

LONGER_SIDE = 960  # pixels of a picture's longer side, at most


class ImageView(NamedTuple):
    """An image to show."""

    number: int
    name: str
    picture: object  # PIL image, or None where there is none
    size: tuple  # width, height in pixels
    boxes: np.ndarray  # (R, 4) as parts of width and height; cells of a grid where the boxes are not known
    is_grid: bool


def view_image(dataset, number, images=None):
    """An image of the split -> ImageView; images: folder of picture files, or None."""
    name, picture = "", None
    if images or hasattr(dataset, "pictures"):
        name, picture = open_picture(dataset, number, images)
    boxes, sizes = thumbnails.read_regions(dataset)
    size = (4, 3) if sizes is None else sizes[number]
    size = picture.size if picture else tuple(round(x * LONGER_SIDE / max(size)) for x in size)
    if boxes is not None:
        return ImageView(number, name, picture, size, np.clip(boxes[number], 0, 1), False)
    regions = 0 if hasattr(dataset, "pictures") else dataset.images.shape[1]
    return ImageView(number, name, picture, size, grid(regions), True)


def open_picture(dataset, number, images):
    """(name, PIL image or None) of an image, from the folder `images`; a warning says why there is none."""
    if hasattr(dataset, "pictures"):
        return small_picture(Path(dataset.pictures[number]), Path(dataset.pictures[number]).name)
    if not Path(images).is_dir():
        raise InputError(f"--images {images}: no such folder")
    names = image_names(dataset)
    if names is None:
        warn(
            f"--images: there is no {dataset.folder / dataset.split}_imagename.txt with the images' names; "
            "drawing regions"
        )
        return "", None
    file = find_pictures(images, names)[number]
    if file is None:
        warn(f"{images}: {names[number]} is not there; drawing regions")
        return names[number], None
    return small_picture(file, names[number])


def small_picture(file, name):
    """(name, PIL image of at most LONGER_SIDE, or None with a warning)."""
    try:
        picture = read_picture(file)
    except InputError as error:
        warn(f"{error}; drawing regions")
        return name, None
    picture.thumbnail((LONGER_SIDE, LONGER_SIDE))
    return name, picture


def grid(regions):
    """Boxes (R, 4) side by side, for regions whose place is not known."""
    columns = int(np.ceil(np.sqrt(regions))) or 1
    rows = int(np.ceil(regions / columns)) or 1
    x, y = np.arange(regions) % columns, np.arange(regions) // columns
    cells = np.stack([x + 0.05, y + 0.05, x + 0.95, y + 0.95], 1)
    return cells / [columns, rows, columns, rows]
