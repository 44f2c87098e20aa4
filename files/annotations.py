"""Annotation files: Karpathy's dataset_*.json and COCO's captions_*.json, read into one form."""

from typing import NamedTuple

from files.errors import InputError
from files.text import read_json

# the splits that Karpathy's files know, and ours
SPLIT_NAMES = {"train": "train", "val": "dev", "dev": "dev", "test": "test", "testall": "testall", "restval": "train"}
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


def text_of(item, key, where):
    """item[key], a text; InputError where it is none."""
    if not isinstance(item, dict) or not isinstance(item.get(key), str):
        raise InputError(f"{where}: has no text called {key!r}")
    try:
        item[key].encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {key!r} has half a surrogate pair, which is no text") from None
    return item[key]


def number_of(value):
    """An id as it is compared: 42, 42.0 and '42' are the same; None where there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else value or None
    return value if type(value) is int else None


def each_once(pictures):
    """The same pictures; InputError where two have one name."""
    seen = {}
    for picture in pictures:
        name = picture.longer_name or picture.name
        if name in seen:
            raise InputError(f"{picture.where}: {name} is also the name of {seen[name]}; names must differ")
        seen[name] = picture.where
    return pictures


# ---- Karpathy's


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
        places = [(sentence, f"{where}, sentence {k}") for k, sentence in enumerate(sentences)]
        captions = [Caption(text_of(sentence, "raw", place), place) for sentence, place in places]
        pictures.append(Picture(name, captions, where, SPLIT_NAMES[split], f"{folder}/{name}" if folder else None))
    return each_once(pictures)


# ---- COCO's


def read_coco(path, restval=None, named=True):
    """Pictures of a COCO captions file, in the order of its images.

    Annotations of another kind (boxes, outlines) between the captions are passed over; ids may be texts; an
    annotation needs no id. named: every image must have a name of its own. InputError for a caption of an image
    that the file does not list.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise InputError(f"{path}: not COCO's annotations (a table with the lists images and annotations)")
    pictures = coco_images(content["images"], path, named)
    captions = 0
    for i, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict):
            raise InputError(f"{path}: entry {i} of annotations is not a table")
        number = number_of(annotation.get("id"))
        where = f"{path}, annotation {number}" if number is not None else f"{path}, entry {i} of annotations"
        if "caption" not in annotation and NOT_CAPTIONS & annotation.keys():
            continue
        image = number_of(annotation.get("image_id"))
        if image is None:
            raise InputError(f"{where}: has no image_id")
        if image not in pictures:
            raise InputError(f"{where}: belongs to image {image}, which the file does not list")
        pictures[image].captions.append(Caption(text_of(annotation, "caption", where), where, number))
        captions += 1
    if not captions:
        raise InputError(
            f"{path}: none of its {len(content['annotations'])} annotations has a caption; "
            "give COCO's captions_*.json or a file of that form"
        )
    return each_once(list(pictures.values())) if named else list(pictures.values())


def coco_images(images, path, named):
    """{number: Picture without captions}; InputError where two images have one number."""
    pictures = {}
    for i, image in enumerate(images):
        number = number_of(image.get("id")) if isinstance(image, dict) else None
        if number is None:
            raise InputError(f"{path}: entry {i} of images has no id")
        where = f"{path}, image {number}"
        picture = Picture(text_of(image, "file_name", where) if named else None, [], where)
        if picture.name != pictures.get(number, picture).name:
            raise InputError(
                f"{path}: the image number {number} occurs twice, for {pictures[number].name} and {picture.name}; "
                "give every image a number of its own"
            )
        pictures.setdefault(number, picture)
    return pictures


def captions_by_number(pictures, path):
    """{COCO's number of a caption: (Picture, Caption)}; InputError where a caption has none, or two have one."""
    found = {}
    for picture in pictures:
        for caption in picture.captions:
            if caption.number is None:
                raise InputError(f"{caption.where}: has no id; captions are named by their ids here")
            if caption.number in found:
                raise InputError(
                    f"{path}: the annotation number {caption.number} occurs twice, for {found[caption.number][0].name} "
                    f"and {picture.name}; numbers must be unique in the whole file, number the annotations anew"
                )
            found[caption.number] = picture, caption
    return found
