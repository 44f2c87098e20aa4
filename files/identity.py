"""What identifies the items of a split, so that two lists joined by position are compared by more than their length."""

import contextlib
import hashlib
import json
import re

import numpy as np

from files.errors import InputError
from files.names import name_keys

SAMPLED = 64  # images, at most, whose features are part of the identity


def data_identity(dataset):
    """The identity of a data set's split: {part: a number or a digest, or None where the split lacks it}.

    images, captions: how many. texts: the captions' letters and digits. names: the images' names, without folders and
    endings. ids: the captions' word ids. vocabulary: the words behind these ids. features: the shape of the features
    and some of their rows (of pictures: the sizes of some files).
    """
    ids, count, words = dataset.tokens, len(dataset), getattr(dataset, "vocab", None)
    texts = names = None
    with contextlib.suppress(InputError):  # a file that cannot be used is refused where its content is shown
        texts = dataset.captions
    with contextlib.suppress(InputError):
        names = dataset.names()
    return {
        "images": dataset.n_images,
        "captions": count,
        "texts": None if texts is None else digest(re.sub(r"[\W_]+", "", text.lower()) for text in texts),
        "names": None if names is None else digest(name_keys(name)[-1][1] for name in names),
        "ids": digest([ids.lengths[:count].tobytes(), ids.flat[: ids.starts[count]].tobytes()]),
        "vocabulary": digest([json.dumps(words.word2idx, sort_keys=True)]) if words else None,
        "features": digest(feature_parts(dataset)),
    }


def feature_parts(dataset):
    """What the digest of a split's features is made of: at most SAMPLED of them, evenly spread, with both ends."""
    items = dataset.images if dataset.region_count else dataset.picture_files()
    sampled = np.unique(np.linspace(0, len(items) - 1, min(len(items), SAMPLED)).astype(int)).tolist()
    if not dataset.region_count:
        return [str(items[g].stat().st_size) for g in sampled]
    return [f"{items.shape} {items.dtype}", *(items[g].tobytes() for g in sampled)]


def digest(parts):
    """Texts or bytes, in their order -> 16 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)
    return found.hexdigest()[:16]


def difference(first, other, features=False):
    """In which items two identities differ: words for a message, or "" where item k of one is item k of the other.

    Texts are compared where both have them, else word ids of the same vocabulary; names where both have them. Features
    count only where that is asked for: models with different features of the same images may be compared.
    """
    if (first["images"], first["captions"]) != (other["images"], other["captions"]):
        sizes = [f"{one['images']} images and {one['captions']} captions" for one in (first, other)]
        return f"{sizes[0]} against {sizes[1]}"
    text = "texts" if first["texts"] and other["texts"] else "ids"
    if first[text] != other[text] and (text == "texts" or first["vocabulary"] == other["vocabulary"]):
        return "other captions, or the same ones in another order"
    if first["names"] and other["names"] and first["names"] != other["names"]:
        return "other images, or the same ones in another order"
    if features and first["features"] != other["features"]:
        return "other features"
    return ""
