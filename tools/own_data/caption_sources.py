"""Sources of captions for tools/prepare_captions.py: Karpathy's JSON, COCO's annotations, two columns."""

import contextlib
import csv
import io
import re
from typing import NamedTuple

from files.errors import InputError
from files.text import read_json, read_lines

SPLIT_NAMES = {"train": "train", "val": "dev", "dev": "dev", "test": "test", "testall": "testall", "restval": "train"}
HEADER = re.compile(r"(image|img|file|photo|picture)[ _]?(name|id|file|path)?|name|path", re.IGNORECASE)
NUMBER = re.compile(r"#\d+$")  # Flickr's own lists number an image's captions: 1000268201.jpg#0


class Picture(NamedTuple):
    """An image with its captions; where says where the source has it."""

    name: str
    captions: list  # (text, where)
    where: str
    split: str = None
    longer_name: str = None  # with the folder that the source names


def guess_format(path):
    """karpathy, coco or table."""
    if path.suffix.lower() != ".json":
        return "table"
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        return "coco"
    return "karpathy"


def read_karpathy(path, restval="train"):
    """Pictures of a dataset_*.json, in its order, with their splits; restval: 'train', or 'drop' to leave it out."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{path}: neither Karpathy's JSON (a table with images) nor COCO's (with annotations too)")
    pictures = []
    for i, image in enumerate(content["images"]):
        where = f"{path}, image {i}"
        split = text_of(image, "split", where)
        if split not in SPLIT_NAMES:
            raise InputError(f"{where}: split {split!r}; known are {', '.join(SPLIT_NAMES)}")
        if split == "restval" and restval == "drop":
            continue
        name, folder = text_of(image, "filename", where), image.get("filepath")
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            raise InputError(f"{where}: has no list of sentences")
        captions = [
            (text_of(one, "raw", f"{where}, sentence {k}"), f"{where}, sentence {k}") for k, one in enumerate(sentences)
        ]
        pictures.append(Picture(name, captions, where, SPLIT_NAMES[split], f"{folder}/{name}" if folder else None))
    return each_once(pictures)


def read_coco(path, restval=None):
    """Pictures of a COCO captions file, in the order of its images (read with pycocotools)."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = read_json(path)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        images = {
            image["id"]: text_of(image, "file_name", f"{path}, image {image['id']}") for image in coco.dataset["images"]
        }
        stray = next((key for key in coco.imgToAnns if key not in images), None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not COCO's annotations ({type(error).__name__}: {error})") from None
    if stray is not None:
        annotation = coco.imgToAnns[stray][0].get("id")
        raise InputError(f"{path}, annotation {annotation}: belongs to image {stray}, which the file does not list")
    pictures = []
    for key, name in images.items():
        places = [(one, f"{path}, annotation {one.get('id')}") for one in coco.imgToAnns.get(key, [])]
        captions = [(text_of(one, "caption", where), where) for one, where in places]
        pictures.append(Picture(name, captions, f"{path}, image {key}"))
    return each_once(pictures)


def text_of(item, key, where):
    if not isinstance(item, dict) or not isinstance(item.get(key), str):
        raise InputError(f"{where}: has no text called {key!r}")
    try:
        item[key].encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {key!r} has half a surrogate pair, which is no text") from None
    return item[key]


def each_once(pictures):
    """The same pictures; InputError where two have one name."""
    seen = {}
    for picture in pictures:
        name = picture.longer_name or picture.name
        if name in seen:
            raise InputError(f"{picture.where}: {name} is also the name of {seen[name]}; names must differ")
        seen[name] = picture.where
    return pictures


def read_table(path, restval=None):
    """Pictures of a file with a row for each caption, image and caption, in the order they first come.

    Comma-separated with quotes as spreadsheets write it, or, when the first line has a tab, tab-separated
    without quoting.  A first row of titles is left out, so is the caption's number behind an image's name (#0).
    """
    lines = read_lines(path)
    tabs = bool(lines) and "\t" in lines[0]
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True, "skipinitialspace": True}
    rows = csv.reader((line + "\n" for line in lines), **how)
    captions, first = {}, {}
    for number, row in numbered(rows, path):
        where = f"{path}, line {number}"
        if not row or (number == 1 and len(row) == 2 and HEADER.fullmatch(row[0].strip())):
            continue
        if len(row) != 2:
            hint = "need image and caption with one tab between" if tabs else "need image,caption; quote commas"
            raise InputError(f"{where}: {len(row)} columns; {hint}")
        name = NUMBER.sub("", row[0].strip())
        if not name:
            raise InputError(f"{where}: no image name")
        first.setdefault(name, where)
        captions.setdefault(name, []).append((row[1], where))
    return [Picture(name, some, first[name]) for name, some in captions.items()]


def numbered(rows, path):
    """(line, row) of a csv reader; where a row has several lines, its last."""
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: {error}; is a quote left open?") from None


READERS = {"karpathy": read_karpathy, "coco": read_coco, "table": read_table}
