"""How fast this machine computes, and what a GPU would have to do: one table.

    python tools/benchmark.py                                   # similarity, steps, encoding, ranking: some minutes
    python tools/benchmark.py --parts step --batch_size 64 256  # these rows
    python tools/benchmark.py --parts counted --data_path data  # kernels and bytes on a GPU, counted without one
    python tools/benchmark.py --parts processes --processes 2   # training with one process and with two
    python tools/benchmark.py --device cuda --json card.json --markdown card.md     # a card, in less than ten minutes

"x bare": times as long as the matrix product that every implementation needs, all regions times all words at full
width, timed in the same run.  Random embeddings and features; captions of 5 to 30 words, or of the lengths of
--data_path's captions.  What fails is a row with its error, and what the time limit leaves out a row that says so.
docs/performance.md.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runtime.start import run

import torch

import data
import evaluation
import model
import train
from files.errors import InputError
from files.writing import atomic_write, check_writable
from modules import literal
from modules.layers import l2norm
from runtime import distributed
from runtime.batches import Share
from runtime.commandline import Parser, positive, whole
from runtime.devices import device
from runtime.transfer import on_device
from systems.options import train_options
from tools.measuring.work import VOCABULARY, Counter, caption_lengths, random_batch
from training import global_batch
from training.health import GuardedAdam

CPU = {"float32": [], "without the C kernel": ["--kernel", "torch"]}
CUDA = {
    "float32": [], "TF32": ["--tf32"], "bfloat16 encoders": ["--tf32", "--amp", "bf16"],
    "compiled, float32": ["--compile"], "compiled, TF32": ["--compile", "--tf32"],
}  # fmt: skip
GSMN = ["--model", "gsmn", "--bi_gru", "--max_violation"]
VSRN = ["--model", "vsrn", "--max_violation"]


def options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, help="rows to measure (default: all but counted, loading, processes)")
    add("--device", default="cpu", type=device, help="cpu or cuda")
    add("--batch_size", nargs="+", default=[64], type=whole(), help="pairs of a training step")
    add("--images", default=128, type=whole(), help="images of the similarity, with five captions each")
    add("--regions", default=36, type=whole(), help="regions of an image")
    add("--embed_size", default=1024, type=whole(), help="width of GSMN's embeddings")
    add("--flags", default="", help="more flags of train.py, in quotes, as --flags='--propagation neighbors'")
    add("--processes", default=2, type=whole(), help="processes to compare with one")
    add("--workers", nargs="+", default=[0, 2, 4], type=whole(0), help="processes that read data")
    add("--repeat", default=5, type=whole(), help="measurements of each, of which the median counts")
    add("--minutes", default=9.5, type=positive, help="time limit")
    add("--data_path", help="folder of data sets: take captions' lengths from a real split")
    add("--data_name", default="f30k_precomp", help="which data set")
    add("--json", metavar="FILE", help="write the rows")
    add("--markdown", metavar="FILE", help="write the rows as tables")
    add("--own_process", help=argparse.SUPPRESS)  # one of several that --parts processes starts: file of its figures
    opt = parser.parse_args(argv)
    opt.lengths = Path(opt.data_path, opt.data_name, "train_precaps_stan.txt") if opt.data_path else None
    return opt


class Report:
    """Rows of measurements, printed as they come, and the time that is left for more."""

    def __init__(self, opt):
        self.opt, self.rows, self.end = opt, [], time.monotonic() + 60 * opt.minutes

    def add(self, part, case, task, *arguments):
        """Adds the row of task(opt, *arguments), a dict of figures, unless the time is over."""
        row = {"part": part, "case": case}
        try:
            row |= task(self.opt, *arguments) if time.monotonic() < self.end else {"skipped": "time limit"}
        except Exception as error:  # whatever fails on a new card is a result, too
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        self.rows.append(row)
        gc.collect()
        if on_cuda(self.opt):
            torch.cuda.empty_cache()
        figures = "  ".join(f"{name} {show(row[name])}" for name in row if name not in ("part", "case"))
        print(f"{part:12}{case:44}{figures}", flush=True)

    def markdown(self):
        """A table for each part."""
        lines = ["; ".join(f"{name} {value}" for name, value in machine(self.opt).items())]
        for part in dict.fromkeys(row["part"] for row in self.rows):
            rows = [row for row in self.rows if row["part"] == part]
            names = list(dict.fromkeys(name for row in rows for name in row if name not in ("part", "case")))
            lines += ["", f"| {part} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
            lines += [f"| {row['case']} | {' | '.join(show(row.get(name, '')) for name in names)} |" for row in rows]
        return "\n".join(lines) + "\n"


def show(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def on_cuda(opt):
    return opt.device.startswith("cuda")


def machine(opt):
    """What the figures depend on."""
    found = {"device": opt.device, "torch": torch.__version__, "python": platform.python_version()}
    if on_cuda(opt):
        card = torch.cuda.get_device_properties(opt.device)
        found |= {"card": card.name, "cards": torch.cuda.device_count(), "MB": card.total_memory >> 20}
        return found | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found | {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}


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
    lengths = caption_lengths(captions, opt.lengths)
    depends = [[[0, 0]] + [[word // 2, word] for word in range(1, n)] for n in lengths]
    make = torch.Generator().manual_seed(0)
    regions, words = (
        torch.empty(images, opt.regions, opt.embed_size),
        torch.empty(captions, max(lengths), opt.embed_size),
    )
    regions, words = (l2norm(x.normal_(generator=make)).to(where or opt.device) for x in (regions, words))
    return regions, words, torch.rand(images, opt.regions, 4, generator=make), depends, lengths


def bare_product(regions, words, lengths):
    flat = torch.cat([row[:n] for row, n in zip(words.detach(), lengths)]).t()
    return lambda: regions.detach().flatten(0, 1) @ flat


def similarity(opt, flags):
    net, case = gsmn(opt, flags).eval(), embeddings(opt, opt.images, 5 * opt.images)
    with torch.no_grad():
        found = timed(opt, lambda: net.forward_sim(*case), bare_product(case[0], case[1], case[4]))
    return found | {"pairs/s": 5 * opt.images**2 / found["s"]}


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


def encoding(opt, system, flags):
    """Seconds for 128 images and 640 captions."""
    net, model_opt = network(opt, [*system, *flags])
    batch = random_batch(model_opt, caption_lengths(128, opt.lengths), opt.regions)
    with torch.no_grad():
        net.eval()
        images = timed(opt, lambda: net.encode_images(batch.images))["s"]
        captions = timed(opt, lambda: [net.encode_captions(batch.captions, batch.lengths) for _ in range(5)])["s"]
    return {"images, s": images, "captions, s": captions}


def ranking(opt, images):
    sims = np.random.default_rng(0).normal(size=(images, 5 * images)).astype(np.float32)
    return {
        f"{way.__name__}, s": timed(opt, lambda way=way: way(sims))["s"] for way in (evaluation.i2t, evaluation.t2i)
    }


def loading(opt, workers, images=512, batch=128):
    """Milliseconds for a batch from files, alone; without the start of the workers and their first batches."""
    with tempfile.TemporaryDirectory() as folder:
        model_opt = network(opt, GSMN)[1]
        model_opt.data_path, name = folder, "random_precomp"
        write_split(Path(folder) / name, opt, images, model_opt.img_dim)
        split = data.open_split("train", name, range(VOCABULARY), model_opt)
        batches = iter(data.make_loader(split, data.in_order(len(split), batch), workers))
        for _ in range(2 * workers + 1):
            next(batches)
        start, count = time.perf_counter(), sum(1 for _ in batches)
        return {"ms a batch": 1e3 * (time.perf_counter() - start) / count, "batches": count}


def write_split(folder, opt, images, img_dim):
    """A train split of random features and captions in files."""
    folder.mkdir()
    rng, shape = np.random.default_rng(0), (images, opt.regions)
    np.save(folder / "train_ims.npy", rng.random((*shape, img_dim), np.float32))
    np.save(folder / "train_ims_bbx.npy", rng.random((*shape, 4), np.float32))
    np.save(folder / "train_ims_size.npy", np.ones(images, [("image_w", "f4"), ("image_h", "f4")]))
    words = [rng.integers(4, VOCABULARY, n) for n in caption_lengths(5 * images, opt.lengths)]
    (folder / "train_precaps_stan.txt").write_text("".join(",".join(map(str, ids)) + "\n" for ids in words))


# ---- several processes


def processes(opt, count):
    """A training step of the last batch size in so many processes that torchrun starts on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        command += [__file__, "--device", opt.device, "--batch_size", str(opt.batch_size[-1]), f"--flags={opt.flags}"]
        command += ["--embed_size", str(opt.embed_size), "--regions", str(opt.regions), "--repeat", str(opt.repeat)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        if subprocess.run([*command, "--own_process", f"{folder}/figures"], env=environment).returncode:
            raise InputError(f"--processes {count}: training failed, see the messages above")
        return json.loads(Path(folder, "figures").read_text())


def one_of_several(opt):
    """The steps of this process, one of those that `processes` starts; the first one writes the figures."""
    with distributed.process_group():
        net, model_opt = network(
            opt, [*GSMN, "--embed_size", str(opt.embed_size)], distributed.local_device(opt.device)
        )
        optimizer, replica = GuardedAdam(net.parameters(), 1e-4), global_batch.training_module(net)
        whole_batch = random_batch(model_opt, caption_lengths(opt.batch_size[-1]), opt.regions)
        parts = global_batch.split(whole_batch._replace(depends=None), distributed.size())
        shares = [Share(part.lengths, part.depends, part.ids) for part in parts]
        batch = parts[distributed.rank()]._replace(shares=shares)
        losses = []
        take = lambda: losses.append(train.train_step(replica, optimizer, batch, model_opt.grad_clip)["loss"].item())  # noqa: E731
        found = timed(opt, take)
        if distributed.is_main():
            Path(opt.own_process).write_text(json.dumps(found | {"first loss": losses[0]}))


# ---- the parts


def measure(opt, report):
    """All rows of the parts that are asked for; what matters most comes first."""
    ways = CUDA if on_cuda(opt) else CPU
    usual = [part for part in PARTS if part not in ("counted", "loading", "processes") or on_cuda(opt)]
    for part in opt.parts or usual:
        for case, task, *arguments in PARTS[part](opt, ways):
            report.add(part, case, task, *arguments)


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
    "encoding": lambda opt, ways: [(system[1], encoding, system, []) for system in (GSMN, VSRN)],
    "ranking": lambda opt, ways: [(f"{n} x {5 * n}", ranking, n) for n in (1000,)],
    "loading": lambda opt, ways: [(f"{n} workers", loading, n) for n in opt.workers],
    "processes": lambda opt, ways: [(f"{n} of them", processes, n) for n in sorted({1, opt.processes})],
}  # fmt: skip


def main(argv=None):
    opt = options(argv)
    if opt.own_process:
        one_of_several(opt)
        return
    for path in filter(None, (opt.json, opt.markdown)):
        check_writable(path)
    report = Report(opt)
    print("; ".join(f"{name} {value}" for name, value in machine(opt).items()))
    measure(opt, report)
    content = json.dumps({"machine": machine(opt), "rows": report.rows}, indent=1)
    for path, text in ((opt.json, content), (opt.markdown, report.markdown())):
        if path:
            atomic_write(path, lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    run(main)
