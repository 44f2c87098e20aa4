"""The small pictures of a report: thumbnails of the images, or their regions as boxes on a blank page."""

import hashlib
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from files.arrays import read_sizes
from files.boxes import read_boxes
from files.errors import InputError, warn
from files.text import read_json, read_lines

SIDE = 320  # pixels of a thumbnail's longer side
SPLITS = {"val": "dev", "restval": "train", "testall": "test"}  # Karpathy's names and ours


# ---- which image is which file ----


def image_names(dataset):
    """The names of a split's images, as strings under --images, or None where no file tells them.

    {split}_imagename.txt, one a line; or {split}_ids.txt looked up in Karpathy's dataset_*.json, which lies
    beside it or in the folder above. A line for each image, or for each caption.
    """
    folder, split = dataset.folder, dataset.split
    if (folder / f"{split}_imagename.txt").exists():
        path = folder / f"{split}_imagename.txt"
        return one_each(read_lines(path), dataset, path)
    path = folder / f"{split}_ids.txt"
    sources = sorted([*folder.glob("dataset_*.json"), *folder.parent.glob("dataset_*.json")])
    if not path.exists() or not sources:
        return None
    return names_of_ids(one_each(read_lines(path), dataset, path), split, sources[0], path)


def one_each(lines, dataset, path):
    captions = len(dataset.tokens)
    per = len(dataset) // dataset.n_images
    if len(lines) not in (captions, captions // per):
        raise InputError(f"{path}: {len(lines)} lines; need one for each of {captions // per} images")
    return lines[:: per if len(lines) == captions else 1][: dataset.n_images]


def names_of_ids(ids, split, source, path):
    """Names by 'cocoid' or 'imgid', whichever is the one whose images are of this split."""
    try:
        images = read_json(source)["images"]
        tables = [{str(image[key]): image for image in images if key in image} for key in ("cocoid", "imgid")]
        agree = [sum(of_split(table.get(id), split) for id in ids) for table in tables]
        table = tables[int(agree[1] > agree[0])]
        return [str(Path(table[id].get("filepath", ""), table[id]["filename"])) for id in ids]
    except KeyError as error:
        raise InputError(f"{path}: {error} is not in {source}; take both from the same data set") from None
    except (AttributeError, TypeError):
        raise InputError(f"{source}: not Karpathy's JSON (images with filename and imgid)") from None


def of_split(image, split):
    return image is not None and SPLITS.get(image["split"], image["split"]) == SPLITS.get(split, split)


def image_files(dataset, images):
    """(files, names): for each image its file, or None where --images has none of that name, and its name.

    Data sets of pictures know their own files. What is missing is counted in one line on stderr.
    """
    if hasattr(dataset, "pictures"):
        return [Path(p) for p in dataset.pictures], [Path(p).name for p in dataset.pictures]
    names = image_names(dataset)
    if names is None:
        if images:
            warn(
                f"--images: nothing tells the images' names; need {dataset.folder / dataset.split}_imagename.txt "
                f"(one a line), or {dataset.split}_ids.txt with Karpathy's dataset_*.json; drawing regions"
            )
        return [None] * dataset.n_images, [""] * dataset.n_images
    files = [find(Path(images), name) if images else None for name in names]
    missing = [name for name, file in zip(names, files) if file is None]
    if images and missing:
        warn(
            f"{images}: {len(missing)} of {len(names)} images are not there (first: {missing[0]}); "
            "their regions are drawn instead"
        )
    return files, names


def find(folder, name):
    """The image's file in the folder, with or without the folders in its name; never outside."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    return next((p for p in (folder / name, folder / Path(name).name) if p.is_file()), None)


# ---- pictures ----


def make_thumbnails(dataset, images, folder, old):
    """A thumbnail of every image in folder -> ([its file's name or None], [the image's name]).

    images: the folder of image files, or None. old: the folder of an earlier report, whose thumbnails are
    taken over where the image file is still the same. None: there is no image; draw its regions.
    """
    files, names = image_files(dataset, images)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = pool.map(lambda file: thumbnail(file, folder, old), files)
        made = list(tqdm(tasks, desc="thumbnails", total=len(files), disable=None, leave=False))
    broken = [file for file, name in zip(files, made) if file and not name]
    if broken:
        warn(f"{len(broken)} images cannot be read (first: {broken[0]}); their regions are drawn instead")
    return made, names


def thumbnail(file, folder, old):
    """Make or take over one thumbnail -> its file's name, which tells the source's state; None without image."""
    if file is None:
        return None
    from PIL import Image, ImageOps

    try:
        state = file.stat()
        key = f"{file.name} {state.st_size} {state.st_mtime_ns} {SIDE}".encode()
        name = f"{re.sub('[^A-Za-z0-9_-]', '_', file.stem)[:60]}-{hashlib.sha1(key).hexdigest()[:8]}.jpg"
        if (old / name).is_file():
            image = None
        else:
            with Image.open(file) as image:
                image.thumbnail((SIDE, SIDE))
                image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if image is None:
        shutil.copyfile(old / name, folder / name)
    else:
        image.save(folder / name, quality=80)
    return name


def read_regions(dataset):
    """(boxes (N, R, 4) as parts of the image, sizes (N, 2)), each None where unknown."""
    if dataset.boxes is not None:
        return dataset.boxes, dataset.sizes
    if not hasattr(dataset, "folder"):
        return None, None
    paths = [dataset.folder / f"{dataset.split}_{kind}.npy" for kind in ("ims_bbx", "ims_size")]
    if not all(path.exists() for path in paths):
        return None, None
    sizes = read_sizes(paths[1])
    boxes = read_boxes(paths[0], sizes)
    step = 5 if len(boxes) == len(dataset.tokens) else 1
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
