"""Run a table of configurations with several seeds and compare them: train.py, test.py, ensembles, differences.

    python tools/study.py docs/study/f30k.ini                 # everything in the table, seeds 0, 1, 2
    python tools/study.py docs/study/f30k.ini --rows self-none neighbors-sparse-boxes --seeds 0 1 2 3 4
    python tools/study.py docs/study/f30k.ini --summary       # tables of what is finished so far

The table is an ini file; docs/study.md says what it may hold.  Each row and seed is a run with a folder of its own
under --out.  The same command goes on after Ctrl-C, a crash or a reboot: finished runs are left alone, interrupted
ones resume from their newest checkpoint.  results.md (the tables) and results.json are written at the end.  Exit code
1 when a run failed; the others go on.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runtime.start import run

import configparser
import functools
import json
import math
import os
import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations, permutations
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np

from files.arrays import open_array
from files.errors import InputError
from files.text import read_json, read_lines
from files.writing import atomic_write, lock_folder
from reporting.metrics import METRICS
from runtime.commandline import Parser, whole
from systems.options import train_options

SECTIONS = {"study", "flags", "rows", "ensembles", "differences"}
OF_THE_TOOL = {"--seed", "--logger_name", "--model_name", "--resume"}  # the study chooses these for each run
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


# ---- the table of configurations


class Study(NamedTuple):
    rows: dict  # {name: flags of train.py}
    ensembles: dict  # {title: two names}
    differences: dict  # {title: (names, names)}: the mean of the first less that of the second
    test: list  # flags of test.py
    twins: str | None  # the scenes.json of the tested split, for the demo's scenes


def read_table(path):
    """The ini file -> Study; InputError names the file and what is wrong with it."""
    parser = configparser.ConfigParser(interpolation=configparser.ExtendedInterpolation(), delimiters=("=",))
    parser.optionxform = str  # names keep their capitals
    lines = read_lines(path)
    try:
        parser.read_string("\n".join(lines))
        return study_of({name: dict(parser[name]) for name in parser.sections()})
    except (configparser.Error, ValueError, InputError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}; docs/study.md shows a table") from None


def study_of(sections):
    head = sections.get("study", {})
    unknown = sorted((sections.keys() - SECTIONS) | (head.keys() - {"test", "twins"}))
    if unknown or not sections.get("rows"):
        raise InputError(f"{unknown[0]} is unknown" if unknown else "no row")
    rows = {name: shlex.split(text) for name, text in sections["rows"].items()}
    for name, flags in rows.items():
        train_options(flags)  # checks them as train.py does
        if Path(name).name != name:
            raise InputError(f"{name}: a row's name is a folder's name, too")
        if own := OF_THE_TOOL & {flag.split("=")[0] for flag in flags}:
            raise InputError(f"{name}: the study sets {min(own)} itself")
    pairs = list(combinations(rows, 2))
    ensembles = sections.get("ensembles", {f"{a} + {b}": f"{a} {b}" for a, b in pairs})
    differences = sections.get("differences", {f"{b} − {a}": f"{b} - {a}" for a, b in pairs})
    ensembles = {title: text.split() for title, text in ensembles.items()}
    differences = {title: [side.split() for side in text.split(" - ")] for title, text in differences.items()}
    for title, names in ensembles.items():
        if len(names) != 2 or set(names) - rows.keys():
            raise InputError(f"{title} = {' '.join(names)}: need two of the rows {', '.join(rows)}")
    for title, sides in differences.items():
        if len(sides) != 2 or not all(side and rows.keys() >= set(side) for side in sides):
            found = " - ".join(" ".join(side) for side in sides)
            raise InputError(f"{title} = {found}: need rows, a minus with spaces round it, rows, of {', '.join(rows)}")
    return Study(rows, ensembles, differences, shlex.split(head.get("test", "")), head.get("twins"))


# ---- runs: folders that remember how far they are, and threads that work through them


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


def train_and_test(run, threads):
    """Train and test one run -> what failed, or None.  A run that another study works on is left to it."""
    lock = lock_folder(run.folder)
    if lock is None:
        return None
    with lock:
        text = json.dumps(run.flags, indent=1) + "\n"
        atomic_write(run.folder / "run.json", lambda file: file.write(text.encode()))
        for program, end in run.ends.items():
            if end.exists():
                continue
            print(f"{time.strftime('%H:%M:%S')}  {run.name}: {program}.py", flush=True)
            command = [sys.executable, str(ROOT / f"{program}.py"), *run.arguments(program)]
            environment, log = {**os.environ, **dict.fromkeys(THREADS, str(threads))}, run.folder / f"{program}.txt"
            with open(log, "ab") as output:
                streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
                code = subprocess.run(command, env=environment, **streams).returncode
            if code:
                why = log.read_text(errors="replace").strip().rpartition("\n")[2]
                return f"{run.name}: {program}.py ended with exit code {code}: {why}; all of it is in {log}"
            end.touch()
    return None


def work(runs, jobs, threads):
    """Run what is not finished, `jobs` at a time, in the order of `runs`; returns a sentence for each failed run."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            unfinished = [run for run in runs if not run.finished]
            failed = list(pool.map(functools.partial(train_and_test, threads=threads), unfinished))
        except KeyboardInterrupt:  # a terminal sends it to the runs, too
            print("\nStopping after runs have written checkpoints; Ctrl-C again leaves at once", file=sys.stderr)
            raise
    return list(filter(None, failed))


# ---- results of finished runs

TITLES = {metric.key: metric.full_title for metric in METRICS if not metric.lower_is_better} | {"twins": "twins"}
TITLES |= {"gain": "gain over the mean of its members", "mixing": "gain over two seeds of one row"}
# 97.5 % quantiles of Student's t for 1 ... 9 degrees of freedom; for more, the next smaller one is on the safe side
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def collect(study, runs):
    """Study and its runs -> what the tables show, a dict for a JSON file; unfinished runs are named.

    {'rows': {name: {seed: figures}}, 'differences': {title: {seed: figures}}, 'ensembles': {title: {'s,t': figures}},
    'missing': [names]}.  An ensemble's 'gain' is its rsum less the mean of its members'; 'mixing', of two rows, the
    rsum of both ensembles of these seeds less that of the ensembles within each row, of the same four models.
    """
    scenes = read_json(study.twins) if study.twins else None
    sims = {(run.row, run.seed): run.sims for run in runs if run.finished}
    seeds = sorted({seed for _, seed in sims})

    @functools.cache
    def figures(*members):
        return figures_of([sims[member] for member in members], scenes)

    rows = {name: {seed: figures((name, seed)) for seed in seeds if (name, seed) in sims} for name in study.rows}
    differences = {title: {} for title in study.differences}
    for title, (of, minus) in study.differences.items():
        for seed in seeds:
            if all((name, seed) in sims for name in of + minus):
                first, other = ([rows[name][seed] for name in names] for names in (of, minus))
                differences[title][seed] = {
                    key: round(mean(x[key] for x in first) - mean(x[key] for x in other), 4) for key in first[0]
                }
    pairs = {f"{name}, two seeds": (name, name) for name in rows} | study.ensembles
    ensembles = {title: {} for title in pairs}
    for title, (a, b) in pairs.items():
        for s, t in permutations(seeds, 2):
            if s in rows[a] and t in rows[b] and (a != b or s < t):
                both = dict(figures((a, s), (b, t)))
                both["gain"] = round(both["rsum"] - (rows[a][s]["rsum"] + rows[b][t]["rsum"]) / 2, 4)
                if s < t and a != b and t in rows[a] and s in rows[b]:
                    four = [figures((x, s), (y, t))["rsum"] for x, y in ((a, b), (b, a), (a, a), (b, b))]
                    both["mixing"] = round((four[0] + four[1] - four[2] - four[3]) / 2, 4)
                ensembles[title][f"{s},{t}"] = both
    found = {"rows": rows, "differences": differences, "ensembles": ensembles}
    found = {kind: {title: of for title, of in items.items() if of} for kind, items in found.items()}
    return {**found, "missing": [run.name for run in runs if not run.finished]}


def figures_of(paths, scenes):
    """Metrics, in percent, of the mean of saved similarity matrices, which is test_stack.py's ensemble."""
    import evaluation  # and torch, which --help does not need

    matrices = [open_array(path) for path in paths]
    if matrices[0].ndim != 2:
        raise InputError(f"{paths[0]}: similarities of folds; remove --fold5 from the test's flags")
    sims = sum(matrix.astype(np.float64) for matrix in matrices) / len(matrices)
    found = evaluation.metrics(sims.astype(np.float32)) | ({"twins": told_apart(sims, scenes)} if scenes else {})
    return {key: round(float(found[key]), 4) for key in TITLES if key in found}


def told_apart(sims, scenes):
    """The percentage of captions, true of their scene and false of its twin, that score higher with their own scene.

    sims: (images, captions); scenes: of a scenes.json.
    """
    if sims.shape != (len(scenes), 5 * len(scenes)):
        raise InputError(f"similarities {sims.shape}, but {len(scenes)} scenes; give the tested split's scenes.json")
    higher = [
        sims[i, 5 * i + k] > sims[scene["twin"], 5 * i + k]
        for i, scene in enumerate(scenes)
        for k in np.flatnonzero(scene["telling"])
    ]
    return 100 * float(np.mean(higher))


# ---- their tables in Markdown


def spread(values):
    """'mean ± standard deviation' as text; one value alone has no deviation."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def interval(values):
    """The 95 % confidence interval of the mean (Student's t) as text; one value has none."""
    if len(values) < 2:
        return ""
    half = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1] * stdev(values) / math.sqrt(len(values))
    return f"{mean(values) - half:+.1f} to {mean(values) + half:+.1f}"


def markdown(results):
    """All tables of a study; figures are percent, mean ± standard deviation over seeds."""
    parts = [f"Not finished: {', '.join(results['missing'])}."] if results["missing"] else []
    parts.append(table("row", "seeds", results["rows"]))
    if results["differences"]:
        parts.append(table("difference, seed by seed", "seeds", results["differences"], with_interval=True))
    if results["ensembles"]:
        parts.append(table("ensemble", "choices of seeds", results["ensembles"]))
    return "\n\n".join(parts) + "\n"


def table(kind, seeds, items, with_interval=False):
    """Markdown of {title: {seed: figures}}; kind, seeds: headings of the titles and of how many seeds there are."""
    lines = []
    for title, found in items.items():
        values = {key: [figures[key] for figures in found.values() if key in figures] for key in TITLES}
        cells = {TITLES[key]: spread(numbers) for key, numbers in values.items() if numbers}
        if with_interval:
            cells["95 % interval of rsum's mean"] = interval(values["rsum"])
        lines.append({kind: title, seeds: str(len(found)), **cells})
    columns = list(dict.fromkeys(chain.from_iterable(lines)))
    rows = [columns, ["---"] * len(columns), *([line.get(column, "") for column in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("table", metavar="TABLE", help="ini file of the rows, ensembles and differences")
    add("--rows", nargs="+", metavar="ROW", help="only these rows of the table (default: all)")
    add("--seeds", nargs="+", type=whole(0), default=[0, 1, 2], metavar="N", help="seeds of each row")
    add("--jobs", type=whole(), default=2, metavar="N", help="runs at a time")
    add("--threads", type=whole(), default=1, metavar="N", help="CPU threads of each run")
    add("--out", metavar="DIR", help="folder for runs and results (default: runs/study/ and the table's name)")
    add("--summary", action="store_true", help="run nothing: tables of the finished runs")
    opt = parser.parse_args(arguments)
    out = Path(opt.out or Path("runs/study") / Path(opt.table).stem)
    study = read_table(opt.table)
    names, seeds = dict.fromkeys(opt.rows or study.rows), dict.fromkeys(opt.seeds)
    for name in names.keys() - study.rows.keys():
        raise InputError(f"--rows {name}: not in {opt.table}, which has {', '.join(study.rows)}")
    runs = [Run(out, name, seed, study.rows[name], study.test) for seed in seeds for name in names]
    if study.twins:
        read_json(study.twins)  # a missing file is an error before the work starts
    failed = [] if opt.summary else work(runs, opt.jobs, opt.threads)
    if not any(one.finished for one in runs):
        raise InputError(f"{out}: no finished run to summarise" + "".join(f"; {why}" for why in failed))
    results = collect(study, runs)
    text = markdown(results)
    print(text)
    for name, content in (("md", text), ("json", json.dumps(results, indent=1) + "\n")):
        atomic_write(out / f"results.{name}", lambda file, content=content: file.write(content.encode()))
        print(out / f"results.{name}")
    print("".join(f"failed: {why}\n" for why in failed), end="", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
