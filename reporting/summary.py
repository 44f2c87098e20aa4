"""The first page of a report: tables, recall curves, what an ensemble changes, what each model is.

`models` is the report's list of dicts, one for each model: name, path, result (as evaluation.evaluate has it), ranks
(for each fold ((image ranks, best), (caption ranks, best)) from 0) and, under images and captions, its Found.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reporting.metrics import METRICS, columns, recall
from reporting.printing import ties_line
from reporting.run_page import flag

CURVE = 100  # the largest K of the recall curves
CURVE_TICKS = (1, 2, 5, 10, 20, 50, 100)
KINDS = ("images", "captions")  # what the queries of each direction are


def summary(models):
    """What index.html shows of the models."""
    return {
        "models": [about(model) for model in models],
        "tables": tables(models),
        "columns": columns(),
        "curves": [
            [[mean_recall(model["ranks"], way, k) for k in range(1, CURVE + 1)] for model in models] for way in (0, 1)
        ],
        "gains": gains(models),
        "ks": CURVE_TICKS,
        "logs": [round(math.log(k or 1, CURVE), 4) for k in range(CURVE + 1)],
    }


def about(model):
    """What one model is: {name, kind, epoch, path, flags}; of the ensemble, how it was made."""
    result = model["result"]
    if "checkpoint" in result:
        known = result["checkpoint"]
        flags = [flag(name, value) for name, value in known["flags"].items()]
        return {"name": model["name"], **known, "path": Path(known["path"]).resolve(), "flags": flags}
    how = result.get("ensemble", {"weights": None, "normalize": False})
    weights = "weights " + " ".join(f"{weight:g}" for weight in how["weights"]) if how["weights"] else "equal weights"
    kind = f"mean of the {'normalised ' if how['normalize'] else ''}similarities"
    return {"name": model["name"], "kind": kind, "epoch": "", "path": "", "flags": [weights]}


# ---- tables of figures


class Table(NamedTuple):
    """A table of figures on the first page."""

    title: str
    rows: list  # of (name, path, {direction: [(figure as printed, whether it is the best of its column)]})
    notes: list  # lines under the table


def tables(models):
    """[Table]: a row for each model on the full split, for the mean of folds, and for each fold."""
    found = []
    for kind, title in (("full", ""), ("fold5", "Mean of five folds")):
        if kind in models[0]["result"]:
            metrics = [model["result"][kind] for model in models]
            lines = [(model["name"], ties_line(one)) for model, one in zip(models, metrics)]
            notes = [f"{name}: {line}" for name, line in lines if line]
            found.append(Table(title, figure_rows(models, metrics), notes))
    if "fold5" in models[0]["result"]:
        folds = [
            figure_rows(models, [model["result"]["fold5"]["folds"][k] for model in models], f", fold {k + 1}")
            for k in range(5)
        ]
        found.append(Table("Each fold", [row for rows in zip(*folds) for row in rows], []))
    return found


def figure_rows(models, metrics, ending=""):
    """The rows of a Table, from each model's metrics."""
    best = {}
    for metric in METRICS:
        figures = [round(one[metric.key], 1) for one in metrics]
        best[metric.key] = (min if metric.lower_is_better else max)(figures) if len(models) > 1 else None
    return [
        (
            model["name"] + ending,
            model["path"],
            {
                way: [(f"{one[entry.key]:.1f}", round(one[entry.key], 1) == best[entry.key]) for entry in entries]
                for way, entries in columns().items()
            },
        )
        for model, one in zip(models, metrics)
    ]


def gains(models):
    """For an ensemble, against each single model: (its number, [(better, equal, worse) for each direction])."""
    *singles, last = models
    pairs = [[(last[kind].ranks, model[kind].ranks) for kind in KINDS] for model in singles]
    return list(enumerate([[(count(a < b), count(a == b), count(a > b)) for a, b in ways] for ways in pairs]))


# ---- ranks


def count(marks):
    return int(np.count_nonzero(marks))


def mean_recall(folds, way, k):
    """Each fold's ranks, from 0, both ways -> the mean of their recalls at K, in percent."""
    return float(np.mean([recall(ranks[way][0], k) for ranks in folds]))


# ---- names


def short_names(paths):
    """Names that differ: the paths without the parts they share at the beginning and end.

    ['runs/dense/model_best.pth.tar', 'runs/sparse/model_best.pth.tar', 'ensemble'] -> ['dense', 'sparse', 'ensemble']
    """
    parts = [list(Path(path).parts) for path in paths if path != "ensemble"]
    if len(set(map(tuple, parts))) < len(parts) or len(parts) == 1:
        names = [Path(path).name.removesuffix(".tar").removesuffix(".pth") for path in paths]
        return [f"{name} ({k + 1})" if names.count(name) > 1 else name for k, name in enumerate(names)]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({path[end] for path in parts}) == 1:
            for path in parts:
                del path[end]
    names = map("/".join, parts)
    return [path if path == "ensemble" else next(names).removesuffix(".tar").removesuffix(".pth") for path in paths]
