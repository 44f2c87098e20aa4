"""What benchmark.py --device cuda measures: one report of a card, within a time limit.

Every measurement is one row {'part', 'case', figures ...}.  What fails is a row with 'error', and what the time limit
leaves out is a row with 'skipped', so that one run always gives a whole report.
"""

import gc
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import data
import evaluation
import train
from modules import literal
from runtime import distributed
from runtime.transfer import on_device
from systems.options import train_options
from tools.measuring import training
from tools.measuring.counting import Counter
from tools.measuring.random_data import VOCABULARY, caption_lengths, embeddings, random_batch
from training.health import GuardedAdam

PRECISIONS = {"float32": [], "tf32": ["--tf32"], "bf16": ["--amp", "bf16"]}


@dataclass
class Sizes:
    """The published recipes' sizes; the tests take tiny ones."""

    batches: tuple = (64, 128, 256)  # of GSMN
    vsrn_batch: int = 128
    embed_size: int = 1024
    vsrn_embed_size: int = 2048
    regions: int = 36
    small: int = 8  # pairs that are compared with float64
    splits: tuple = (1000, 5000)  # images of an evaluation
    scored: int = 500  # images of an evaluation that are timed; the rest is extrapolated
    stored: int = 512  # images in files, for data loading
    workers: tuple = (0, 2, 4, 8)
    steps: int = 10
    gsmn_flags: tuple = ("--bi_gru",)  # of train.py
    vsrn_flags: tuple = ()


class Report:
    """Rows of measurements, and the time that is left for more."""

    def __init__(self, device, minutes, sizes):
        self.device, self.sizes, self.rows = device, sizes, []
        self.end = time.monotonic() + 60 * minutes

    def add(self, part, case, task, *arguments):
        """Adds the row of task(*arguments), a dict of figures, unless the time is over."""
        row = {"part": part, "case": case}
        if time.monotonic() > self.end:
            row["skipped"] = "time limit"
        else:
            try:
                row |= task(*arguments)
            except Exception as error:  # a kernel that does not compile is a result, too
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        self.rows.append(row)
        if self.device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()
        figures = "  ".join(f"{name} {show(value)}" for name, value in row.items() if name not in ("part", "case"))
        print(f"{part:22}{case:38}{figures}", flush=True)

    def content(self):
        """What --json writes."""
        return {"machine": machine(self.device), "rows": self.rows}

    def markdown(self):
        """Tables for docs/performance.md, one for each part."""
        lines = ["; ".join(f"{name} {value}" for name, value in machine(self.device).items())]
        for part in dict.fromkeys(row["part"] for row in self.rows):
            rows = [row for row in self.rows if row["part"] == part]
            names = list(dict.fromkeys(name for row in rows for name in row if name not in ("part", "case")))
            lines += ["", f"| {part} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
            lines += [f"| {row['case']} | {' | '.join(show(row.get(name, '')) for name in names)} |" for row in rows]
        return "\n".join(lines) + "\n"


def show(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine(device):
    """What the figures depend on."""
    found = {"device": device, "torch": torch.__version__, "python": platform.python_version()}
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "cards": torch.cuda.device_count(), "MB": card.total_memory >> 20}
        found |= {"capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def measure(device="cuda", minutes=9.5, sizes=None):
    """The whole report; what matters most comes first."""
    sizes, device = sizes or Sizes(), distributed.local_device(device)
    report = Report(device, minutes, sizes)
    add = report.add
    for batch in sizes.batches[:2]:
        for propagation in ("self", "neighbors"):
            add(
                "launches of a step",
                f"GSMN, batch {batch}, {propagation}",
                launches,
                report,
                "gsmn",
                batch,
                propagation,
            )
    add("launches of a step", f"VSRN, batch {sizes.vsrn_batch}", launches, report, "vsrn", sizes.vsrn_batch)
    for kernel, precision in [*(("torch", name) for name in PRECISIONS), ("triton", "float32")]:
        add("agreement with float64", f"GSMN, {kernel}, {precision}", agreement, report, kernel, precision)
    add_steps(report, "torch", "float32")
    add("training step", f"VSRN, batch {sizes.vsrn_batch}, torch, float32", step, report, "vsrn", sizes.vsrn_batch)
    for kernel in ("torch", "triton"):
        add_evaluations(report, kernel, "float32")
    for workers in sizes.workers:
        add("data loading", f"GSMN, batch {sizes.vsrn_batch}, {workers} workers", loading, report, workers)
    for precision in PRECISIONS:
        add("agreement with float64", f"GSMN, compiled, {precision}", agreement, report, "compiled", precision)
        add_steps(report, "compiled", precision)
    for precision in [name for name in PRECISIONS if name != "float32"]:
        add_steps(report, "torch", precision)
        add_evaluations(report, "torch", precision)
        name = f"VSRN, batch {sizes.vsrn_batch}, torch, {precision}"
        add("training step", name, step, report, "vsrn", sizes.vsrn_batch, "torch", precision)
    for processes in {1, torch.cuda.device_count() or 1}:
        add("processes", f"GSMN, batch {sizes.batches[-1]}, {processes}", in_processes, report, processes)
    return report


def add_steps(report, kernel, precision):
    """GSMN's training steps at all batch sizes."""
    for batch in report.sizes.batches:
        name = f"GSMN, batch {batch}, {kernel}, {precision}"
        report.add("training step", name, step, report, "gsmn", batch, kernel, precision)


def add_evaluations(report, kernel, precision):
    """GSMN's similarities of all splits."""
    for images in report.sizes.splits:
        name = f"GSMN, {images} x {5 * images}, {kernel}, {precision}"
        report.add("evaluation", name, evaluate, report, images, kernel, precision)


def prepared(report, system, batch, kernel="torch", precision="float32", propagation="self"):
    """(model, optimiser, batch, opt) of a training step.

    kernel: `torch`, `compiled` (the same through torch.compile) or `triton`, which has no gradients.
    """
    sizes = report.sizes
    width = sizes.vsrn_embed_size if system == "vsrn" else sizes.embed_size
    flags = ["--model", system, "--embed_size", str(width), "--batch_size", str(batch), "--device", report.device]
    flags += [*PRECISIONS[precision], "--max_violation"]
    if system == "vsrn":
        flags += sizes.vsrn_flags
    else:
        flags += ["--propagation", propagation, *sizes.gsmn_flags]
        flags += ["--kernel", "triton" if kernel == "triton" else "torch"]
    opt, _ = train_options(flags)
    opt.vocab_size = VOCABULARY
    train.seed_everything(0)
    model = train.build_model(opt).to(report.device)
    if kernel == "compiled":
        model.compile_parts()
    optimizer = GuardedAdam(model.parameters(), 1e-4)
    sized = SimpleNamespace(model=system, batch_size=batch, regions=sizes.regions)
    return model, optimizer, next(on_device([random_batch(sized, opt)], report.device)), opt


def launches(report, system, batch, propagation="self"):
    model, optimizer, one, opt = prepared(report, system, batch, propagation=propagation)
    train.train_step(model, optimizer, one, opt.grad_clip)  # the optimiser's state is made
    with Counter() as counter:
        train.train_step(model, optimizer, one, opt.grad_clip)
    return {"launches": counter.launches, "GB": counter.bytes / 1e9, "waits": counter.waits}


def synchronize(report):
    if report.device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(report, task, repeats):
    """(median seconds, peak MB of the card) of a task."""
    task()  # allocates and compiles
    task()
    if report.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        synchronize(report)
        start = time.perf_counter()
        task()
        synchronize(report)
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**20 if report.device.startswith("cuda") else float("nan")
    return statistics.median(times), peak


def step(report, system, batch, kernel="torch", precision="float32"):
    model, optimizer, one, opt = prepared(report, system, batch, kernel, precision)
    seconds, peak = timed(report, lambda: train.train_step(model, optimizer, one, opt.grad_clip), report.sizes.steps)
    return {"ms": 1e3 * seconds, "pairs/s": batch / seconds, "peak MB": peak}


def agreement(report, kernel, precision):
    """Largest differences from the literal definition in float64, relative to the largest value.

    Triton: of the scores alone, since it has no gradients.
    """
    model, _, _, opt = prepared(report, "gsmn", report.sizes.small, kernel, precision)
    sized = SimpleNamespace(regions=report.sizes.regions, embed_size=opt.embed_size, device=report.device)
    torch.manual_seed(1)
    regions, words, boxes, lengths = embeddings(sized, report.sizes.small, report.sizes.small)
    inputs = [x.requires_grad_() for x in (regions, words)]
    with torch.set_grad_enabled(kernel != "triton"):
        scores = model.forward_sim(*inputs, boxes, None, lengths)
    found = [scores.detach()]
    if kernel != "triton":
        found += torch.autograd.grad(scores.square().sum(), inputs)
    model, inputs = model.double(), [x.detach().double().requires_grad_() for x in inputs]
    plain = [row[:n] for row, n in zip(inputs[1], lengths)]
    scores = sum(literal.literal_scores(model, inputs[0], plain, boxes.double(), [None] * len(plain)))
    exact = [scores.detach(), *torch.autograd.grad(scores.square().sum(), inputs)]
    errors = [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact)]
    return {"scores": errors[0]} | ({"gradient": max(errors[1:])} if errors[1:] else {})


def evaluate(report, images, kernel, precision):
    """Similarity of all pairs, from some images extrapolated to all of them."""
    model, _, _, opt = prepared(report, "gsmn", report.sizes.small, kernel, precision)
    scored = min(images, report.sizes.scored)
    sized = SimpleNamespace(regions=report.sizes.regions, embed_size=opt.embed_size, device="cpu")
    regions, words, boxes, lengths = embeddings(sized, scored, 5 * images)
    words = [row[:n] for row, n in zip(words, lengths)]
    model.eval()
    few = [regions[:4], words[:20], boxes[:4], None, lengths[:20]]
    evaluation.shard_xattn(model, *few)  # compiles
    seconds, peak = timed_once(report, lambda: evaluation.shard_xattn(model, regions, words, boxes, None, lengths))
    return {"s": seconds * images / scored, "timed images": scored, "peak MB": peak}


def timed_once(report, task):
    if report.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    synchronize(report)
    start = time.perf_counter()
    task()
    synchronize(report)
    peak = torch.cuda.max_memory_allocated() / 2**20 if report.device.startswith("cuda") else float("nan")
    return time.perf_counter() - start, peak


def loading(report, workers):
    """Seconds for a batch from files: read alone, and beside training steps."""
    sizes = report.sizes
    with tempfile.TemporaryDirectory() as folder:
        model, optimizer, _, opt = prepared(report, "gsmn", sizes.vsrn_batch)
        opt.data_path, opt.data_name = folder, "random_precomp"
        write_split(Path(folder) / opt.data_name, sizes, opt.img_dim)
        split = data.open_split("train", opt.data_name, range(VOCABULARY), opt)
        batches = data.in_order(len(split), sizes.vsrn_batch)[: sizes.steps + 2]
        loader = data.make_loader(split, batches, workers)
        alone, _ = timed_once(report, lambda: sum(1 for _ in loader))

        def take():
            for batch in on_device(loader, report.device):
                train.train_step(model, optimizer, batch, opt.grad_clip)

        beside, _ = timed_once(report, take)
    return {"ms to read": 1e3 * alone / len(batches), "ms to read and train": 1e3 * beside / len(batches)}


def write_split(folder, sizes, img_dim):
    """A train split of random features and captions in files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "train_ims.npy", rng.random((sizes.stored, sizes.regions, img_dim), np.float32))
    np.save(folder / "train_ims_bbx.npy", rng.random((sizes.stored, sizes.regions, 4), np.float32))
    np.save(folder / "train_ims_size.npy", np.ones(sizes.stored, [("image_w", "f4"), ("image_h", "f4")]))
    words = [rng.integers(4, VOCABULARY, n) for n in caption_lengths(5 * sizes.stored)]
    (folder / "train_precaps_stan.txt").write_text("".join(",".join(map(str, ids)) + "\n" for ids in words))


def in_processes(report, processes):
    sizes = report.sizes
    opt = SimpleNamespace(
        model="gsmn", batch_size=sizes.batches[-1], embed_size=sizes.embed_size, device=report.device,
        regions=sizes.regions, threads=1, steps=sizes.steps,
    )  # fmt: skip
    found = training.in_processes(opt, processes)
    return {"ms": 1e3 * found["seconds"], "pairs/s": sizes.batches[-1] / found["seconds"]}
