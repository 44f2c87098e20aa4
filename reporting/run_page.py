"""The page of a training, summary.html in --logger_name, or of several beside each other: curves and validations.

A page is made from log.jsonl and config.json alone, and loads nothing else.
"""

import math
import shlex
import time
from pathlib import Path

from files.errors import InputError
from files.writing import atomic_write
from reporting.metrics import METRICS, columns
from reporting.rendering import template, text_of_template
from reporting.run_log import CONFIG, LOG, read_config, read_log

PAGE = "summary.html"
DATE = "%Y-%m-%dT%H:%M:%S%z"  # in config.json
LEFT, TOP, WIDTH, HEIGHT = 66, 14, 318, 190  # of a chart's axes within 400 x 250
POINTS = 300  # of a line; more are averaged, step after step


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
    test = ["python", "test.py", "--model_path", str(best), "--data_path", opt["data_path"]]
    about = {
        "best": best,
        "test": shlex.join([*test, "--vocab_path", opt["vocab_path"]]),
        "flags": " ".join(flag(name, opt[name]) for name in sorted(usual) if name in opt and opt[name] != usual[name]),
        "commands": [config["command"], *(again["command"] for again in config.get("resumed", []))],
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
    """{name: (steps, validations) of read_log} -> the page's HTML, one run's own with what it says `about` it."""
    validations = {name: list(filter(is_whole, log[1])) for name, log in logs.items()}
    drawn = {name: curves(log[0], validations[name]) for name, log in logs.items()}
    if len(logs) == 1:
        (charts,), (rows,) = drawn.values(), validations.values()
    else:
        charts = beside_each_other(drawn)
        rows = [{"run": name, **best_of(found, select)} for name, found in validations.items() if found]
    return template("run.html").render(
        title=title, style=text_of_template("report.css"), about=about, rows=rows, several=len(logs) > 1,
        best=best_of(rows, select), charts=[chart(heading, lines) for heading, lines in charts.items()],
        columns=columns(),
    )  # fmt: skip


def is_whole(row):
    """Whether a validation has what every page says of it; metrics may be missing, as newer ones are in old logs."""
    return all(isinstance(row.get(name), (int, float)) for name in ("epoch", "rsum", "r1r5"))


def best_of(rows, select):
    return max(rows, key=lambda row: row[select], default=None)


# ---- curves


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


def beside_each_other(drawn):
    """{run: its curves} -> a chart for each line, with a line for each run."""
    charts = {}
    for run, found in drawn.items():
        for heading, lines in found.items():
            for name, line in lines.items():
                charts.setdefault(heading if len(lines) == 1 else f"{heading}: {name}", {})[run] = line
    return charts


def chart(title, lines):
    """{name: [(step, value)]} -> what the template draws: ticks, and for each line its name, points and last value."""
    highest = max(value for line in lines.values() for _, value in line)
    top = 100 if "percent" in title else round_above(highest)
    last = max(step for line in lines.values() for step, _ in line)

    def place(step, value):
        return f"{LEFT + WIDTH * step / last:.1f},{TOP + HEIGHT * (1 - max(value, 0) / top):.1f}"

    return {
        "title": title,
        "ticks": [(f"{top * part:.4g}", f"{TOP + HEIGHT * (1 - part):.1f}") for part in (0, 0.25, 0.5, 0.75, 1)],
        "last": f"{last:,.0f}",
        "lines": [
            (name, " ".join(place(*point) for point in line), f"{line[-1][1]:.4g}") for name, line in lines.items()
        ],
    }


def round_above(value):
    """The lowest number at least as high that has round quarters; 1 for numbers that are not positive."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(part * power for part in (1, 2, 3, 4, 6, 8, 10) if part * power >= value * (1 - 1e-9))


def flag(name, value):
    """A flag as on the command line."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return f"--{name}" if value is True else shlex.join([f"--{name}", *map(str, values)])
