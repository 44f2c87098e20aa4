"""The runs of a study: folders that remember how far they are, and the loop that works through them."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from files.errors import InputError
from files.text import read_json
from files.writing import atomic_write, make_folder

ROOT = Path(__file__).resolve().parents[2]
EPOCH = re.compile(r"checkpoint_(\d+)(_\d+)?\.pth\.tar")  # after epoch N, or in epoch N after so many steps
# A process group of its own: Ctrl-C reaches a run through this program, once.  Not a session: where Linux groups
# sessions for its scheduler, `nice` on the study would have no effect on the runs.
GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Run:
    """One row with one seed, in a folder of its own.

    run.json   the flags of train.py and test.py, whether training is over, seconds of both
    log/, checkpoint/, train.txt   what train.py writes and prints
    sims.npy, test.json, test.txt  what test.py writes and prints; test.json comes last, so the run is finished
    """

    def __init__(self, out, name, row, seed, test):
        self.row, self.seed, self.epochs = name, seed, row.num_epochs
        self.name = f"{name}.seed{seed}"
        self.folder = Path(out) / self.name
        self.checkpoints, self.result, self.sims = (self.folder / x for x in ("checkpoint", "test.json", "sims.npy"))
        self.state = {"train": row.train, "test": test, "trained": False, "seconds": {"train": 0.0, "test": 0.0}}
        self.load()

    def load(self):
        path = self.folder / "run.json"
        if not path.exists():
            return
        found = read_json(path)
        if not isinstance(found, dict) or found.keys() != self.state.keys():
            raise InputError(f"{path}: not as the study wrote it; delete this folder to run it anew")
        for program in ("train", "test"):
            if found.get(program) != self.state[program]:
                raise InputError(
                    f"{path}: begun with other flags of {program}.py ({' '.join(found.get(program, []))}) than the "
                    "table has now; choose another --out, or delete this folder to run it anew"
                )
        self.state = found

    def save(self):
        text = json.dumps(self.state, indent=1) + "\n"
        atomic_write(self.folder / "run.json", lambda file: file.write(text.encode()))

    @property
    def finished(self):
        return self.result.exists()

    def done(self):
        """Epochs that are over, and the test as one more."""
        if self.finished:
            return self.epochs + 1
        if self.state["trained"]:
            return self.epochs
        written = [EPOCH.fullmatch(path.name) for path in self.checkpoints.glob("checkpoint_*")]
        return max((int(found[1]) + (not found[2]) for found in written if found), default=0)

    def command(self):
        """(program, its arguments) of what comes next."""
        if self.state["trained"]:
            best = str(self.checkpoints / "model_best.pth.tar")
            outputs = ["--save_sims", str(self.sims), "--ranks", "", "--json", str(self.result)]
            return "test", ["--model_path", best, *self.state["test"], *outputs]
        folders = ["--logger_name", str(self.folder / "log"), "--model_name", str(self.checkpoints)]
        resume = ["--resume", str(self.checkpoints)] if any(self.checkpoints.glob("*.pth.tar")) else []
        return "train", [*self.state["train"], "--seed", str(self.seed), *folders, *resume]

    def lock(self):
        """An open file that only one process holds, or None: then another one works on this run."""
        make_folder(self.folder)
        file = open(self.folder / "lock", "w")  # noqa: SIM115 - the process that starts next holds it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return file


class Process:
    """train.py or test.py at work on a run; it holds the run's lock even when the study is killed."""

    def __init__(self, run, lock, threads):
        self.run, self.lock, self.start = run, lock, time.time()
        self.program, arguments = run.command()
        self.log = run.folder / f"{self.program}.txt"
        environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
        with open(self.log, "ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, str(ROOT / f"{self.program}.py"), *arguments], stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, env=environment, pass_fds=[lock.fileno()], **GROUP,
            )  # fmt: skip

    def ended(self):
        """None while it runs, else its exit code; the time it took is noted in run.json."""
        code = self.popen.poll()
        if code is not None:
            self.run.state["seconds"][self.program] += time.time() - self.start
            if self.program == "train" and code == 0:
                self.run.state["trained"] = True
            self.run.save()
        return code

    def last_words(self):
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"


class StudyStop:
    """Ctrl-C or SIGTERM: the first lets train.py write its checkpoints, a second one ends all at once."""

    def __init__(self, processes):
        self.processes, self.asked = processes, False
        self.before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(self, number, frame):
        for process in self.processes:
            process.popen.send_signal(signal.SIGKILL if self.asked else signal.SIGTERM)
        if not self.asked:
            print(
                "\nStopping after runs have written checkpoints; press Ctrl-C again to leave at once", file=sys.stderr
            )
        self.asked = True

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def work(runs, jobs, threads, wait=0.2):
    """Run what is not finished, `jobs` at a time, in the order of `runs`; returns a sentence for each failed run.

    Raises KeyboardInterrupt when stopped by a signal, after every process has ended.
    """
    waiting, processes, failed = [run for run in runs if not run.finished], [], []
    progress, stop = StudyProgress(runs), StudyStop(processes)
    try:
        while processes or (waiting and not stop.asked):
            while waiting and len(processes) < jobs and not stop.asked:
                begin(waiting.pop(0), processes, threads, progress)
            for process in [p for p in processes if p.ended() is not None]:
                processes.remove(process)
                settle(process, processes, threads, progress, stop, failed)
            progress.update()
            time.sleep(wait)
    finally:
        progress.close()
        stop.restore()
    if stop.asked:
        raise KeyboardInterrupt
    return failed


def begin(run, processes, threads, progress):
    lock = run.lock()
    if lock is None:
        progress.say(f"{run.name}: another process works on it; left to that one")
        return
    run.load()  # another process may have been at it since this one looked
    if run.finished:
        lock.close()
        return
    run.save()
    processes.append(Process(run, lock, threads))
    progress.say(f"{run.name}: {processes[-1].program}.py started")


def settle(process, processes, threads, progress, stop, failed):
    """After a program's end: test what has been trained, note what failed, give back the lock."""
    run, code = process.run, process.popen.returncode
    if code == 0 and process.program == "train" and not stop.asked:
        processes.append(Process(run, process.lock, threads))
        return
    process.lock.close()
    if code == 0:
        progress.say(f"{run.name}: {'finished' if run.finished else 'trained'}")
    elif not stop.asked:
        failed.append(f"{run.name}: {process.program}.py ended with exit code {code}: {process.last_words()}; "
                      f"all of it is in {process.log}")  # fmt: skip
        progress.say(failed[-1])


class StudyProgress:
    """Counts epochs and tests of all runs: a bar on a terminal; elsewhere a line at each event."""

    def __init__(self, runs):
        self.runs, self.start = runs, time.time()
        self.total, self.first = sum(run.epochs + 1 for run in runs), self.count()
        self.bar = tqdm(total=self.total, initial=self.first, unit="epoch", desc="study", smoothing=0, disable=None)

    def count(self):
        return sum(run.done() for run in self.runs)

    def update(self):
        if not self.bar.disable:
            self.bar.update(self.count() - self.bar.n)

    def left(self):
        """Seconds that the rest takes at the pace so far, or None before there is a pace."""
        done = self.count()
        if done == self.first:
            return None
        return (time.time() - self.start) / (done - self.first) * (self.total - done)

    def say(self, what):
        left = self.left()
        finished = sum(run.finished for run in self.runs)
        rest = "" if left is None else f", about {duration(left)} left"
        self.bar.write(f"{time.strftime('%H:%M:%S')}  {what}  ({finished} of {len(self.runs)} runs finished{rest})")
        sys.stdout.flush()

    def close(self):
        self.bar.close()


def duration(seconds):
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
