"""The first page of a report: tables, recall curves, what an ensemble changes, what each model is.

`models` is the report's list of dicts, one for each model: name, result (as evaluation.evaluate has it) and, under
images and captions, its Found.
"""

import math
import os
from pathlib import Path

import numpy as np

from reporting.metrics import I2T, METRICS, T2I, columns, recall
from reporting.printing import ties_line
from reporting.rendering import chart
from reporting.run_page import flag

CURVE_TICKS = (1, 2, 5, 10, 20, 50, 100)  # of K
KINDS = ("images", "captions")  # what the queries of each direction are


def summary(models):
    """What index.html shows of the models."""
    return {
        "models": [about(model) for model in models],
        "tables": tables(models),
        "columns": columns(),
        "charts": [recall_chart(models, way, kind) for way, kind in zip((I2T, T2I), KINDS)],
        "values": [
            (f"{way}, {model['name']}", [f"{recall(model[kind].ranks - 1, k):.1f}" for k in CURVE_TICKS])
            for way, kind in zip((I2T, T2I), KINDS)
            for model in models
        ],
        "ks": CURVE_TICKS,
        "gains": gains(models),
        "provenance": models[0]["result"]["provenance"],
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


def recall_chart(models, way, kind):
    """Each model's recall in percent at every K; folds have equally many queries, so that the mean is over all."""
    lines = {
        model["name"]: [(math.log(k), recall(model[kind].ranks - 1, k)) for k in range(1, CURVE_TICKS[-1] + 1)]
        for model in models
    }
    return chart(f"{way}: recall at K", lines, {math.log(k): k for k in CURVE_TICKS}, "K", top=100)


def tables(models):
    """[(title, rows, lines under it)]: a row for each model on the full split, the mean of folds, and each fold."""
    found = []
    for kind, title in (("full", "Metrics"), ("fold5", "Mean of five folds")):
        if kind in models[0]["result"]:
            metrics = [model["result"][kind] for model in models]
            lines = [(model["name"], ties_line(one)) for model, one in zip(models, metrics)]
            notes = [f"{name}: {line}" for name, line in lines if line]
            found.append((title, table_rows(models, metrics), notes))
    if "fold5" in models[0]["result"]:
        folds = zip(*(model["result"]["fold5"]["folds"] for model in models))
        rows = [table_rows(models, fold, f", fold {k}") for k, fold in enumerate(folds, start=1)]
        found.append(("Each fold", [row for fold in rows for row in fold], []))
    return found


def table_rows(models, metrics, ending=""):
    """A row for each model, as figures.html draws it, with the best of each column among several models."""
    rows = [{"heads": [model["name"] + ending], "metrics": one, "best": []} for model, one in zip(models, metrics)]
    for metric in METRICS if len(models) > 1 else ():
        figures = [round(one[metric.key], 1) for one in metrics]
        best = (min if metric.lower_is_better else max)(figures)
        for row, figure in zip(rows, figures):
            if figure == best:
                row["best"].append(metric.key)
    return rows


def gains(models):
    """For an ensemble, against each single model: how many queries are better, equal and worse in each direction."""
    *singles, last = models
    changes = [[np.sign(last[kind].ranks - model[kind].ranks) for kind in KINDS] for model in singles]
    return [[[np.count_nonzero(signs == sign) for sign in (-1, 0, 1)] for signs in ways] for ways in changes]


def short_names(paths):
    """Names that differ: the paths without the parts they share at the beginning and end.

    ['runs/dense/model_best.pth.tar', 'runs/sparse/model_best.pth.tar'] -> ['dense', 'sparse']
    """
    paths = [Path(path).absolute() for path in paths]
    while len(set(paths)) > 1 and len({path.name for path in paths}) == 1:
        paths = [path.parent for path in paths]
    common = os.path.commonpath([path.parent for path in paths])
    names = [os.path.relpath(path, common).removesuffix(".tar").removesuffix(".pth") for path in paths]
    return [f"{name} ({k + 1})" if names.count(name) > 1 else name for k, name in enumerate(names)]
