"""How fast this machine computes, and what a GPU would have to do: one table.

    python tools/benchmark.py                                   # similarity and steps: some minutes
    python tools/benchmark.py --parts step --batch_size 64 256  # these rows
    python tools/benchmark.py --parts counted                   # kernels and bytes on a GPU, counted without one
    python tools/benchmark.py --parts systems --minutes 60      # all systems: 1,000 images with 5,000 captions
    python tools/benchmark.py --parts processes --processes 2   # training with one process and with two
    python tools/benchmark.py --device cuda                     # a card, in less than ten minutes

"x bare": times as long as the matrix product that every implementation needs, all regions times all words at full
width, timed in the same run.  Random embeddings and features; captions of 5 to 30 words, or as long as those of a file
of word ids.  What fails is a row with its error, and what the time limit leaves out a row that says so.
docs/performance.md.
"""

import argparse
import gc
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runtime.start import guarded, run

from runtime.commandline import Parser, positive, whole

USUAL = ("agreement", "similarity", "step", "whole step")
ON_REQUEST = ("counted", "systems", "processes")


def options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=USUAL + ON_REQUEST, help=f"rows to measure (default: {', '.join(USUAL)})")
    add("--device", default="cpu", help="cpu or cuda")
    add("--batch_size", nargs="+", default=[64], type=whole(), help="pairs of a training step")
    add("--images", type=whole(), help="images to score, with five captions each (default: 128, of all systems 1000)")
    add("--regions", default=36, type=whole(), help="regions of an image")
    add("--flags", default="", help="more flags of train.py, in quotes, as --flags='--embed_size 256'")
    add("--processes", default=2, type=whole(), help="processes to compare with one")
    add("--repeat", default=5, type=whole(), help="measurements of each, of which the median counts")
    add("--minutes", default=9.5, type=positive, help="time limit")
    add("--lengths", metavar="FILE", help="a split's precaps_stan.txt: captions as long as these")
    return parser.parse_args(argv)


if __name__ == "__main__":
    guarded(options)  # before torch is loaded

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model
import train
from data import label_and_mask
from evaluation import encode_all_captions, encode_all_images, score_all
from files.text import read_lines
from modules import literal
from modules.layers import l2norm
from modules.sides import CaptionSide, ImageSide
from reporting.run_page import read_log
from runtime.batches import Item, collate
from runtime.devices import choose
from runtime.transfer import send_batch
from systems.options import train_options
from systems.table import inputs_of
from training.health import GuardedAdam

VOCABULARY = 8481  # words, as of Flickr30K
CPU = {"float32": [], "without the C kernel": ["--kernel", "torch"]}
CUDA = {
    "float32": [], "TF32": ["--tf32"], "bfloat16 encoders": ["--tf32", "--amp", "bf16"],
    "compiled, float32": ["--compile"], "compiled, TF32": ["--compile", "--tf32"],
}  # fmt: skip
PROPAGATIONS = {name: ["--propagation", name] for name in ("self", "neighbors")}
GSMN = ["--model", "gsmn", "--bi_gru", "--max_violation"]
VSRN = ["--model", "vsrn", "--max_violation"]
SCAN = "--model scan --bi_gru --max_violation --lambda_softmax 9 --agg_func".split()
SYSTEMS = {
    "VSE++": ["--model", "vsepp", "--max_violation"],
    "VSRN": VSRN,
    "SCAN t-i AVG": [*SCAN, "Mean", "--cross_attn", "t2i"],
    "SCAN t-i LSE": [*SCAN, "LogSumExp", "--cross_attn", "t2i"],
    "SCAN i-t AVG": [*SCAN, "Mean", "--cross_attn", "i2t"],
    "GSMN": [*GSMN, "--propagation", "self"],
    "GSMN, neighbors": [*GSMN, "--propagation", "neighbors"],
}


def measure(opt):
    """Measures and prints the rows of the parts that are asked for; yields each as a dict."""
    end = time.monotonic() + 60 * opt.minutes
    for part in opt.parts or (USUAL + ON_REQUEST if on_cuda(opt) else USUAL):
        for case, task, *arguments in rows_of(part, opt):
            row = {"skipped": "time limit"}
            if time.monotonic() < end:
                try:
                    row = task(opt, *arguments)
                except Exception as error:  # whatever fails on a new card is a result, too
                    row = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
            print(f"{part:12}{case:44}" + "  ".join(f"{name} {value}" for name, value in values.items()), flush=True)
            yield {"part": part, **row}
            gc.collect()
            if on_cuda(opt):
                torch.cuda.empty_cache()


def rows_of(part, opt):
    """[(the row's name, function, its arguments after opt)] of a part."""
    ways = CUDA if on_cuda(opt) else CPU
    both = {f"{p}, {name}": [*flag, *flags] for p, flag in PROPAGATIONS.items() for name, flags in ways.items()}
    of_gsmn = {f"gsmn, {name}": [*GSMN, *flags] for name, flags in ways.items()}
    of_vsrn = {f"vsrn, {name}": [*VSRN, *flags] for name, flags in ways.items() if "--kernel" not in flags}

    def steps(task, cases):
        return [(f"{name}, batch {b}", task, b, flags) for b in opt.batch_size for name, flags in cases.items()]

    return {
        "counted": steps(counted, PROPAGATIONS),
        "agreement": [(name, agreement, flags) for name, flags in ways.items()],
        "similarity": [(name, similarity, flags) for name, flags in both.items()],
        "step": steps(step, both),
        "whole step": steps(whole_step, of_gsmn | of_vsrn),
        "systems": [(name, evaluation, flags) for name, flags in SYSTEMS.items()] + steps(whole_step, SYSTEMS),
        "processes": [(f"{n} of them", processes, n) for n in sorted({1, opt.processes})],
    }[part]


def on_cuda(opt):
    return opt.device.startswith("cuda")


# ---- random data


def caption_lengths(count, file=None):
    """Words of so many captions: 5 to 30, 12.4 on average, or drawn from a file of word ids; always the same ones."""
    rng = np.random.default_rng(0)
    if file is None:
        return np.clip(np.round(4 + rng.gamma(4.5, 8.4 / 4.5, count)), 5, 30).astype(int).tolist()
    return rng.choice([line.count(",") + 1 for line in read_lines(file) if line], count).tolist()


def tree(n):
    """Dependencies of a caption of n words: word k depends on word k / 2."""
    return [[0, 0]] + [[word // 2, word] for word in range(1, n)]


def random_batch(opt, lengths, regions=36):
    """A Batch of random features (B, R, img_dim) and captions of these lengths, for a model of these flags."""
    rng, items = np.random.default_rng(0), []
    for i, n in enumerate(lengths):
        ids = rng.integers(4, VOCABULARY, n).tolist()
        target = label_and_mask(ids, opt.max_len) if inputs_of(opt).label_length else (None, None)
        image, boxes = (rng.random((regions, width), np.float32) for width in (opt.img_dim, 4))
        items.append(Item(image, ids, i, boxes, tree(n), *target))
    return collate(items)


def network(opt, flags):
    """(model of random weights, its options); flags: of train.py."""
    model_opt = train_options([*flags, *opt.flags.split(), "--device", opt.device])[0]
    model_opt.vocab_size = VOCABULARY
    train.seed_everything(0)
    net = model.build_model(model_opt).to(opt.device)
    if model_opt.compile:
        net.compile_parts()
    return net, model_opt


def gsmn(opt, flags, images, captions):
    """GSMN and its input: unit vectors of regions (I, R, D), of words (C, n, D), boxes, dependencies, lengths."""
    net, model_opt = network(opt, [*GSMN, *flags])
    lengths, make = caption_lengths(captions, opt.lengths), torch.Generator().manual_seed(0)
    shapes = (images, opt.regions, model_opt.embed_size), (captions, max(lengths), model_opt.embed_size)
    regions, words = (l2norm(torch.randn(shape, generator=make)).to(opt.device).requires_grad_() for shape in shapes)
    return net, (regions, words, torch.rand(images, opt.regions, 4, generator=make), [*map(tree, lengths)], lengths)


# ---- what is measured


def once(opt, task):
    """Seconds of one call, and what it returns."""
    start = time.perf_counter()
    found = task()
    if on_cuda(opt):
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def timed(opt, task, bare=None):
    """{'s': median seconds of a task, 'x bare': beside those of `bare`, 'peak MB': of a card}."""
    times, bases = [], []
    for tries in range(opt.repeat + 1):  # the first one allocates and compiles
        bases.append(once(opt, bare)[0] if bare else 0)
        times.append(once(opt, task)[0])
        if on_cuda(opt) and tries == 0:
            torch.cuda.reset_peak_memory_stats()
    found = {"s": statistics.median(times[1:])}
    if bare:
        found["x bare"] = found["s"] / statistics.median(bases[1:])
    return found | ({"peak MB": torch.cuda.max_memory_allocated() / 2**20} if on_cuda(opt) else {})


def bare_product(regions, words, boxes, depends, lengths):
    flat = torch.cat([row[:n] for row, n in zip(words.detach(), lengths)]).t()
    return lambda: regions.detach().flatten(0, 1) @ flat


def agreement(opt, flags):
    """Largest differences from the literal definition in float64, in parts of the largest value."""
    net, case = gsmn(opt, flags, 8, 8)
    scores = net.forward_sim(*case)
    found = [scores.detach(), *torch.autograd.grad(scores.square().sum(), case[:2])]
    net, inputs = net.double(), [x.detach().double().requires_grad_() for x in case[:2]]
    plain = [row[:n] for row, n in zip(inputs[1], case[4])]
    scores = sum(literal.literal_scores(net, inputs[0], plain, case[2].double().to(opt.device), [None] * len(plain)))
    exact = [scores.detach(), *torch.autograd.grad(scores.square().sum(), inputs)]
    errors = [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact)]
    return {"scores": errors[0], "gradient": max(errors[1:])}


def similarity(opt, flags):
    images = opt.images or 128
    net, case = gsmn(opt, flags, images, 5 * images)
    with torch.no_grad():
        found = timed(opt, lambda: net.eval().forward_sim(*case), bare_product(*case))
    return found | {"pairs/s": 5 * images**2 / found["s"]}


def step(opt, batch, flags):
    """GSMN's similarity, loss and backward pass from given embeddings."""
    net, case = gsmn(opt, flags, batch, batch)

    def task():
        for x in (*case[:2], *net.parameters()):
            x.grad = None
        net.forward_loss(net.forward_sim(*case)).backward()

    return timed(opt, task, bare_product(*case))


def whole_step(opt, pairs, flags):
    """A training step: encoders, similarity, loss, backward pass, optimiser."""
    net, model_opt = network(opt, flags)
    optimizer = GuardedAdam(net.parameters(), 1e-4)
    batch = send_batch(random_batch(model_opt, caption_lengths(pairs, opt.lengths), opt.regions), opt.device)
    found = timed(opt, lambda: train.train_step(net, optimizer, batch, model_opt.grad_clip))
    return found | {"pairs/s": pairs / found["s"]}


@torch.no_grad()
def evaluation(opt, flags):
    """Seconds that a system of random weights, as wide as published, needs to encode images and captions and to score
    all pairs; SCAN t-i AVG also caption by caption as in its released code, from every hundredth caption.
    """
    net, model_opt = network(opt, flags)
    net.eval()
    rng, images = np.random.default_rng(0), opt.images or 1000
    lengths = [min(n, 60) for n in caption_lengths(5 * images, opt.lengths)]  # VSRN's --max_len
    features = torch.rand(images, opt.regions, model_opt.img_dim)
    tokens = [rng.integers(4, VOCABULARY, n).tolist() for n in lengths]
    items = [Item(None, ids, i, None, None, None, None) for i, ids in enumerate(tokens)]
    split = SimpleNamespace(n_images=images, image=features.__getitem__, tokens=tokens, item=items.__getitem__)
    net.encode_images(features[:100])  # the first call allocates
    found = {"M parameters": sum(weight.numel() for weight in net.parameters()) / 1e6}
    found["images s"], regions = once(opt, lambda: encode_all_images(net, split, 0))
    found["captions s"], words = once(opt, lambda: encode_all_captions(net, split, lengths))
    sides = ImageSide(regions, torch.rand(images, opt.regions, 4)), CaptionSide(words, lengths, [*map(tree, lengths)])
    found["pairs s"], scores = once(opt, lambda: score_all(net, *sides))
    if flags == SYSTEMS["SCAN t-i AVG"]:
        some, regions = [x.to(opt.device) for x in words[::100]], regions.to(opt.device)
        seconds, plain = once(opt, lambda: [literal.scan_scores(regions, x, net.smooth) for x in some])
        found["caption by caption s"] = seconds * len(words) / len(some)
        found["difference"] = float(abs(torch.stack(plain, 1).cpu().numpy() - scores[:, ::100]).max())
    return found


def processes(opt, count):
    """Training with so many processes on this machine: the median step's pairs a second, and the first loss."""
    flags = [*GSMN, *opt.flags.split()]
    width = train_options(flags)[0].img_dim
    with tempfile.TemporaryDirectory() as folder:
        make = f"--out {folder} --n_train 128 --n_dev 1 --n_testall 5 --regions {opt.regions} --img_dim {width}"
        subprocess.run([sys.executable, str(ROOT / "tools/make_demo.py"), *make.split()], check=True)
        flags += f"--data_path {folder}/data --vocab_path {folder}/vocab --data_name demo_precomp".split()
        flags += f"--device {opt.device} --batch_size {opt.batch_size[-1]} --logger_name {folder}".split()
        flags += f"--model_name {folder}/models --num_epochs 1 --log_step 1 --workers 0".split()
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), str(ROOT / "train.py")]
        subprocess.run([sys.executable, *start, *flags], env={"OMP_NUM_THREADS": "1", **os.environ}, check=True)
        steps, _ = read_log(Path(folder, "log.jsonl"))
    speed = statistics.median(row["pairs_per_second"] for row in steps)
    return {"pairs/s": speed, "first loss": steps[0]["losses"]["Le"]}


# ---- a GPU's work, counted on tensors without data

# beginnings of names: no kernel, though their schema does not call them views
FREE = ("_unsafe_view", "_reshape_alias", "lift_fresh", "set_", "resize_", "empty", "new_empty")


class Counter(TorchDispatchMode):
    """Counts kernels and bytes, forward and backward, while it is active.

    Every ATen operator that computes counts as one kernel; views and empty tensors count as none.  Its bytes are those
    of the distinct elements of its tensors, read or written once, as if nothing stayed in a cache.  Both are estimates:
    some operators start two kernels, and a GRU is one operator here whatever cuDNN makes of it.
    """

    kernels = bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        library, _, name = function._schema.name.partition("::")
        if library in ("aten", "prims") and not name.startswith(FREE) and not function.is_view:
            self.kernels += 1
            self.bytes += sum(touched(x) for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
        return result


def touched(x):
    """Bytes of the distinct elements of a strided tensor; an expanded dimension counts once."""
    if x.layout != torch.strided:
        return 0
    return x.element_size() * math.prod(size if stride or not size else 1 for size, stride in zip(x.shape, x.stride()))


def counted(opt, batch, flags):
    """Kernels and bytes of GSMN's similarity, loss and backward pass on a GPU."""
    without_data = argparse.Namespace(**{**vars(opt), "device": "meta"})
    net, case = gsmn(without_data, [*flags, "--sim_memory", "40000"], batch, batch)
    with Counter() as counter:
        net.forward_loss(net.forward_sim(*case)).backward()
    return {"kernels": counter.kernels, "GB": counter.bytes / 1e9, "MB a pair": counter.bytes / batch**2 / 1e6}


def main(argv=None):
    opt = options(argv)
    opt.device = choose(opt.device)
    where = f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"
    if on_cuda(opt):
        card = torch.cuda.get_device_properties(opt.device)
        where = f"{card.name}, {card.total_memory >> 20} MB, CUDA {torch.version.cuda}"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {where}")
    for _ in measure(opt):
        pass


if __name__ == "__main__":
    run(main)
