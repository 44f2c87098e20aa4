"""Reads .npy files: memory-mapped arrays and image sizes."""

import warnings

import numpy as np

from files.errors import InputError, reason
from files.opening import open_regular
from files.pickles import Dtype, number_of_numpy, restricted_load
from files.text import CAPTIONS_PER_IMAGE


def open_array(path):
    """A .npy file as a read-only memory map (nothing is read yet); object arrays are refused."""
    open_regular(path).close()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy remarks on headers written by Python 2
            return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    except Exception as error:  # a damaged header can fail anywhere in numpy's parser
        raise InputError(f"{path}: truncated or not a plain .npy file ({error}); make or copy it again") from None


def check_five_rows(rows, path, images=None):
    """InputError unless the five rows of each image are equal, where there is a row for each caption.

    rows: (5 N, ...); images: the numbers of those to compare (default: all). The message says what the rows look
    like: one image for each caption, or the list of all images five times.
    """
    images = range(len(rows) // CAPTIONS_PER_IMAGE) if images is None else images
    different = [i for i in images if len({rows[k].tobytes() for k in rows_of(i)}) > 1]
    if not different:
        return
    first, last = rows_of(different[0])[0], rows_of(different[0])[-1]
    again = len(rows) // CAPTIONS_PER_IMAGE
    if rows[0].tobytes() == rows[again].tobytes() != rows[1].tobytes():
        looks = f"row {again} repeats row 0: the file lists all images five times; repeat each row instead (np.repeat)"
    elif len(different) == len(images):
        looks = f"this looks like {len(rows)} images with one caption each, but every image needs five captions"
    else:
        looks = "make the file again"
    raise InputError(
        f"{path}: {len(rows)} rows for {len(rows)} captions, but rows {first} to {last}, which are of one image, "
        f"differ; {looks}"
    )


def rows_of(image):
    """The rows of an image where there is one for each caption."""
    return range(CAPTIONS_PER_IMAGE * image, CAPTIONS_PER_IMAGE * (image + 1))


def read_sizes(path):
    """Image sizes, float32 (N, 2): width, height in pixels (docs/method.md, section 1).

    Accepts a structured array with the fields image_w and image_h, or an object array of dicts with these
    keys (as Python 2 wrote it). Raises InputError for anything else and for sizes that are not positive.
    """
    sizes = (_sizes_of_dicts if _is_object_array(path) else _sizes_of_fields)(path)
    bad = np.flatnonzero(~(np.isfinite(sizes) & (sizes > 0)).all(axis=1))
    if len(bad):
        w, h = sizes[bad[0]]
        raise InputError(f"{path}, row {bad[0]}: image size {w:g} x {h:g}; width and height must be positive")
    return sizes


def _sizes_of_fields(path):
    array = open_array(path)
    names = array.dtype.names or ()
    fields = array.ndim == 1 and "image_w" in names and "image_h" in names
    if not fields or not all(array.dtype[name].kind in "iuf" for name in ("image_w", "image_h")):
        raise InputError(
            f"{path}: shape {array.shape}, type {array.dtype}; need one item per image with the numbers image_w and "
            "image_h as fields"
        )
    with np.errstate(over="ignore"):
        return np.stack([array["image_w"], array["image_h"]], axis=1).astype(np.float32)


def _sizes_of_dicts(path):
    with open_regular(path) as file:
        _read_header(file)
        array = restricted_load(file, _array_stand_ins(), what=path)
    try:
        items = array.state[4]
        sizes = [(float(item["image_w"]), float(item["image_h"])) for item in items]
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        raise InputError(f"{path}: not an array of dicts with the numbers image_w and image_h") from None
    with np.errstate(over="ignore"):
        return np.array(sizes, np.float32).reshape(-1, 2)


def _is_object_array(path):
    try:
        with open_regular(path) as file:
            return _read_header(file) == np.dtype(object)
    except Exception:  # missing or damaged: open_array says how
        return False


def _read_header(file):
    """Read a .npy header, leaving the file at the data; returns the dtype."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(file)[2]


def _array_stand_ins():
    """Inert classes for the names in the pickle of an object array's .npy: they only keep their arguments."""

    class Array:
        def __setstate__(self, state):
            self.state = state  # version, shape, dtype, Fortran order, list of items

    stand_ins = {("numpy", "ndarray"): Array, ("numpy", "dtype"): Dtype}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        stand_ins[module, "_reconstruct"] = lambda *_: Array()
        stand_ins[module, "scalar"] = number_of_numpy
    return stand_ins
