"""The page of a training, summary.html in --logger_name, or of several beside each other: curves and validations.

A page is made from log.jsonl and config.json alone, which training/logger.py writes, and loads nothing else.
"""

import json
import math
import shlex
import time
from itertools import chain
from pathlib import Path

from files.errors import InputError
from files.text import read_bytes, read_json
from files.writing import atomic_write
from reporting.metrics import METRICS, columns
from reporting.rendering import chart, template

LOG, CONFIG, PAGE = "log.jsonl", "config.json", "summary.html"
POINTS = 300  # of a line; more are averaged, step after step


def read_log(path):
    """log.jsonl -> (steps, validations), a list of dicts each; damaged lines are left out.

    InputError where there is neither.
    """
    rows = [row for row in map(row_of, read_bytes(path).splitlines()) if row]
    if not rows:
        raise InputError(f"{path}: no step and no validation as train.py writes them")
    return [row for row in rows if isinstance(row.get("losses"), dict)], [row for row in rows if "rsum" in row]


def row_of(line):
    """A line of log.jsonl as a dict; None for one that is damaged or was cut off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("Eiters"), int) else None


def read_config(path):
    """config.json -> a dict; None where it is damaged or missing."""
    try:
        config = read_json(path)
    except InputError:
        return None
    whole = isinstance(config, dict) and isinstance(config.get("opt"), dict)
    return config if whole and isinstance(config.get("resumed", []), list) else None


def write_run_page(folder, kind, best, select, usual):
    """Write summary.html into a run's --logger_name -> its path.

    kind: words for the model; best: path of the best checkpoint; select: the metric that chose it; usual: the default
    flags.  InputError where the log cannot be read or the page cannot be written.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    if config is None:
        raise InputError(f"{folder / CONFIG}: missing or damaged")
    opt = config["opt"]
    test = ["--model_path", str(best), "--data_path", opt["data_path"], "--vocab_path", opt["vocab_path"]]
    flags = [flag(name, opt[name]) for name in sorted(usual) if name in opt and opt[name] != usual[name]]
    about = {
        "best": best,
        "test": shlex.join(["python", "test.py", *test]),
        "flags": " ".join(flags),
        "commands": [run["command"] for run in (config, *config.get("resumed", []))],
        "versions": config["versions"],
        "data": config["data"],
        "started": str(config["time"])[:16].replace("T", " "),
        "ended": time.strftime("%Y-%m-%d %H:%M"),
    }
    title = f"Training: {kind}, {opt['data_name']}"
    text = runs_page({"": read_log(folder / LOG)}, title, select, about)
    atomic_write(folder / PAGE, lambda file: file.write(text.encode()))
    return folder / PAGE


def runs_page(logs, title, select="rsum", about=None):
    """{name: (steps, validations) of read_log} -> the page's HTML, one run's own with what it says `about` it.

    Of several runs each line is a chart, with a line for each run, and the table has each run's best validation.
    """
    several, charts, rows = len(logs) > 1, {}, []
    last = max((row["Eiters"] for log in logs.values() for row in chain(*log)), default=0)
    for run, (steps, validations) in logs.items():
        validations = [row for row in validations if is_whole(row)]
        for heading, lines in curves(steps, validations).items():
            for name, line in lines.items():
                of_chart = f"{heading}: {name}" if several and len(lines) > 1 else heading
                label = f"{run if several else name}, at the end {line[-1][1]:.4g}"
                charts.setdefault(of_chart, {})[label] = line
        best_first = sorted(validations, key=lambda row: row[select], reverse=True)
        rows += [(run, row) for row in (best_first[:1] if several else validations)]
    best = max((row for _, row in rows), key=lambda row: row[select], default=None)
    return template("run.html").render(
        title=title,
        about=about,
        best=best,
        charts=[
            chart(heading, lines, {0: "0", last: f"{last:,}"}, "step", 100 if "percent" in heading else None)
            for heading, lines in charts.items()
        ],
        heads=["Run", "Step", "Epoch"] if several else ["Step", "Epoch"],
        rows=[
            {
                "heads": [*([run] if several else []), f"{row['Eiters']:,}", row["epoch"]],
                "metrics": row,
                "best": [metric.key for metric in METRICS] if row is best else [],
            }
            for run, row in rows
        ],
        columns=columns(),
    )


def is_whole(row):
    """Whether a validation has what every page says of it; metrics may be missing, as newer ones are in old logs."""
    return all(isinstance(row.get(name), (int, float)) for name in ("epoch", "rsum", "r1r5"))


def curves(steps, validations):
    """The rows of a log -> {heading: {name of a line: [(step, value)]}}, those that have points."""
    losses = dict.fromkeys(name for row in steps for name in row["losses"])
    if len(losses) == 2 and "loss" in losses:  # one loss alone is the sum
        losses = {"loss": None}
    found = {
        "Loss": {name: points(steps, lambda row, name=name: row["losses"].get(name)) for name in losses},
        "Learning rate": {"learning rate": points(steps, lambda row: row.get("lr"))},
        "Pairs a second": {"pairs a second": points(steps, lambda row: row.get("pairs_per_second"))},
    }
    for metric in METRICS:
        lines = found.setdefault(f"{metric.direction}, {metric.unit}", {})
        lines[metric.title] = points(validations, lambda row, key=metric.key: row.get(key))
    found = {heading: {name: line for name, line in lines.items() if line} for heading, lines in found.items()}
    return {heading: lines for heading, lines in found.items() if lines}


def points(rows, value):
    """(step, value(row)) of the finite values; of more than POINTS, the means of parts of equal length."""
    pairs = [(row["Eiters"], value(row)) for row in rows]
    pairs = [pair for pair in pairs if isinstance(pair[1], (int, float)) and math.isfinite(pair[1])]
    part = math.ceil(len(pairs) / POINTS) or 1
    parts = [pairs[start : start + part] for start in range(0, len(pairs), part)]
    return [tuple(sum(column) / len(column) for column in zip(*part)) for part in parts]


def flag(name, value):
    """A flag as on the command line."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return f"--{name}" if value is True else shlex.join([f"--{name}", *map(str, values)])
