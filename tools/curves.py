"""Draw the validations of several runs over each other: log.jsonl -> one PNG, without TensorBoard.

    python tools/curves.py runs/dense runs/sparse --out curves.png
    python tools/curves.py runs/A/log runs/B/log --metrics rsum r1 r1i medr --x epoch

A run is its log.jsonl, the folder that holds it (--logger_name) or the folder above.  Metrics are those of
log.jsonl: rsum, r1r5, ar, ari, r1, r5, r10, medr, meanr for image to text, the same with an i (r1i) for text
to image.
"""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from runtime.start import run

from files.errors import InputError
from files.text import read_lines
from files.writing import check_writable
from reporting.figures import matplotlib_figure, save_figure
from runtime.commandline import Parser

METRICS = ("rsum", "r1", "r5", "r10", "r1r5", "r1i", "r5i", "r10i")
METRIC_TITLES = {
    "rsum": "rsum",
    "r1r5": "R@1 + R@5, both ways",
    "ar": "mean recall, image to text",
    "ari": "mean recall, text to image",
    "Eiters": "training step",
    "epoch": "epoch",
    "time": "hours",
}
RANK_METRICS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "medr": "median rank", "meanr": "mean rank"}
STYLES = ("-", "--", "-.", ":")
PANELS_PER_ROW = 4


def log_of(folder):
    """The log.jsonl of a run: the path itself, or in the folder, or in its folder log."""
    folder = Path(folder)
    for path in (folder, folder / "log.jsonl", folder / "log" / "log.jsonl"):
        if path.is_file():
            return path
    raise InputError(f"{folder}: no log.jsonl here or in its folder log; give the --logger_name of a training run")


def read_log(path):
    """The validations of a run, a dict each, in the file's order.  A last line that is cut off is left out."""
    lines, rows = read_lines(path), []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["Eiters"] + row["epoch"] + row["time"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines) and rows:
                break
            raise InputError(f"{path}, line {number}: not a validation as train.py writes it") from None
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no validation yet; train.py writes a line at each")
    return rows


def series(rows, metric, x):
    """(positions, values) of one metric; x is Eiters, epoch, or time: hours since the first validation."""
    kept = [row for row in rows if isinstance(row.get(metric), (int, float))]
    start = rows[0]["time"] if x == "time" else 0
    scale = 3600 if x == "time" else 1
    return [(row[x] - start) / scale for row in kept], [row[metric] for row in kept]


def title_of(metric):
    if metric in RANK_METRICS:
        return f"{RANK_METRICS[metric]}, image to text"
    if metric.endswith("i") and metric[:-1] in RANK_METRICS:
        return f"{RANK_METRICS[metric[:-1]]}, text to image"
    return METRIC_TITLES.get(metric, metric)


def run_names(paths):
    """What tells the runs apart: their paths without the ends that all share."""
    parts = [path.resolve().parent.parts for path in paths]
    parts = [one[:-1] if one[-1] == "log" else one for one in parts]
    first = 0
    while all(len(one) > first + 1 and one[first] == parts[0][first] for one in parts):
        first += 1
    return ["/".join(one[first:]) for one in parts]


def draw_curves(runs, metrics, x="Eiters"):
    """runs: {name: rows of read_log} -> a figure with a panel for each metric, a line for each run."""
    columns = min(PANELS_PER_ROW, len(metrics))
    figure = matplotlib_figure((4.2 * columns, 2.9 * math.ceil(len(metrics) / columns) + 0.4))
    for place, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(math.ceil(len(metrics) / columns), columns, place)
        for k, (name, rows) in enumerate(runs.items()):
            across, values = series(rows, metric, x)
            mark = "o" if len(values) < 30 else None
            axes.plot(across, values, STYLES[k // 10 % 4], color=f"C{k % 10}", marker=mark, markersize=3, label=name)
        axes.set_title(title_of(metric), fontsize=10, loc="left")
        axes.set_xlabel(METRIC_TITLES[x], fontsize=9)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        if metric.startswith(("med", "mean")):
            axes.invert_yaxis()  # up is better, everywhere
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    return figure


def curve_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", help="runs: log.jsonl files or folders")
    add("--metrics", nargs="+", default=list(METRICS), help=f"what to draw (default: {' '.join(METRICS)})")
    add("--x", default="Eiters", choices=["Eiters", "epoch", "time"], help="step, epoch or hours (default: Eiters)")
    add("--out", default="curves.png", metavar="FILE", help="picture to write: png, pdf or svg (default: curves.png)")
    return parser.parse_args(arguments)


def main(arguments=None):
    flags = curve_options(arguments)
    check_writable(flags.out)
    paths = [log_of(folder) for folder in flags.runs]
    runs = dict(zip(run_names(paths), map(read_log, paths)))
    known = {name for rows in runs.values() for row in rows for name in row}
    for metric in flags.metrics:
        if metric not in known:
            raise InputError(f"--metrics {metric}: in none of these logs, which have {' '.join(sorted(known))}")
    save_figure(draw_curves(runs, flags.metrics, flags.x), flags.out)
    print(
        f"{flags.out}: {len(runs)} runs, " + ", ".join(f"{name} best rsum {best(rows)}" for name, rows in runs.items())
    )


def best(rows):
    return f"{max(series(rows, 'rsum', 'Eiters')[1], default=math.nan):.1f}"


if __name__ == "__main__":
    run(main)
