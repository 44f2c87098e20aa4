"""Evaluate several checkpoints one by one, then their ensemble: the mean of the similarity matrices."""

from runtime.start import guarded, run

from checkpoints.evaluation_options import eval_parser
from files.pickles import with_checkpoints


def read_flags(argv=None):
    return with_checkpoints(eval_parser(__doc__, split="test", stack=True).parse_args(argv))


if __name__ == "__main__":
    guarded(read_flags)  # before torch is loaded

import evaluation


def main(argv=None):
    opt = read_flags(argv)
    evaluation.main(opt, fold5=opt.fold5, full=not opt.fold5)


if __name__ == "__main__":
    run(main)
