"""The small pictures of a report: thumbnails of the images, or their regions as boxes on a blank page."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from files.arrays import read_boxes, read_sizes
from files.errors import InputError, warn
from files.pictures import open_picture
from files.text import CAPTIONS_PER_IMAGE

SIDE = 320  # pixels of a thumbnail's longer side


def image_files(dataset, images):
    """(files, names) of the images; a file is None if the folder `images`, or None, has no picture of that name.

    One warning counts the missing files.  InputError without that folder.
    """
    if images and not Path(images).is_dir():
        raise InputError(f"--images {images}: no such folder")
    names, files = dataset.names() or [""] * dataset.n_images, dataset.picture_files(images)
    missing = [name for name, file in zip(names, files) if file is None]
    if images and missing:
        what = missing[0] or f"no names, which {dataset.folder / dataset.split}_imagename.txt has, one a line"
        warn(f"{images}: {len(missing)} of {len(names)} images are not there (first: {what}); drawing their regions")
    return files, names


def make_thumbnails(files, folder):
    """A thumbnail of every image in `folder` -> [its file's name, or None where the image's regions are drawn].

    files: as image_files gives them.
    """

    def make(number):
        if files[number] is None:
            return None
        try:
            open_picture(files[number], SIDE)[0].save(folder / f"{number}.jpg", quality=80)
        except (InputError, OSError):
            return None
        return f"{number}.jpg"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = pool.map(make, range(len(files)))
        made = list(tqdm(tasks, desc="thumbnails", total=len(files), disable=None, leave=False))
    broken = [file for file, name in zip(files, made) if file and not name]
    if broken:
        warn(f"{len(broken)} images cannot be read (first: {broken[0]}); their regions are drawn instead")
    return made


def read_regions(dataset):
    """(boxes (N, R, 4) as parts of the image, sizes (N, 2)), each None where unknown."""
    paths = [dataset.folder / f"{dataset.split}_{kind}.npy" for kind in ("ims_bbx", "ims_size")]
    if dataset.boxes is not None or not all(path.exists() for path in paths):
        return dataset.boxes, dataset.sizes
    sizes = read_sizes(paths[1])
    boxes = read_boxes(paths[0], sizes)
    step = CAPTIONS_PER_IMAGE if len(boxes) == len(dataset.tokens) else 1
    return boxes[::step], sizes[::step]


def drawings(dataset):
    """For each image its regions on a blank page: [width, height, SVG path], the longer side SIDE."""
    boxes, sizes = read_regions(dataset)
    sizes = np.tile((4, 3), (dataset.n_images, 1)) if sizes is None else sizes
    boxes = np.zeros((dataset.n_images, 0, 4)) if boxes is None else boxes
    return [drawing(*one) for one in zip(boxes, sizes)]


def drawing(boxes, size):
    """boxes (R, 4) as parts of the image, size (2,) -> [width, height, SVG path of the boxes]."""
    w, h = np.maximum(1, np.round(np.asarray(size, float) * SIDE / max(size))).astype(int).tolist()
    pixels = np.round(np.asarray(boxes, float) * (w, h, w, h)).astype(int).tolist()
    return [w, h, "".join(f"M{x} {y}H{x2}V{y2}H{x}z" for x, y, x2, y2 in pixels)]
