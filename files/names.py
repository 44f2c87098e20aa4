"""Names of images: the names of a split, and the file that belongs to each name."""

import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

from files.annotations import SPLIT_NAMES
from files.errors import InputError, warn
from files.text import CAPTIONS_PER_IMAGE, read_json, read_lines

PICTURE_ENDINGS = {f".{form}" for form in "jpg jpeg png webp bmp gif tif tiff heic heif avif".split()}


def name_keys(name):
    """What a name is compared by, most particular first, as (kind, text).

    The kinds are the whole path, its ends (a/b.jpg, b.jpg), the file name without its ending, and COCO's number.
    Then the same of the name spelt alike: '/' between folders, composed accents, small letters, no query of an address.
    """
    found = []
    alike = unicodedata.normalize("NFC", re.sub(r"^(\w+://[^?#]*)[?#].*", r"\1", name).replace("\\", "/")).casefold()
    for spelling, text in (("as", name), ("like", alike)):
        parts, stem = [part for part in text.split("/") if part], Path(text).stem
        number = re.fullmatch(r"(?:coco_[^\W_]+_)?0*(\d{1,18})", stem, re.ASCII | re.IGNORECASE)
        found += [(f"{spelling} path", text), *((f"{spelling} end", "/".join(parts[i:])) for i in range(len(parts)))]
        found += [(f"{spelling} stem", stem), *([(f"{spelling} number", number[1])] if number else [])]
    return found


class Matcher:
    """Finds which of `names` another name means: matcher(name) -> its index, or None where none or several fit."""

    def __init__(self, names):
        self.index_of = {}
        for index, name in enumerate(names):
            for key in name_keys(str(name)):
                self.index_of[key] = index if self.index_of.get(key, index) == index else None

    def __call__(self, name):
        found = (self.index_of.get(key) for key in name_keys(str(name)))
        return next((index for index in found if index is not None), None)


def find_pictures(folder, names, links=False):
    """The file in `folder` that each name means, or None.

    folder/name comes first. Otherwise a file in `folder` or one folder below counts whose name is the same but for
    its folder, its ending, COCO's way to number, or its spelling (name_keys). A file belongs to one name only, and no
    name leads out of the folder. links: also take links that lead out of it, which a page must not show.
    """
    folder = Path(folder)
    inside = [name for name in names if ".." not in Path(name).parts]
    files = {name: folder / name for name in inside if not os.path.isabs(name) and os.path.isfile(folder / name)}
    if len(files) < len(set(names)) and folder.is_dir():
        taken = set(files.values())
        rest = [path for path in sorted(pictures_in(folder)) if path not in taken]
        match = Matcher([path.relative_to(folder).as_posix() for path in rest])
        guesses = {name: match(name) for name in inside if name not in files}
        used = Counter(guesses.values())  # a file that two names mean belongs to neither
        files |= {name: rest[guess] for name, guess in guesses.items() if guess is not None and used[guess] == 1}
    found, root = [files.get(name) for name in names], os.path.realpath(folder) + os.sep
    outside = {file for file in found if file and not links and not os.path.realpath(file).startswith(root)}
    if outside:
        first = f"(first: {min(outside)})"
        warn(f"{folder}: {len(outside)} pictures are not shown, since they are links that lead out of it {first}")
    return [None if file in outside else file for file in found]


def pictures_in(folder):
    """The files with the ending of a picture in a folder and in the folders in it."""
    for path in folder.iterdir():
        inside = path.iterdir() if path.is_dir() else [path]
        yield from (one for one in inside if one.suffix.lower() in PICTURE_ENDINGS)


def image_names(dataset):
    """The names of a split's images, as strings, or None where no file has them.

    {split}_imagename.txt, one a line; or {split}_ids.txt looked up in Karpathy's dataset_*.json, which lies
    beside it or in the folder above. A line for each image, or for each caption. InputError for another number
    of lines.
    """
    folder, captions = dataset.folder, len(dataset.tokens)
    named, numbered = (folder / f"{dataset.split}_{name}.txt" for name in ("imagename", "ids"))
    sources = sorted([*folder.glob("dataset_*.json"), *folder.parent.glob("dataset_*.json")])
    path = named if named.exists() else numbered
    if not path.exists() or (path == numbered and not sources):
        return None
    lines, images = read_lines(path), captions // CAPTIONS_PER_IMAGE
    if len(lines) not in (captions, images):
        needed = f"one for each of {images} images, as tools/prepare_captions.py writes"
        raise InputError(f"{path}: {len(lines)} lines; need {needed}")
    names = lines[:: CAPTIONS_PER_IMAGE if len(lines) == captions else 1][: dataset.n_images]
    return names if path == named else names_of_ids(names, dataset.split, sources[0], path)


def names_of_ids(ids, split, source, path):
    """Names by 'cocoid' or 'imgid', whichever gives more images of this split; testall and test are one there."""
    ours = "test" if split == "testall" else split
    try:
        images = read_json(source)["images"]
        tables = [{str(image[key]): image for image in images if key in image} for key in ("cocoid", "imgid")]
        agree = [[SPLIT_NAMES.get(table[id]["split"]) for id in ids if id in table].count(ours) for table in tables]
        table = tables[int(agree[1] > agree[0])]
        return [str(Path(table[id].get("filepath", ""), table[id]["filename"])) for id in ids]
    except KeyError as error:
        raise InputError(f"{path}: {error} is not in {source}; take both from the same data set") from None
    except (AttributeError, TypeError):
        raise InputError(f"{source}: not Karpathy's JSON (images with filename and imgid)") from None
