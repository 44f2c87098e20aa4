"""Every flag of train.py, declared once: those that all systems share, and each system's own from the table.

Nothing here imports torch, so that --help and mistakes in flags are answered at once.  Options are complete after two
borders, the command line (`train_options`) and a checkpoint's opt (`completed`); below them nobody fills in defaults.
"""

import argparse
import functools
from types import MappingProxyType

from files.errors import InputError
from runtime.commandline import Parser, Switch, folder_name, number, positive, whole
from systems.table import LOSSES, SYSTEMS, flag_adder, system_of

DEFAULT_SYSTEM = "gsmn"  # of a command line without --model
# Shared flags that determine the weights' shape and meaning: a resumed run takes them from its checkpoint.
SHARED_OF_WEIGHTS = frozenset("model data_name img_dim word_dim embed_size num_layers no_imgnorm vocab_size".split())


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
    add_input_flags(parser)
    system.add_flags(parser)
    add_training_flags(parser)
    add_output_flags(parser)
    add_computing_flags(parser)
    parser.set_defaults(**system.defaults)
    return parser


def add_input_flags(parser):
    add = flag_adder(parser.add_argument_group("data"))
    add("--data_path", "./data/", "folder that holds the data sets")
    add("--data_name", "precomp", "data set: the folder's name under --data_path, as f30k_precomp", folder_name)
    add("--vocab_path", "./vocab/", "folder of {data_name}_vocab.json or .pkl")
    add("--img_dim", 2048, "width of a region's feature vector (default: as in the features' file)", whole())
    add = flag_adder(parser.add_argument_group("encoders"))
    add("--word_dim", 300, "width of the word embedding", whole())
    add("--embed_size", 1024, "width of the joint embedding", whole())
    add("--num_layers", 1, "layers of the text GRU", whole())
    add("--no_imgnorm", False, "do not normalise the image embeddings")


def add_training_flags(parser):
    add = flag_adder(parser.add_argument_group("loss"))
    add("--loss", "triplet", "loss of a batch's score matrix", [*LOSSES])
    add("--margin", 0.2, "margin of the triplet loss", number())
    add("--max_violation", False, "count the hardest negative only, not the sum of all")
    add("--warmup_sum", 0, "with --max_violation: epochs of summed loss first", whole(0), metavar="N")
    add("--skip_twins", False, "pairs of the same image and word ids are no negatives (published training: they are)")
    add = flag_adder(parser.add_argument_group("optimiser"))
    add("--num_epochs", 30, "epochs to train", whole())
    add("--batch_size", 128, "pairs in a batch, over all processes", whole())
    add(
        "--accumulate",
        1,
        "encode a batch in N parts, to save memory; the loss compares all pairs",
        whole(),
        metavar="N",
    )
    add("--learning_rate", 0.0002, "initial learning rate of Adam", positive)
    add("--lr_update", 15, "epochs after which the learning rate is divided by 10", whole())
    add("--grad_clip", 2.0, "clip the gradient's norm at this; 0 for no clipping", number())
    add("--seed", 0, "fixes weights, order and dropout of the run", whole(0))


def add_output_flags(parser):
    add = flag_adder(parser.add_argument_group("log and checkpoints"))
    add("--logger_name", "./runs/runX/log", "folder for TensorBoard's files")
    add("--model_name", "./runs/runX/checkpoint", "folder for checkpoints ('': that of --logger_name)")
    add("--resume", "", "checkpoint, or folder of checkpoints, to go on from", metavar="PATH")
    add("--log_step", 100, "steps between two lines of log", whole())
    add("--val_step", 15000, "steps between two validations", whole())
    add(
        "--save_every", 0, "steps between checkpoints, beside those after each epoch; 0 for none", whole(0), metavar="N"
    )
    add("--keep", 0, "keep the newest N checkpoints and the best; 0 keeps all", whole(0), metavar="N")
    add(
        "--select",
        "rsum",
        "dev score that selects the best model: sum of all six recalls, or of R@1 and R@5 of both directions",
        ["rsum", "r1r5"],
    )


def add_computing_flags(parser):
    group = parser.add_argument_group("computing")
    add_device_flag(group)
    add = flag_adder(group)
    add("--workers", 10, "processes that read data; results do not depend on it", whole(0))
    add_precision_flags(group)
    add_compile_flag(group.add_argument)
    add("--deterministic", False, "CUDA: deterministic algorithms, where torch has them")


# ---- flags that the commands that load a checkpoint have too


def add_device_flag(parser):
    # runtime.devices checks it: flags are read without torch
    parser.add_argument(
        "--device", help="where to compute: cpu, cuda, cuda:1, ... (default: cuda where it works, else cpu)"
    )


def add_compile_flag(add):
    add(
        "--compile",
        action="store_true",
        help="compile encoders and, on a GPU, GSMN's similarity (torch.compile): faster, but the start takes minutes",
    )


def add_precision_flags(parser, amp="off", tf32=False):
    parser.add_argument(
        "--amp",
        default=amp,
        choices=["off", "bf16"],
        help="bf16: encoders (but for their GRUs) in bfloat16, all else in float32; for GPUs",
    )
    parser.add_argument("--tf32", action=Switch, default=tf32, help="CUDA: products of float32 matrices in TF32")
