"""Evaluate one checkpoint on a split: recalls of both directions, or the means of five folds."""

from runtime.start import run

from checkpoints.evaluation_options import eval_parser


def main(argv=None):
    opt = eval_parser(__doc__, split="test").parse_args(argv)
    import evaluation  # and torch, which --help and wrong flags do not wait for

    evaluation.main(opt, full=not opt.fold5)


if __name__ == "__main__":
    run(main)
