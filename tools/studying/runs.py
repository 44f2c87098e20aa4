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

    run.json   the flags of train.py and test.py, whether training is over, and its minutes so far
    log/, checkpoint/, train.txt   what train.py writes and prints
    sims.npy, test.json, test.txt  what test.py writes and prints; test.json comes last, so the run is finished
    """

    def __init__(self, out, row, seed, train, test):
        self.row, self.seed, self.name = row, seed, f"{row}.seed{seed}"
        self.folder = Path(out) / self.name
        self.checkpoints, self.result, self.sims = (self.folder / x for x in ("checkpoint", "test.json", "sims.npy"))
        self.flags = {"train": train, "test": test}
        self.load()

    def load(self):
        """Read run.json; InputError where it is of other flags."""
        path, self.trained, self.minutes = self.folder / "run.json", False, 0.0
        if not path.exists():
            return
        found = read_json(path)
        if not isinstance(found, dict) or found.keys() != {*self.flags, "trained", "minutes"}:
            raise InputError(f"{path}: not as the study wrote it; delete this folder to run it anew")
        for program, flags in self.flags.items():
            if found.get(program) != flags:
                raise InputError(
                    f"{path}: begun with other flags of {program}.py than the table has now; choose another --out, "
                    "or delete this folder to run it anew"
                )
        self.trained, self.minutes = found["trained"], found["minutes"]

    def save(self):
        state = {**self.flags, "trained": self.trained, "minutes": self.minutes}
        text = json.dumps(state, indent=1) + "\n"
        atomic_write(self.folder / "run.json", lambda file: file.write(text.encode()))

    @property
    def finished(self):
        return self.result.exists()

    @property
    def state(self):
        begun = "begun" if self.folder.exists() else "waits"
        return "finished" if self.finished else "trained" if self.trained else begun

    def arguments(self, program):
        if program == "test":
            outputs = ["--save_sims", str(self.sims), "--ranks", "", "--json", str(self.result)]
            return ["--model_path", str(self.checkpoints / "model_best.pth.tar"), *self.flags["test"], *outputs]
        folders = ["--logger_name", str(self.folder / "log"), "--model_name", str(self.checkpoints)]
        resume = ["--resume", str(self.checkpoints)] if any(self.checkpoints.glob("*.pth.tar")) else []
        return [*self.flags["train"], "--seed", str(self.seed), *folders, *resume]


class Worker:
    """worker(run) trains and tests one run; several threads may call it -> what failed, or None.

    stop, a handler of signals: the first lets train.py write its checkpoints, a second one ends all at once.
    """

    def __init__(self, runs, threads):
        self.runs, self.processes, self.stopped = runs, set(), False
        self.environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}

    def __call__(self, run):
        if self.stopped:
            return None
        make_folder(run.folder)
        lock = lock_folder(run.folder)
        if lock is None:
            self.say(f"{run.name}: another process works on it; left to that one")
            return None
        with lock:
            run.load()  # another process may have been at it since this one looked
            run.save()
            return self.train_and_test(run, lock)

    def train_and_test(self, run, lock):
        if run.finished:
            return None
        for program in ("test",) if run.trained else ("train", "test"):
            self.say(f"{run.name}: {program}.py started")
            start, log = time.time(), run.folder / f"{program}.txt"
            code = self.execute([f"{program}.py", *run.arguments(program)], log, lock)
            if program == "train":
                run.trained, run.minutes = code == 0, run.minutes + (time.time() - start) / 60
                run.save()
            if self.stopped:
                return None
            if code:
                self.say(f"{run.name}: {program}.py failed")
                return f"{run.name}: {program}.py ended with exit code {code}: {last_line(log)}; all of it is in {log}"
        self.say(f"{run.name}: finished")
        return None

    def execute(self, command, log, lock):
        """Run a script to its end -> its exit code; it holds the run's lock even when the study is killed."""
        command = [sys.executable, str(ROOT / command[0]), *command[1:]]
        with open(log, "ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=self.environment,
                pass_fds=[lock.fileno()], **GROUP,
            )  # fmt: skip
        self.processes.add(process)
        if self.stopped:  # while it started
            process.terminate()
        code = process.wait()
        self.processes.discard(process)
        return code

    def say(self, what):
        finished = sum(run.finished for run in self.runs)
        print(f"{time.strftime('%H:%M:%S')}  {what}  ({finished} of {len(self.runs)} runs finished)", flush=True)

    def stop(self, number, frame):
        for process in list(self.processes):
            process.send_signal(signal.SIGKILL if self.stopped else signal.SIGTERM)
        if not self.stopped:
            print("\nStopping after runs have written checkpoints; Ctrl-C again leaves at once", file=sys.stderr)
        self.stopped = True


def last_line(log):
    return (log.read_text(errors="replace").strip() or "it printed nothing").splitlines()[-1]


def work(runs, jobs, threads):
    """Run what is not finished, `jobs` at a time, in the order of `runs`; returns a sentence for each failed run.

    Raises KeyboardInterrupt when stopped by a signal, after every process has ended.
    """
    worker = Worker(runs, threads)
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
