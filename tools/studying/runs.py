"""The runs of a study: folders that remember how far they are, and threads that work through them."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from files.errors import InputError
from files.locks import lock_folder
from files.text import read_json
from files.writing import atomic_write, make_folder

ROOT = Path(__file__).resolve().parents[2]
# A process group of its own: Ctrl-C reaches a run through this program, once.  Not a session: where Linux groups
# sessions for its scheduler, `nice` on the study would have no effect on the runs.
GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Run:
    """One row with one seed, in a folder of its own.

    run.json                       the flags of train.py and test.py
    log/, checkpoint/, train.txt   what train.py writes and prints; trained.txt after its end
    sims.npy, test.json, test.txt  what test.py writes and prints; test.json comes last, so the run is finished
    """

    def __init__(self, out, row, seed, train, test):
        self.row, self.seed, self.name, self.flags = row, seed, f"{row}.seed{seed}", {"train": train, "test": test}
        self.folder = Path(out) / self.name
        self.checkpoints, self.sims = self.folder / "checkpoint", self.folder / "sims.npy"
        self.ends = {"train": self.folder / "trained.txt", "test": self.folder / "test.json"}
        begun = self.folder / "run.json"
        if begun.exists() and read_json(begun) != self.flags:
            raise InputError(f"{begun}: begun with other flags; choose another --out, or delete this folder")

    @property
    def finished(self):
        return self.ends["test"].exists()

    def arguments(self, program):
        if program == "test":
            outputs = ["--save_sims", str(self.sims), "--ranks", "", "--json", str(self.ends["test"])]
            return ["--model_path", str(self.checkpoints / "model_best.pth.tar"), *self.flags["test"], *outputs]
        folders = ["--logger_name", str(self.folder / "log"), "--model_name", str(self.checkpoints)]
        resume = ["--resume", str(self.checkpoints)] if any(self.checkpoints.glob("*.pth.tar")) else []
        return [*self.flags["train"], "--seed", str(self.seed), *folders, *resume]


class Worker:
    """worker(run) trains and tests one run; several threads may call it -> what failed, or None.

    stop, a handler of signals: the first lets train.py write its checkpoints, a second one ends all at once.
    """

    def __init__(self, threads):
        self.processes, self.stopped = set(), False
        self.environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}

    def __call__(self, run):
        if self.stopped:
            return None
        make_folder(run.folder)
        lock = lock_folder(run.folder)
        if lock is None:
            return None  # another study works on it
        with lock:
            text = json.dumps(run.flags, indent=1) + "\n"
            atomic_write(run.folder / "run.json", lambda file: file.write(text.encode()))
            for program, end in run.ends.items():
                code = 0 if self.stopped or end.exists() else self.execute(program, run)
                if self.stopped:
                    return None
                if code:
                    log = run.folder / f"{program}.txt"
                    why = log.read_text(errors="replace").strip().rpartition("\n")[2]
                    return f"{run.name}: {program}.py ended with exit code {code}: {why}; all of it is in {log}"
                end.touch()
        return None

    def execute(self, program, run):
        """Run a script to its end -> its exit code."""
        print(f"{time.strftime('%H:%M:%S')}  {run.name}: {program}.py", flush=True)
        command = [sys.executable, str(ROOT / f"{program}.py"), *run.arguments(program)]
        streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "env": self.environment, **GROUP}
        with open(run.folder / f"{program}.txt", "ab") as output:
            process = subprocess.Popen(command, stdout=output, **streams)
        self.processes.add(process)
        if self.stopped:  # while it started
            process.terminate()
        code = process.wait()
        self.processes.discard(process)
        return code

    def stop(self, number, frame):
        for process in list(self.processes):
            process.send_signal(signal.SIGKILL if self.stopped else signal.SIGTERM)
        if not self.stopped:
            print("\nStopping after runs have written checkpoints; Ctrl-C again leaves at once", file=sys.stderr)
        self.stopped = True


def work(runs, jobs, threads):
    """Run what is not finished, `jobs` at a time, in the order of `runs`; returns a sentence for each failed run.

    Raises KeyboardInterrupt when stopped by a signal, after every process has ended.
    """
    worker = Worker(threads)
    before = {number: signal.signal(number, worker.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(jobs) as pool:
            failed = list(pool.map(worker, [run for run in runs if not run.finished]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if worker.stopped:
        raise KeyboardInterrupt
    return list(filter(None, failed))
