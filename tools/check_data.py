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

from data import feature_width, open_split
from files.opening import sha256
from tools.own_data import data_facts as facts
from vocab import load_vocab

EXTRACT, PREPARE = "tools/extract_features.py", "tools/prepare_captions.py"
UNLESS = "GSMN, unless --boxes none"
FILES = {  # what a file holds, who needs it, what makes it, what is said of it
    "ims.npy": ("features", "all", EXTRACT, facts.of_features),
    "caps.txt": ("captions", "all but GSMN", PREPARE, facts.of_captions),
    "precaps_stan.txt": ("word ids", "GSMN, which otherwise makes them from the captions", PREPARE, facts.of_ids),
    "caps.json": ("dependencies", "GSMN sparse", "tools/parse_dependencies.py", facts.of_dependencies),
    "ims_bbx.npy": ("boxes", UNLESS, EXTRACT, facts.of_boxes),
    "ims_size.npy": ("image sizes", UNLESS, EXTRACT, facts.of_sizes),
    "imagename.txt": ("names of the images", "features and pictures of results", PREPARE, facts.of_names),
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
            self.tell("--images", facts.of_pictures)
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
