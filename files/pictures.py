"""Pictures -> batches: COCO and Flickr as image files with annotations (docs/method.md, section 3.5).

Crops need torchvision, which is imported where a data set of pictures asks for them.
"""

import contextlib

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from files.annotations import captions_by_number, read_coco, read_karpathy
from files.arrays import open_array
from files.errors import InputError
from files.names import find_pictures
from files.opening import open_regular
from files.text import CAPTIONS_PER_IMAGE

KARPATHY = {"f8k": "dataset_flickr8k.json", "f30k": "dataset_flickr30k.json"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow raises
HEIC = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")  # forms that only an optional package reads
with contextlib.suppress(ImportError):  # optional: pictures of telephones
    import pillow_heif

    pillow_heif.register_heif_opener()


def captioned_pictures(folder, data_name, split, use_restval=False):
    """[(path of the picture, caption)] of a split, in the files' order. 'testall' is the test split."""
    split = "test" if split == "testall" else split
    splits = ["train", "restval"] if split == "train" and use_restval else [split]
    if data_name in KARPATHY:
        entries = [one for one in read_karpathy(folder / KARPATHY[data_name]) if one.split in splits]
        pairs = [(one.name, caption.text) for one in entries for caption in one.captions]
    else:
        pairs = [pair for name in splits for pair in coco_pairs(folder, name)]
    if not pairs:
        raise InputError(f"{folder}: no captions in the split {split}")
    names = list(dict.fromkeys(name for name, _ in pairs))
    file_of = dict(zip(names, need_pictures(folder / "images", names)))
    return [(file_of[name], text) for name, text in pairs]


def coco_pairs(folder, split):
    """Karpathy's split of COCO: annotation numbers from coco_{split}_ids.npy; only train is in train2014."""
    year = "train2014" if split == "train" else "val2014"
    source, path = folder / "annotations" / f"captions_{year}.json", folder / "annotations" / f"coco_{split}_ids.npy"
    captions, numbers, chosen = captions_by_number(read_coco(source), source), open_array(path), {}
    if numbers.dtype.kind not in "iu":
        raise InputError(f"{path}: numbers of type {numbers.dtype}; need whole numbers")
    for number in numbers.ravel().tolist():
        if number not in captions or number in chosen:
            found = "occurs twice" if number in chosen else f"is not in {source}"
            raise InputError(f"{path}: annotation {number} {found}; take both files from one release, unchanged")
        picture, caption = captions[number]
        chosen[number] = f"{year}/{picture.name}", caption.text
    return list(chosen.values())


def need_pictures(folder, names):
    """The files of pictures in a folder, as files.names.find_pictures finds them; InputError where one is missing."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures")
    files = find_pictures(folder, names, links=True)
    missing = [name for name, file in zip(names, files) if file is None]
    if missing:
        raise InputError(f"{folder / missing[0]}: no such picture; {len(missing)} of {len(names)} are missing")
    return files


def first_five(pairs, folder, split):
    """The first five captions of each image, images in the order they first appear."""
    groups, five = {}, CAPTIONS_PER_IMAGE
    for path, text in pairs:
        groups.setdefault(path, []).append(text)
    if few := sum(len(texts) < five for texts in groups.values()):
        raise InputError(f"{folder}: {few} images of the split {split} have fewer than {five} captions; need {five}")
    return [(path, text) for path, texts in groups.items() for text in texts[:five]]


def open_picture(path, side=None):
    """(picture, change): any picture as 8-bit RGB the right way up, and what had to be changed for it, or None.

    Transparent pixels are laid on white, and 16 bits are scaled to 8. side: pixels of the longer side, where a
    smaller picture is wanted, which a JPEG gives sooner. InputError for a damaged picture, and for one whose
    pixels have no known range: floating-point numbers, or whole ones beyond 16 bits.
    """
    with open_regular(path, "no such picture") as file:
        head = file.peek(16)[:16]
        try:
            with Image.open(file) as image:
                if side:
                    image.draft(None, (2 * side, 2 * side))
                picture, change = as_rgb(ImageOps.exif_transpose(image), path)
        except UNREADABLE as error:
            heic = head[4:8] == b"ftyp" and head[8:12] in HEIC
            cure = "HEIC: convert it to JPEG, or install pillow-heif" if heic else "get this file again"
            raise InputError(f"{path}: not a readable picture ({error}); {cure}") from None
    if side:
        picture.thumbnail((side, side))
    return picture, change


def as_rgb(image, path):
    """(the PIL image as 8-bit RGB, what was changed or None); InputError for pixels without a known range."""
    change = None
    if image.mode[0] in "IF":  # I;16, I and F: a channel of more than 8 bits
        pixels = np.asarray(image)
        if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
            raise InputError(f"{path}: pixels that are no whole numbers of 8 or 16 bits; convert it to 8 bits")
        image, change = Image.fromarray((pixels // 257).astype(np.uint8)), "16-bit pictures, scaled to 8 bits"
    if image.has_transparency_data:
        image, change = image.convert("RGBA"), "transparent pictures, laid on white"
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), change


def make_transforms(crop_size):
    """(evaluation, training): PIL image -> (3, crop_size, crop_size), normalised as ImageNet is.

    Evaluation takes the centre of a picture whose shorter side is 256 for 224, in proportion for other sizes.
    """
    from torchvision import transforms  # only pictures need it

    end = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    centre = [transforms.Resize(round(crop_size * 256 / 224)), transforms.CenterCrop(crop_size)]
    chance = [transforms.RandomResizedCrop(crop_size), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*centre, *end]), transforms.Compose([*chance, *end])


def picture_size(path):
    """(width, height) of a picture the right way up, without decoding it; None where it cannot be read."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # turned by 90 degrees
            return image.size[::-1] if turned else image.size
    except (InputError, *UNREADABLE):
        return None


def proportions_differ(size, other):
    """Whether two (width, height) have other proportions than resizing can give: beyond 2 %, or a pixel of rounding.

    Boxes that belong to one size are then in the wrong places of a picture of the other size.
    """
    (w, h), (v, g) = size, other
    return abs(np.log(w * g / (h * v))) > max(0.02, 1.5 / min(w, h, v, g))


def are_stretched(sizes):
    """Whether every size (N, 2) is one square: the extractor has stretched the pictures, and all boxes fit."""
    return len(sizes) > 1 and bool((sizes == sizes[0, 0]).all())


def other_proportions(sizes, files):
    """In a line, how many pictures have other proportions than the sizes that the boxes belong to; None for none.

    sizes: (N, 2) width, height, as in {split}_ims_size.npy; files: N paths, None where an image has no picture.
    """
    sizes, found = np.asarray(sizes), []
    if are_stretched(sizes):
        return None
    for (w, h), path in zip(sizes, tqdm(files, "sizes of pictures", disable=None, leave=False)):
        size = picture_size(path) if path else None
        if size and proportions_differ((w, h), size):
            found.append(f"{path} is {size[0]} x {size[1]}, the data set says {w:g} x {h:g}")
    what = "pictures have other proportions than the data set's sizes, and boxes are in the wrong places"
    return f"{len(found)} of {len(files)} {what} (first: {found[0]})" if found else None
