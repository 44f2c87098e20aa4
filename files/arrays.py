"""Reads .npy files: memory-mapped arrays, image sizes, boxes (docs/method.md, sections 1 and 6)."""

import warnings

import numpy as np

from files.errors import InputError
from files.opening import open_regular
from files.pickles import restricted_load, stand_ins
from files.text import CAPTIONS_PER_IMAGE


def open_array(path):
    """A .npy file as a read-only memory map (nothing is read yet); object arrays are refused."""
    open_regular(path).close()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy remarks on headers written by Python 2
            return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header can fail anywhere in numpy's parser
        raise InputError(f"{path}: truncated or not a plain .npy file ({error}); make or copy it again") from None


def check_five_rows(rows, path, images=None):
    """InputError unless the five rows of each image are equal, where there is a row for each caption.

    rows: (5 N, ...); images: the numbers of those to compare (default: all).
    """
    for i in range(len(rows) // CAPTIONS_PER_IMAGE) if images is None else images:
        first, end = CAPTIONS_PER_IMAGE * i, CAPTIONS_PER_IMAGE * (i + 1)
        if len({row.tobytes() for row in rows[first:end]}) > 1:
            raise InputError(
                f"{path}: {len(rows)} rows for {len(rows)} captions, but rows {first} to {end - 1}, which are of one "
                "image, differ; every image needs five captions, and its row as often, one after the other (np.repeat)"
            )


def read_sizes(path):
    """Image sizes, float32 (N, 2): width, height in pixels (docs/method.md, section 1).

    Accepts a structured array with the fields image_w and image_h, or an object array of dicts with these
    keys (as Python 2 wrote it). Raises InputError for anything else and for sizes that are not positive.
    """
    try:
        items = _items_of_objects(path)
        if items is None:
            items = open_array(path)
            if items.ndim != 1 or {items.dtype[name].kind for name in ("image_w", "image_h")} - set("iuf"):
                raise TypeError(f"shape {items.shape}, type {items.dtype}")
        sizes = [(float(item["image_w"]), float(item["image_h"])) for item in items]
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        needed = "one item for each image, with the numbers image_w and image_h as fields or in a dict"
        raise InputError(f"{path}: need {needed} ({type(error).__name__}: {error})") from None
    with np.errstate(over="ignore"):
        sizes = np.array(sizes, np.float32).reshape(-1, 2)
    bad = np.flatnonzero(~(np.isfinite(sizes) & (sizes > 0)).all(axis=1))
    if len(bad):
        w, h = sizes[bad[0]]
        raise InputError(f"{path}, row {bad[0]}: image size {w:g} x {h:g}; width and height must be positive")
    return sizes


class _Objects:
    """Takes the place of numpy.ndarray, and of the function that makes one, in an object array's pickle."""

    def __init__(self, *_):
        self.items = None

    def __setstate__(self, state):
        self.items = state[4]  # of version, shape, type, order, items


def _items_of_objects(path):
    """The items of an object array's .npy as a list; None for another file."""
    with open_regular(path) as file:
        try:
            np.lib.format.read_magic(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind = np.lib.format.read_array_header_1_0(file)[2]
        except Exception:  # damaged, or of a later version: open_array says how
            return None
        if kind.char != "O":
            return None
        names = ("numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
        return restricted_load(file, {**stand_ins(), **dict.fromkeys(names, _Objects)}, path).items


def read_boxes(path, sizes):
    """Boxes (N, R, 4) float32 as parts of the image: x divided by the width, y by the height, once.

    sizes: (N, 2) width, height. Raises InputError for boxes that are not finite or lie outside their image by
    more than a twentieth of it (sizes and boxes of different images, or width and height swapped).
    """
    pixels = open_array(path)
    if pixels.ndim != 3 or pixels.shape[2] != 4 or pixels.dtype.kind not in "fiu":
        raise InputError(f"{path}: shape {pixels.shape}, type {pixels.dtype}; need (images, regions, 4)")
    if len(pixels) != len(sizes):
        raise InputError(f"{path}: boxes of {len(pixels)} images, but {len(sizes)} image sizes")
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite or NaN is refused below
        boxes = np.array(pixels, np.float32)
        boxes /= np.tile(sizes, 2)[:, None]  # (N, 1, 4)
    bad = np.argwhere(~((boxes >= -0.05) & (boxes <= 1.05)).all(axis=2))
    if len(bad):
        i, r = bad[0]
        w, h = sizes[i]
        raise InputError(
            f"{path}, row {i}, region {r}: box {pixels[i, r].tolist()} lies outside its image "
            f"of {w:g} x {h:g} pixels; check boxes and image sizes, or use --boxes none"
        )
    return boxes


def released_boxes(boxes, sizes, n_captions, batch_size, fold5=False):
    """The boxes (N, R, 4) float32 that the released evaluation gives to its N images.

    boxes: (N, R, 4) in pixels; sizes: (N, 2) width, height; n_captions = 5 N; batch_size: of the evaluation,
    which decides how often each box had been divided. fold5: image i gets row 5i, otherwise row i, which
    belongs to image i // 5.
    """
    rows = np.arange(n_captions // 5) * (5 if fold5 else 1)
    image = rows // 5
    last_of_batch = np.minimum((rows // batch_size + 1) * batch_size, n_captions) - 1
    counts = 5 + np.minimum(last_of_batch - 5 * image, 4) + 1
    divided = np.array(boxes, np.float32)[image]
    size = np.tile(np.array(sizes, np.float32), 2)[image, None]  # (N, 1, 4)
    for n in range(counts.max()):
        divided = np.where((n < counts)[:, None, None], divided / size, divided)
    return divided
