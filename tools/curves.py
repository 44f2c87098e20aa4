"""Put the curves of several trainings on one page, or make the page of a training that has not finished.

    python tools/curves.py runs/dense runs/sparse --out curves.html

A run is its log.jsonl, the folder that holds it (--logger_name) or the folder above.  The page shows losses, learning
rate, pairs a second and the recalls of the validations, a line for each run, and each run's best validation.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from runtime.start import run

from files.errors import InputError
from files.writing import atomic_write, check_writable
from reporting.run_page import LOG, read_log, runs_page
from reporting.summary import short_names
from runtime.commandline import Parser


def log_of(folder):
    """The log.jsonl of a run: the path itself, or in the folder, or in its folder log."""
    for path in (Path(folder), Path(folder) / LOG, Path(folder) / "log" / LOG):
        if path.is_file():
            return path
    raise InputError(f"{folder}: no {LOG} here or in its folder log; give the --logger_name of a training")


def main(arguments=None):
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="runs: log.jsonl files or folders")
    parser.add_argument("--out", default="curves.html", metavar="FILE", help="page to write (default: curves.html)")
    flags = parser.parse_args(arguments)
    check_writable(flags.out)
    paths = list(dict.fromkeys(map(log_of, flags.runs)))
    folders = [path.resolve().parent for path in paths]
    folders = [folder.parent if folder.name == "log" else folder for folder in folders]
    logs = dict(zip(short_names(folders), map(read_log, paths)))
    text = runs_page(logs, f"Training: {', '.join(logs)}")
    atomic_write(flags.out, lambda file: file.write(text.encode()))
    print(f"{flags.out}: {', '.join(logs)}")


if __name__ == "__main__":
    run(main)
