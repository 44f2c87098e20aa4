"""Every flag of the scripts, declared once.  `--model` chooses which flags and defaults train.py has."""

import argparse
import functools
from types import MappingProxyType

import torch

from files.errors import InputError
from runtime import distributed
from runtime.commandline import Parser, number, positive, whole

RANKS = "ranks.pth.tar"  # the file in the working folder that the released evaluation leaves
GSMN_CHECKPOINT = "./runs/runX/checkpoint/model_best.pth.tar"
STACK_CHECKPOINTS = ["./runs/dense/checkpoint/model_best.pth.tar", "./runs/sparse/checkpoint/model_best.pth.tar"]


def default_device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def device(text):
    """The type of --device: a device that can be used here and now."""
    if not usable(text):
        raise argparse.ArgumentTypeError(
            f"{text} cannot be used here, {default_device()} can; devices are cpu, cuda, cuda:1, ..."
        )
    return str(torch.device(text))


def usable(name):
    distributed.select_gpu()  # else every process of a machine would allocate on GPU 0
    try:
        return torch.zeros(1, device=name).item() == 0
    except (RuntimeError, AssertionError, NotImplementedError):  # each backend has its own way to be missing
        return False


# What a resumed run takes from its checkpoint: the weights have this shape and meaning.
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
    parser = train_parser(first.parse_known_args(argv)[0].model)
    opt = parser.parse_args(argv)
    if not opt.model_name:
        opt.model_name = opt.logger_name
    silent = argparse.Namespace(**{action.dest: None for action in parser._actions})
    given = {name for name, value in vars(parser.parse_args(argv, silent)).items() if value is not None}
    return opt, given


def resume_options(opt, given, saved, say):
    """Flags of a resumed run: the checkpoint's, but for those given on the command line.

    What shapes the weights stays as in the checkpoint even then; every contradiction is said.
    """
    if "model" in given and opt.model != saved.model:
        raise InputError(f"{opt.resume}: holds {saved.model}, but --model is {opt.model}; give --model {saved.model}")
    merged = argparse.Namespace(**{**vars(opt), **vars(saved), "resume": opt.resume})
    if "device" not in given and not usable(merged.device):
        say(f"--device: {merged.device} in the checkpoint, which this machine lacks; {opt.device} is used")
        merged.device = opt.device
    for name in sorted(given & set(vars(saved)) - {"resume"}):
        old, new = getattr(saved, name), getattr(opt, name)
        if old == new:
            continue
        wins = "the checkpoint's" if name in OF_THE_WEIGHTS else "the command line's"
        say(f"--{name}: {old} in the checkpoint, {new} on the command line; {wins} is used")
        if name not in OF_THE_WEIGHTS:
            setattr(merged, name, new)
    return merged


@functools.cache
def defaults(model):
    """What every flag of train.py is when it is not given: a read-only {name: value}."""
    return MappingProxyType(vars(train_parser(model).parse_args([])))


def with_defaults(opt, model="gsmn"):
    """`opt` with the flags that it lacks, at their defaults: flags of today that a checkpoint's program did not know.

    model: 'gsmn' or 'vsrn', where `opt` does not say it.
    """
    model = getattr(opt, "model", model)
    return argparse.Namespace(**{**defaults(model), **vars(opt)})


def check_options(opt, path):
    """InputError where a checkpoint's opt holds what its flag could not have said; any device will do."""
    for action in train_parser(opt.model)._actions:
        value = getattr(opt, action.dest, action.default)
        try:
            if action.nargs == 0:  # of a switch
                right = value in (False, True)
            else:
                right = (action.type or str)(str(value)) == value and value in (action.choices or [value])
        except (argparse.ArgumentTypeError, RuntimeError, TypeError):
            right = False
        if not right and action.dest not in ("device", "help"):
            raise InputError(f"{path}: its opt says {value!r} for --{action.dest}, as no run could; get the file again")


def train_parser(model="gsmn"):
    """The parser of train.py for one of the two models."""
    parser = Parser(
        description=f"Train {model.upper()}. `--model vsrn --help` and `--model gsmn --help` list each one's flags."
    )
    add = parser.add_argument
    add("--model", default=model, choices=["gsmn", "vsrn"], help="which system to train")
    add_data_flags(parser)
    add_training_flags(parser, model)
    if model == "gsmn":
        add_gsmn_flags(parser)
    else:
        add_vsrn_flags(parser)
    return parser


def add_data_flags(parser):
    add = parser.add_argument
    add("--data_path", default="./data/", help="folder that holds the data sets")
    add("--data_name", default="precomp", help="data set: the folder's name under --data_path, as f30k_precomp")
    add("--vocab_path", default="./vocab/", help="folder of {data_name}_vocab.json or .pkl")
    add("--workers", default=10, type=whole(0), help="processes that read data; results do not depend on it")
    add("--preload", action="store_true", help="accepted, without effect: copy the features to /dev/shm instead")
    add("--img_dim", default=2048, type=whole(), help="width of a region's feature vector")


def add_training_flags(parser, model):
    gsmn = model == "gsmn"
    add = parser.add_argument
    add("--margin", default=0.2, type=number(), help="margin of the triplet loss")
    add("--max_violation", action="store_true", help="count the hardest negative only, not the sum of all")
    add("--warmup_sum", default=0, type=whole(0), metavar="N", help="with --max_violation: epochs of summed loss first")
    add("--num_epochs", default=30, type=whole(), help="epochs to train")
    add("--batch_size", default=128, type=whole(), help="pairs in a batch, over all processes")
    add(
        "--accumulate",
        default=1,
        type=whole(),
        metavar="N",
        help="encode the batch in N parts to save memory; all its pairs count as ever",
    )
    add("--word_dim", default=300, type=whole(), help="width of the word embedding")
    add("--embed_size", default=1024 if gsmn else 2048, type=whole(), help="width of the joint embedding")
    add("--num_layers", default=1, type=whole(), help="layers of the text GRU")
    add("--grad_clip", default=2.0, type=number(), help="clip the gradient's norm at this; 0 for no clipping")
    add("--learning_rate", default=0.0002, type=positive, help="initial learning rate of Adam")
    add("--lr_update", default=15, type=whole(), help="epochs after which the learning rate is divided by 10")
    add("--no_imgnorm", action="store_true", help="do not normalise the image embeddings")
    add("--log_step", default=100 if gsmn else 10, type=whole(), help="steps between two lines of log")
    add("--val_step", default=15000 if gsmn else 500, type=whole(), help="steps between two validations")
    add("--logger_name", default="./runs/runX/log" if gsmn else "runs/runX", help="folder for TensorBoard's files")
    add(
        "--model_name",
        default="./runs/runX/checkpoint" if gsmn else "",
        help="folder for checkpoints" + ("" if gsmn else " (default: that of --logger_name)"),
    )
    add("--resume", default="", metavar="PATH", help="checkpoint, or folder of checkpoints, to go on from")
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
        help="what makes a model the best on dev: all six recalls, or R@1 + R@5 of both directions",
    )
    add("--device", default=default_device(), type=device, help="where to compute: cpu, cuda, cuda:1, ...")
    add("--seed", default=0, type=whole(0), help="fixes weights, order and dropout of the run")
    add_precision_flags(parser)
    add("--compile", action="store_true", help="compile the encoders (torch.compile): the first steps take minutes")
    add("--deterministic", action="store_true", help="CUDA: algorithms that repeat bit for bit, where there are any")


def add_precision_flags(parser, amp="off", tf32=False):
    add = parser.add_argument
    add(
        "--amp",
        default=amp,
        choices=["off", "bf16"],
        help="bf16: encoders and GSMN's block product in bfloat16, all else in float32; for GPUs",
    )
    add("--tf32", action="store_true", default=tf32, help="CUDA: products of float32 matrices in TF32")


def add_gsmn_flags(parser):
    add = parser.add_argument
    add(
        "--sim_memory",
        default=0,
        type=number(),
        metavar="MB",
        help="memory for the similarity of image-caption pairs, which works in tiles that fit; "
        "0 for 256 MB on a CPU and half of a GPU's free memory",
    )
    add("--bi_gru", action="store_true", help="read captions in both directions, averaged")
    add("--no_txtnorm", action="store_true", help="do not normalise the word embeddings")
    add("--lambda_softmax", default=9.0, type=positive, help="sharpness of attention")
    add("--feat_dim", default=16, type=whole(), help="width of a matching vector; equals --num_block")
    add("--num_block", default=16, type=whole(), help="blocks an embedding is split into")
    add("--hid_dim", default=32, type=whole(), help="hidden width of the graph convolutions, divisible by 8")
    add("--out_dim", default=1, type=whole(), help="scores of a node; only 1 is defined")
    add("--is_sparse", action="store_true", help="join words along dependencies, not all with all")
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
    add = parser.add_argument
    add("--measure", default="cosine", choices=["cosine", "order"], help="similarity of two embeddings")
    add("--use_abs", action="store_true", help="take the absolute value of embeddings")
    add(
        "--chrono_init",
        default=0,
        type=whole(0),
        metavar="T",
        help="start the GRU over regions with memories of 1 to T regions; 0 starts it as released",
    )
    add("--reset_train", action="store_true", help="accepted and without effect: training mode is always restored")
    add("--crop_size", default=224, type=whole(), help="raw images: size of the crop")
    add("--cnn_type", default="vgg19", help="raw images: torchvision classifier, as vgg19 or resnet152")
    add("--finetune", action="store_true", help="raw images: train the CNN too")
    add("--use_restval", action="store_true", help="raw COCO images: train on restval too")
    add("--no_pretrained", action="store_true", help="raw images: start the CNN from random weights")
    add("--dim_vid", default=2048, type=whole(), help="caption model: width of a region; equals --embed_size")
    add("--dim_hidden", default=512, type=whole(), help="caption model: width of the recurrent state")
    add(
        "--bidirectional",
        default=0,
        type=whole(0),
        choices=[0, 1],
        help="caption model: 1 for an encoder in both directions",
    )
    add("--input_dropout_p", default=0.2, type=number(1), help="caption model: dropout of the inputs")
    add("--rnn_type", default="gru", choices=["gru", "lstm"], help="caption model: recurrent unit")
    add("--rnn_dropout_p", default=0.5, type=number(1), help="caption model: dropout between recurrent layers")
    add("--dim_word", default=300, type=whole(), help="caption model: width of the word embedding")
    add("--max_len", default=60, type=whole(2), help="caption model: longest caption")


def eval_parser(description, split="test", stack=False, fold5=False):
    """The flags that test.py, testall.py and test_stack.py share."""
    parser = Parser(description=description)
    add = parser.add_argument
    if stack:
        add("--model_path", nargs="+", default=STACK_CHECKPOINTS, help="checkpoints to ensemble")
        add(
            "--weights",
            nargs="+",
            type=number(),
            metavar="W",
            help="weight of each checkpoint in the mean of the similarities (default: equal weights)",
        )
        add(
            "--normalize",
            action="store_true",
            help="before the mean, give each checkpoint's similarities mean 0 and standard deviation 1, "
            "taken over all pairs of an image and a caption and so the same in both directions",
        )
    else:
        parser.set_defaults(weights=None, normalize=False)
        add("--model_path", default=GSMN_CHECKPOINT, help="checkpoint to evaluate")
    add_override_flags(parser, split)
    add("--fold5", action="store_true", default=fold5, help="evaluate five folds and print their means")
    add(
        "--boxes",
        choices=["normalized", "none", "released"],
        help="GSMN's boxes: right, none, or as the released evaluation had them (default: the checkpoint's)",
    )
    add("--batch_size", type=whole(), help="captions in a batch (default: the checkpoint's)")
    add("--workers", default=0, type=whole(0), help="processes that read data")
    add_precision_flags(parser, None, None)
    add("--sim_memory", type=number(), metavar="MB", help="GSMN: memory for the similarity (default: the checkpoint's)")
    add(
        "--ties",
        default="worst",
        choices=["worst", "released"],
        help="order of equal scores: the true one last, or by falling index as in the released code",
    )
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
        help="GSMN, with --report: explain the N worst queries each way, a page of at most 0.5 MB for each, with the "
        "true pair beside the pair found",
    )
    add(
        "--explain_pair",
        nargs="+",
        default=[],
        metavar="IMAGE:CAPTION",
        help="GSMN, with --report: pairs to explain beside the caption's own, numbers from 0",
    )
    return parser


OVERRIDES = (
    "data_path",
    "data_name",
    "vocab_path",
    "boxes",
    "batch_size",
    "workers",
    "device",
    "amp",
    "tf32",
    "sim_memory",
)


def overrides_of(flags):
    """What was given on the command line in place of a checkpoint's own flags: {name: value, None where not}."""
    return {name: getattr(flags, name) for name in OVERRIDES if hasattr(flags, name)}


def add_override_flags(parser, split="test", boxes=False):
    """Flags of everything that uses a checkpoint: where its data are now, which split, where to compute."""
    add = parser.add_argument
    add("--data_path", help="folder that holds the data sets (default: the checkpoint's)")
    add("--data_name", help="data set (default: the checkpoint's)")
    add("--vocab_path", help="folder of the vocabulary (default: the checkpoint's)")
    add("--split", default=split, help="split of the data: train, dev, test or testall")
    add("--device", default=default_device(), type=device, help="where to compute: cpu, cuda, cuda:1, ...")
    if boxes:
        add("--boxes", choices=["normalized", "none"], help="GSMN's boxes, or no geometry (default: the checkpoint's)")
