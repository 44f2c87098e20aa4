"""Files -> batches: precomputed region features with their captions (docs/method.md, section 1)."""

import contextlib
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from files.arrays import check_five_rows, open_array, read_boxes, read_sizes
from files.errors import InputError, warn
from files.features import features_file, open_features
from files.names import find_pictures, image_names
from files.pictures import captioned_pictures, first_five, make_transforms, open_picture
from files.text import CAPTIONS_PER_IMAGE, PICTURES, Ragged, data_folder, read_captions, read_dependencies, read_ids
from runtime.batches import EpochSampler, Item, collate, in_order, longest_first, make_loader, seeded
from runtime.workers import Loader
from systems.table import SYSTEMS, Inputs, inputs_of, system_of
from vocab import END, PAD, check_ids, encode_all, warn_unfit

DEV_CAPTIONS = 5000  # a longer dev split is cut to these
NO_FEATURES = "check --data_path, --data_name and the split, or make it with tools/extract_features.py"
CHECKED_BYTES = 1 << 30  # features up to this size are read once before a run begins, which takes seconds
COMPARED_IMAGES = 64  # images, at least, whose five rows of features are compared when a split is opened


def label_and_mask(ids, max_len):
    """Targets of VSRN's caption model: (max_len + 1,) ids and weights (docs/method.md, section 3.4)."""
    if len(ids) > max_len - 1:
        ids = [*ids[: max_len - 1], END]
    label = np.full(max_len + 1, PAD, np.int64)
    mask = np.zeros(max_len + 1, np.float32)
    label[: len(ids)] = ids
    mask[: len(ids) + 1] = 1  # the first pad after <end> counts
    return label, mask


class PrecompDataset(Dataset):
    """Captions of one split with their images' precomputed region features; len is the number of captions.

    images: memory map (rows, R, F); n_images; tokens[i]: ids of caption i; boxes (n_images, R, 4) or None;
    sizes (n_images, 2) or None; depends[i]: pairs of caption i, or depends is None; captions: texts or None.
    Raises InputError for any file that is missing, damaged or does not fit the others.
    """

    def __init__(self, split, data_name, vocab, opt):
        self.folder, self.split, self.vocab = data_folder(opt.data_path, data_name), split, vocab
        self.inputs = inputs_of(opt)
        self.features_file = features_file(self.folder, split)
        if not self.features_file.exists():
            raise InputError(f"{self.features_file}: no such file; {NO_FEATURES}")
        self.images = open_features(self.features_file, self.inputs.vectors)
        if self.images.shape[2] != opt.img_dim:
            width = self.images.shape[2]
            raise InputError(f"{self.features_file}: features are {width} wide, but --img_dim is {opt.img_dim}")
        self.tokens = self._read_tokens()
        self._count()
        self.sizes, self.boxes = self._read_boxes()
        self.depends = self._read_depends() if self.inputs.dependencies else None

    def _read_depends(self):
        path = self._need("caps.json", "only --is_sparse needs it")
        pairs, captions = read_dependencies(path), len(self.tokens)
        if len(pairs) != captions:
            raise InputError(f"{path}: dependencies of {len(pairs)} captions, but there are {captions}; parse these")
        return Ragged(pairs, pairs=True)

    @property
    def files(self):
        """The files of the split that exist."""
        return sorted(self.folder.glob(f"{self.split}_*"))

    def _path(self, ending):
        return self.folder / f"{self.split}_{ending}"

    def _need(self, ending, advice="check --data_path, --data_name and the split"):
        path = self._path(ending)
        if not path.exists():
            raise InputError(f"{path}: no such file; {advice}")
        return path

    def _read_tokens(self):
        ready = self._path("precaps_stan.txt")
        if not self.inputs.ids or not ready.exists():
            source = self._need("caps.txt")
            if self.inputs.ids:
                warn(f"{ready} is missing: making the word ids from {source.name} with the vocabulary")
            return encode_all(read_captions(source), self.vocab, source)
        tokens, captions = Ragged(read_ids(ready, len(self.vocab))), []
        with contextlib.suppress(InputError):  # captions that cannot be read are refused where they are shown
            captions = read_captions(self._path("caps.txt"))
        check_ids(tokens, ready, captions, self.vocab)
        warn_unfit(tokens, ready)
        return tokens

    def _count(self):
        """Set the numbers of images and captions, and of captions for a row of features; compare rows and captions."""
        rows, captions, five = len(self.images), len(self.tokens), CAPTIONS_PER_IMAGE
        if captions % five or captions not in (rows, five * rows):
            needed = f"{five} captions for each image, and a row for each image or each caption"
            raise InputError(f"{self.features_file}: {rows} rows of features for {captions} captions; need {needed}")
        if rows == captions:
            step = max(1, rows // five // COMPARED_IMAGES)
            check_five_rows(self.images, self.features_file, range(0, rows // five, step))
        self.im_div = captions // rows
        self.length = min(captions, DEV_CAPTIONS) if self.split == "dev" else captions
        self.n_images = self.length // five

    def _read_boxes(self):
        """Sizes of the images and boxes of their regions, (None, None) where the system reads none."""
        if self.inputs.boxes == "none":
            return None, None
        advice = "without boxes give --boxes none"
        sizes_path, path = self._need("ims_size.npy", advice), self._need("ims_bbx.npy", advice)
        sizes = read_sizes(sizes_path)
        for rows, file in ((sizes, sizes_path), (open_array(path), path)):
            if rows.shape[:1] == (len(self.tokens),):
                check_five_rows(rows, file)
        boxes = read_boxes(path, sizes)
        images, regions = len(self.tokens) // CAPTIONS_PER_IMAGE, self.images.shape[1]
        if len(boxes) not in (images, len(self.tokens)) or boxes.shape[1] != regions:
            found, needed = boxes.shape[1::-1], f"{regions} in {images}, as the features and captions have"
            raise InputError(f"{path}: boxes of {found[0]} regions in {found[1]} images; need {needed}")
        return self._per_image(sizes), self._per_image(boxes)

    def _per_image(self, rows):
        step = CAPTIONS_PER_IMAGE if len(rows) == len(self.tokens) else 1  # a row for each caption, or each image
        return rows[::step][: self.n_images]

    @property
    def raw_boxes(self):
        """Boxes in pixels, (n_images, R, 4), as in the file."""
        return self._per_image(open_array(self._need("ims_bbx.npy")))

    @cached_property
    def captions(self):
        """The texts, read at their first use; None without {split}_caps.txt."""
        path = self._path("caps.txt")
        if not path.exists():
            return None
        captions = read_captions(path)
        if len(captions) != len(self.tokens):
            raise InputError(f"{path}: {len(captions)} captions, but the split has {len(self.tokens)}")
        return captions[: self.length]

    def __getstate__(self):
        # a worker that is not forked opens the features again; they would be copied otherwise
        return {**self.__dict__, "images": None}

    def __setstate__(self, state):
        self.__dict__ = state
        self.images = open_features(self.features_file, self.inputs.vectors)

    def __len__(self):
        return self.length

    @property
    def region_count(self):
        """Regions of an image."""
        return self.images.shape[1]

    def names(self):
        """The images' names, or None where no file has them."""
        return image_names(self)

    def picture_files(self, folder=None):
        """For each image its picture in a folder, or None."""
        names = self.names() if folder else None
        return find_pictures(folder, names) if names else [None] * self.n_images

    def image_of(self, i):
        """Number of caption i's image."""
        return i // CAPTIONS_PER_IMAGE

    def image(self, g):
        """Features of image g: (R, F) float32."""
        return self.features_of(g * CAPTIONS_PER_IMAGE).float()

    def features_of(self, i):
        """Features of caption i's image: (R, F), float16 as in the file, else float32. InputError for NaN, infinity."""
        row, kind = i // self.im_div, np.float16 if self.images.dtype == np.float16 else np.float32
        with np.errstate(over="ignore"):  # float64 beyond float32: infinity, which is refused
            features = torch.from_numpy(self.images[row].astype(kind))
        if not torch.stack(features.aminmax()).isfinite().all():  # one pass; NaN is passed on
            raise InputError(f"{self.features_file}, row {row}: NaN or infinity; extract this image again")
        return features

    def __getitem__(self, i):
        return self.item(i, self.features_of(i))

    def item(self, i, image=None):
        """Caption i with an image or without."""
        caption = self.tokens[i]
        boxes = None if self.boxes is None else torch.from_numpy(self.boxes[self.image_of(i)])
        depends = None if self.depends is None else self.depends[i]
        label = label_and_mask(caption, self.inputs.label_length) if self.inputs.label_length else (None, None)
        return Item(image, caption, i, boxes, depends, *label)


class PictureDataset(Dataset):
    """Captions of one split with their pictures (3, crop, crop); attributes and methods as of PrecompDataset.

    The train split has every caption; the others five captions for each image, as evaluation counts them,
    and dev is cut to 5,000 captions. Training crops and flips depend on (seed, epoch, caption) alone, the
    epoch being that of `sampler`. InputError for a file that is missing, damaged or does not fit the others.
    """

    inputs = Inputs()
    boxes = depends = sizes = None
    region_count = 0
    sampler = None  # the EpochSampler in use

    def __init__(self, split, data_name, vocab, opt):
        folder = self.folder = data_folder(opt.data_path, data_name)
        self.split = split
        self.train, self.seed = split == "train", opt.seed
        pairs = captioned_pictures(folder, data_name, split, opt.use_restval)
        if not self.train:
            pairs = first_five(pairs, folder, split)
        pairs = pairs[:DEV_CAPTIONS] if split == "dev" else pairs
        number = {path: g for g, path in enumerate(dict.fromkeys(path for path, _ in pairs))}
        self.pictures = list(number)
        self.owner = np.array([number[path] for path, _ in pairs], np.int32)
        self.captions = [text for _, text in pairs]
        self.tokens = encode_all(self.captions, vocab, f"{folder}, {split}")
        self.n_images = len(self.pictures)
        self.transform, self.random_transform = make_transforms(opt.crop_size)

    def __len__(self):
        return len(self.owner)

    @property
    def files(self):
        """The annotation files."""
        return sorted([*self.folder.glob("annotations/*"), *self.folder.glob("dataset_*.json")])

    def names(self):
        """The images' file names."""
        return [path.name for path in self.pictures]

    def picture_files(self, folder=None):
        """For each image its picture; the data set knows them, and looks into no other folder."""
        return self.pictures

    def image_of(self, i):
        """Number of caption i's image."""
        return int(self.owner[i])

    def image(self, g):
        """Image g as evaluation sees it: (3, crop, crop) float32."""
        return self.transform(open_picture(self.pictures[g])[0])

    def __getitem__(self, i):
        if self.train:
            epoch = self.sampler.epoch if self.sampler else 0
            with seeded(self.seed, epoch, i):
                image = self.random_transform(open_picture(self.pictures[self.owner[i]])[0])
        else:
            image = self.image(self.owner[i])
        return self.item(i, image)

    def item(self, i, image=None):
        """Caption i with a picture or without."""
        return Item(image, self.tokens[i], i, None, None, None, None)


def check_name(data_name, opt):
    """InputError where the data set is missing (the message lists the others), or the model cannot read it."""
    data_folder(opt.data_path, data_name)
    if data_name in PICTURES and not system_of(opt).pictures:
        others = [name for name, system in SYSTEMS.items() if system.pictures]
        cure = f"extract region features, or give --model {' or '.join(others)}"
        raise InputError(f"--data_name {data_name}: pictures, which {system_of(opt).title} cannot read; {cure}")


def feature_width(opt):
    """The width of the region features that opt.data_name has for training; opt.img_dim where it has none."""
    path = features_file(data_folder(opt.data_path, opt.data_name), "train")
    if opt.data_name in PICTURES or not path.exists():
        return opt.img_dim
    return open_features(path, inputs_of(opt).vectors).shape[2]


def open_split(split, data_name, vocab, opt):
    """The data set of one split: region features, or pictures when data_name is coco, f8k or f30k."""
    check_name(data_name, opt)
    kind = PictureDataset if data_name in PICTURES else PrecompDataset
    return kind(split, data_name, vocab, opt)


def get_loaders(data_name, vocab, batch_size, workers, opt, replicas=1, rank=0):
    """Loaders of Batch for train (.batch_sampler is an EpochSampler) and dev (in order)."""
    train = open_split("train", data_name, vocab, opt)
    sampler = EpochSampler(len(train), batch_size, opt.seed, replicas, rank)
    train.sampler = sampler  # pictures are cropped by (seed, epoch, caption)
    dev = get_test_loader("dev", data_name, vocab, batch_size, workers, opt)
    for dataset in (train, dev.dataset):
        if isinstance(dataset, PrecompDataset) and dataset.images.nbytes <= CHECKED_BYTES:
            for i in range(0, len(dataset), dataset.im_div):
                dataset.features_of(i)  # NaN is said now
    return make_loader(train, sampler, workers, pin=(opt.device or "cpu").startswith("cuda")), dev


def get_test_loader(split, data_name, vocab, batch_size, workers, opt):
    """A loader of Batch over a split, in order."""
    dataset = open_split(split, data_name, vocab, opt)
    return make_loader(dataset, in_order(len(dataset), batch_size), workers)


class Reader(Dataset):
    """What a function reads, by number."""

    def __init__(self, read):
        self.read = read

    def __getitem__(self, number):
        return self.read(number)


def image_loader(dataset, batch_size=128, workers=0, only=None):
    """Every image once, in order: batches of images (B, R, F).  only: a range of images instead of all."""
    images = range(dataset.n_images) if only is None else only
    batches = [list(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    return Loader(Reader(dataset.image), batches, workers, torch.stack)


def caption_loader(dataset, captions, batch_size=128):
    """These captions, longest first: Batch without images; ids say which captions."""
    order = longest_first(captions, dataset)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return Loader(Reader(dataset.item), batches, 0, collate)
