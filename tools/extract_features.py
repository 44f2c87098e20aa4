"""Pictures -> {split}_ims.npy, {split}_ims_bbx.npy, {split}_ims_size.npy: 36 regions an image, with boxes.

    python tools/extract_features.py --data_name mine_precomp --images photos                  (detector)
    python tools/extract_features.py --data_name mine_precomp --images photos --grid resnet101
    python tools/extract_features.py --data_name mine_precomp --tsv trainval_36.tsv test_36.tsv
    python tools/extract_features.py --data_name mine_precomp --npz features/

Images come in the order of {split}_imagename.txt, which tools/prepare_captions.py writes. Extracted
regions are kept beside the output until it is complete: after an interruption the same command continues.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import contextlib
import datetime
import json
import os
import shlex
import shutil
from importlib.metadata import version

import numpy as np
from tqdm import tqdm

from files.arrays import open_array
from files.errors import InputError, reason, warn
from files.text import read_lines
from files.writing import atomic_write
from runtime.commandline import Parser, number, whole
from systems.options import add_device_flag
from tools.own_data.shared import DAMAGED, add_data_flags, add_split_flags, noted, parts_folder, splits_to_make

SIZE = np.dtype([("image_w", "<i8"), ("image_h", "<i8")])
# with the files of --tsv, what a row depends on
FLAGS_OF_ROWS = ("detector", "grid", "no_pretrained", "regions", "size", "min_score", "dtype", "images", "npz")
ENDINGS = ("ims_size.npy", "ims_bbx.npy", "ims.npy")  # the features come last: with them a split is complete


class Output:
    """The three files of a split while they are made, in a folder beside them. sizes (N,): of the images they have."""

    def __init__(self, folder, split, names, opt):
        self.targets = [folder / f"{split}_{ending}" for ending in ENDINGS]
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in opt.tsv or ()]
        flags = [str(getattr(opt, name)) for name in FLAGS_OF_ROWS]
        self.parts = parts_folder(self.targets[-1], [flags, files, names])
        self.paths = [self.parts / target.name for target in self.targets]
        self.dtype, self.sizes, self.arrays = np.dtype(opt.dtype), np.zeros(len(names), SIZE), []
        if self.paths[0].exists():
            self.sizes = np.array(open_array(self.paths[0]))
            self.arrays = [np.lib.format.open_memmap(path, "r+") for path in self.paths[1:]]

    def missing(self):
        return np.flatnonzero(self.sizes["image_w"] == 0)

    def put(self, found, name):
        """Write the regions of one image; InputError where their shape is not that of the others."""
        if not self.arrays:
            self.make(*found.features.shape)
        boxes, features = self.arrays
        if found.features.shape != features.shape[1:]:
            raise InputError(f"{name}: features {found.features.shape}, but others have {features.shape[1:]}")
        with np.errstate(over="ignore"):
            row = found.features.astype(self.dtype)
        if not np.isfinite(row).all():
            raise InputError(f"{name}: features with NaN, infinity or beyond {self.dtype}; try --dtype float32")
        boxes[found.index], features[found.index] = found.boxes, row
        self.sizes[found.index] = tuple(found.size)

    def make(self, regions, width):
        """The arrays with their whole size on the disk: a full disk is an error here, not a crash later."""
        for path, last, dtype in zip(self.paths[1:], (4, width), (np.float32, self.dtype)):
            path.unlink(missing_ok=True)
            array = np.lib.format.open_memmap(path, "w+", dtype, (len(self.sizes), regions, last))
            with open(path, "r+b") as file, contextlib.suppress(AttributeError):  # not on every system
                os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
            self.arrays.append(array)

    def save(self):
        """Write the rows so far to the disk, then the sizes that tell which, so that a crash does not lose them."""
        for array in self.arrays:
            array.flush()
        atomic_write(self.paths[0], lambda file: np.save(file, self.sizes))


def extract_split(folder, split, source, opt, notes):
    """Write one split's three files, taking up what an interrupted run has done. Returns a line of report."""
    names = read_names(folder / f"{split}_imagename.txt")
    output = Output(folder, split, names, opt)
    todo = output.missing()
    with tqdm(total=len(names), initial=len(names) - len(todo), desc=split, unit=" images", disable=None) as bar:
        for count, found in enumerate(source(names, todo), start=1):
            output.put(found, names[found.index])
            bar.update()
            if count % opt.shard == 0:
                output.save()
    if output.arrays:
        output.save()
    if len(missing := output.missing()):
        sources = ", ".join(map(str, opt.sources))
        damaged = f"; {len(notes[DAMAGED])} damaged parts, the first: {notes[DAMAGED][0]}" if DAMAGED in notes else ""
        raise InputError(
            f"{sources}: {len(missing)} of {len(names)} images of {split} are not there (first: {names[missing[0]]})"
            f"{damaged}; give all files, or take these images out of the captions"
        )
    for path, target in zip(output.paths, output.targets):
        os.replace(path, target)
    shutil.rmtree(output.parts, ignore_errors=True)
    record = {  # what made the features
        "flags": {name: str(value) for name, value in vars(opt).items()},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
    }
    atomic_write(folder / f"{split}_ims.json", lambda file: file.write(json.dumps(record, indent=1).encode()))
    again = f", {len(names) - len(todo)} of them in an earlier run" if len(todo) < len(names) else ""
    return f"{output.targets[-1]}: {opt.dtype} {output.arrays[-1].shape}, boxes and sizes beside it{again}"


def read_names(path):
    """The names of a split's images; InputError for an empty one and one that stands there twice."""
    lines = {}
    for line, name in enumerate(read_lines(path), start=1):
        if not name.strip():
            raise InputError(f"{path}, line {line}: no name; every line needs the name of an image")
        if lines.setdefault(name, line) != line:
            raise InputError(f"{path}, line {line}: {name} is already in line {lines[name]}; name every image once")
    if not lines:
        raise InputError(f"{path}: no image in it")
    return list(lines)


def main(argv=None):
    parser = Parser(description=__doc__)
    add_data_flags(parser)
    add_split_flags(parser, "imagename.txt", "extract")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the pictures; with --npz only their sizes are used")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--tsv", type=Path, nargs="+", metavar="FILE", help="regions of bottom-up attention's or LXMERT's TSV files")
    add("--npz", type=Path, metavar="DIR", help="regions of MILVLG's npz files, or of cocobu_att and cocobu_box")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--detector", default="fasterrcnn_resnet50_fpn_v2", metavar="NAME", help="torchvision's detector")
    add("--grid", metavar="NAME", help="a grid over the last map of a backbone (torchvision, timm, efficientnet-lite0)")
    add = parser.add_argument
    add("--no_pretrained", action="store_true", help="random weights, always the same: only to try the steps")
    add("--regions", default=36, type=whole(1), help="regions an image")
    add("--size", type=whole(1), metavar="PIXELS", help="shorter side for a detector (its own), both for a grid (224)")
    add("--min_score", default=0.0, type=number(1), metavar="P", help="least certainty of a detector's box")
    add("--batch_size", default=8, type=whole(1), help="pictures the network sees at once")
    add("--workers", default=2, type=whole(0), help="processes that read pictures")
    add_device_flag(parser)
    add("--dtype", default="float32", choices=["float32", "float16"], help="of the features; training reads either")
    add("--shard", default=500, type=whole(1), metavar="N", help="images that an interruption may cost")
    opt = parser.parse_args(argv)
    if (opt.tsv and opt.images) or not (opt.tsv or opt.npz or opt.images):
        parser.error("--images, --tsv, --npz: give the pictures, or one kind of another extractor's files")
    if opt.no_pretrained and not (opt.tsv or opt.npz):
        warn("--no_pretrained: the weights are random, and so are the features; use them to try the steps only")
    if opt.grid and (opt.tsv or opt.npz):
        parser.error("--grid: goes with --images; the files of another extractor have their regions")
    opt.sources = opt.tsv or [opt.npz or opt.images]
    for path in opt.sources:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder (--images, --tsv, --npz)")
    folder, todo = splits_to_make(opt, "imagename.txt", ENDINGS, read_names, open_array)
    if not todo:
        return
    from runtime import devices  # and torch, which --help does not need
    from tools.own_data import region_files, region_sources

    opt.device = devices.choose(opt.device)
    network = region_sources.Grid if opt.grid else region_sources.Detector
    with noted() as notes:
        source = (region_files.RegionFiles if opt.tsv or opt.npz else network)(opt, notes)
        try:
            for split in todo:
                print(extract_split(folder, split, source, opt, notes))
        except OSError as error:
            cure = "free some room, and the same command goes on"
            raise InputError(f"{folder}: cannot be written ({reason(error)}); {cure}") from error


if __name__ == "__main__":
    run(main)
