"""Evaluate one checkpoint on MSCOCO's testall: the whole split (5K) and the means of its five folds (1K)."""

import evaluation
from files import run
from options import eval_parser


def main(argv=None):
    opt = eval_parser(__doc__, split="testall", fold5=True).parse_args(argv)
    evaluation.main(opt, fold5=True, full=True)


if __name__ == "__main__":
    run(main)
