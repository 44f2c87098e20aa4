"""Results of a study's finished runs: metrics, ensembles, differences seed by seed, and their tables in Markdown."""

import math
from itertools import permutations
from statistics import mean, stdev

import numpy as np

from evaluation import metrics
from files.arrays import open_array
from files.errors import InputError
from files.text import read_json
from reporting.metrics import METRICS

TITLES = {metric.key: metric.full_title for metric in METRICS if not metric.lower_is_better} | {"twins": "twins"}
# 97.5 % quantiles of Student's t for 1 ... 9 degrees of freedom; for more, the next smaller one is on the safe side
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def collect(study, runs):
    """Study and its runs -> what the tables show, a dict for a JSON file; unfinished runs are named.

    {'rows': {name: {seed: figures}}, 'differences': {title: {seed: figures}}, 'ensembles': {title: {'s,t': figures}},
    'missing': [names]}.  An ensemble's 'gain' is its rsum less the mean of its members'.
    """
    scenes = read_json(study.twins) if study.twins else None
    sims = {(run.row, run.seed): run.sims for run in runs if run.finished}
    seeds = sorted({seed for _, seed in sims})
    rows = {name: {s: figures_of([sims[name, s]], scenes) for s in seeds if (name, s) in sims} for name in study.rows}
    differences = {
        title: {s: difference(rows, of, minus, s) for s in seeds if all(s in rows[name] for name in of + minus)}
        for title, (of, minus) in study.differences.items()
    }
    alike, ensembles = {name: f"{name}, two seeds" for name in rows}, {}
    for title, (a, b) in {**{alike[name]: (name, name) for name in rows}, **study.ensembles}.items():
        ensembles[title] = {}
        for s, t in permutations(seeds, 2):
            if s in rows[a] and t in rows[b] and (a != b or s < t):
                both = figures_of([sims[a, s], sims[b, t]], scenes)
                both["gain"] = round(both["rsum"] - (rows[a][s]["rsum"] + rows[b][t]["rsum"]) / 2, 4)
                ensembles[title][f"{s},{t}"] = both
        if a != b:
            add_mixing(ensembles[title], ensembles[alike[a]], ensembles[alike[b]])
    found = {"rows": rows, "differences": differences, "ensembles": ensembles}
    found = {kind: {title: of for title, of in items.items() if of} for kind, items in found.items()}
    return {**found, "missing": [run.name for run in runs if not run.finished]}


def told_apart(sims, scenes):
    """Similarities (images, captions) of the scenes of a scenes.json -> percent.

    The share of the captions that are true of their scene and false of its twin, and that score higher with their
    own scene.
    """
    if sims.shape != (len(scenes), 5 * len(scenes)):
        raise InputError(f"similarities {sims.shape}, but {len(scenes)} scenes; give the tested split's scenes.json")
    higher = [
        sims[i, 5 * i + k] > sims[scene["twin"], 5 * i + k]
        for i, scene in enumerate(scenes)
        for k in np.flatnonzero(scene["telling"])
    ]
    return 100 * float(np.mean(higher))


def figures_of(paths, scenes):
    """Metrics, in percent, of the mean of saved similarity matrices, which is test_stack.py's ensemble."""
    matrices = [open_array(path) for path in paths]
    if matrices[0].ndim != 2:
        raise InputError(f"{paths[0]}: similarities of folds; remove --fold5 from the test's flags")
    sims = sum(matrix.astype(np.float64) for matrix in matrices) / len(matrices)
    found = metrics(sims.astype(np.float32)) | ({"twins": told_apart(sims, scenes)} if scenes else {})
    return {key: round(float(found[key]), 4) for key in TITLES if key in found}


def difference(rows, of, minus, seed):
    """The mean figures of the rows `of` less those of `minus`, all of one seed."""
    of, minus = ([rows[name][seed] for name in side] for side in (of, minus))
    return {key: round(mean(x[key] for x in of) - mean(x[key] for x in minus), 4) for key in TITLES if key in of[0]}


def add_mixing(mixed, alike_a, alike_b):
    """Add 'mixing' to ensembles of two rows: their rsum less that of ensembles within a row, of the same four models.

    Arguments: {'s,t': figures} of row a's seed s with row b's seed t, of two seeds of a, and of two seeds of b.
    """
    for key in mixed.keys() & alike_a.keys() & alike_b.keys():
        swapped = mixed.get(",".join(reversed(key.split(","))))
        if swapped:
            four = mixed[key]["rsum"] + swapped["rsum"] - alike_a[key]["rsum"] - alike_b[key]["rsum"]
            mixed[key]["mixing"] = round(four / 2, 4)


# ---- tables


def spread(values):
    """'mean ± standard deviation' as text; one value alone has no deviation, none is empty."""
    return (f"{mean(values):.1f}" if values else "") + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def interval(values):
    """The 95 % confidence interval of the mean (Student's t) as text; one value has none."""
    if len(values) < 2:
        return ""
    half = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1] * stdev(values) / math.sqrt(len(values))
    return f"{mean(values) - half:+.1f} to {mean(values) + half:+.1f}"


def each(values):
    return ", ".join(f"{value:+.1f}" for value in values)


def markdown(results):
    """All tables of a study; figures are percent, mean ± standard deviation over seeds."""
    means, count = [(title, key, spread) for key, title in TITLES.items()], lambda values: str(len(values))
    changes = [("95 % interval of rsum's mean", "rsum", interval), ("rsum of each seed", "rsum", each)]
    gains = [
        ("gain over the mean of its members", "gain", spread),
        ("gain over two seeds of one row", "mixing", spread),
    ]
    parts = [
        f"Not finished: {', '.join(results['missing'])}." if results["missing"] else "",
        table("row", results["rows"], [("seeds", "rsum", count), *means]),
        table("difference, seed by seed", results["differences"], [*means, *changes]),
        table("ensemble", results["ensembles"], [("choices of seeds", "rsum", count), *means, *gains]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def table(name, items, columns):
    """Markdown of {title: {seed: figures}}; columns: (heading, figure, values -> text), left out if all are empty."""

    def values(found, key):
        return [figures[key] for figures in found.values() if key in figures]

    columns = [column for column in columns if any(values(found, column[1]) for found in items.values())]
    lines = [[title, *(text(values(found, key)) for _, key, text in columns)] for title, found in items.items()]
    lines = [[name, *(heading for heading, *_ in columns)], ["---"] * (len(columns) + 1), *lines] if lines else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
