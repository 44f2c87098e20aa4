"""Evaluate one checkpoint on MSCOCO's testall: the whole split (5K) and the means of its five folds (1K)."""

from runtime.start import guarded, run

from checkpoints.evaluation_options import eval_parser
from files.errors import InputError
from files.pickles import with_checkpoints


def read_flags(argv=None):
    parser = eval_parser(__doc__, split="testall", fold5=True)
    parser.add_argument(
        "--eccv",
        action="store_true",
        help="COCO's 5K: also ECCV Caption, CxC and PMRP, which accept more than one right answer",
    )
    opt = parser.parse_args(argv)
    if opt.eccv and not opt.split.startswith("test"):
        raise InputError(
            f"--eccv scores COCO's 5,000 test images; --split {opt.split} has others, give --split testall"
        )
    return with_checkpoints(opt)


if __name__ == "__main__":
    guarded(read_flags)  # before torch is loaded

import evaluation
from reporting.eccv import Eccv


def main(argv=None):
    opt = read_flags(argv)
    evaluation.main(opt, fold5=opt.fold5, full=True, extra=Eccv() if opt.eccv else None)


if __name__ == "__main__":
    run(main)
