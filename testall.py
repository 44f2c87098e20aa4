"""Evaluate one checkpoint on MSCOCO's testall: the whole split (5K) and the means of its five folds (1K)."""

from runtime.start import run

from checkpoints.evaluation_options import eval_parser
from files.errors import InputError


def main(argv=None):
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
    import evaluation  # and torch, which --help and wrong flags do not wait for
    from reporting.eccv import Eccv

    evaluation.main(opt, full=True, extra=Eccv() if opt.eccv else None)


if __name__ == "__main__":
    run(main)
