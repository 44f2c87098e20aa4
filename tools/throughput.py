"""Training steps a second, with one process and with several: random data, the code of train.py.

    python tools/throughput.py --processes 2                      # GSMN, batch of 64, one thread for each process
    python tools/throughput.py --processes 4 --model vsrn --embed_size 512 --batch_size 128

Several processes are started by torchrun on this machine, gloo for CPU and NCCL for CUDA.  docs/scaling.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import runtime.openmp  # noqa: F401, before torch

import torch

import train
from files.errors import InputError, run
from runtime import distributed, global_batch
from runtime.batches import Batch
from runtime.commandline import Parser
from runtime.options import train_options

VOCABULARY = 8481  # words, as of Flickr30K


def options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--processes", default=2, type=int, help="processes to compare with one")
    add("--threads", default=1, type=int, help="threads of each process")
    add("--model", default="gsmn", choices=["gsmn", "vsrn"], help="what is trained")
    add("--batch_size", default=64, type=int, help="pairs in the whole batch")
    add("--embed_size", default=1024, type=int, help="width of the embeddings")
    add("--regions", default=36, type=int, help="regions of an image")
    add("--steps", default=5, type=int, help="steps that are timed")
    add("--device", default="cpu", help="cpu or cuda")
    add("--worker", action="store_true", help=argparse.SUPPRESS)  # a process that takes the steps
    return parser.parse_args(argv)


def compare(opt):
    """Prints seconds a step and steps a second, first of one process; returns the seconds of each."""
    print(f"\nTraining {opt.model}, batch of {opt.batch_size}, D {opt.embed_size}, threads of a process: {opt.threads}")
    print(f"{'':20}{'s a step':>10}{'steps/s':>10}{'ratio':>8}{'loss':>12}")
    seconds = []
    for processes in (1, opt.processes):
        found = started(opt, processes)
        seconds.append(found["seconds"])
        ratio = seconds[0] / seconds[-1]
        print(f"{processes:>9} process{'es' * (processes > 1):3}{seconds[-1]:10.3f}{1 / seconds[-1]:10.2f}{ratio:8.2f}"
              f"{found['loss']:12.4f}", flush=True)  # fmt: skip
    return seconds


def started(opt, processes):
    """{'seconds': median of a step, 'loss': of the first one} of so many processes."""
    flags = [f"--{name}={value}" for name, value in vars(opt).items() if name not in ("worker", "processes")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(opt.threads)}
    done = subprocess.run([*command, __file__, "--worker", *flags], stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise InputError(f"--processes {processes}: training failed, as said above")
    return json.loads(done.stdout.splitlines()[-1])


def work(opt):
    """One of the processes: takes the steps, and the first one prints what they took."""
    torch.set_num_threads(opt.threads)
    names = ("model", "batch_size", "embed_size", "device")
    model_opt, _ = train_options([f"--{name}={getattr(opt, name)}" for name in names])
    model_opt.vocab_size = VOCABULARY
    with distributed.process_group():
        train.seed_everything(0)
        model = train.build_model(model_opt).to(distributed.local_device(opt.device))
        optimizer, replica = torch.optim.Adam(model.parameters(), lr=1e-4), global_batch.training_module(model)
        batch, times = local_part(random_batch(opt, model_opt)), []
        first = train.train_step(replica, optimizer, batch, model_opt.grad_clip, 0)  # allocates and compiles
        for step in range(opt.steps):
            begun = time.perf_counter()
            train.train_step(replica, optimizer, batch, model_opt.grad_clip, step + 1)
            times.append(time.perf_counter() - begun)
        if distributed.is_main():
            print(json.dumps({"seconds": statistics.median(times), "loss": first["Le"]}), flush=True)


def caption_lengths(captions):
    """Words of so many captions, 5 to 30, 12.4 on average: always the same ones."""
    rng = np.random.default_rng(0)
    return np.clip(np.round(4 + rng.gamma(4.5, 8.4 / 4.5, captions)), 5, 30).astype(int).tolist()


def random_batch(opt, model_opt):
    """A Batch of random features (B, R, img_dim) and captions of 5 to 30 words, the longest first."""
    rng, pairs = np.random.default_rng(0), opt.batch_size
    lengths = sorted(caption_lengths(pairs), reverse=True)
    captions = torch.zeros(pairs, lengths[0], dtype=torch.int64)
    for row, n in zip(captions, lengths):
        row[:n] = torch.as_tensor(rng.integers(4, VOCABULARY, n))
    images = torch.as_tensor(rng.random((pairs, opt.regions, model_opt.img_dim), np.float32))
    boxes = torch.as_tensor(rng.random((pairs, opt.regions, 4), np.float32))
    labels = masks = None
    if opt.model == "vsrn":
        labels = torch.zeros(pairs, model_opt.max_len + 1, dtype=torch.int64)
        labels[:, : lengths[0]] = captions
        masks = (torch.arange(model_opt.max_len + 1) <= torch.tensor(lengths).unsqueeze(1)).float()
    return Batch(images, captions, lengths, list(range(pairs)), boxes, None, labels, masks)


def local_part(batch):
    """This process's part of a batch."""
    return global_batch.split(batch, distributed.size())[distributed.rank()]


def main(argv=None):
    opt = options(argv)
    if opt.worker:
        work(opt)
    else:
        compare(opt)


if __name__ == "__main__":
    run(main)
