"""Checks of each file that tools/check_data.py makes beyond those of the data set."""

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


def of_file(ending, split):
    """(facts, faults) of a file of a check_data.Split: lines to print; training fails on a fault.

    Raises InputError where the file cannot be used at all.
    """
    return {
        "ims.npy": feature_facts,
        "caps.txt": caption_facts,
        "precaps_stan.txt": id_facts,
        "caps.json": dependency_facts,
        "ims_bbx.npy": box_facts,
        "ims_size.npy": size_facts,
        "imagename.txt": name_facts,
    }[ending](split)


def count_places(checks):
    """'regions all zero: 3 (first: row 0, region 5)' for each check (what, places) with any place."""
    return [f"{what}: {len(places):,} (first: {places[0]})" for what, places in checks if places]


# ---- captions


def caption_facts(split):
    lines = read_captions(split.path("caps.txt"))
    images = [lines[i : i + CAPTIONS_PER_IMAGE] for i in range(0, len(lines), CAPTIONS_PER_IMAGE)]
    twice = [f"image {i}" for i, some in enumerate(images) if len(set(some)) < len(some)]
    foreign = [f"line {i}" for i, line in enumerate(lines, 1) if any(c.isalpha() and not c.isascii() for c in line)]
    checks = [("images that have a caption twice", twice), ("captions with letters beyond a-z", foreign)]
    how = "which make words of their own (tools/prepare_captions.py --plain)"
    checks += [(f"captions with {what}, {how}", [f"line {i + 1}" for i in some]) for what, some in odd_marks(lines)]
    fault = fault_of_captions(lines)
    return [
        f"{len(lines):,} captions{per_image(len(lines), split)}",
        *count_places(checks),
        *([fault] if fault else []),
    ], []


def per_image(n, split):
    """', 5 for each of 1,000 rows of features', or nothing without features."""
    path = split.path("ims.npy")
    rows = len(open_array(path)) if path.exists() else 0
    return f", {n / rows:g} for each of {rows:,} rows of features" if rows else ""


def name_facts(split):
    lines = read_lines(split.path("imagename.txt"))
    facts, captions = [f"{len(lines):,} names"], split.n_captions()
    images = len(lines) if captions is None else captions // CAPTIONS_PER_IMAGE
    if len(lines) not in (images, captions):
        facts.append(f"they do not fit: {images:,} images have captions; tools/prepare_captions.py writes both files")
    if len(lines) != captions:  # a line for each image
        twice = [f"line {i + 1}" for i in np.flatnonzero(repeated(np.array([lines]))[0])]
        facts += count_places([("names that stand there already", twice)])
    return facts, []


def picture_facts(split, folder):
    """Facts of the pictures in a folder: how many are there, and which have other proportions than the sizes."""
    dataset = next(iter(split.data.values()), None)
    names = None if dataset is None else dataset.names()
    if names is None:
        return ["not looked at: no names of the images"]
    files = find_pictures(folder, names)
    missing = [name for name, file in zip(names, files) if file is None]
    facts = [f"{len(names) - len(missing):,} of {len(names):,} pictures", *count_places([("not there", missing)])]
    path = split.path("ims_size.npy")
    if path.exists():
        table = read_sizes(path)
        table = table[:: CAPTIONS_PER_IMAGE if len(table) == len(dataset.tokens) else 1]
        found = [
            f"{names[g]}: {w} x {h} in {path.name}, {v} x {u} in the folder"
            for g, (w, h), (v, u) in other_proportions(table, files)
        ]
        facts += count_places([(f"pictures of other proportions than {path.name} says, whose boxes do not fit", found)])
    return facts


def id_facts(split):
    if split.vocab is None:
        return ["not read without the vocabulary"], []
    tokens = Ragged(read_ids(split.path("precaps_stan.txt"), len(split.vocab)))
    if not len(tokens):
        return ["0 captions"], []
    unknown = np.sum(tokens.flat == UNK) / max(np.sum(tokens.flat > END), 1)
    facts = [
        f"{len(tokens):,} captions of {tokens.lengths.min()} to {tokens.lengths.max()} ids, "
        f"{100 * unknown:.1f} % of the words <unk>"
    ]
    ends = [f"line {i + 1}" for i in range(len(tokens)) if tokens[i][0] != START or tokens[i][-1] != END]
    facts += count_places([("captions not from <start> to <end>", ends)])
    if split.path("caps.txt").exists() and not split.opt.quick:
        facts.append(agreement_of_ids(tokens, of_captions(split)))
    return facts, []


def of_captions(split):
    """The ids that the captions give; a data set that reads words has them already."""
    for data in split.data.values():
        if not data.inputs.ids:
            return data.tokens
    path = split.path("caps.txt")
    return encode_all(read_captions(path), split.vocab, path)


def agreement_of_ids(tokens, ours):
    if len(tokens) != len(ours):
        return f"not the captions of caps.txt, which has {len(ours):,}"
    other = [f"line {i + 1}" for i in range(len(ours)) if ours[i] != tokens[i]]
    differ = count_places([("captions with other ids than caps.txt gives with this vocabulary", other)])
    return differ[0] if differ else "the ids of caps.txt, line for line"


def dependency_facts(split):
    trees = read_dependencies(split.path("caps.json"))
    checks = {
        "captions with a word that depends on itself": [any(a == b for a, b in tree) for tree in trees],
        "captions whose first pair is not ROOT's": [not tree or tree[0][0] != 0 for tree in trees],
    }
    lengths = next((data.tokens.lengths for data in split.data.values()), [])
    if len(lengths) == len(trees):
        words = (lengths - 2).tolist()  # without <start> and <end>
        checks["captions with pairs outside their words, which are skipped"] = [
            any(not (0 <= a <= n and 1 <= b <= n) for a, b in tree) for tree, n in zip(trees, words)
        ]
        checks["captions with words that depend on nothing"] = [
            len({b for _, b in tree}) < n for tree, n in zip(trees, words)
        ]
    found = [(what, [f"caption {i}" for i, bad in enumerate(where) if bad]) for what, where in checks.items()]
    long = [tree for tree in trees if len(tree) >= FLAT_WORDS]
    flat = sum(is_flat(tree) for tree in long)
    if 2 * flat > len(long):
        found.append((f"no trees but flat lists, of {len(long):,} longer captions; parse them again", range(flat)))
    return [f"dependencies of {len(trees):,} captions", *count_places(found)], []


def is_flat(tree):
    """Whether all words of a caption depend on its first, as they do where nothing was parsed."""
    return {governor for governor, _ in tree} <= {0, 1}


# ---- arrays


def feature_facts(split):
    path = split.path("ims.npy")
    images = open_array(path)
    facts = [f"{images.dtype} {images.shape}, {path.stat().st_size / 1e9:.3g} GB"]
    if split.opt.quick or images.ndim != 3 or images.dtype.kind != "f" or not images.size:
        return facts, []
    found = scan(images, split.name)
    facts.append(f"values {found.low:.4g} to {found.high:.4g}, mean {found.mean:.4g}, deviation {found.deviation:.4g}")
    checks = [("regions all zero", found.zeros), ("regions that repeat another of their image", found.repeats)]
    faults = [("rows of features with NaN or infinity", found.broken)]
    if split.n_captions() == len(images):  # a row for each caption
        faults.append(("images whose five rows of features differ", different_rows(found.hashes)))
    else:
        twice = [f"row {i}" for i in np.flatnonzero(repeated(found.hashes[None])[0])]
        checks.append(("images with the features of an earlier one", twice))
    return facts + count_places(checks), count_places(faults)


class Scan:
    """Statistics of features, gathered chunk by chunk."""

    def __init__(self, images, regions, width):
        self.low, self.high, self.n, self.sum, self.squares = np.inf, -np.inf, 0, 0.0, 0.0
        self.zeros, self.repeats, self.broken = [], [], []
        self.hashes = np.zeros(images, np.uint64)
        self.weights = np.random.default_rng(0).integers(2**63, size=max(regions, width), dtype=np.uint64)

    def add(self, start, x):
        """x: (images, R, F) float32, of which the first is image `start`."""
        finite = np.isfinite(x)
        good = x if finite.all() else x[finite]
        if good.size:
            self.low, self.high = min(self.low, good.min()), max(self.high, good.max())
            self.n += good.size
            self.sum += good.sum(dtype=np.float64)
            self.squares += np.square(good, dtype=np.float64).sum()
        # a hash: equal vectors have equal sums of their bits times some fixed numbers, modulo 2^64
        regions = x.view(np.uint32) @ self.weights[: x.shape[2]]  # (images, R)
        self.hashes[start : start + len(x)] = regions @ self.weights[: x.shape[1]]
        self.broken += [f"row {start + i}" for i in np.flatnonzero(~finite.all(axis=(1, 2)))]
        zero = (x == 0).all(axis=2)
        self.zeros += [f"row {start + i}, region {r}" for i, r in np.argwhere(zero)]
        self.repeats += [f"row {start + i}, region {r}" for i, r in np.argwhere(repeated(regions) & ~zero)]

    @property
    def mean(self):
        return self.sum / max(self.n, 1)

    @property
    def deviation(self):
        return max(self.squares / max(self.n, 1) - self.mean**2, 0) ** 0.5


def scan(images, name):
    """Read features (N, R, F) once, CHUNK_BYTES at a time."""
    found = Scan(*images.shape)
    step = max(1, CHUNK_BYTES // (4 * images[0].size))
    with tqdm(total=len(images), desc=f"{name} features", unit=" images", disable=None, leave=False) as bar:
        for start in range(0, len(images), step):
            found.add(start, np.ascontiguousarray(images[start : start + step], np.float32))
            bar.update(min(step, len(images) - start))
    return found


def repeated(values):
    """Where a row of (N, R) numbers has one that stands further left in it: (N, R) bool."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    later = np.zeros(values.shape, bool)
    np.put_along_axis(later, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return later


def different_rows(hashes):
    """The first rows of the images whose five rows are not equal, where there is a row for each caption."""
    whole = len(hashes) // CAPTIONS_PER_IMAGE * CAPTIONS_PER_IMAGE
    five = hashes[:whole].reshape(-1, CAPTIONS_PER_IMAGE)
    return [f"row {CAPTIONS_PER_IMAGE * i}" for i in np.flatnonzero((five != five[:, :1]).any(axis=1))]


def box_facts(split):
    pixels, sized = open_array(split.path("ims_bbx.npy")), split.path("ims_size.npy")
    facts = [f"{pixels.dtype} {pixels.shape}"]
    limits = read_sizes(sized)[:, None] if sized.exists() else np.zeros(0)  # (N, 1, 2)
    if pixels.ndim != 3 or pixels.shape[2] != 4 or not pixels.size or len(limits) != len(pixels):
        return facts, []
    low, high = np.array(pixels[..., :2], np.float32), np.array(pixels[..., 2:], np.float32)
    share = ((high - low).prod(axis=2) / limits.prod(axis=2)).mean()
    facts.append(f"a box covers {100 * share:.1f} % of its image on average")
    checks = {
        "boxes that reach outside their image": ((low < 0) | (high > limits)).any(axis=2),
        "boxes without area": (high <= low).any(axis=2),
    }
    return facts + count_places([(what, regions_where(where)) for what, where in checks.items()]), []


def regions_where(where):
    return [f"row {i}, region {r}" for i, r in np.argwhere(where)]


def size_facts(split):
    table = read_sizes(split.path("ims_size.npy"))
    if not len(table):
        return ["0 images"], []
    (w0, h0), (w1, h1) = table.min(axis=0), table.max(axis=0)
    return [f"{len(table):,} images, {w0:g} to {w1:g} wide, {h0:g} to {h1:g} high"], []
