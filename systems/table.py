"""The table of systems: what the flags, the files and the commands need to know of each, without importing torch.

A system is one entry of SYSTEMS and one class, which its entry names as text (`built_by`).  Nothing outside this folder
tests a system's name.  docs/extend.md adds a system step by step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from files.text import PICTURES
from runtime.commandline import number, positive, whole

MOST_WORDS = 10_000  # words of a caption for a caption model, which takes memory for as many
LARGEST_CROP = 4096  # pixels


@dataclass(frozen=True)
class Inputs:
    """What a system reads of a data set, beside captions and region features."""

    ids: bool = False  # prepared word ids, {split}_precaps_stan.txt; else the words of {split}_caps.txt
    boxes: str = "none"  # "normalized", "released" (in evaluation) or "none"
    dependencies: bool = False  # {split}_caps.json
    label_length: int = 0  # length of a caption model's labels, less 1; 0 for no labels
    vectors: bool = False  # files of one vector an image, (N, F), too


@dataclass(frozen=True)
class System:
    """One system.  Only name, title and built_by are needed."""

    name: str  # of --model
    title: str  # for readers
    built_by: str  # "module:class", imported when a model is built
    example: str = ""  # a command for --help
    add_flags: Callable = lambda parser: None  # its own flags
    pictures: bool = False  # reads the data sets coco, f8k and f30k, pictures instead of features
    of_weights: frozenset = frozenset()  # those that decide what the weights are: a resumed run keeps them
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of shared flags, where they differ
    settle: Callable = lambda opt: None  # replaces values such as 'auto' by what they stand for
    inputs: Callable = lambda opt: Inputs()  # complete flags -> Inputs
    variants: Mapping[str, Mapping] = field(default_factory=lambda: {"": {}})  # flags of kinds with other Inputs
    describe: Callable = lambda opt: ""  # what kind of model the flags make, after the title
    holds: Callable = lambda states, opt: False  # recognises a released file, whose opt names no system
    released: Mapping[str, Any] = field(default_factory=dict)  # flags that a released file lacks

    def kind(self, opt):
        """The title and the kind of model, for announcements and reports."""
        kind = self.describe(opt)
        return f"{self.title}, {kind}" if kind else self.title


def system_of(opt):
    """The System that opt.model names."""
    return SYSTEMS[opt.model]


def flag_adder(group):
    """A function that adds a flag to a group of a parser.  kind: a type, or a list of choices; False makes a switch."""

    def add(name, default, help, kind=str, **more):
        if default is False:
            how = {"action": "store_true"}
        else:
            how = {"choices": kind} if isinstance(kind, list) else {"type": kind}
        group.add_argument(name, default=default, help=help, **{**how, **more})

    return add


def inputs_of(opt):
    """The Inputs of the system and flags that complete options name."""
    return system_of(opt).inputs(opt)


def titles():
    """The titles of all systems, for messages."""
    return " or ".join(system.title for system in SYSTEMS.values())


# ---- GSMN


def add_gsmn_flags(parser):
    group = parser.add_argument_group("GSMN")
    add = flag_adder(group)
    add_word_vector_flags(add)
    add("--lambda_softmax", 9.0, "sharpness of attention", positive)
    add("--feat_dim", 16, "width of a matching vector; equals --num_block", whole())
    add("--num_block", 16, "blocks an embedding is split into", whole())
    add("--hid_dim", 32, "hidden width of the graph convolutions, divisible by 8", whole())
    add("--out_dim", 1, "scores of a node; only 1 is defined", whole())
    add("--is_sparse", False, "word graph along dependencies instead of all pairs")
    add(
        "--propagation",
        "self",
        "what a node receives: its own vector, as released, or its neighbours', as in the paper",
        ["self", "neighbors"],
    )
    add(
        "--boxes",
        "normalized",
        "boxes divided by the image size, or none: no geometry, no files",
        ["normalized", "none"],
    )
    add_memory_flag(add)
    add_kernel_flag(group.add_argument)


def add_word_vector_flags(add):
    """Flags of the text encoder that gives a vector for each word."""
    add("--bi_gru", False, "read captions in both directions, averaged")
    add("--no_txtnorm", False, "do not normalise the word embeddings")


def add_memory_flag(add):
    add(
        "--sim_memory",
        0,
        "memory for the similarity of image-caption pairs, which works in tiles that fit; "
        "0 for 256 MB on a CPU and half of a GPU's free memory",
        number(),
        metavar="MB",
    )


def add_kernel_flag(add, default="auto"):
    add(
        "--kernel",
        default=default,
        choices=["auto", "torch"],
        help="implementation of GSMN's similarity; auto: C on a CPU, torch on a GPU; torch: always torch",
    )


def describe_gsmn(opt):
    unusual = [] if opt.propagation == "self" else [f"--propagation {opt.propagation}"]
    unusual += [] if opt.boxes == "normalized" else [f"--boxes {opt.boxes}"]
    return ", ".join(["sparse" if opt.is_sparse else "dense", *unusual])


GSMN = System(
    name="gsmn",
    title="GSMN",
    built_by="systems.gsmn:GSMN",
    example="""example, the published dense model of Flickr30K:
  python train.py --data_name f30k_precomp --logger_name runs/dense/log --model_name runs/dense/checkpoint \\
      --bi_gru --max_violation --lambda_softmax=20 --batch_size=64 --keep 2""",
    add_flags=add_gsmn_flags,
    of_weights=frozenset(
        "bi_gru no_txtnorm lambda_softmax feat_dim num_block hid_dim out_dim is_sparse propagation".split()
    ),
    inputs=lambda opt: Inputs(ids=True, boxes=opt.boxes, dependencies=opt.is_sparse),
    variants={"sparse": {"is_sparse": True}, "dense": {}},
    describe=describe_gsmn,
    holds=lambda states, opt: len(states) == 4,
    released={"propagation": "self", "boxes": "normalized"},
)


# ---- VSRN


def add_vsrn_flags(parser):
    add = flag_adder(parser.add_argument_group("VSRN"))
    add_vector_flags(add)
    add(
        "--vsrn_variant",
        "auto",
        "image encoder of the released Flickr30K or COCO model: BatchNorm at its end, or a norm over the regions "
        "at its start; auto: f30k for --data_name f30k_precomp, else coco",
        ["auto", "f30k", "coco"],
    )
    add("--chrono_init", 0, "start the GRU with memories of 1 to T regions; 0: as released", whole(0), metavar="T")
    add = flag_adder(parser.add_argument_group("caption model (region features only)"))
    add("--dim_hidden", 512, "width of the recurrent state", whole())
    add("--bidirectional", 0, "1 for an encoder in both directions", whole(0), choices=[0, 1])
    add("--input_dropout_p", 0.2, "dropout of the inputs", number(1))
    add("--rnn_type", "gru", "recurrent unit", ["gru", "lstm"])
    add("--dim_word", 300, "width of the word embedding", whole())
    add("--max_len", 60, "longest caption", whole(2, MOST_WORDS))
    add_picture_flags(parser)
    add = flag_adder(parser.add_argument_group("VSRN's flags without effect, accepted for old command lines"))
    add("--dim_vid", 2048, "no effect: a region of the caption model has --embed_size", whole())
    add("--rnn_dropout_p", 0.5, "no effect: recurrent layers are not stacked", number(1))


def add_vector_flags(add):
    """Flags of systems whose image and caption are one vector each."""
    add("--measure", "cosine", "similarity of two embeddings", ["cosine", "order"])
    add("--use_abs", False, "take the absolute value of embeddings")


def add_picture_flags(parser):
    add = flag_adder(parser.add_argument_group("pictures (--data_name coco, f8k or f30k)"))
    add("--crop_size", 224, "size of the crop", whole(1, LARGEST_CROP))
    add("--cnn_type", "vgg19", "torchvision classifier, as vgg19 or resnet152")
    add("--finetune", False, "train the CNN too")
    add("--use_restval", False, "COCO: train on restval too")
    add("--no_pretrained", False, "start the CNN from random weights")
    add("--reset_train", False, "no effect: training mode is always restored")


VECTOR_RUNS = {"log_step": 10, "val_step": 500, "logger_name": "runs/runX", "model_name": ""}
OF_VECTORS = "measure use_abs cnn_type finetune".split()  # flags of the weights of systems that read pictures


def settle_vsrn(opt):
    if opt.vsrn_variant == "auto":
        opt.vsrn_variant = "f30k" if opt.data_name == "f30k_precomp" else "coco"


def describe_vsrn(opt):
    if reads_pictures(opt):
        return f"on pictures, {opt.cnn_type}"
    what = "BatchNorm at the end" if opt.vsrn_variant == "f30k" else "norm over the regions at the start"
    return f"--vsrn_variant {opt.vsrn_variant} ({what})"


def reads_pictures(opt):
    """Whether the data set of these flags holds pictures, not features."""
    return opt.data_name in PICTURES


VSRN = System(
    name="vsrn",
    title="VSRN",
    built_by="systems.vsrn:VSRN",
    example="""example, the published model of Flickr30K:
  python train.py --model vsrn --data_name f30k_precomp --logger_name runs/flickr_VSRN --max_violation \\
      --lr_update 10 --max_len 60 --keep 2""",
    add_flags=add_vsrn_flags,
    pictures=True,
    of_weights=frozenset(
        [*OF_VECTORS, *"dim_vid dim_hidden bidirectional rnn_type vsrn_variant dim_word max_len".split()]
    ),
    defaults={**VECTOR_RUNS, "embed_size": 2048, "select": "r1r5"},
    settle=settle_vsrn,
    inputs=lambda opt: Inputs(label_length=opt.max_len),
    describe=describe_vsrn,
    holds=lambda states, opt: len(states) == 2 and has(states[0], "Rs_GCN"),
)


def has(state, *beginnings):
    """Whether a state dict has a name with one of these beginnings."""
    return any(name.startswith(beginnings) for name in state)


# ---- SCAN


def add_scan_flags(parser):
    add = flag_adder(parser.add_argument_group("SCAN"))
    add_word_vector_flags(add)
    add("--cross_attn", "t2i", "words attend to regions, or the reverse", ["t2i", "i2t"])
    norms = ["clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "no_norm", "softmax"]
    add("--raw_feature_norm", "clipped_l2norm", "norm of the affinities before attention", norms)
    add(
        "--agg_func",
        "LogSumExp",
        "how the cosines of words (t2i) or regions (i2t) become one score",
        ["LogSumExp", "Mean", "Max", "Sum"],
    )
    add("--lambda_softmax", 9.0, "sharpness of attention", positive)
    add("--lambda_lse", 6.0, "sharpness of LogSumExp", positive)
    add(
        "--precomp_enc_type",
        "basic",
        "linear layer of the image encoder: plain, or weight-normalised",
        ["basic", "weight_norm"],
    )
    add_memory_flag(add)


SCAN = System(
    name="scan",
    title="SCAN",
    built_by="systems.scan:SCAN",
    example="""example, the published t-i AVG model of Flickr30K:
  python train.py --model scan --data_name f30k_precomp --logger_name runs/scan/log --model_name runs/scan \\
      --max_violation --bi_gru --agg_func=Mean --cross_attn=t2i --lambda_softmax=9 --keep 2""",
    add_flags=add_scan_flags,
    of_weights=frozenset(
        "bi_gru no_txtnorm cross_attn raw_feature_norm agg_func lambda_softmax lambda_lse precomp_enc_type".split()
    ),
    defaults={"log_step": 10, "val_step": 500},
    describe=lambda opt: f"{opt.cross_attn} {opt.agg_func}",
    holds=lambda states, opt: len(states) == 2 and hasattr(opt, "cross_attn"),
)


# ---- VSE++


def add_vsepp_flags(parser):
    add_vector_flags(flag_adder(parser.add_argument_group("VSE++")))
    add_picture_flags(parser)


VSEPP = System(
    name="vsepp",
    title="VSE++",
    built_by="systems.vsepp:VSEpp",
    example="""example, on region features:
  python train.py --model vsepp --data_name f30k_precomp --logger_name runs/vsepp --max_violation --keep 2""",
    add_flags=add_vsepp_flags,
    pictures=True,
    of_weights=frozenset(OF_VECTORS),
    defaults=VECTOR_RUNS,
    inputs=lambda opt: Inputs(vectors=True),
    describe=lambda opt: f"on pictures, {opt.cnn_type}" if reads_pictures(opt) else "",
    holds=lambda states, opt: len(states) == 2 and hasattr(opt, "measure") and not has(states[0], "Rs_GCN"),
)


SYSTEMS = {system.name: system for system in (GSMN, SCAN, VSEPP, VSRN)}

# --loss: its class, "module:class", a modules.losses.Loss
LOSSES = {"triplet": "modules.losses:ContrastiveLoss"}
