"""Every flag of train.py, declared once: those that all systems share, and each system's own from the table.

Nothing here imports torch, so that --help and mistakes in flags are answered at once.  Options are complete after two
borders, the command line (`train_options`) and a checkpoint's opt (`completed`); below them nobody fills in defaults.
"""

import argparse
import functools
from types import MappingProxyType

from files.errors import InputError
from runtime.commandline import Parser, Switch, folder_name, number, positive, whole
from systems.table import LOSSES, SYSTEMS, system_of

DEFAULT_SYSTEM = "gsmn"  # of a command line without --model
# Shared flags that determine the weights' shape and meaning: a resumed run takes them from its checkpoint.
SHARED_OF_WEIGHTS = {
    "model",
    "data_name",
    "img_dim",
    "word_dim",
    "embed_size",
    "num_layers",
    "no_imgnorm",
    "vocab_size",
}


def train_options(argv=None):
    """Flags of train.py -> (complete Namespace, names of those given on the command line).

    `--model` is read first, since it chooses the other flags.
    """
    first = Parser(add_help=False)
    first.add_argument("--model", default=DEFAULT_SYSTEM, choices=[*SYSTEMS])
    parser = train_parser(first.parse_known_args(argv)[0].model)
    parser.others = other_flags(parser)
    opt = parser.parse_args(argv)
    if not opt.model_name:
        opt.model_name = opt.logger_name
    system_of(opt).settle(opt)
    silent = argparse.Namespace(**{action.dest: None for action in parser._actions})
    given = {name for name, value in vars(parser.parse_args(argv, silent)).items() if value is not None}
    if "resume" in given and not opt.resume:  # of a variable that is not set; else a new run would begin
        parser.error("--resume: names no checkpoint and no folder")
    return opt, given


def other_flags(parser):
    """The flags that only other systems have: {flag: message}."""
    others = {}
    for name in SYSTEMS:
        for flag in train_parser(name)._option_string_actions.keys() - parser._option_string_actions.keys():
            others[flag] = f"{others[flag]}, {name}" if flag in others else f"{flag} is a flag of --model {name}"
    return others


@functools.cache
def defaults(model):
    """The defaults of a system's flags: a read-only {name: value}."""
    return MappingProxyType(vars(train_parser(model).parse_args([])))


def completed(opt, **others):
    """A copy of `opt` with `others` and the defaults of flags that it lacks, as the opt of an older checkpoint does."""
    given = {"model": DEFAULT_SYSTEM, **vars(opt), **others}
    complete = argparse.Namespace(**{**defaults(given["model"]), **given})
    system_of(complete).settle(complete)
    return complete


def of_weights(model):
    """The flags that determine the weights of a system."""
    return SHARED_OF_WEIGHTS | SYSTEMS[model].of_weights


def check_options(opt, path):
    """InputError where a checkpoint's opt holds a value that its flag does not accept; the device may be any text."""
    known = type(opt.model) is str and opt.model in SYSTEMS
    model = opt.model if known else DEFAULT_SYSTEM  # whose parser then refuses opt.model
    for action in train_parser(model)._actions:
        value = getattr(opt, action.dest, action.default)
        try:
            if action.dest == "device":
                right = value is None or type(value) is str
            elif action.nargs == 0:  # of a switch
                right = value in (False, True)
            else:
                right = (action.type or str)(str(value)) == value and value in (action.choices or [value])
        except (argparse.ArgumentTypeError, RuntimeError, TypeError):
            right = False
        if not right and action.dest != "help":
            raise InputError(
                f"{path}: its opt says {value!r} for --{action.dest}, an invalid value; get the file again"
            )


def train_parser(model=DEFAULT_SYSTEM):
    """The parser of train.py for one system."""
    system = SYSTEMS[model]
    others = ", ".join(name for name in SYSTEMS if name != model)
    parser = Parser(
        description=f"Train {system.title}.  The flags depend on --model ({others}): see train.py --model NAME --help",
        usage="%(prog)s [--model NAME] [flags]",
        epilog=system.example,
    )
    parser.add_argument("--model", default=model, choices=[*SYSTEMS], help="which system to train")
    add_data_flags(parser)
    add_encoder_flags(parser)
    system.add_flags(parser)
    add_loss_flags(parser)
    add_optimiser_flags(parser)
    add_output_flags(parser)
    add_computing_flags(parser)
    parser.set_defaults(**system.defaults)
    return parser


def add_data_flags(parser):
    add = parser.add_argument_group("data").add_argument
    add("--data_path", default="./data/", help="folder that holds the data sets")
    add(
        "--data_name",
        type=folder_name,
        default="precomp",
        help="data set: the folder's name under --data_path, as f30k_precomp",
    )
    add("--vocab_path", default="./vocab/", help="folder of {data_name}_vocab.json or .pkl")
    add(
        "--img_dim",
        default=2048,
        type=whole(),
        help="width of a region's feature vector (default: as in the features' file)",
    )


def add_loss_flags(parser):
    add = parser.add_argument_group("loss").add_argument
    add("--loss", default="triplet", choices=[*LOSSES], help="loss of a batch's score matrix")
    add("--margin", default=0.2, type=number(), help="margin of the triplet loss")
    add("--max_violation", action="store_true", help="count the hardest negative only, not the sum of all")
    add("--warmup_sum", default=0, type=whole(0), metavar="N", help="with --max_violation: epochs of summed loss first")
    add(
        "--skip_twins",
        action="store_true",
        help="do not use pairs of the same image and the same word ids as negatives (published training: does)",
    )


def add_optimiser_flags(parser):
    add = parser.add_argument_group("optimiser").add_argument
    add("--num_epochs", default=30, type=whole(), help="epochs to train")
    add("--batch_size", default=128, type=whole(), help="pairs in a batch, over all processes")
    add(
        "--accumulate",
        default=1,
        type=whole(),
        metavar="N",
        help="encode the batch in N parts to save memory; the loss still compares all its pairs",
    )
    add("--learning_rate", default=0.0002, type=positive, help="initial learning rate of Adam")
    add("--lr_update", default=15, type=whole(), help="epochs after which the learning rate is divided by 10")
    add("--grad_clip", default=2.0, type=number(), help="clip the gradient's norm at this; 0 for no clipping")
    add("--seed", default=0, type=whole(0), help="fixes weights, order and dropout of the run")


def add_output_flags(parser):
    add = parser.add_argument_group("log and checkpoints").add_argument
    add("--logger_name", default="./runs/runX/log", help="folder for TensorBoard's files")
    add(
        "--model_name",
        default="./runs/runX/checkpoint",
        help="folder for checkpoints ('': that of --logger_name)",
    )
    add("--resume", default="", metavar="PATH", help="checkpoint, or folder of checkpoints, to go on from")
    add("--log_step", default=100, type=whole(), help="steps between two lines of log")
    add("--val_step", default=15000, type=whole(), help="steps between two validations")
    add(
        "--save_every",
        default=0,
        type=whole(0),
        metavar="N",
        help="steps between two checkpoints, beside those after each epoch; 0 for none",
    )
    add("--keep", default=0, type=whole(0), metavar="N", help="keep the newest N checkpoints and the best; 0 keeps all")
    add(
        "--select",
        default="rsum",
        choices=["rsum", "r1r5"],
        help="dev score that selects the best model: sum of all six recalls, or of R@1 and R@5 of both directions",
    )


def add_computing_flags(parser):
    group = parser.add_argument_group("computing")
    add = group.add_argument
    add_device_flag(group)
    add("--workers", default=10, type=whole(0), help="processes that read data; results do not depend on it")
    add_precision_flags(group)
    add_compile_flag(add)
    add("--deterministic", action="store_true", help="CUDA: deterministic algorithms, where torch has them")


def add_device_flag(parser):
    where = "where to compute: cpu, cuda, cuda:1, ... (default: cuda where it works, else cpu)"
    parser.add_argument("--device", help=where)  # runtime.devices checks it: flags are read without torch


def add_compile_flag(add):
    add(
        "--compile",
        action="store_true",
        help="compile encoders and, on a GPU, GSMN's similarity (torch.compile): faster, but the start takes minutes",
    )


def add_precision_flags(parser, amp="off", tf32=False):
    add = parser.add_argument
    add(
        "--amp",
        default=amp,
        choices=["off", "bf16"],
        help="bf16: encoders (but for their GRUs) in bfloat16, all else in float32; for GPUs",
    )
    add("--tf32", action=Switch, default=tf32, help="CUDA: products of float32 matrices in TF32")


def add_encoder_flags(parser):
    add = parser.add_argument_group("encoders").add_argument
    add("--word_dim", default=300, type=whole(), help="width of the word embedding")
    add("--embed_size", default=1024, type=whole(), help="width of the joint embedding")
    add("--num_layers", default=1, type=whole(), help="layers of the text GRU")
    add("--no_imgnorm", action="store_true", help="do not normalise the image embeddings")
