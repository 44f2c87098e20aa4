"""The page of a finished training, summary.html in --logger_name: what was trained, its curves, the best model.

The page holds its style and charts itself.  It is made from log.jsonl and config.json alone.
"""

import json
import shlex
import time
from pathlib import Path

from files.errors import InputError
from files.text import read_json, read_lines
from files.writing import atomic_write
from reporting.ranks import RECALLS
from reporting.rendering import template, text_of_template

PAGE = "summary.html"
CHARTS = {
    "Image to text, R@K in percent": {"r1": "R@1", "r5": "R@5", "r10": "R@10"},
    "Text to image, R@K in percent": {"r1i": "R@1", "r5i": "R@5", "r10i": "R@10"},
    "Sum of the six recalls": {"rsum": "rsum"},
}
LEFT, TOP, WIDTH, HEIGHT = 44, 14, 330, 190  # of a chart's axes within 400 x 250


def write_run_page(folder, kind, best, select, usual):
    """Write summary.html into a run's --logger_name -> its path.

    kind: words for the model; best: path of the best checkpoint; select: the metric that chose it; usual: the default
    flags.  InputError where the log cannot be read or the page cannot be written.
    """
    folder = Path(folder)
    rows = validations(folder / "log.jsonl")
    config = read_json(folder / "config.json")
    opt = config["opt"]
    test = ["python", "test.py", "--model_path", str(best), "--data_path", opt["data_path"]]
    text = template("run.html").render(
        title=f"{kind}, {opt['data_name']}",
        style=text_of_template("report.css"),
        best=best,
        best_row=max(rows, key=lambda row: row[select]),
        rows=rows,
        columns=RECALLS,
        charts=[chart(title, lines, rows) for title, lines in CHARTS.items()],
        flags={name: value for name, value in opt.items() if name in usual and value != usual[name]},
        commands=[config["command"], *(again["command"] for again in config.get("resumed", []))],
        versions=config["versions"],
        data=config["data"],
        test=shlex.join([*test, "--vocab_path", opt["vocab_path"]]),
        started=config["time"],
        ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    atomic_write(folder / PAGE, lambda file: file.write(text.encode()))
    return folder / PAGE


def validations(path):
    """The lines of log.jsonl as dicts; InputError where there is none."""
    try:
        rows = [json.loads(line) for line in read_lines(path)]
    except ValueError as error:
        raise InputError(f"{path}: a line is not JSON ({error})") from None
    if not rows:
        raise InputError(f"{path}: no validation")
    return rows


def chart(title, lines, rows):
    """The numbers of a chart as the template draws them: its ticks, and for each line a name and its points."""
    top = 100 if len(lines) > 1 else 100 * max(1, -(-max(row[key] for row in rows for key in lines) // 100))
    last = max(row["Eiters"] for row in rows)

    def place(step, value):
        return f"{LEFT + WIDTH * step / last:.1f},{TOP + HEIGHT * (1 - value / top):.1f}"

    return {
        "title": title,
        "ticks": [(round(top * part), f"{TOP + HEIGHT * (1 - part):.1f}") for part in (0, 0.25, 0.5, 0.75, 1)],
        "last": f"{last:,}",
        "lines": [
            (name, " ".join(place(row["Eiters"], row[key]) for row in rows), f"{rows[-1][key]:.1f}")
            for key, name in lines.items()
        ],
    }
