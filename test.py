"""Evaluate one checkpoint on a split: recalls of both directions, or the means of five folds."""

import runtime.openmp  # noqa: F401, before torch

import evaluation
from files.errors import run
from runtime.options import eval_parser


def main(argv=None):
    opt = eval_parser(__doc__, split="test").parse_args(argv)
    evaluation.main(opt, fold5=opt.fold5, full=not opt.fold5)


if __name__ == "__main__":
    run(main)
