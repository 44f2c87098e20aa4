"""Boxes: normalised once, or divided as often as the released evaluation does (docs/method.md, section 6)."""

import numpy as np

from files.arrays import open_array
from files.errors import InputError


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
    return released_rows(boxes, sizes, rows, n_captions, batch_size)


def released_rows(boxes, sizes, rows, n_captions, batch_size):
    """The rows (one per caption) of the released evaluation's box array: (len(rows), R, 4) float32."""
    image = rows // 5
    last_of_batch = np.minimum((rows // batch_size + 1) * batch_size, n_captions) - 1
    counts = 5 + np.minimum(last_of_batch - 5 * image, 4) + 1
    divided = np.array(boxes, np.float32)[image]
    size = np.tile(np.array(sizes, np.float32), 2)[image, None]  # (rows, 1, 4)
    for n in range(counts.max()):
        divided = np.where((n < counts)[:, None, None], divided / size, divided)
    return divided
