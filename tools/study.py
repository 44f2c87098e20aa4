"""Run a table of configurations with several seeds and compare them: train.py, test.py, ensembles, differences.

    python tools/study.py docs/study/f30k.ini                 # everything in the table, seeds 0, 1, 2
    python tools/study.py docs/study/f30k.ini --rows self-none neighbors-sparse-boxes --seeds 0 1 2 3 4
    python tools/study.py docs/study/f30k.ini --summary       # tables and figures of what is finished so far
    python tools/study.py --results docs/study/flickr8k.json --out /tmp/tables    # the same from a results file

The table is a text file; docs/study.md says what it may hold.  Each row and seed is a run with a folder of its own
under --out.  The same command goes on after Ctrl-C, a crash or a reboot: finished runs are left alone, interrupted
ones resume from their newest checkpoint.  Two studies may share one --out; each takes the runs the other has not
begun.  The tables (results.json, results.md) and, with matplotlib, the figures (recalls.svg, ensembles.svg) are
written at the end.  Exit code 1 when a run failed; the others go on.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.start import run

from files.errors import InputError
from files.text import read_json
from files.writing import atomic_write, make_folder
from reporting.figures import need_matplotlib
from runtime.commandline import Parser, whole
from tools.studying.charts import save_charts
from tools.studying.results import collect, markdown
from tools.studying.runs import Run, work
from tools.studying.table import read_table


def parse(arguments):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("table", nargs="?", metavar="TABLE", help="text file of the rows, ensembles and differences")
    add("--rows", nargs="+", metavar="ROW", help="only these rows of the table (default: all)")
    add("--seeds", nargs="+", type=whole(0), default=[0, 1, 2], metavar="N", help="seeds of each row")
    add("--jobs", type=whole(), default=2, metavar="N", help="runs at a time")
    add("--threads", type=whole(), default=1, metavar="N", help="CPU threads of each run")
    add("--out", metavar="DIR", help="folder for runs and results (default: runs/study/ and the table's name)")
    add("--summary", action="store_true", help="run nothing: tables and figures of the finished runs")
    add("--plan", action="store_true", help="run nothing: list the runs in their order and how far each one is")
    add("--results", metavar="FILE", help="run nothing: tables and figures from a results.json, no TABLE needed")
    opt = parser.parse_args(arguments)
    if (opt.table is None) == (opt.results is None):
        parser.error("TABLE: give either a table or --results FILE")
    opt.out = Path(opt.out or Path("runs/study") / Path(opt.table or opt.results).stem)
    return opt


def runs_of(study, opt):
    """The runs that --rows and --seeds choose, all rows of a seed before the next seed."""
    for name in opt.rows or ():
        if name not in study.rows:
            raise InputError(f"--rows {name}: not in {opt.table}, which has {', '.join(study.rows)}")
    names = [name for name in study.rows if name in (opt.rows or study.rows)]
    seeds = list(dict.fromkeys(opt.seeds))
    return [Run(opt.out, name, study.rows[name], seed, study.test) for seed in seeds for name in names]


def read_results(path):
    """A results.json; InputError where the file is something else."""
    results = read_json(path)
    try:
        markdown(results)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{path}: no results.json that tools/study.py wrote") from None
    return results


def write_results(results, out):
    """results.json, results.md and, where matplotlib is installed, the figures; prints the tables."""
    text = markdown(results)
    make_folder(out)
    atomic_write(out / "results.json", lambda file: file.write((json.dumps(results, indent=1) + "\n").encode()))
    atomic_write(out / "results.md", lambda file: file.write(text.encode()))
    print(text)
    try:
        need_matplotlib()
        figures = save_charts(results, out)
    except InputError as error:
        figures = []
        print(f"no figures: {error}", file=sys.stderr)
    print(" ".join(map(str, [out / "results.json", out / "results.md", *figures])))


def main(arguments=None):
    opt = parse(arguments)
    if opt.results:
        write_results(read_results(opt.results), opt.out)
        return 0
    study = read_table(opt.table)
    runs = runs_of(study, opt)
    if opt.plan:
        for one in runs:
            print(f"{one.name:40} {one.done()} of {one.epochs + 1} steps (epochs and the test)")
        return 0
    if study.twins:
        read_json(study.twins)  # a missing file is an error before the work starts
    failed = [] if opt.summary else work(runs, opt.jobs, opt.threads)
    if not any(one.finished for one in runs):
        raise InputError(f"{opt.out}: no finished run to summarise" + "".join(f"\n  {why}" for why in failed))
    write_results(collect(study, runs), opt.out)
    print("".join(f"failed: {why}\n" for why in failed), end="", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
