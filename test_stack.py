"""Evaluate several checkpoints one by one, then their ensemble: the mean of the similarity matrices."""

import runtime.openmp  # noqa: F401, before torch

import evaluation
from files.errors import run
from runtime.options import eval_parser


def main(argv=None):
    opt = eval_parser(__doc__, split="test", stack=True).parse_args(argv)
    evaluation.main(opt, fold5=opt.fold5, full=not opt.fold5)


if __name__ == "__main__":
    run(main)
