"""Every flag of the scripts, declared once.  `--model` chooses which flags and defaults train.py has.

Nothing here imports torch, so that --help and mistakes in flags are answered at once.
"""

import argparse
import functools
from types import MappingProxyType

from files.errors import InputError
from runtime.commandline import Parser, Switch, number, positive, whole

MOST_WORDS = 10_000  # words of a caption for VSRN's caption model, which takes memory for as many
LARGEST_CROP = 4096  # pixels

# Flags that a resumed run takes from its checkpoint, since they determine the weights' shape and meaning.
OF_THE_WEIGHTS = {
    "model",
    "data_name",
    "img_dim",
    "word_dim",
    "embed_size",
    "num_layers",
    "bi_gru",
    "no_imgnorm",
    "no_txtnorm",
    "feat_dim",
    "num_block",
    "hid_dim",
    "out_dim",
    "is_sparse",
    "propagation",
    "lambda_softmax",
    "measure",
    "use_abs",
    "cnn_type",
    "finetune",
    "dim_vid",
    "dim_hidden",
    "bidirectional",
    "rnn_type",
    "vsrn_variant",
    "dim_word",
    "max_len",
    "vocab_size",
}


def train_options(argv=None):
    """Flags of train.py -> (Namespace, names of those given on the command line).

    `--model` is read first, since it chooses the other flags.
    """
    first = Parser(add_help=False)
    first.add_argument("--model", default="gsmn", choices=["gsmn", "vsrn"])
    model = first.parse_known_args(argv)[0].model
    parser = train_parser(model)
    parser.others = other_flags(model)
    opt = parser.parse_args(argv)
    if not opt.model_name:
        opt.model_name = opt.logger_name
    silent = argparse.Namespace(**{action.dest: None for action in parser._actions})
    given = {name for name, value in vars(parser.parse_args(argv, silent)).items() if value is not None}
    return opt, given


def other_flags(model):
    """The flags that only the other model has: {flag: message}."""
    other = "vsrn" if model == "gsmn" else "gsmn"
    flags = train_parser(other)._option_string_actions.keys() - train_parser(model)._option_string_actions.keys()
    return {flag: f"{flag} is a flag of --model {other}" for flag in flags}


@functools.cache
def defaults(model):
    """The defaults of train.py's flags: a read-only {name: value}."""
    return MappingProxyType(vars(train_parser(model).parse_args([])))


def with_defaults(opt, model="gsmn"):
    """A copy of `opt` with the defaults of flags that it lacks, as a checkpoint of an older program does.

    model: 'gsmn' or 'vsrn', for an `opt` without it.  Replaces --vsrn_variant auto by the variant that it means.
    """
    model = getattr(opt, "model", model)
    complete = argparse.Namespace(**{**defaults(model), **vars(opt)})
    if model == "vsrn" and complete.vsrn_variant == "auto":
        complete.vsrn_variant = "f30k" if complete.data_name == "f30k_precomp" else "coco"
    return complete


def check_options(opt, path):
    """InputError where a checkpoint's opt holds a value that its flag does not accept; the device may be any text."""
    model = opt.model if opt.model in ("gsmn", "vsrn") else "gsmn"  # whose parser then refuses opt.model
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


def train_parser(model="gsmn"):
    """The parser of train.py for one of the two models."""
    parser = Parser(
        description=f"Train {model.upper()}.  The flags depend on --model: see also "
        f"train.py --model {'vsrn' if model == 'gsmn' else 'gsmn'} --help",
        usage="%(prog)s [--model {gsmn,vsrn}] [flags]",
        epilog=EXAMPLES[model],
    )
    parser.add_argument("--model", default=model, choices=["gsmn", "vsrn"], help="which system to train")
    add_data_flags(parser)
    (add_gsmn_flags if model == "gsmn" else add_vsrn_flags)(parser)
    add_loss_flags(parser)
    add_optimiser_flags(parser)
    add_output_flags(parser, model)
    add_computing_flags(parser, model)
    if model == "vsrn":
        add_unused_flags(parser)
    return parser


EXAMPLES = {
    "gsmn": """example, the published dense model of Flickr30K:
  python train.py --data_name f30k_precomp --logger_name runs/dense/log --model_name runs/dense/checkpoint \\
      --bi_gru --max_violation --lambda_softmax=20 --batch_size=64 --keep 2""",
    "vsrn": """example, the published model of Flickr30K:
  python train.py --model vsrn --data_name f30k_precomp --logger_name runs/flickr_VSRN --max_violation \\
      --lr_update 10 --max_len 60 --keep 2""",
}


def add_data_flags(parser):
    add = parser.add_argument_group("data").add_argument
    add("--data_path", default="./data/", help="folder that holds the data sets")
    add("--data_name", default="precomp", help="data set: the folder's name under --data_path, as f30k_precomp")
    add("--vocab_path", default="./vocab/", help="folder of {data_name}_vocab.json or .pkl")
    add(
        "--img_dim",
        default=2048,
        type=whole(),
        help="width of a region's feature vector (default: as in the features' file)",
    )


def add_loss_flags(parser):
    add = parser.add_argument_group("loss").add_argument
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


def add_output_flags(parser, model):
    gsmn = model == "gsmn"
    add = parser.add_argument_group("log and checkpoints").add_argument
    add("--logger_name", default="./runs/runX/log" if gsmn else "runs/runX", help="folder for TensorBoard's files")
    add(
        "--model_name",
        default="./runs/runX/checkpoint" if gsmn else "",
        help="folder for checkpoints" + ("" if gsmn else " (default: that of --logger_name)"),
    )
    add("--resume", default="", metavar="PATH", help="checkpoint, or folder of checkpoints, to go on from")
    add("--log_step", default=100 if gsmn else 10, type=whole(), help="steps between two lines of log")
    add("--val_step", default=15000 if gsmn else 500, type=whole(), help="steps between two validations")
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
        default="rsum" if gsmn else "r1r5",
        choices=["rsum", "r1r5"],
        help="dev score that selects the best model: sum of all six recalls, or of R@1 and R@5 of both directions",
    )


def add_computing_flags(parser, model):
    group = parser.add_argument_group("computing")
    add = group.add_argument
    add_device_flag(group)
    add("--workers", default=10, type=whole(0), help="processes that read data; results do not depend on it")
    add(
        "--preload",
        action=Switch,
        default=False,
        help="keep the training features on the device, if they fit: no processes read and no batch is copied; "
        "results do not depend on it",
    )
    add_precision_flags(group)
    if model == "gsmn":
        add(
            "--sim_memory",
            default=0,
            type=number(),
            metavar="MB",
            help="memory for the similarity of image-caption pairs, which works in tiles that fit; "
            "0 for 256 MB on a CPU and half of a GPU's free memory",
        )
        add_kernel_flag(group)
    compiled = "encoders and, on a GPU, similarity" if model == "gsmn" else "encoders"
    add("--compile", action="store_true", help=f"compile {compiled} (torch.compile): the first steps take minutes")
    add("--deterministic", action="store_true", help="CUDA: deterministic algorithms, where torch has them")


def add_kernel_flag(parser, default="auto"):
    parser.add_argument(
        "--kernel",
        default=default,
        choices=["auto", "triton", "torch"],
        help="implementation of GSMN's similarity; auto: C on a CPU, torch on a GPU, but an evaluation uses Triton "
        "if a trial finds it correct and faster; triton: without the trial; torch: always torch",
    )


def add_device_flag(parser):
    where = "where to compute: cpu, cuda, cuda:1, ... (default: cuda where it works, else cpu)"
    parser.add_argument("--device", help=where)  # runtime.devices checks it: flags are read without torch


def add_precision_flags(parser, amp="off", tf32=False):
    add = parser.add_argument
    add(
        "--amp",
        default=amp,
        choices=["off", "bf16"],
        help="bf16: encoders (but for their GRUs) and GSMN's block product in bfloat16, all else in float32; for GPUs",
    )
    add("--tf32", action=Switch, default=tf32, help="CUDA: products of float32 matrices in TF32")


def add_encoder_flags(group, embed_size):
    """The flags of both models' encoders."""
    add = group.add_argument
    add("--word_dim", default=300, type=whole(), help="width of the word embedding")
    add("--embed_size", default=embed_size, type=whole(), help="width of the joint embedding")
    add("--num_layers", default=1, type=whole(), help="layers of the text GRU")
    add("--no_imgnorm", action="store_true", help="do not normalise the image embeddings")


def add_gsmn_flags(parser):
    group = parser.add_argument_group("model")
    add_encoder_flags(group, 1024)
    add = group.add_argument
    add("--bi_gru", action="store_true", help="read captions in both directions, averaged")
    add("--no_txtnorm", action="store_true", help="do not normalise the word embeddings")
    add("--lambda_softmax", default=9.0, type=positive, help="sharpness of attention")
    add("--feat_dim", default=16, type=whole(), help="width of a matching vector; equals --num_block")
    add("--num_block", default=16, type=whole(), help="blocks an embedding is split into")
    add("--hid_dim", default=32, type=whole(), help="hidden width of the graph convolutions, divisible by 8")
    add("--out_dim", default=1, type=whole(), help="scores of a node; only 1 is defined")
    add("--is_sparse", action="store_true", help="word graph along dependencies instead of all pairs")
    add(
        "--propagation",
        default="self",
        choices=["self", "neighbors"],
        help="what a node receives: its own vector, as released, or its neighbours', as in the paper",
    )
    add(
        "--boxes",
        default="normalized",
        choices=["normalized", "none"],
        help="box coordinates divided by the image size, or no geometry (needs no box files)",
    )


def add_vsrn_flags(parser):
    group = parser.add_argument_group("model")
    add_encoder_flags(group, 2048)
    add = group.add_argument
    add("--measure", default="cosine", choices=["cosine", "order"], help="similarity of two embeddings")
    add("--use_abs", action="store_true", help="take the absolute value of embeddings")
    add(
        "--vsrn_variant",
        default="auto",
        choices=["auto", "f30k", "coco"],
        help="image encoder of the released Flickr30K or COCO model: BatchNorm at its end, or a norm over the regions "
        "at its start; auto: f30k for --data_name f30k_precomp, else coco",
    )
    add(
        "--chrono_init",
        default=0,
        type=whole(0),
        metavar="T",
        help="start the GRU over regions with memories of 1 to T regions; 0 starts it as released",
    )
    add = parser.add_argument_group("caption model (region features only)").add_argument
    add("--dim_hidden", default=512, type=whole(), help="width of the recurrent state")
    add("--bidirectional", default=0, type=whole(0), choices=[0, 1], help="1 for an encoder in both directions")
    add("--input_dropout_p", default=0.2, type=number(1), help="dropout of the inputs")
    add("--rnn_type", default="gru", choices=["gru", "lstm"], help="recurrent unit")
    add("--dim_word", default=300, type=whole(), help="width of the word embedding")
    add("--max_len", default=60, type=whole(2, MOST_WORDS), help="longest caption")
    add = parser.add_argument_group("pictures (--data_name coco, f8k or f30k)").add_argument
    add("--crop_size", default=224, type=whole(1, LARGEST_CROP), help="size of the crop")
    add("--cnn_type", default="vgg19", help="torchvision classifier, as vgg19 or resnet152")
    add("--finetune", action="store_true", help="train the CNN too")
    add("--use_restval", action="store_true", help="COCO: train on restval too")
    add("--no_pretrained", action="store_true", help="start the CNN from random weights")


def add_unused_flags(parser):
    add = parser.add_argument_group("accepted for old command lines, without effect").add_argument
    add("--dim_vid", default=2048, type=whole(), help="no effect: a region of the caption model has --embed_size")
    add("--rnn_dropout_p", default=0.5, type=number(1), help="no effect: recurrent layers are not stacked")
    add("--reset_train", action="store_true", help="no effect: training mode is always restored")
