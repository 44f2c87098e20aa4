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

import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runtime.start import guarded, run

from runtime.commandline import Parser, positive, whole

USUAL = ("agreement", "similarity", "step", "whole step")
ON_REQUEST = ("counted", "systems", "loading", "processes")


def options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=USUAL + ON_REQUEST, help=f"rows to measure (default: {', '.join(USUAL)})")
    add("--device", default="cpu", help="cpu or cuda")
    add("--batch_size", nargs="+", default=[64], type=whole(), help="pairs of a training step")
    add("--images", type=whole(), help="images to score, with five captions each (default: 128, of all systems 1000)")
    add("--regions", default=36, type=whole(), help="regions of an image")
    add("--embed_size", default=1024, type=whole(), help="width of GSMN's embeddings")
    add("--flags", default="", help="more flags of train.py, in quotes, as --flags='--propagation neighbors'")
    add("--processes", default=2, type=whole(), help="processes to compare with one")
    add("--workers", nargs="+", default=[0, 2, 4], type=whole(0), help="processes that read data")
    add("--repeat", default=5, type=whole(), help="measurements of each, of which the median counts")
    add("--minutes", default=9.5, type=positive, help="time limit")
    add("--lengths", metavar="FILE", help="a split's precaps_stan.txt: captions as long as these")
    return parser.parse_args(argv)


if __name__ == "__main__":
    guarded(options)  # before torch is loaded

import torch

import data
import model
import train
from evaluation import score_all
from modules import literal
from modules.layers import l2norm
from modules.sides import CaptionSide, ImageSide
from reporting.run_log import read_log
from runtime.devices import choose
from runtime.transfer import on_device
from systems.options import train_options
from tools import make_demo
from tools.measuring.work import VOCABULARY, Counter, caption_lengths, dependencies, random_batch
from training.health import GuardedAdam
from vocab import deserialize_vocab

CPU = {"float32": [], "without the C kernel": ["--kernel", "torch"]}
CUDA = {
    "float32": [], "TF32": ["--tf32"], "bfloat16 encoders": ["--tf32", "--amp", "bf16"],
    "compiled, float32": ["--compile"], "compiled, TF32": ["--compile", "--tf32"],
}  # fmt: skip
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
    ways, end = CUDA if on_cuda(opt) else CPU, time.monotonic() + 60 * opt.minutes
    for part in opt.parts or (PARTS if on_cuda(opt) else USUAL):
        for case, task, *arguments in PARTS[part](opt, ways):
            row = figures_of(opt, task, *arguments) if time.monotonic() < end else {"skipped": "time limit"}
            print(f"{part:12}{case:44}" + "  ".join(f"{name} {show(value)}" for name, value in row.items()), flush=True)
            yield {"part": part, **row}


def figures_of(opt, task, *arguments):
    """task(opt, *arguments), a dict of figures, or its error."""
    try:
        return task(opt, *arguments)
    except Exception as error:  # whatever fails on a new card is a result, too
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    finally:
        gc.collect()
        if on_cuda(opt):
            torch.cuda.empty_cache()


def show(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def on_cuda(opt):
    return opt.device.startswith("cuda")


def machine(opt):
    """What the figures depend on, in words."""
    found = f"torch {torch.__version__}, Python {platform.python_version()}, "
    if on_cuda(opt):
        card = torch.cuda.get_device_properties(opt.device)
        return f"{found}{card.name}, {card.total_memory >> 20} MB, CUDA {torch.version.cuda}"
    return f"{found}{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"


# ---- what is measured


def timed(opt, task, before=None):
    """{'s': median seconds, 'x bare': beside those of `before`, 'peak MB': of a card} of a task."""
    times, bases = [], []
    for tries in range(opt.repeat + 1):  # the first one allocates and compiles
        for figures, work in ((bases, before), (times, task)):
            if work is not None:
                start = time.perf_counter()
                work()
                if on_cuda(opt):
                    torch.cuda.synchronize()
                figures.append(time.perf_counter() - start)
        if on_cuda(opt) and tries == 0:
            torch.cuda.reset_peak_memory_stats()
    found = {"s": statistics.median(times[1:])}
    if before:
        found["x bare"] = found["s"] / statistics.median(bases[1:])
    return found | ({"peak MB": torch.cuda.max_memory_allocated() / 2**20} if on_cuda(opt) else {})


def network(opt, flags, where=None):
    """(model of random weights, its options); flags: of train.py."""
    model_opt = train_options([*flags, *opt.flags.split(), "--device", opt.device])[0]
    model_opt.vocab_size = VOCABULARY
    train.seed_everything(0)
    net = model.build_model(model_opt).to(where or opt.device)
    if model_opt.compile:
        net.compile_parts()
    return net, model_opt


def gsmn(opt, flags=(), where=None):
    return network(opt, [*GSMN, "--embed_size", str(opt.embed_size), *flags], where)[0]


def embeddings(opt, images, captions, where=None):
    """Unit vectors on a device: regions (I, R, D), words (C, n, D) padded; boxes, dependencies, lengths."""
    lengths, make = caption_lengths(captions, opt.lengths), torch.Generator().manual_seed(0)
    shapes = (images, opt.regions, opt.embed_size), (captions, max(lengths), opt.embed_size)
    regions, words = (l2norm(torch.randn(shape, generator=make)).to(where or opt.device) for shape in shapes)
    return regions, words, torch.rand(images, opt.regions, 4, generator=make), dependencies(lengths), lengths


def bare_product(regions, words, lengths):
    flat = torch.cat([row[:n] for row, n in zip(words.detach(), lengths)]).t()
    return lambda: regions.detach().flatten(0, 1) @ flat


def similarity(opt, flags):
    images = opt.images or 128
    net, case = gsmn(opt, flags).eval(), embeddings(opt, images, 5 * images)
    with torch.no_grad():
        found = timed(opt, lambda: net.forward_sim(*case), bare_product(case[0], case[1], case[4]))
    return found | {"pairs/s": 5 * images**2 / found["s"]}


def step(opt, batch, flags):
    """GSMN's similarity, loss and backward pass from given embeddings."""
    net, case = gsmn(opt, flags), embeddings(opt, batch, batch)
    embedded = [x.requires_grad_() for x in case[:2]]

    def task():
        for x in (*embedded, *net.parameters()):
            x.grad = None
        net.forward_loss(net.forward_sim(*case)).backward()

    return timed(opt, task, bare_product(*embedded, case[4]))


def whole_step(opt, system, batch, flags):
    """A training step: encoders, similarity, loss, backward pass, optimiser."""
    net, model_opt = network(opt, [*system, *flags])
    optimizer = GuardedAdam(net.parameters(), 1e-4)
    given = random_batch(model_opt, caption_lengths(batch, opt.lengths), opt.regions)
    there = next(on_device([given], opt.device))
    found = timed(opt, lambda: train.train_step(net, optimizer, there, model_opt.grad_clip))
    return found | {"pairs/s": batch / found["s"]}


def evaluation(opt, flags):
    """Seconds that a system of random weights, as wide as published, needs to encode images and captions and to score
    all pairs; SCAN t-i AVG also caption by caption as in its released code, from every hundredth caption.
    """
    net, model_opt = network(opt, flags)
    lengths = sorted(caption_lengths(5 * (opt.images or 1000), opt.lengths))
    lengths = [min(n, 60) for n in lengths]  # VSRN's --max_len
    batches = [random_batch(model_opt, lengths[i : i + 100], opt.regions) for i in range(0, len(lengths), 100)]
    batches = [batch._replace(images=batch.images[::5].clone(), bboxes=batch.bboxes[::5]) for batch in batches]
    net.eval()

    def encode_captions():
        found = []
        for batch in batches:
            emb = net.encode_captions(batch.captions, batch.lengths).cpu()
            found += emb if net.one_vector else [row[:n] for row, n in zip(emb, batch.lengths)]
        return torch.stack(found) if net.one_vector else found

    with torch.no_grad():
        net.encode_images(batches[0].images)  # the first call allocates
        found = {"M parameters": sum(weight.numel() for weight in net.parameters()) / 1e6}
        found["images s"], images = once(opt, lambda: torch.cat([net.encode_images(b.images).cpu() for b in batches]))
        found["captions s"], captions = once(opt, encode_captions)
        lengths = [n for batch in batches for n in batch.lengths]
        side = ImageSide(images, torch.cat([batch.bboxes for batch in batches]))
        other = CaptionSide(captions, lengths, dependencies(lengths))
        found["pairs s"], scores = once(opt, lambda: score_all(net, side, other))
        if flags == SYSTEMS["SCAN t-i AVG"]:
            some, images = captions[::100], images.to(opt.device)
            seconds, plain = once(
                opt, lambda: [literal.scan_scores(images, x.to(opt.device), net.smooth) for x in some]
            )
            found["caption by caption s"] = seconds * len(captions) / len(some)
            found["difference"] = float(abs(torch.stack(plain, 1).cpu().numpy() - scores[:, ::100]).max())
    return found


def once(opt, task):
    """Seconds of one call, and what it returns."""
    start = time.perf_counter()
    found = task()
    if on_cuda(opt):
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def counted(opt, batch, flags):
    """Kernels and bytes of GSMN's similarity, loss and backward pass on a GPU, from tensors without data."""
    net, case = gsmn(opt, [*flags, "--sim_memory", "40000"], "meta"), embeddings(opt, batch, batch, "meta")
    embedded = [x.requires_grad_() for x in case[:2]]
    with Counter() as counter:
        net.forward_loss(net.forward_sim(*embedded, *case[2:])).backward()
    return {"kernels": counter.launches, "GB": counter.bytes / 1e9, "MB a pair": counter.bytes / batch**2 / 1e6}


def agreement(opt, flags):
    """Largest differences from the literal definition in float64, in parts of the largest value."""
    net, case = gsmn(opt, flags), embeddings(opt, 8, 8)
    inputs = [x.requires_grad_() for x in case[:2]]
    scores = net.forward_sim(*case)
    found = [scores.detach(), *torch.autograd.grad(scores.square().sum(), inputs)]
    net, inputs = net.double(), [x.detach().double().requires_grad_() for x in inputs]
    plain = [row[:n] for row, n in zip(inputs[1], case[4])]
    scores = sum(literal.literal_scores(net, inputs[0], plain, case[2].double().to(opt.device), [None] * len(plain)))
    exact = [scores.detach(), *torch.autograd.grad(scores.square().sum(), inputs)]
    errors = [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact)]
    return {"scores": errors[0], "gradient": max(errors[1:])}


def make_scenes(opt, folder, images):
    """A data set with a train split of so many images; returns the flags that train on it."""
    width = network(opt, GSMN)[1].img_dim
    sizes = f"--n_train {images} --n_dev 1 --n_testall 5 --regions {opt.regions} --img_dim {width}"
    make_demo.make_demo(Path(folder), make_demo.parser().parse_args(sizes.split()))
    return f"--data_path {folder}/data --vocab_path {folder}/vocab --data_name {make_demo.NAME}".split()


def loading(opt, workers):
    """Milliseconds for a batch of 128 from files, alone; without the start of the workers and their first batches."""
    with tempfile.TemporaryDirectory() as folder:
        model_opt = network(opt, [*GSMN, *make_scenes(opt, folder, 512)])[1]
        vocab = deserialize_vocab(f"{folder}/vocab/{make_demo.NAME}_vocab.json")
        split = data.open_split("train", make_demo.NAME, vocab, model_opt)
        batches = iter(data.make_loader(split, data.in_order(len(split), 128), workers))
        for _ in range(2 * workers + 1):
            next(batches)
        start, count = time.perf_counter(), sum(1 for _ in batches)
        return {"ms a batch": 1e3 * (time.perf_counter() - start) / count, "batches": count}


def processes(opt, count):
    """Training with so many processes on this machine: the median step's pairs a second, and the first loss."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*GSMN, "--embed_size", str(opt.embed_size), *opt.flags.split(), *make_scenes(opt, folder, 128)]
        flags += ["--device", opt.device, "--batch_size", str(opt.batch_size[-1]), "--logger_name", folder]
        flags += ["--model_name", f"{folder}/models", *"--num_epochs 1 --log_step 1 --workers 0".split()]
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), str(ROOT / "train.py")]
        subprocess.run([sys.executable, *start, *flags], env={"OMP_NUM_THREADS": "1", **os.environ}, check=True)
        steps, _ = read_log(Path(folder, "log.jsonl"))
    speed = statistics.median(row["pairs_per_second"] for row in steps)
    return {"pairs/s": speed, "first loss": steps[0]["losses"]["Le"]}


# ---- the parts


def both(ways):
    """{name: flags} of both ways of propagation."""
    return {f"{p}, {name}": ["--propagation", p, *flags] for p in ("self", "neighbors") for name, flags in ways.items()}


PARTS = {
    "counted": lambda opt, ways: [
        (f"{name}, batch {b}", counted, b, flags) for b in opt.batch_size for name, flags in both({"eager": []}).items()
    ],
    "agreement": lambda opt, ways: [(name, agreement, flags) for name, flags in ways.items()],
    "similarity": lambda opt, ways: [(name, similarity, flags) for name, flags in both(ways).items()],
    "step": lambda opt, ways: [
        (f"{name}, batch {b}", step, b, flags) for b in opt.batch_size for name, flags in both(ways).items()
    ],
    "whole step": lambda opt, ways: [
        (f"{system[1]}, {name}, batch {b}", whole_step, system, b, flags)
        for system in (GSMN, VSRN) for b in opt.batch_size for name, flags in ways.items()
        if system is GSMN or "--kernel" not in flags
    ],
    "systems": lambda opt, ways: [
        *[(f"{name}, evaluation", evaluation, flags) for name, flags in SYSTEMS.items()],
        *[(f"{name}, batch {b}", whole_step, flags, b, []) for name, flags in SYSTEMS.items() for b in opt.batch_size],
    ],
    "loading": lambda opt, ways: [(f"{n} workers", loading, n) for n in opt.workers],
    "processes": lambda opt, ways: [(f"{n} of them", processes, n) for n in sorted({1, opt.processes})],
}  # fmt: skip


def main(argv=None):
    opt = options(argv)
    opt.device = choose(opt.device)
    print(machine(opt))
    for _ in measure(opt):
        pass


if __name__ == "__main__":
    run(main)
