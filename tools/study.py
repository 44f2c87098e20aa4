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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.start import guarded, run

import json

from files.errors import InputError
from files.text import read_json
from files.writing import atomic_write
from runtime.commandline import Parser, whole


def parse(arguments=None):
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
    opt.out = Path(opt.out or Path("runs/study") / Path(opt.table).stem)
    return opt


if __name__ == "__main__":
    guarded(parse)  # before torch is loaded

from tools.studying.results import collect, markdown
from tools.studying.runs import Run, work
from tools.studying.table import read_table


def runs_of(study, opt):
    """The runs that --rows and --seeds choose, all rows of a seed before the next seed."""
    names, seeds = dict.fromkeys(opt.rows or study.rows), dict.fromkeys(opt.seeds)
    for name in names.keys() - study.rows.keys():
        raise InputError(f"--rows {name}: not in {opt.table}, which has {', '.join(study.rows)}")
    return [Run(opt.out, name, seed, study.rows[name], study.test) for seed in seeds for name in names]


def main(arguments=None):
    opt = parse(arguments)
    study = read_table(opt.table)
    runs = runs_of(study, opt)
    if study.twins:
        read_json(study.twins)  # a missing file is an error before the work starts
    failed = [] if opt.summary else work(runs, opt.jobs, opt.threads)
    if not any(one.finished for one in runs):
        raise InputError(f"{opt.out}: no finished run to summarise" + "".join(f"; {why}" for why in failed))
    results = collect(study, runs)
    text = markdown(results)
    print(text)
    for name, content in (("md", text), ("json", json.dumps(results, indent=1) + "\n")):
        atomic_write(opt.out / f"results.{name}", lambda file, content=content: file.write(content.encode()))
        print(opt.out / f"results.{name}")
    print("".join(f"failed: {why}\n" for why in failed), end="", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
