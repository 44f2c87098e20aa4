"""Files of other extractors -> regions: bottom-up attention's TSV, LXMERT's TSV, MILVLG's and cocobu's npz."""

import base64
import math
import re

import numpy as np

from files.arrays import open_array
from files.errors import InputError
from files.names import Matcher, find_pictures
from files.opening import open_regular
from files.pickles import one_line
from files.pictures import picture_size
from tools.own_data.region_sources import Regions
from tools.own_data.shared import DAMAGED

BUTD = ("id", "width", "height", "num_boxes", "boxes", "features")
LXMERT = ("id", "height", "width", *"objects_id objects_conf attrs_id attrs_conf num_boxes boxes features".split())
AGAIN = "the line is cut off or damaged, copy or extract it again"


class RegionFiles:
    """The files --tsv or --npz: a call yields the Regions of the images with the numbers `wanted` in `names`."""

    def __init__(self, opt, notes):
        self.opt, self.notes, self.width = opt, notes, None

    def __call__(self, names, wanted):
        opt, match, wanted, seen = self.opt, Matcher(names), set(map(int, wanted)), set()
        if opt.tsv:
            read, items = read_line, tsv_lines(opt.tsv, self.notes)
        else:
            read, items = read_npz, ((path, path.stem, path) for path in sorted(opt.npz.glob("*.npz")))
        pictures = find_pictures(opt.images, names, links=True) if opt.images else [None] * len(names)
        for where, name, item in items:
            index = match(name)
            if index is None:
                continue
            if index in seen:
                self.notes["images that come twice, of which the first is taken"].append(where)
            elif index in wanted:
                try:
                    features, boxes, size, scores = read(where, item)
                    size = size or (pictures[index] and picture_size(pictures[index]))
                    regions = self.fit(index, where, features, boxes, size, scores)
                except InputError as error:
                    self.notes[DAMAGED].append(error)
                    continue
                yield regions
            seen.add(index)  # an earlier run has those that are not wanted

    def fit(self, index, where, features, boxes, size, scores=None):
        """`opt.regions` Regions of one image: the best by `scores`, else the first; too few are filled up.

        The whole image fills the missing places; its features are the mean of the others. size: (width, height), or
        None for that of all boxes. InputError for arrays that are not those of regions.
        """
        shaped = features.ndim == boxes.ndim == 2 and boxes.shape[1] == 4 and len(features) == len(boxes)
        if not (shaped and np.isfinite(features).all() and np.isfinite(boxes).all()):
            found = f"features {features.shape} and boxes {boxes.shape}"
            raise InputError(f"{where}: {found}; need (N, width) and (N, 4) without NaN or infinity; extract again")
        width = features.shape[1] or self.width
        if not width:
            raise InputError(f"{where}: no features, and no image before it tells how wide features are; move it down")
        if self.width not in (None, width) or (len(boxes) and not features.size):
            raise InputError(f"{where}: features are {features.shape[1]} wide, {self.width} before; {AGAIN}")
        self.width = width
        corner = boxes[:, 2:].max(axis=0, initial=0)
        if size is None:
            self.notes["images without a size, for which that of their boxes stands; --images gives it"].append(where)
            size = tuple(math.ceil(side) for side in corner)
        if min(size) < 1:
            raise InputError(f"{where}: image of {size[0]} x {size[1]} pixels")
        if (corner > 1.05 * np.float32(size)).any():
            turned = (corner <= 1.05 * np.float32(size[::-1])).all()
            how = "exchanged width and height" if turned else "another size"
            self.notes[f"images whose boxes lie outside them, which looks like {how}"].append(where)
        count, found = self.opt.regions, f"{where}: {len(boxes)}"
        if len(boxes) > count:
            which = "the first" if scores is None else "the most certain"
            self.notes[f"images with more than {count} boxes, of which {which} are taken"].append(found)
            best = slice(count) if scores is None else np.argsort(-scores, kind="stable")[:count]
            features, boxes = features[best], boxes[best]
        if (missing := count - len(boxes)) > 0:
            how = "filled up with the whole image and the mean of their features"
            self.notes[f"images with fewer than {count} boxes, {how}"].append(found)
            mean = features.mean(axis=0) if len(features) else np.zeros(width, np.float32)
            features = np.vstack([features.reshape(-1, width), np.tile(mean, (missing, 1))])
            boxes = np.vstack([boxes, np.tile(np.float32([0, 0, *size]), (missing, 1))])
        return Regions(index, features, boxes, size)


# ---- formats: read_...(place, item) gives (features (N, F) float32, boxes (N, 4) float32, (width, height) or None,
# scores (N,) or None)


def tsv_lines(paths, notes):
    """(place, name of the image, {column: bytes}) of each line that has enough columns; others are passed over."""
    known = f"bottom-up attention's files have {len(BUTD)}, LXMERT's {len(LXMERT)}"
    for path in paths:
        with one_line(path, "cannot be read"), open_regular(path) as file:
            for number, line in enumerate(file, start=1):
                where, fields = f"{path}, line {number}", line.rstrip(b"\r\n").split(b"\t")
                if len(BUTD) <= len(fields) <= len(LXMERT):
                    if len(BUTD) < len(fields) < len(LXMERT):
                        notes[f"lines of which the columns after the first {len(BUTD)} are ignored"].append(where)
                    row = dict(zip(LXMERT if len(fields) == len(LXMERT) else BUTD, fields))
                    yield where, row["id"].decode(errors="replace").strip(), row
                elif line.strip():
                    notes[DAMAGED].append(f"{where}: {len(fields)} columns; {known}; {AGAIN}")


def read_line(where, row):
    """A line of bottom-up attention's or LXMERT's columns, its arrays float32 or float64 in base64."""
    try:
        size, count = (int(float(row["width"])), int(float(row["height"]))), int(row["num_boxes"])
        texts = [row[name] for name in ("boxes", "features", "objects_conf") if name in row]
        texts = [text.removeprefix(b"b'").removesuffix(b"'") for text in texts]  # as Python 3 prints bytes
        content = [base64.b64decode(text, validate=True) for text in texts]
        kind = "<f8" if len(content[0]) == 32 * count else "<f4"
        boxes, features, *scores = (np.frombuffer(one, kind).astype(np.float32) for one in content)
        width = len(features) // count if count else 0
        scores = scores[0].reshape(count) if scores else None
        return features.reshape(count, width), boxes.reshape(count, 4), size, scores
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: size, number, boxes or features cannot be read ({error}); {AGAIN}") from None


def read_npz(path, _):
    """MILVLG's x (N, F) or (F, N), bbox, image_w and image_h; or feat (N, F) with boxes in the folder beside it.

    The folder beside one such as cocobu_att is cocobu_box.
    """
    with open_regular(path) as file:
        try:
            with np.load(file, allow_pickle=False) as content:
                names = {"x", "bbox", "image_w", "image_h", "feat"} & {*content.files}
                arrays = {name: np.asarray(content[name], np.float32) for name in names}
            size = tuple(int(arrays[name].item()) for name in ("image_w", "image_h") if name in arrays)
        except Exception:  # numpy and zipfile meet damage in many places
            raise InputError(f"{path}: truncated or not an .npz file of arrays; extract it again") from None
    if "feat" in arrays and "bbox" not in arrays:
        folder = path.parent.absolute()
        folder = folder.with_name(re.sub(r"_att(?=_|$)", "_box", folder.name))
        if folder == path.parent.absolute() or not folder.is_dir():
            raise InputError(f"{path}: no boxes in it; its folder needs another beside it, as cocobu_box of cocobu_att")
        return arrays["feat"], np.asarray(open_array(folder / f"{path.stem}.npy"), np.float32), None, None
    if not {"x", "bbox", "image_w", "image_h"} <= arrays.keys():
        raise InputError(f"{path}: need x, bbox, image_w and image_h, or feat; it has {', '.join(sorted(arrays))}")
    x, boxes = arrays["x"], arrays["bbox"]
    if x.ndim == 2 and boxes.ndim == 2 and len(x) != len(boxes) == x.shape[1]:
        x = x.T  # as older releases wrote it
    return x, boxes, size, None
