"""Annotation files: Karpathy's dataset_*.json and COCO's captions_*.json, read into one form."""

import contextlib
import io
from typing import NamedTuple

from files.errors import InputError
from files.text import read_json

# the splits that Karpathy's files and their copies know, and ours
SPLIT_NAMES = {"train": "train", "val": "dev", "dev": "dev", "test": "test", "testall": "testall", "restval": "train"}
SPLIT_NAMES |= {"validation": "dev", "valid": "dev"}
NOT_CAPTIONS = {"bbox", "segmentation", "keypoints"}  # a COCO annotation with one of these may have no caption


class Caption(NamedTuple):
    """One caption. where: its place in the source, for messages. number: COCO's number of it, or None."""

    text: str
    where: str
    number: object = None


class Picture(NamedTuple):
    """An image with its captions. where: its place in the source, for messages."""

    name: str
    captions: list  # of Caption
    where: str
    split: str = None  # train, dev, test or testall, where the source has splits
    longer_name: str = None  # with the folder that the source names


def text_of(value, what, where):
    """value, a text; InputError where it is none."""
    if not isinstance(value, str):
        raise InputError(f"{where}: has no text called {what!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {what!r} has half a surrogate pair, which is no text") from None
    return value


def split_of(value, where):
    """Our name of a source's split."""
    if not isinstance(value, str) or value not in SPLIT_NAMES:
        raise InputError(f"{where}: split {value!r}; known are {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[value]


def list_of(table, key, where):
    """table[key], a list of tables; InputError where it is none."""
    found = table.get(key) if isinstance(table, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{where}: has no list of {key} (tables with names), as Karpathy's and COCO's JSON have")
    return found


def each_once(pictures):
    """The same pictures; InputError where two have one name."""
    seen = {}
    for picture in pictures:
        name = picture.longer_name or picture.name
        if seen.setdefault(name, picture) is not picture:
            raise InputError(f"{picture.where}: {name} is also the name of {seen[name].where}; names must differ")
    return pictures


def read_karpathy(path, restval="train", notes=None):
    """Pictures of a dataset_*.json, in its order, with their splits; restval: 'train', or 'drop' to leave it out.

    A sentence without its text is made of its tokens. notes: {kind: places}, gets these sentences.
    """
    pictures = []
    for i, image in enumerate(list_of(read_json(path), "images", path)):
        where = f"{path}, image {i}"
        split = split_of(image.get("split"), where)
        if image["split"] == "restval" and restval == "drop":
            continue
        name, folder = text_of(image.get("filename"), "filename", where), image.get("filepath")
        captions = []
        for k, sentence in enumerate(list_of(image, "sentences", where)):
            place, text, tokens = f"{where}, sentence {k}", sentence.get("raw"), sentence.get("tokens")
            if text is None and isinstance(tokens, list):
                text = " ".join(text_of(token, "tokens", place) for token in tokens)
                if notes is not None:
                    notes["captions without 'raw', made of their tokens, which lack punctuation"].append(place)
            captions.append(Caption(text_of(text, "raw", place), place))
        pictures.append(Picture(name, captions, where, split, f"{folder}/{name}" if folder else None))
    return each_once(pictures)


def read_coco(path):
    """Pictures of a COCO captions file, in the order of its images, as pycocotools joins them.

    Annotations of another kind (boxes, outlines) between the captions are passed over; ids may be texts; an
    annotation needs no id. InputError for a caption of an image that the file does not list.
    """
    from pycocotools.coco import COCO

    content, index, pictures, captions = read_json(path), COCO(), {}, []
    for i, image in enumerate(list_of(content, "images", path)):
        number = number_of(image.get("id"))
        if number is None:
            raise InputError(f"{path}: entry {i} of images has no id")
        where = f"{path}, image {number}"
        picture = Picture(text_of(image.get("file_name"), "file_name", where), [], where)
        first = pictures.setdefault(number, picture)
        if first.name != picture.name:
            names = f"{first.name} and {picture.name}"
            raise InputError(f"{path}: the image number {number} occurs twice, for {names}; number the images anew")
    annotations = list_of(content, "annotations", path)
    for i, one in enumerate(annotations):
        if "caption" not in one and NOT_CAPTIONS & one.keys():
            continue
        number, image = number_of(one.get("id")), number_of(one.get("image_id"))
        where = f"{path}, entry {i} of annotations" if number is None else f"{path}, annotation {number}"
        if image not in pictures:
            found = "has no image_id" if image is None else f"belongs to image {image}, which the file does not list"
            raise InputError(f"{where}: {found}")
        caption = Caption(text_of(one.get("caption"), "caption", where), where, number)
        captions.append({"id": i, "image_id": image, "caption": caption})
    if not captions:
        raise InputError(f"{path}: none of its {len(annotations)} annotations has a caption; give captions_*.json")
    index.dataset = {"images": [{"id": number} for number in pictures], "annotations": captions}
    with contextlib.redirect_stdout(io.StringIO()):  # it says what it does
        index.createIndex()
    for number, picture in pictures.items():
        picture.captions.extend(one["caption"] for one in index.imgToAnns[number])
    return each_once(list(pictures.values()))


def number_of(value):
    """An id as it is compared: 42, 42.0 and '42' are the same; None where there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else value or None
    return value if type(value) is int else None


def captions_by_number(pictures, path):
    """{COCO's number of a caption: (Picture, Caption)}; InputError where a caption has none, or two have one."""
    found = {}
    for picture in pictures:
        for caption in picture.captions:
            if caption.number is None:
                raise InputError(f"{caption.where}: has no id; captions are named by their ids here")
            first, other = found.setdefault(caption.number, (picture, caption))
            if other is not caption:
                what = f"annotation number {caption.number} occurs twice, for {first.name} and {picture.name}"
                raise InputError(f"{path}: {what}; number them anew")
    return found
