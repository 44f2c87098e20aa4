"""Training steps on random data, in this process or in several that torchrun starts."""

from runtime.start import run

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import train
from files.errors import InputError
from runtime import distributed
from runtime.batches import Share
from systems.options import train_options
from tools.measuring.random_data import VOCABULARY, random_batch
from training import global_batch
from training.health import GuardedAdam

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("model", "batch_size", "embed_size", "device")  # those that train.py has too


def compare(opt):
    """Prints seconds a step and steps a second, first of one process, then of opt.processes; returns the seconds."""
    print(f"\nTraining {opt.model}, batch of {opt.batch_size}, D {opt.embed_size}, threads of a process: {opt.threads}")
    print(f"{'':20}{'s a step':>10}{'steps/s':>10}{'ratio':>8}{'loss':>12}")
    seconds = []
    for processes in sorted({1, opt.processes}):
        found = in_processes(opt, processes)
        seconds.append(found["seconds"])
        ratio = seconds[0] / seconds[-1]
        name = f"{processes:>9} process{'es' * (processes > 1):3}"
        rates = f"{seconds[-1]:10.3f}{1 / seconds[-1]:10.2f}{ratio:8.2f}{found['loss']:12.4f}"
        print(name + rates, flush=True)
    return seconds


def in_processes(opt, processes):
    """{'seconds': median of a step, 'loss': of the first step}, in so many processes on this machine."""
    names = (*FLAGS, "regions", "threads", "steps")
    settings = json.dumps({name: getattr(opt, name) for name in names})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": str(opt.threads), "PYTHONPATH": paths}
    command = [*torchrun, "-m", "tools.measuring.training", settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise InputError(f"--processes {processes}: training failed, see the messages above")
    return json.loads(done.stdout.splitlines()[-1])


def take_steps(opt):
    """In this process, alone or one of several -> {'seconds': median of a step, 'loss': of the first step}."""
    model_opt, _ = train_options([f"--{name}={getattr(opt, name)}" for name in FLAGS])
    model_opt.vocab_size = VOCABULARY
    with distributed.process_group():
        train.seed_everything(0)
        model = train.build_model(model_opt).to(distributed.local_device(opt.device))
        optimizer, replica = GuardedAdam(model.parameters(), 1e-4), global_batch.training_module(model)
        parts = global_batch.split(random_batch(opt, model_opt), distributed.size())
        batch = parts[distributed.rank()]._replace(
            shares=[Share(part.lengths, part.depends, part.ids) for part in parts]
        )
        first = train.train_step(replica, optimizer, batch, model_opt.grad_clip)["loss"].item()  # allocates, compiles
        times = []
        for _ in range(opt.steps):
            start = time.perf_counter()
            train.train_step(replica, optimizer, batch, model_opt.grad_clip)["loss"].item()  # waits for it
            times.append(time.perf_counter() - start)
        found = {"seconds": statistics.median(times), "loss": first}
        if distributed.is_main():
            print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    from types import SimpleNamespace

    run(lambda: take_steps(SimpleNamespace(**json.loads(sys.argv[1]))) and None)
