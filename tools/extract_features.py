"""Pictures -> {split}_ims.npy, {split}_ims_bbx.npy, {split}_ims_size.npy: 36 regions an image, with boxes.

    python tools/extract_features.py --data_name mine_precomp --images photos                  (detector)
    python tools/extract_features.py --data_name mine_precomp --images photos --grid resnet101
    python tools/extract_features.py --data_name mine_precomp --tsv trainval_36.tsv test_36.tsv
    python tools/extract_features.py --data_name mine_precomp --npz features/

Images come in the order of {split}_imagename.txt, which tools/prepare_captions.py writes.  Extracted
regions are kept beside the output until it is complete: after an interruption the same command continues.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import datetime
import hashlib
import json
import math
import os
import shlex
import shutil
from importlib.metadata import version

import numpy as np
from tqdm import tqdm

from files.arrays import open_array
from files.errors import InputError, reason, warn
from files.text import data_folder, read_json, read_lines
from files.writing import atomic_write, make_folder
from runtime.commandline import Parser, number, whole
from systems.options import add_device_flag
from tools.own_data.notes import Notes
from tools.own_data.splits import SPLITS, splits_asked, unfinished

SIZE = np.dtype([("image_w", "<i8"), ("image_h", "<i8")])
ENDINGS = ("ims_size.npy", "ims_bbx.npy", "ims.npy")  # the features come last: with them a split is complete


class Rows:
    """A .npy file of known shape that is filled row by row in any order, and never held in memory."""

    def __init__(self, path, dtype, shape):
        self.file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self.dtype = np.dtype(dtype)
        self.bytes = math.prod(shape[1:]) * self.dtype.itemsize  # of a row
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.start = self.file.tell()
        self.file.truncate(self.start + shape[0] * self.bytes)

    def put(self, index, row):
        self.file.seek(self.start + index * self.bytes)
        self.file.write(np.asarray(row, self.dtype).tobytes())

    def sync(self):
        self.file.flush()
        os.fsync(self.file.fileno())


class Output:
    """The three files of a split while they are made, in a folder beside them, and which rows are done.

    key: a hash of the images and flags; rows that an earlier run made with the same key are kept.
    """

    def __init__(self, folder, split, n, key, dtype):
        self.targets = [folder / f"{split}_{ending}" for ending in ENDINGS]
        self.parts = folder / f".{split}_ims.parts"
        self.n, self.key, self.dtype, self.shape, self.rows = n, key, dtype, None, None
        self.done = np.zeros(n, bool)
        self.resume()

    def resume(self):
        try:
            state = read_json(self.parts / "progress.json")
            if state["of"] == self.key:
                done = np.frombuffer(bytes.fromhex(state["done"]), np.uint8)
                self.done, self.shape = np.unpackbits(done, count=self.n).astype(bool), tuple(state["shape"])
        except (InputError, KeyError, TypeError, ValueError):
            pass  # nothing was done, or nothing that can be used
        if self.shape is None:
            shutil.rmtree(self.parts, ignore_errors=True)

    def put(self, found, name):
        """Write the regions of one image; InputError where their shape is not that of the others."""
        if self.rows is None:
            self.open(found.features.shape)
        if found.features.shape != self.shape:
            raise InputError(f"{name}: features {found.features.shape}, but others have {self.shape}")
        with np.errstate(over="ignore"):
            features = found.features.astype(self.dtype)
        if not np.isfinite(features).all():
            raise InputError(f"{name}: features with NaN, infinity or beyond {self.dtype}; try --dtype float32")
        for rows, row in zip(self.rows, (tuple(found.size), found.boxes, features)):
            rows.put(found.index, row)
        self.done[found.index] = True

    def open(self, shape):
        self.shape = self.shape or shape
        make_folder(self.parts)
        shapes = (self.n,), (self.n, self.shape[0], 4), (self.n, *self.shape)
        self.rows = [
            Rows(self.parts / ending, *kind) for ending, *kind in zip(ENDINGS, (SIZE, np.float32, self.dtype), shapes)
        ]

    def save(self):
        """Write the rows so far to the disk, so that a crash does not lose them."""
        if self.rows is None:
            return
        for rows in self.rows:
            rows.sync()
        state = {"of": self.key, "shape": self.shape, "done": np.packbits(self.done).tobytes().hex()}
        atomic_write(self.parts / "progress.json", lambda file: file.write(json.dumps(state).encode()))

    def finish(self):
        """Move the files to their places."""
        if self.rows is None:
            self.open(self.shape)
        for rows, target in zip(self.rows, self.targets):
            rows.file.close()
            os.replace(self.parts / target.name.partition("_")[2], target)
        shutil.rmtree(self.parts, ignore_errors=True)


# ---- a split


def extract_split(folder, split, source, opt, notes):
    """Write one split's three files, taking up what an interrupted run has done.  Returns a line of report."""
    names = read_names(folder, split)
    output = Output(folder, split, len(names), key_of(names, opt), np.dtype(opt.dtype))
    todo, since = np.flatnonzero(~output.done), 0
    with tqdm(total=len(names), initial=len(names) - len(todo), desc=split, unit=" images", disable=None) as bar:
        for found in source(names, todo):
            output.put(found, names[found.index])
            bar.update()
            since += 1
            if since % opt.shard == 0:
                output.save()
    output.save()
    if missing := np.flatnonzero(~output.done).tolist():
        damaged = f"; {len(source.damaged)} damaged parts, the first: {source.damaged[0]}" if source.damaged else ""
        raise InputError(
            f"{given(opt)}: {len(missing)} of {len(names)} images of {split} are not there (first: "
            f"{names[missing[0]]}){damaged}; give all files, or take these images out of the captions"
        )
    output.finish()
    write_record(folder / f"{split}_ims.json", opt)
    again = f", {len(names) - len(todo)} of them in an earlier run" if len(todo) < len(names) else ""
    return f"{output.targets[-1]}: {opt.dtype} {(len(names), *output.shape)}, boxes and sizes beside it{again}"


def write_record(path, opt):
    """What made the features: extractor, weights, date, command, versions; beside them, as JSON."""
    files = opt.tsv or opt.npz
    record = {
        "model": "another extractor's files" if files else opt.grid or opt.detector,
        "weights": "of the files" if files else "random" if opt.no_pretrained else "the library's pretrained",
        "source": given(opt),
        "regions": opt.regions,
        "dtype": opt.dtype,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
    }
    atomic_write(path, lambda file: file.write(json.dumps(record, indent=1).encode()))


def read_names(folder, split):
    path = folder / f"{split}_imagename.txt"
    if not path.exists():
        raise InputError(f"{path}: no such file; tools/prepare_captions.py writes it with the captions, do that first")
    names, lines = read_lines(path), {}
    if not names:
        raise InputError(f"{path}: no image in it")
    for line, name in enumerate(names, start=1):
        if not name.strip():
            raise InputError(f"{path}, line {line}: no name; every line needs the name of an image")
        if name in lines:
            raise InputError(f"{path}, line {line}: {name} is already in line {lines[name]}; name every image once")
        lines[name] = line
    return names


def given(opt):
    """The flag's value that names the source of the regions, for messages."""
    return ", ".join(map(str, opt.tsv)) if opt.tsv else str(opt.npz or opt.images)


def key_of(names, opt):
    """A hash that is equal where the same command would make the same rows."""
    flags = ("detector", "grid", "no_pretrained", "regions", "size", "min_score", "dtype", "images", "npz")
    how = {flag: str(getattr(opt, flag)) for flag in flags}
    how["tsv"] = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in opt.tsv or []]
    return hashlib.sha256(json.dumps([how, names]).encode()).hexdigest()


def has_features(folder, split):
    """Whether the three files are there for all images; InputError where they are for another number."""
    names = len(read_names(folder, split))
    paths = [folder / f"{split}_{ending}" for ending in ENDINGS]
    for path in paths:
        if path.exists() and len(open_array(path)) != names:
            raise InputError(f"{path}: {len(open_array(path))} rows for {names} images; --overwrite makes them anew")
    return all(path.exists() for path in paths)


# ---- command line


def feature_options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--data_path", default="./data/", help="folder that holds the data sets (default: ./data/)")
    add("--data_name", required=True, help="data set: the folder's name under --data_path")
    add("--split", nargs="+", choices=SPLITS, help="splits to extract (default: each that has a {split}_imagename.txt)")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the pictures, for --detector and --grid, and for the sizes that --npz files may lack",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--tsv",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="another extractor's output: bottom-up attention's TSV, or LXMERT's",
    )
    source.add_argument(
        "--npz", type=Path, metavar="DIR", help="another extractor's output: MILVLG's npz files, or cocobu_att"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--detector",
        default="fasterrcnn_resnet50_fpn_v2",
        metavar="NAME",
        help="torchvision's detector (default: fasterrcnn_resnet50_fpn_v2)",
    )
    kind.add_argument(
        "--grid",
        metavar="NAME",
        help="no detector: a grid over the last map of a backbone of torchvision, timm or, with its "
        "package, efficientnet-lite0",
    )
    add("--no_pretrained", action="store_true", help="random weights, always the same: only to try the steps")
    add("--regions", default=36, type=whole(1), help="regions an image (default: 36)")
    add(
        "--size",
        type=whole(1),
        metavar="PIXELS",
        help="a detector sees the shorter side so long (default: its own, 800), a grid both sides (default: 224)",
    )
    add(
        "--min_score",
        default=0.0,
        type=number(1),
        metavar="P",
        help="the detector's boxes less certain than this are left out (default: 0, the best ones whatever they are)",
    )
    add("--batch_size", default=8, type=whole(1), help="pictures the network sees at once (default: 8)")
    add("--workers", default=2, type=whole(0), help="processes that read pictures (default: 2)")
    add_device_flag(parser)
    add(
        "--dtype",
        default="float32",
        choices=["float32", "float16"],
        help="of the features; float16 takes half the room, and training reads either (default: float32)",
    )
    add("--shard", default=500, type=whole(1), metavar="N", help="images that an interruption may cost (default: 500)")
    add("--overwrite", action="store_true", help="extract again where the files are there already")
    opt = parser.parse_args(argv)
    if (opt.tsv and opt.images) or not (opt.tsv or opt.npz or opt.images):
        parser.error("--images, --tsv, --npz: give the pictures, or one kind of another extractor's files")
    if opt.no_pretrained and not (opt.tsv or opt.npz):
        warn("--no_pretrained: the weights are random, and so are the features; use them to try the steps only")
    if opt.grid and (opt.tsv or opt.npz):
        parser.error("--grid: goes with --images; the files of another extractor have their regions")
    return opt


def make_source(opt, notes):
    if opt.tsv or opt.npz:
        from tools.own_data.region_files import Npz, Tsv

        return Tsv(opt, notes) if opt.tsv else Npz(opt, notes)
    from runtime import devices  # and torch, which --help does not need
    from tools.own_data.region_sources import Detector, Grid

    opt.device = devices.choose(opt.device)

    return Grid(opt, notes) if opt.grid else Detector(opt, notes)


def main(argv=None):
    opt = feature_options(argv)
    folder = data_folder(opt.data_path, opt.data_name)
    splits = splits_asked(
        opt,
        folder,
        "imagename.txt",
        "no names of images here; tools/prepare_captions.py writes "
        "{split}_imagename.txt with the captions, do that first",
    )
    for path in opt.tsv or []:
        if not path.is_file():
            raise InputError(f"{path}: no such file (--tsv)")
    todo = unfinished(opt, folder, splits, has_features, "ims.npy", "extracts")
    with Notes() as notes:
        source = make_source(opt, notes) if todo else None
        try:
            for split in todo:
                print(extract_split(folder, split, source, opt, notes))
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written ({reason(error)}); free some room, and the same command goes on"
            ) from error


if __name__ == "__main__":
    run(main)
