"""What tools/check_data.py says about each file, beyond the checks of the data set.

of_...(split) -> lines to print of a file of this check_data.Split. InputError where the file cannot be used at all.
"""

import numpy as np
from tqdm import tqdm

from files.arrays import open_array, read_sizes
from files.names import find_pictures
from files.pictures import other_proportions
from files.ragged import Ragged
from files.text import CAPTIONS_PER_IMAGE, read_captions, read_dependencies, read_ids, read_lines
from vocab import END, START, UNK, encode_all, fault_of_captions, odd_marks

FLAT_WORDS = 5  # words of a caption whose tree hardly ever has all of them on the first
CHUNK_BYTES = 1 << 24  # bytes of features read at once


def counted(checks):
    """'regions all zero: 3 (first: row 0, region 5)' of each check {what: places} with any place."""
    return [f"{what}: {len(places):,} (first: {places[0]})" for what, places in checks.items() if len(places)]


def places(kind, found, start=0):
    """'line 3' or the like for each true one of a list."""
    return [f"{kind} {i}" for i, bad in enumerate(found, start) if bad]


# ---- captions


def of_captions(split):
    captions = read_captions(split.path("caps.txt"))
    images = [captions[i : i + CAPTIONS_PER_IMAGE] for i in range(0, len(captions), CAPTIONS_PER_IMAGE)]
    foreign = [any(letter.isalpha() and not letter.isascii() for letter in text) for text in captions]
    checks = {
        "images that have a caption twice": places("image", [len(set(five)) < len(five) for five in images]),
        "captions with letters beyond a-z": places("line", foreign, 1),
    }
    for what, numbers in odd_marks(captions):
        how = f"captions with {what}, which make words of their own (tools/prepare_captions.py --plain)"
        checks[how] = [f"line {i + 1}" for i in numbers]
    path, fault = split.path("ims.npy"), fault_of_captions(captions)
    rows = len(open_array(path)) if path.exists() else 0
    each = f", {len(captions) / rows:g} for each of {rows:,} rows of features" if rows else ""
    return [f"{len(captions):,} captions{each}", *counted(checks), *([fault] if fault else [])]


def of_names(split):
    names, captions = read_lines(split.path("imagename.txt")), split.n_captions()
    facts = [f"{len(names):,} names"]
    images = len(names) if captions is None else captions // CAPTIONS_PER_IMAGE
    if len(names) not in (images, captions):
        facts.append(f"they do not fit: {images:,} images have captions; tools/prepare_captions.py writes both files")
    if len(names) != captions:  # a line for each image
        facts += counted({"names that stand there already": places("line", repeated(np.array([names]))[0], 1)})
    return facts


def of_pictures(split):
    """How many pictures are in the folder --images, and which have other proportions than the sizes."""
    dataset = next(iter(split.data.values()), None)
    names = None if dataset is None else dataset.names()
    if names is None:
        return ["not looked at: no names of the images"]
    files = find_pictures(split.opt.images, names)
    missing = [name for name, file in zip(names, files) if file is None]
    facts = [f"{len(names) - len(missing):,} of {len(names):,} pictures", *counted({"not there": missing})]
    path = split.path("ims_size.npy")
    if path.exists():
        table = read_sizes(path)
        table = table[:: CAPTIONS_PER_IMAGE if len(table) == len(dataset.tokens) else 1]
        other = [
            f"{names[g]}: {w} x {h} in {path.name}, {v} x {u} in the folder"
            for g, (w, h), (v, u) in other_proportions(table, files)
        ]
        facts += counted({f"pictures of other proportions than {path.name} says, whose boxes do not fit": other})
    return facts


def of_ids(split):
    if split.vocab is None:
        return ["not read without the vocabulary"]
    tokens, path = Ragged(read_ids(split.path("precaps_stan.txt"), len(split.vocab))), split.path("caps.txt")
    if not len(tokens):
        return ["0 captions"]
    unknown = 100 * np.sum(tokens.flat == UNK) / max(np.sum(tokens.flat > END), 1)
    lengths = f"{tokens.lengths.min()} to {tokens.lengths.max()} ids"
    facts = [f"{len(tokens):,} captions of {lengths}, {unknown:.1f} % of the words <unk>"]
    bare = [ids[0] != START or ids[-1] != END for ids in map(tokens.__getitem__, range(len(tokens)))]
    facts += counted({"captions not from <start> to <end>": places("line", bare, 1)})
    if split.opt.quick or not path.exists():
        return facts
    read = (data.tokens for data in split.data.values() if not data.inputs.ids)  # by a system that reads words
    ours = next(read, None) or encode_all(read_captions(path), split.vocab, path)
    if len(tokens) != len(ours):
        return [*facts, f"not the captions of caps.txt, which has {len(ours):,}"]
    other = places("line", [ours[i] != tokens[i] for i in range(len(ours))], 1)
    differ = counted({"captions with other ids than caps.txt gives with this vocabulary": other})
    return facts + (differ or ["the ids of caps.txt, line for line"])


def of_dependencies(split):
    trees = read_dependencies(split.path("caps.json"))
    lengths = next((data.tokens.lengths for data in split.data.values()), [])
    words = (lengths - 2).tolist() if len(lengths) == len(trees) else []  # without <start> and <end>
    checks = {
        "captions with a word that depends on itself": [any(a == b for a, b in tree) for tree in trees],
        "captions whose first pair is not ROOT's": [not tree or tree[0][0] != 0 for tree in trees],
        "captions with pairs outside their words, which are skipped": [
            any(not (0 <= a <= n and 1 <= b <= n) for a, b in tree) for tree, n in zip(trees, words)
        ],
        "captions with words that depend on nothing": [len({b for _, b in tree}) < n for tree, n in zip(trees, words)],
    }
    facts = counted({what: places("caption", found) for what, found in checks.items()})
    long = [tree for tree in trees if len(tree) >= FLAT_WORDS]
    flat = sum({governor for governor, _ in tree} <= {0, 1} for tree in long)  # all on the first, as if not parsed
    if 2 * flat > len(long):
        facts.append(f"no trees but flat lists, of {flat:,} of {len(long):,} longer captions; parse them again")
    return [f"dependencies of {len(trees):,} captions", *facts]


# ---- arrays


def of_features(split):
    """Refuses the split where numbers are not finite, or an image's five rows differ."""
    path = split.path("ims.npy")
    images = open_array(path)
    facts = [f"{images.dtype} {images.shape}, {path.stat().st_size / 1e9:.3g} GB"]
    if split.opt.quick or images.ndim != 3 or images.dtype.kind != "f" or not images.size:
        return facts
    found = Scan(images, split.name)
    facts.append(f"values {found.low:.4g} to {found.high:.4g}")
    checks = {"regions all zero": found.zeros, "regions that repeat another of their image": found.repeats}
    faults = {"rows of features with NaN or infinity": found.broken}
    if split.n_captions() == len(images):  # a row for each caption
        five = found.hashes[: len(images) // CAPTIONS_PER_IMAGE * CAPTIONS_PER_IMAGE].reshape(-1, CAPTIONS_PER_IMAGE)
        differ = np.flatnonzero((five != five[:, :1]).any(axis=1)) * CAPTIONS_PER_IMAGE
        faults["images whose five rows of features differ"] = [f"row {row}" for row in differ]
    else:
        checks["images with the features of an earlier one"] = places("row", repeated(found.hashes[None])[0])
    for fault in counted(faults):
        split.refuse(fault)
    return facts + counted(checks | faults)


class Scan:
    """What stands in features (N, R, F), read once, CHUNK_BYTES at a time."""

    def __init__(self, images, name):
        self.low, self.high, self.hashes = np.inf, -np.inf, np.zeros(len(images), np.uint64)
        self.zeros, self.repeats, self.broken = [], [], []
        self.weights = np.random.default_rng(0).integers(2**63, size=max(images.shape[1:]), dtype=np.uint64)
        step = max(1, CHUNK_BYTES // (4 * images[0].size))
        with tqdm(total=len(images), desc=f"{name} features", unit=" images", disable=None, leave=False) as bar:
            for start in range(0, len(images), step):
                self.add(start, np.ascontiguousarray(images[start : start + step], np.float32))
                bar.update(min(step, len(images) - start))

    def add(self, start, x):
        """x: (images, R, F) float32, of which the first is image `start`."""
        finite = np.isfinite(x)
        good = x if finite.all() else x[finite]
        if good.size:
            self.low, self.high = min(self.low, good.min()), max(self.high, good.max())
        # a hash: equal vectors have equal sums of their bits times some fixed numbers, modulo 2^64
        regions = x.view(np.uint32) @ self.weights[: x.shape[2]]  # (images, R)
        self.hashes[start : start + len(x)] = regions @ self.weights[: x.shape[1]]
        zero = (x == 0).all(axis=2)
        self.broken += places("row", ~finite.all(axis=(1, 2)), start)
        self.zeros += regions_where(zero, start)
        self.repeats += regions_where(repeated(regions) & ~zero, start)


def repeated(values):
    """Where a row of (N, R) numbers has one that stands further left in it: (N, R) bool."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    later = np.zeros(values.shape, bool)
    np.put_along_axis(later, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return later


def of_boxes(split):
    pixels, sized = open_array(split.path("ims_bbx.npy")), split.path("ims_size.npy")
    facts = [f"{pixels.dtype} {pixels.shape}"]
    limits = read_sizes(sized)[:, None] if sized.exists() else np.zeros(0)  # (N, 1, 2)
    if pixels.ndim != 3 or pixels.shape[2] != 4 or not pixels.size or len(limits) != len(pixels):
        return facts
    low, high = np.array(pixels[..., :2], np.float32), np.array(pixels[..., 2:], np.float32)
    share = ((high - low).prod(axis=2) / limits.prod(axis=2)).mean()
    facts.append(f"a box covers {100 * share:.1f} % of its image on average")
    outside, empty = ((low < 0) | (high > limits)).any(axis=2), (high <= low).any(axis=2)
    checks = {"boxes that reach outside their image": outside, "boxes without area": empty}
    return facts + counted({what: regions_where(found) for what, found in checks.items()})


def regions_where(found, start=0):
    return [f"row {start + i}, region {r}" for i, r in np.argwhere(found)]


def of_sizes(split):
    table = read_sizes(split.path("ims_size.npy"))
    if not len(table):
        return ["0 images"]
    (w0, h0), (w1, h1) = table.min(axis=0), table.max(axis=0)
    return [f"{len(table):,} images, {w0:g} to {w1:g} wide, {h0:g} to {h1:g} high"]
