"""The first page of a report: tables, recall curves, ranks by bin, what an ensemble changes, what each model is.

`models` is the report's list of dicts, one for each model: name, path, result (as evaluation.evaluate has it), ranks
(for each fold ((image ranks, best), (caption ranks, best)) from 0) and, under images and captions, its Found.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reporting.metrics import METRICS, columns, recall
from reporting.printing import ties_line

CURVE = 100  # the largest K of the recall curves
CURVE_TICKS = (1, 2, 5, 10, 20, 50, 100)
BIN_STARTS = (1, 2, 6, 11, 51, 101, 501)  # the first rank of each bin
KINDS = ("images", "captions")  # what the queries of each direction are


def summary(models, bins):
    """What index.html shows of the models; bins: {kind: as rank_bins}."""
    return {
        "models": [about(model) for model in models],
        "tables": tables(models),
        "columns": columns(),
        "curves": [[recall_curve([r[way][0] for r in model["ranks"]]) for model in models] for way in (0, 1)],
        "histograms": {
            kind: [[count_ranks(model[kind].ranks, low, high) for low, high in bins[kind]] for model in models]
            for kind in KINDS
        },
        "gains": gains(models),
        "ks": CURVE_TICKS,
        "logs": [round(math.log(k or 1, CURVE), 4) for k in range(CURVE + 1)],
    }


def about(model):
    """What one model is: {name, kind, epoch, path, flags}; of the ensemble, how it was made."""
    result = model["result"]
    if "checkpoint" in result:
        known = result["checkpoint"]
        flags = [flag_text(name, value) for name, value in known["flags"].items()]
        return {"name": model["name"], **known, "path": Path(known["path"]).resolve(), "flags": flags}
    how = result.get("ensemble", {"weights": None, "normalize": False})
    weights = "weights " + " ".join(f"{weight:g}" for weight in how["weights"]) if how["weights"] else "equal weights"
    kind = f"mean of the {'normalised ' if how['normalize'] else ''}similarities"
    return {"name": model["name"], "kind": kind, "epoch": "", "path": "", "flags": [weights]}


def flag_text(name, value):
    """A flag as on the command line."""
    return f"--{name}" if value is True else f"--{name} {value}"


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
    changes = [[count_changes(last[kind].ranks, model[kind].ranks) for kind in KINDS] for model in singles]
    return list(enumerate(changes))


def count_changes(new, old):
    """How many ranks are better, equal and worse than the old ones."""
    return [int(np.count_nonzero(change)) for change in (new < old, new == old, new > old)]


# ---- ranks


def recall_curve(folds):
    """Ranks from 0 of each fold -> mean recall in percent at K = 1 ... CURVE, computed as evaluation does."""
    return [float(np.mean([recall(ranks, k) for ranks in folds])) for k in range(1, CURVE + 1)]


def rank_bins(largest, possible):
    """Bins of ranks from 1 to the largest that a query has; none goes beyond the largest possible -> [(low, high)]."""
    ends = [start - 1 for start in BIN_STARTS[1:]] + [possible]
    return [(low, min(high, possible)) for low, high in zip(BIN_STARTS, ends) if low <= largest]


def count_ranks(ranks, low, high):
    return int(np.count_nonzero((ranks >= low) & (ranks <= high)))


def bin_texts(low, high):
    """A bin as the pages' filter takes it, and as they show it."""
    return f"{low}-{high}", f"{low:,}" if low == high else f"{low:,}–{high:,}"


# ---- names


def short_names(paths):
    """Names that differ: the paths without the parts they share at the beginning and end.

    ['runs/dense/model_best.pth.tar', 'runs/sparse/model_best.pth.tar', 'ensemble'] -> ['dense', 'sparse', 'ensemble']
    """
    parts = [Path(path).parts for path in paths if path != "ensemble"]
    if len(set(parts)) < len(parts) or len(parts) == 1:
        names = [Path(path).name.removesuffix(".tar").removesuffix(".pth") for path in paths]
        return [f"{name} ({k + 1})" if names.count(name) > 1 else name for k, name in enumerate(names)]
    shortest = min(map(len, parts))
    first = min(shared(parts), shortest - 1)
    last = min(shared([p[::-1] for p in parts]), shortest - 1 - first)
    names = iter("/".join(p[first : len(p) - last]) for p in parts)
    return [path if path == "ensemble" else next(names).removesuffix(".tar").removesuffix(".pth") for path in paths]


def shared(sequences):
    """How many items all sequences begin with."""
    return next((k for k, items in enumerate(zip(*sequences)) if len(set(items)) > 1), min(map(len, sequences)))
