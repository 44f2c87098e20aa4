"""Names of images: the names of a split, and the file that belongs to each name."""

import re
from collections import Counter
from pathlib import Path

from files.annotations import SPLIT_NAMES
from files.errors import InputError
from files.text import read_json, read_lines

# ---- which file a name means ----


def name_keys(name):
    """Names that an image may have, most particular first: its path, file name, stem, COCO number."""
    stem = Path(name).stem
    number = re.fullmatch(r"(?:COCO_\w+_)?0*(\d{1,18})", stem, re.ASCII)
    return list(dict.fromkeys([str(name), Path(name).name, stem, *([number[1]] if number else [])]))


def find_by_key(names):
    """{key of a name: its index}, without the keys that several names share."""
    found = {}
    for index, name in enumerate(names):
        for key in name_keys(name):
            found.setdefault(key, set()).add(index)
    return {key: next(iter(some)) for key, some in found.items() if len(some) == 1}


def find_pictures(folder, names):
    """The file in `folder` that each name means, or None.

    folder/name comes first. Otherwise a file with the same name, stem or COCO number counts, in `folder` or one
    folder below: COCO_val2014_000000000042.jpg is 000000000042.jpg of 2017. A file belongs to one name only, and
    a name never leads out of the folder.
    """
    folder = Path(folder)
    files = {name: folder / name if is_file(folder, name) else None for name in names}
    if None in files.values() and folder.is_dir():
        taken = set(files.values())
        rest = [path for path in sorted(pictures_in(folder)) if path not in taken]
        files.update(guess_pictures(folder, [name for name, file in files.items() if file is None], rest))
    return [files[name] for name in names]


def is_file(folder, name):
    try:
        return is_inside(name) and (folder / name).is_file()
    except OSError:  # longer than a name can be
        return False


def is_inside(name):
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def guess_pictures(folder, names, files):
    """{name: file} where a key of the name is a key of one file, and of no file that another name means too."""
    index_of = find_by_key([path.relative_to(folder) for path in files])
    guesses = {
        name: next((index_of[key] for key in name_keys(name) if key in index_of), None)
        for name in names
        if is_inside(name)
    }
    used = Counter(guesses.values())
    return {name: files[guess] for name, guess in guesses.items() if guess is not None and used[guess] == 1}


def pictures_in(folder):
    """The files with the ending of a picture in a folder and in the folders in it."""
    endings = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    for path in folder.iterdir():
        inside = path.iterdir() if path.is_dir() else [path]
        yield from (one for one in inside if one.suffix.lower() in endings)


# ---- the names of a split ----


def image_names(dataset):
    """The names of a split's images, as strings, or None where no file has them.

    {split}_imagename.txt, one a line; or {split}_ids.txt looked up in Karpathy's dataset_*.json, which lies
    beside it or in the folder above. A line for each image, or for each caption. InputError for another number
    of lines.
    """
    folder, split = dataset.folder, dataset.split
    path = folder / f"{split}_imagename.txt"
    if path.exists():
        return one_each(read_lines(path), dataset, path)
    path = folder / f"{split}_ids.txt"
    sources = sorted([*folder.glob("dataset_*.json"), *folder.parent.glob("dataset_*.json")])
    if not path.exists() or not sources:
        return None
    return names_of_ids(one_each(read_lines(path), dataset, path), split, sources[0], path)


def one_each(lines, dataset, path):
    """A line for each image, from lines for each image or each caption."""
    captions = len(dataset.tokens)
    per = len(dataset) // dataset.n_images
    if len(lines) not in (captions, captions // per):
        raise InputError(
            f"{path}: {len(lines)} lines; need one for each of {captions // per} images; "
            "write it again from the source of these captions (tools/prepare_captions.py)"
        )
    return lines[:: per if len(lines) == captions else 1][: dataset.n_images]


def names_of_ids(ids, split, source, path):
    """Names by 'cocoid' or 'imgid', whichever gives more images of this split."""
    try:
        images = read_json(source)["images"]
        tables = [{str(image[key]): image for image in images if key in image} for key in ("cocoid", "imgid")]
        agree = [sum(of_split(table.get(id), split) for id in ids) for table in tables]
        table = tables[int(agree[1] > agree[0])]
        return [str(Path(table[id].get("filepath", ""), table[id]["filename"])) for id in ids]
    except KeyError as error:
        raise InputError(f"{path}: {error} is not in {source}; take both from the same data set") from None
    except (AttributeError, TypeError):
        raise InputError(f"{source}: not Karpathy's JSON (images with filename and imgid)") from None


def of_split(image, split):
    """Whether an entry of Karpathy's JSON, or None, is of one of our splits; testall and test are one there."""
    return image is not None and SPLIT_NAMES.get(image["split"]) == ("test" if split == "testall" else split)
