"""Files of other extractors -> regions: bottom-up attention's TSV, LXMERT's TSV, MILVLG's and cocobu's npz.

A source is called with the names of a split and the numbers of those that are wanted, and yields Regions.
"""

import base64
import itertools
import math
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from files.arrays import open_array
from files.errors import InputError, reason
from files.names import Matcher, find_pictures
from files.opening import open_regular
from files.pictures import picture_size
from tools.own_data.region_sources import Regions

BUTD = ("id", "width", "height", "num_boxes", "boxes", "features")
LXMERT = ("id", "height", "width", *"objects_id objects_conf attrs_id attrs_conf num_boxes boxes features".split())
AGAIN = "the line is cut off or damaged, copy or extract it again"


class FileSource:
    """Base of both kinds of files: takes `opt.regions` regions of each image.

    damaged: messages on the parts that were passed over, since another copy of the image may follow.
    """

    def __init__(self, opt, notes):
        self.count, self.notes, self.damaged = opt.regions, notes, []

    def pass_over(self, error):
        self.notes.add("damaged parts of files passed over", error)
        self.damaged.append(str(error))

    def fit(self, index, where, features, boxes, size, scores=None):
        """Regions of one image: the best by `scores`, else the first; too few are filled up.

        The whole image fills the missing places; its features are the mean of the others.
        """
        if not (features.ndim == boxes.ndim == 2 and boxes.shape[1] == 4 and len(features) == len(boxes)):
            raise InputError(f"{where}: features {features.shape}, boxes {boxes.shape}; need (N, width) and (N, 4)")
        if not (np.isfinite(features).all() and np.isfinite(boxes).all()):
            raise InputError(f"{where}: features or boxes with NaN or infinity; extract this image again")
        if min(size) < 1:
            raise InputError(f"{where}: image of {size[0]} x {size[1]} pixels")
        if outside(boxes, size):
            how = "exchanged width and height" if not outside(boxes, size[::-1]) else "another size"
            self.notes.add(f"images whose boxes lie outside them, which looks like {how}", where)
        count, found = self.count, f"{where}: {len(boxes)}"
        if len(boxes) > count:
            which = "the first" if scores is None else "the most certain"
            self.notes.add(f"images with more than {count} boxes, of which {which} are taken", found)
            best = slice(count) if scores is None else np.argsort(-scores, kind="stable")[:count]
            features, boxes = features[best], boxes[best]
        if (missing := count - len(boxes)) > 0:
            how = "filled up with the whole image and the mean of their features"
            self.notes.add(f"images with fewer than {count} boxes, {how}", found)
            mean = features.mean(axis=0) if len(features) else np.zeros(features.shape[1], np.float32)
            features = np.concatenate([features, np.tile(mean, (missing, 1))])
            boxes = np.concatenate([boxes, np.tile(np.float32([0, 0, *size]), (missing, 1))])
        return Regions(index, features, boxes, size)


def outside(boxes, size):
    """Whether boxes reach out of an image of this (width, height) by more than a twentieth."""
    return bool((boxes[:, 2:] > 1.05 * np.float32(size)).any())


# ---- TSV


class Tsv(FileSource):
    """Lines of bottom-up attention's or LXMERT's columns, numbers in base64; several files are one."""

    def __init__(self, opt, notes):
        super().__init__(opt, notes)
        self.paths, self.width = opt.tsv, None

    def __call__(self, names, wanted):
        match, wanted, seen = Matcher(names), set(map(int, wanted)), set()
        for where, row in self.rows():
            index = match(row["id"].decode(errors="replace").strip())
            if index in seen:
                self.notes.add("images that come twice, of which the first is taken", where)
            elif index in wanted:
                try:
                    regions = self.regions_of(index, where, row)
                except InputError as error:
                    self.pass_over(error)
                    continue
                yield regions
            if index is not None:  # an earlier run has those that are not wanted
                seen.add(index)

    def rows(self):
        """(place, {column: bytes}) of each line that has all its columns; the others are passed over."""
        for path in self.paths:
            columns = self.columns_of(path)
            for number, line in enumerate(lines_of(path), start=1):
                where, fields = f"{path}, line {number}", line.split(b"\t")
                if columns and len(fields) == len(columns):
                    yield where, dict(zip(columns, fields))
                elif columns and line.strip():
                    self.pass_over(f"{where}: {len(fields)} of {len(columns)} columns; {AGAIN}")
                elif line.strip():
                    known = f"bottom-up attention's files have {len(BUTD)}, LXMERT's {len(LXMERT)}"
                    self.pass_over(f"{where}: {len(fields)} columns; {known}")

    def columns_of(self, path):
        """The columns that most of a file's first lines have; those behind bottom-up attention's six are ignored."""
        lines = itertools.islice(filter(bytes.strip, lines_of(path)), 20)
        counts = Counter(line.count(b"\t") + 1 for line in lines)
        count = max(counts, key=counts.get, default=0)
        if len(BUTD) < count < len(LXMERT):
            self.notes.add(f"files with {count} columns, of which those after the first {len(BUTD)} are ignored", path)
            return (*BUTD, *range(len(BUTD), count))
        return {len(BUTD): BUTD, len(LXMERT): LXMERT}.get(count)

    def regions_of(self, index, where, row):
        try:
            size, count = (int(float(row["width"])), int(float(row["height"]))), int(row["num_boxes"])
        except (ValueError, OverflowError) as error:
            raise InputError(f"{where}: image size or number of boxes cannot be read ({error})") from None
        kind = "<f8" if count and len(decoded(row["boxes"], where, "u1")) == 32 * count else "<f4"
        boxes, features = (decoded(row[name], where, kind) for name in ("boxes", "features"))
        scores = decoded(row["objects_conf"], where, kind) if "objects_conf" in row else None
        fits = len(features) % count == 0 if count else not len(features)
        if not fits or len(boxes) != 4 * count or (scores is not None and len(scores) != count):
            sizes = f"{len(boxes)} numbers in 'boxes', {len(features)} in 'features'"
            raise InputError(f"{where}: {count} boxes, but {sizes}; {AGAIN}")
        width = len(features) // count if count else self.width
        if width is None:
            raise InputError(f"{where}: no boxes, and no image before it tells how wide features are; move it down")
        if self.width not in (None, width):
            raise InputError(f"{where}: features are {width} wide, {self.width} before; {AGAIN}")
        self.width = width
        return self.fit(index, where, features.reshape(count, width), boxes.reshape(count, 4), size, scores)


def lines_of(path):
    """The lines of a file as bytes, without their ends."""
    try:
        with open_regular(path) as file:
            yield from (line.rstrip(b"\r\n") for line in file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None


def decoded(text, where, kind):
    """The numbers of one base64 field, which Python 3 may have printed as b'...': a writable float32 array."""
    text = text[2:-1] if text[:2] in (b"b'", b'b"') else text
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), kind).astype(np.float32)
    except ValueError:
        raise InputError(f"{where}: a field is no base64 of whole numbers; {AGAIN}") from None


# ---- npz


class Npz(FileSource):
    """A folder of .npz files, one an image.

    MILVLG's have x (boxes, F) or (F, boxes), bbox, image_w, image_h.  Those of a folder such as cocobu_att have feat
    (boxes, F), and their boxes lie in the folder cocobu_box beside it.
    """

    def __init__(self, opt, notes):
        super().__init__(opt, notes)
        self.folder = Path(opt.npz)
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder (--npz)")
        self.boxes = self.folder.with_name(re.sub(r"_att(?=_|$)", "_box", self.folder.absolute().name))
        self.pictures = opt.images

    def __call__(self, names, wanted):
        pictures = find_pictures(self.pictures, names, links=True) if self.pictures else [None] * len(names)
        match, missing = Matcher([names[index] for index in wanted]), dict(enumerate(map(int, wanted)))
        for path in sorted(self.folder.glob("*.npz")):
            if (found := match(path.stem)) not in missing:
                continue
            try:
                regions = self.fit(missing[found], *self.read(path, pictures[missing[found]]))
            except InputError as error:
                self.pass_over(error)  # a file of another name may have this image too
                continue
            del missing[found]
            yield regions

    def read(self, path, picture):
        """(path, features, boxes, size); where the files lack the size, that of the picture or of all boxes."""
        try:
            with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
                if "feat" in arrays.files and "bbox" not in arrays.files:
                    x, boxes = np.asarray(arrays["feat"], np.float32), self.boxes_of(path)
                    return path, x, boxes, (picture and picture_size(picture)) or self.extent(path, boxes)
                x, boxes = (np.asarray(arrays[name], np.float32) for name in ("x", "bbox"))
                size = tuple(int(arrays[name]) for name in ("image_w", "image_h"))
        except KeyError as error:
            raise InputError(f"{path}: {error}; need x, bbox, image_w and image_h, or feat") from None
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, AttributeError):
            raise InputError(f"{path}: truncated or not an .npz file of arrays; extract it again") from None
        if x.ndim == 2 and boxes.ndim == 2 and len(x) != len(boxes) == x.shape[1]:
            x = x.T  # as older releases wrote it
        return path, x, boxes, size

    def boxes_of(self, path):
        if self.boxes == self.folder or not self.boxes.is_dir():
            raise InputError(f"{path}: no boxes in it; its folder needs another beside it, as cocobu_box of cocobu_att")
        return np.asarray(open_array(self.boxes / f"{path.stem}.npy"), np.float32)

    def extent(self, path, boxes):
        """The smallest size (width, height) that holds these boxes."""
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or not np.isfinite(boxes).all():
            raise InputError(f"{path}: boxes {boxes.shape} with numbers that are no corners; extract them again")
        self.notes.add("images without a size, for which that of all their boxes stands; --images gives it", path)
        return tuple(math.ceil(side) for side in boxes[:, 2:].max(axis=0))
