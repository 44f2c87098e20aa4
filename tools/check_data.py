"""Check a data set, split by split: missing files, faulty content, and whether training can start.

    python tools/check_data.py --data_path data --data_name mine_precomp
    python tools/check_data.py --data_name mine_precomp --model gsmn --is_sparse --no_checksum

A split is ready for a model when train.py's data set opens without an error. The other checks (ranges, repeated
regions, boxes, ids against captions, checksums) read all files once.

Exit code 0: train and dev are ready for the model, or without --model for at least one.  1: not.  2: wrong flags.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import guarded, run

from argparse import Namespace

from files.errors import InputError
from files.text import PICTURES, data_folder
from runtime.commandline import Parser
from systems.options import completed
from systems.table import SYSTEMS
from tools.own_data.shared import SPLITS, add_data_flags


def models_asked(opt):
    """The kinds of model asked for: {title: complete flags}."""
    asked = {}
    for system in [SYSTEMS[opt.model]] if opt.model else SYSTEMS.values():
        for variant, flags in system.variants.items():
            if not opt.model or flags.get("is_sparse", False) == opt.is_sparse:
                own = Namespace(data_path=opt.data_path, data_name=opt.data_name, boxes=opt.boxes)
                asked[f"{system.title} {variant}".strip()] = completed(own, model=system.name, **flags)
    return asked


def data_check_options(argv=None):
    parser = Parser(description=__doc__)
    add_data_flags(parser)
    add = parser.add_argument
    add("--vocab_path", default="./vocab/", help="folder of {data_name}_vocab.json or .pkl")
    add("--model", choices=[*SYSTEMS], help="the model to be trained (default: any)")
    add("--is_sparse", action="store_true", help="the sparse graph of --model, which needs dependencies")
    add("--boxes", default="normalized", choices=["normalized", "none"], help="none: GSMN without geometry")
    add("--images", type=Path, metavar="DIR", help="folder of the pictures: count those that are missing or do not fit")
    add("--quick", action="store_true", help="only what training checks at its start, and no checksums")
    add("--no_checksum", dest="checksum", action="store_false", help="leave out the sha256 of each file")
    opt = parser.parse_args(argv)
    if opt.is_sparse and not (opt.model and models_asked(opt)):
        parser.error("--is_sparse: goes with the --model that has a sparse graph")
    opt.checksum = opt.checksum and not opt.quick
    return opt


if __name__ == "__main__":
    guarded(data_check_options)  # before torch is loaded

import numpy as np
from tqdm import tqdm

from data import feature_width, open_split
from files.arrays import open_array, read_sizes
from files.names import find_pictures
from files.opening import sha256
from files.pictures import other_proportions
from files.text import CAPTIONS_PER_IMAGE, Ragged, read_captions, read_dependencies, read_ids, read_lines
from vocab import END, START, UNK, encode_all, fault_of_captions, load_vocab, odd_marks

FLAT_WORDS = 5  # words of a caption whose tree hardly ever has all of them on the first
PLAIN = "tools/prepare_captions.py --plain"
CHUNK_BYTES = 1 << 24  # bytes of features read at once


# ---- what is said of each file, beyond the checks of the data set: of_...(split) yields lines; InputError where the
# file cannot be used at all


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
    unknown = 100 * np.sum(tokens.flat == UNK) / max(np.sum(tokens.flat > END), 1)
    yield f"{len(tokens):,} captions, {unknown:.1f} % of the words <unk>"
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


# ---- splits


EXTRACT, PREPARE = "tools/extract_features.py", "tools/prepare_captions.py"
UNLESS = "GSMN, unless --boxes none"
FILES = {  # what a file holds, who needs it, what makes it, what is said of it
    "ims.npy": ("features", "all", EXTRACT, of_features),
    "caps.txt": ("captions", "all but GSMN", PREPARE, of_captions),
    "precaps_stan.txt": ("word ids", "GSMN, which otherwise makes them from the captions", PREPARE, of_ids),
    "caps.json": ("dependencies", "GSMN sparse", "tools/parse_dependencies.py", of_dependencies),
    "ims_bbx.npy": ("boxes", UNLESS, EXTRACT, of_boxes),
    "ims_size.npy": ("image sizes", UNLESS, EXTRACT, of_sizes),
    "imagename.txt": ("names of the images", "features and pictures of results", PREPARE, of_names),
}


class Split:
    """One split: its files, its data set for each model, and the faults that keep training from starting."""

    def __init__(self, folder, name, vocab, opt):
        self.folder, self.name, self.vocab, self.opt = folder, name, vocab, opt
        self.problems, self.data = {}, {}
        for way, flags in models_asked(opt).items():
            try:  # the data set checks itself, as at the start of a training
                if vocab is None:
                    raise InputError("no vocabulary")
                flags.img_dim = feature_width(flags)
                self.data[way] = open_split(name, opt.data_name, vocab, flags)
            except InputError as error:
                self.problems[way] = str(error)
        self.dataset = next(iter(self.data.values()), None)

    def path(self, ending):
        return self.folder / f"{self.name}_{ending}"

    def report(self):
        """Print a line or more on each file, then whether each model can use the split."""
        print(f"\n{self.name}")
        for ending, (what, needed_by, maker, describe) in FILES.items() if self.opt.data_name not in PICTURES else ():
            if not self.path(ending).exists():
                print(f"  {ending:18}missing: {what}, for {needed_by} ({maker})")
                continue
            self.tell(ending, describe)
            if self.opt.checksum:
                print(f"{'':20}sha256 {sha256(self.path(ending))}")
        if self.opt.images:
            self.tell("--images", of_pictures)
        for way in models_asked(self.opt):
            data = self.data.get(way)
            ready = f"ready: {len(data):,} captions of {data.n_images:,} images" if data else None
            print(f"  {way + ':':13}{self.problems.get(way) or ready}")

    def tell(self, ending, describe):
        """Print what describe(split) says, a line each."""
        try:
            for line in describe(self):
                print(f"  {ending:18}{line}")
                ending = ""
        except InputError as error:
            print(f"  {ending:18}not usable: {error}")


def main(argv=None):
    opt = data_check_options(argv)
    folder = data_folder(opt.data_path, opt.data_name)
    if opt.images and not opt.images.is_dir():
        raise InputError(f"{opt.images}: no such folder (--images)")
    print(f"{folder}")
    vocab, blocked = None, {}  # {model: why its training cannot start}
    try:
        vocab = load_vocab(opt.vocab_path, opt.data_name)
        print(f"  vocabulary: {len(vocab)} words")
    except InputError as error:
        print(f"  vocabulary: {error}")
    for name in SPLITS:
        needed = name in ("train", "dev")
        pictures = opt.data_name in PICTURES and name != "testall"
        if pictures or any((folder / f"{name}_{ending}").exists() for ending in FILES):
            split = Split(folder, name, vocab, opt)
            split.report()
            blocked = {**split.problems, **blocked} if needed else blocked
        elif needed:
            print(f"\n{name}\n  nothing here")
            blocked = {**dict.fromkeys(models_asked(opt), f"there is no {name} split"), **blocked}
    print()
    for way in models_asked(opt):
        print(f"{way}: training {f'cannot start: {blocked[way]}' if way in blocked else 'can start'}")
    return int(len(blocked) == len(models_asked(opt)))


if __name__ == "__main__":
    run(main)
