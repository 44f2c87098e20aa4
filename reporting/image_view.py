"""One image as pages show it: its picture if there is one, its regions' boxes, its size."""

from typing import NamedTuple

import numpy as np

from files.errors import InputError, warn
from files.pictures import proportions_differ, read_picture
from reporting import thumbnails

LONGER_SIDE = 960  # pixels of a picture's longer side, at most


class ImageView(NamedTuple):
    """An image to show."""

    number: int
    name: str
    picture: object  # PIL image, or None
    size: tuple  # width, height in pixels
    boxes: np.ndarray  # (R, 4) as parts of width and height; cells of a grid where the boxes are not known
    is_grid: bool
    note: str = ""  # a sentence about a picture that does not fit the boxes


class ImageViewer:
    """viewer(number) -> ImageView of an image of the split.

    images: folder of picture files, or None.  A warning counts missing pictures.  A picture whose proportions
    differ from the size in {split}_ims_size.npy is another one, or was cut: the view's note says so, since the boxes
    are then not where they belong.
    """

    def __init__(self, dataset, images=None):
        self.dataset, (self.boxes, self.sizes) = dataset, thumbnails.read_regions(dataset)
        self.files, self.names = thumbnails.image_files(dataset, images)

    def __call__(self, number):
        size, picture, note = (4, 3) if self.sizes is None else self.sizes[number], None, ""
        try:
            picture = self.files[number] and read_picture(self.files[number])
        except InputError as error:
            warn(f"{error}; drawing regions")
        if picture and self.sizes is not None and proportions_differ(picture.size, size):
            (w, h), (w2, h2) = picture.size, (round(float(x)) for x in size)
            note = f"The picture is {w} × {h}, but the data's size is {w2} × {h2}: the boxes may not fit it."
        if picture:
            picture.thumbnail((LONGER_SIDE, LONGER_SIDE))
        size = picture.size if picture else tuple(round(x * LONGER_SIDE / max(size)) for x in size)
        is_grid = self.boxes is None
        boxes = grid(self.dataset.region_count) if is_grid else np.clip(self.boxes[number], 0, 1)
        return ImageView(number, self.names[number], picture, size, boxes, is_grid, note)


def warn_of_notes(views):
    """One warning for the views whose picture does not fit the boxes."""
    odd = [view for view in views if view.note]
    if odd:
        warn(f"{len(odd)} pictures; first image {odd[0].number}, {odd[0].name}: {odd[0].note}")


def grid(regions):
    """Boxes (R, 4) side by side, for regions whose place is not known."""
    columns = int(np.ceil(np.sqrt(regions))) or 1
    rows = int(np.ceil(regions / columns)) or 1
    x, y = np.arange(regions) % columns, np.arange(regions) // columns
    cells = np.stack([x + 0.05, y + 0.05, x + 0.95, y + 0.95], 1)
    return cells / [columns, rows, columns, rows]
