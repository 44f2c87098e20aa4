"""The flags of all commands that load a checkpoint: test.py, testall.py, test_stack.py and the tools.

Like systems/options.py this module does not import torch.
"""

import os

from files.opening import open_regular
from runtime.commandline import Parser, Switch, folder_name, number, whole
from systems.options import add_compile_flag, add_device_flag, add_precision_flags
from systems.table import add_kernel_flag

RANKS = "ranks.pth.tar"  # the file in the working folder that the released evaluation leaves
GSMN_CHECKPOINT = "./runs/runX/checkpoint/model_best.pth.tar"
STACK_CHECKPOINTS = ["./runs/dense/checkpoint/model_best.pth.tar", "./runs/sparse/checkpoint/model_best.pth.tar"]


def existing(text):
    """The type of a flag that names a checkpoint, or a folder of a run: it is there."""
    if not os.path.isdir(text):
        open_regular(text, "no such checkpoint; check the path").close()
    return text


def eval_parser(description, split="test", stack=False, fold5=False):
    """The flags that test.py, testall.py and test_stack.py share."""
    parser = Parser(
        description=description,
        usage="%(prog)s [--model_path CHECKPOINT" + (" ...] [flags]" if stack else "] [flags]"),
        epilog="example:\n  python %(prog)s --data_path data --vocab_path vocab --report report --model_path "
        + (" ".join(STACK_CHECKPOINTS) if stack else GSMN_CHECKPOINT),
    )
    if stack:
        add = parser.add_argument_group("ensemble").add_argument
        add("--model_path", nargs="+", type=existing, default=STACK_CHECKPOINTS, help="checkpoints to ensemble")
        add("--weights", nargs="+", type=number(), metavar="W", help="weights in the mean of scores (default: equal)")
        add("--normalize", action="store_true", help="first give each one's scores mean 0 and standard deviation 1")
    else:
        parser.set_defaults(weights=None, normalize=False)
        parser.add_argument("--model_path", type=existing, default=GSMN_CHECKPOINT, help="checkpoint to evaluate")
    add_override_flags(parser, split)
    add_evaluation_flags(parser, fold5)
    add_result_flags(parser)
    return parser


def add_evaluation_flags(parser, fold5):
    group = parser.add_argument_group("evaluation")
    add = group.add_argument
    add("--fold5", action=Switch, default=fold5, help="evaluate five folds and print their means")
    add(
        "--boxes",
        choices=["normalized", "none", "released"],
        help="GSMN's boxes: right, none, or as the released evaluation had them (default: the checkpoint's)",
    )
    add(
        "--ties",
        default="worst",
        choices=["worst", "released"],
        help="order of equal scores: the true one last, or by falling index as in the released code",
    )
    add("--batch_size", type=whole(), help="captions in a batch (default: the checkpoint's)")
    add("--workers", default=0, type=whole(0), help="processes that read data")
    add_precision_flags(group, None, None)
    add("--sim_memory", type=number(), metavar="MB", help="memory for scores of GSMN, SCAN (default: the checkpoint's)")
    add_kernel_flag(add, None)
    add_compile_flag(add)


def add_result_flags(parser):
    add = parser.add_argument_group("results").add_argument
    add("--save_sims", metavar="FILE.npy", help="write the similarity matrix, images down, captions across")
    add("--ranks", metavar="FILE", default=RANKS, help="write the ranks; '' for no file")
    add("--json", metavar="FILE", help="write the metrics")
    add("--report", metavar="DIR", help="write pages with the metrics and each query's best candidates")
    add("--images", metavar="DIR", help="the image files, for --report; without them regions are drawn")
    add(
        "--explain",
        type=whole(0),
        default=0,
        metavar="N",
        help="GSMN or SCAN, with --report: explain the N worst queries each way, a page for each, with the true pair "
        "beside the pair found",
    )
    add(
        "--explain_pair",
        nargs="+",
        default=[],
        metavar="IMAGE:CAPTION",
        help="GSMN or SCAN, with --report: pairs to explain beside the caption's own, numbers from 0",
    )


OVERRIDES = "data_path data_name vocab_path boxes batch_size workers device amp tf32 sim_memory kernel compile".split()


def overrides_of(flags):
    """The command line's flags that override the checkpoint's: {name: value, None where not given}."""
    return {name: getattr(flags, name) for name in OVERRIDES if hasattr(flags, name)}


def add_override_flags(parser, split="test", boxes=False):
    """Flags of all commands that load a checkpoint: folders of the data, split, device."""
    group = parser.add_argument_group("data and device")
    add = group.add_argument
    add("--data_path", help="folder that holds the data sets (default: the checkpoint's)")
    add("--data_name", type=folder_name, help="data set (default: the checkpoint's)")
    add("--vocab_path", help="folder of the vocabulary (default: the checkpoint's)")
    add("--split", default=split, help="split of the data: train, dev, test or testall")
    add_device_flag(group)
    if boxes:
        add("--boxes", choices=["normalized", "none"], help="GSMN's boxes, or no geometry (default: the checkpoint's)")


def add_images_flag(parser):
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the picture files, named in {split}_imagename.txt beside the data; the regions of an image "
        "without a picture are drawn",
    )


def add_spacy_flag(parser):
    """--spacy_model, for commands that read a sentence of the user's."""
    parser.add_argument(
        "--spacy_model", metavar="NAME", help="spaCy's model, for sparse GSMN (default: any English one)"
    )
