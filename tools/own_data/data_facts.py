"""What tools/check_data.py says about a file of a Split, beyond the checks of the data set: lines of_... yields."""

import numpy as np
from tqdm import tqdm

from files.arrays import open_array, read_sizes
from files.names import find_pictures
from files.pictures import other_proportions
from files.text import CAPTIONS_PER_IMAGE, Ragged, read_captions, read_dependencies, read_ids, read_lines
from vocab import END, START, UNK, encode_all, fault_of_captions, odd_marks

FLAT_WORDS = 5  # words of a caption whose tree hardly ever has all of them on the first
PLAIN = "tools/prepare_captions.py --plain"
CHUNK_BYTES = 1 << 24  # bytes of features read at once


def counted(what, kind, found, start=0):
    """'boxes without area: 3 (first: row 0, region 5)' where any of `found` is true: (N,), or of regions (N, R)."""
    places = np.argwhere(found)
    if len(places):
        first = ", ".join(f"{name} {start + i}" for name, i in zip((kind, "region"), places[0]))
        yield f"{what}: {len(places):,} (first: {first})"


def repeated(values):
    """Where a row of (N, R) values has one that stands further left in it: (N, R) bool."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    later = np.zeros(values.shape, bool)
    np.put_along_axis(later, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return later


# ---- captions


def of_captions(split):
    captions = read_captions(split.path("caps.txt"))
    yield f"{len(captions):,} captions"
    for what, numbers in odd_marks(captions):
        marked = np.bincount(numbers, minlength=len(captions))
        yield from counted(f"captions with {what}, which make words of their own ({PLAIN})", "line", marked, 1)
    if fault := fault_of_captions(captions):
        yield fault


def of_ids(split):
    if split.vocab is None:
        yield "not read without the vocabulary"
        return
    tokens, path = Ragged(read_ids(split.path("precaps_stan.txt"), len(split.vocab))), split.path("caps.txt")
    if not len(tokens):
        yield "0 captions"
        return
    unknown = 100 * np.sum(tokens.flat == UNK) / max(np.sum(tokens.flat > END), 1)
    lengths = f"{tokens.lengths.min()} to {tokens.lengths.max()} ids"
    yield f"{len(tokens):,} captions of {lengths}, {unknown:.1f} % of the words <unk>"
    bare = (tokens.flat[tokens.starts[:-1]] != START) | (tokens.flat[tokens.starts[1:] - 1] != END)
    yield from counted("captions not from <start> to <end>", "line", bare, 1)
    if split.opt.quick or not path.exists():
        return
    read = (data.tokens for data in split.data.values() if not data.inputs.ids)  # by a system that reads words
    ours = next(read, None) or encode_all(read_captions(path), split.vocab, path)
    if len(tokens) != len(ours):
        yield f"not the captions of caps.txt, which has {len(ours):,}"
        return
    other = [ours[i] != tokens[i] for i in range(len(ours))]
    if not any(other):
        yield "the ids of caps.txt, line for line"
    yield from counted("captions with other ids than caps.txt gives with this vocabulary", "line", other, 1)


def of_dependencies(split):
    trees = read_dependencies(split.path("caps.json"))
    yield f"dependencies of {len(trees):,} captions"
    itself = [any(a == b for a, b in tree) for tree in trees]
    yield from counted("captions with a word that depends on itself", "caption", itself)
    rootless = [not tree or tree[0][0] != 0 for tree in trees]
    yield from counted("captions whose first pair is not ROOT's", "caption", rootless)
    if split.dataset and len(split.dataset.tokens) == len(trees):
        known = list(zip(trees, split.dataset.tokens.lengths - 2))  # without <start> and <end>
        outside = [any(not (0 <= a <= n and 1 <= b <= n) for a, b in tree) for tree, n in known]
        yield from counted("captions with pairs outside their words, which are skipped", "caption", outside)
        bare = [len({b for _, b in tree}) < n for tree, n in known]
        yield from counted("captions with words that depend on nothing", "caption", bare)
    long = [tree for tree in trees if len(tree) >= FLAT_WORDS]
    flat = sum({governor for governor, _ in tree} <= {0, 1} for tree in long)  # all on the first, as if not parsed
    if 2 * flat > len(long):
        yield f"no trees but flat lists, of {flat:,} of {len(long):,} longer captions; parse them again"


# ---- arrays


def of_features(split):
    """Refuses the split where numbers are not finite, or an image's five rows differ."""
    path = split.path("ims.npy")
    images = open_array(path)
    yield f"{images.dtype} {images.shape}, {path.stat().st_size / 1e9:.3g} GB"
    if split.opt.quick or images.ndim != 3 or images.dtype.kind != "f" or not images.size:
        return
    n, regions, width = images.shape
    low, high, broken = np.inf, -np.inf, np.zeros(n, bool)
    zeros, repeats = np.zeros((2, n, regions), bool)
    # a hash: equal vectors have equal sums of their bits times some fixed numbers, modulo 2^64
    hashes = np.zeros(n, np.uint64)
    weights = np.random.default_rng(0).integers(2**63, size=max(regions, width), dtype=np.uint64)
    step = max(1, CHUNK_BYTES // (4 * regions * width))
    for start in tqdm(range(0, n, step), desc=f"{split.name} features", disable=None, leave=False):
        rows = slice(start, start + step)
        x = np.ascontiguousarray(images[rows], np.float32)  # (images, R, F)
        finite, of_regions = np.isfinite(x), x.view(np.uint32) @ weights[:width]  # (images, R)
        good = x if finite.all() else x[finite]
        low, high = good.min(initial=low), good.max(initial=high)
        broken[rows], zeros[rows] = ~finite.all(axis=(1, 2)), (x == 0).all(axis=2)
        repeats[rows], hashes[rows] = repeated(of_regions) & ~zeros[rows], of_regions @ weights[:regions]
    yield f"values {low:.4g} to {high:.4g}"
    yield from counted("regions all zero", "row", zeros)
    yield from counted("regions that repeat another of their image", "row", repeats)
    faults = [*counted("rows of features with NaN or infinity", "row", broken)]
    if split.dataset and len(split.dataset.tokens) == n:  # a row for each caption
        first = np.repeat(hashes[::CAPTIONS_PER_IMAGE], CAPTIONS_PER_IMAGE)
        faults += counted("rows of features that differ from the first of their image's five", "row", hashes != first)
    elif split.dataset:
        yield from counted("images with the features of an earlier one", "row", repeated(hashes[None])[0])
    for fault in faults:
        split.problems = {**dict.fromkeys(split.data, fault), **split.problems}  # it would stop a training later
        yield fault


def of_boxes(split):
    pixels, sized = open_array(split.path("ims_bbx.npy")), split.path("ims_size.npy")
    yield f"{pixels.dtype} {pixels.shape}"
    limits = read_sizes(sized)[:, None] if sized.exists() else np.zeros(0)  # (N, 1, 2)
    if pixels.ndim != 3 or pixels.shape[2] != 4 or not pixels.size or len(limits) != len(pixels):
        return
    low, high = np.array(pixels[..., :2], np.float32), np.array(pixels[..., 2:], np.float32)
    outside = ((low < 0) | (high > limits)).any(axis=2)
    yield from counted("boxes that reach outside their image", "row", outside)
    yield from counted("boxes without area", "row", (high <= low).any(axis=2))


def of_sizes(split):
    yield f"{len(read_sizes(split.path('ims_size.npy'))):,} images"


# ---- images


def of_names(split):
    yield f"{len(read_lines(split.path('imagename.txt'))):,} names"
    if split.dataset:
        names = np.array([split.dataset.names()])
        yield from counted("images whose name an earlier one has", "image", repeated(names)[0])


def of_pictures(split):
    """How many pictures are in the folder --images, and which have other proportions than the sizes."""
    names = split.dataset and split.dataset.names()
    if not names:
        yield "not looked at: no names of the images"
        return
    files, path = find_pictures(split.opt.images, names), split.path("ims_size.npy")
    missing = [name for name, file in zip(names, files) if file is None]
    yield f"{len(names) - len(missing):,} of {len(names):,} pictures"
    if missing:
        yield f"not there: {len(missing):,} (first: {missing[0]})"
    if path.exists():
        table = read_sizes(path)
        table = table[:: CAPTIONS_PER_IMAGE if len(table) == len(split.dataset.tokens) else 1]
        if found := other_proportions(table, files):
            yield found
