"""Results of a study's finished runs: metrics, ensembles, differences seed by seed; as JSON and as Markdown."""

import math
from itertools import permutations
from statistics import mean, stdev

import numpy as np

from evaluation import metrics
from files.arrays import open_array
from files.errors import InputError
from files.text import read_json
from reporting.ranks import SIX_RECALLS
from tools.demo_data.twins import told_apart
from tools.studying.table import RowEnsemble

KEPT = (*SIX_RECALLS, "medr", "medri", "rsum")
HEAD = "i2t R@1 | R@5 | R@10 | t2i R@1 | R@5 | R@10 | rsum"
# 97.5 % quantiles of Student's t for 1 ... 9 degrees of freedom; for more, the next smaller one is on the safe side
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def collect(study, runs):
    """Study and its runs -> a dict for a JSON file, all figures of the tables in it; unfinished runs are named."""
    finished = {(run.row, run.seed): run for run in runs if run.finished}
    scenes = read_json(study.twins) if study.twins and finished else None
    single = {key: figures_of_run(run, scenes) for key, run in finished.items()}
    matrices = {key: run.sims for key, run in finished.items()}
    return {
        "title": study.title,
        "seeds": sorted({run.seed for run in runs}),
        "missing": [run.name for run in runs if not run.finished],
        "test": study.test,
        "rows": {
            name: {"title": row.title, "train": row.train, "runs": of_row(name, single)}
            for name, row in study.rows.items()
            if any(run.row == name for run in runs)
        },
        "ensembles": dict(ensembles(study, single, matrices, scenes)),
        "differences": dict(differences(study, single)),
    }


def of_row(name, single):
    return {str(seed): figures for (row, seed), figures in single.items() if row == name}


def figures_of_run(run, scenes):
    """test.py's metrics, share of twins told apart, minutes of training."""
    result = read_json(run.result)[-1]
    if "full" not in result:
        raise InputError(f"{run.result}: no figures of a whole split; remove --fold5 from the table's test flags")
    kept = {name: round(result["full"][name], 4) for name in KEPT}
    twins = told_apart(open_array(run.sims), scenes) if scenes else {}
    return {**kept, **twins, "train_minutes": round(run.state["seconds"]["train"] / 60, 2)}


def ensembles(study, single, matrices, scenes):
    """(name, figures) of two seeds of each row and of the table's ensembles, for all choices of different seeds."""
    rows = {name: study.rows[name] for name in dict.fromkeys(row for row, _ in single)}
    alike = {f"{name} x2": RowEnsemble(f"{row.title}, two seeds", (name, name)) for name, row in rows.items()}
    for name, ensemble in {**alike, **study.ensembles}.items():
        found = {}
        for seeds in seed_choices(ensemble.members, single):
            members = list(zip(ensemble.members, seeds))
            figures = figures_of_ensemble([matrices[member] for member in members], scenes)
            figures["gain"] = round(figures["rsum"] - mean(single[member]["rsum"] for member in members), 4)
            found[",".join(map(str, seeds))] = figures
        if found:
            yield name, {"title": ensemble.title, "members": list(ensemble.members), "runs": found}


def seed_choices(members, single):
    """A different seed for each member, every set of (row, seed) once, those that are finished."""
    seen, seeds = set(), sorted({seed for _, seed in single})
    for choice in permutations(seeds, len(members)):
        chosen = frozenset(zip(members, choice))
        if chosen <= single.keys() and chosen not in seen:
            seen.add(chosen)
            yield choice


def figures_of_ensemble(paths, scenes):
    """Metrics of the mean of saved similarity matrices, which is test_stack.py's ensemble."""
    sims = sum(np.asarray(open_array(path), np.float64) for path in paths) / len(paths)
    found = metrics(sims.astype(np.float32))
    kept = {name: round(float(found[name]), 4) for name in KEPT}
    return {**kept, **told_apart(sims, scenes)} if scenes else kept


def differences(study, single):
    """(name, figures) of the table's differences; those of one seed are subtracted from each other."""
    for name, difference in study.differences.items():
        runs = {}
        for seed in sorted({seed for _, seed in single}):
            of, minus = ([single.get((row, seed)) for row in rows] for rows in (difference.of, difference.minus))
            if all(of) and all(minus):
                runs[str(seed)] = {key: round(mean(x[key] for x in of) - mean(x[key] for x in minus), 4)
                                   for key in ("r1", "r1i", "rsum", "twins") if key in of[0]}  # fmt: skip
        if runs:
            yield name, {"title": difference.title, "of": list(difference.of), "minus": list(difference.minus),
                         "runs": runs}  # fmt: skip


def mixing_gains(results, name):
    """rsum of an ensemble of two rows, less the mean of their own two-seed ensembles, for each pair of seeds.

    Both sides of the subtraction average the same four models: rows A and B with seeds s and t.
    """
    ensemble, found = results["ensembles"][name], []
    alike = [results["ensembles"].get(f"{member} x2", {}).get("runs", {}) for member in ensemble["members"]]
    if len(alike) != 2 or len(set(ensemble["members"])) != 2:
        return []
    for key in ensemble["runs"]:
        s, t = key.split(",")
        needed = [ensemble["runs"].get(f"{t},{s}"), alike[0].get(key), alike[1].get(key)]
        if int(s) < int(t) and all(needed):
            mixed = (ensemble["runs"][key]["rsum"] + needed[0]["rsum"]) / 2
            found.append(mixed - (needed[1]["rsum"] + needed[2]["rsum"]) / 2)
    return found


def spread(values, digits=1):
    """'mean ± standard deviation' as text; one value alone has no deviation."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def interval(values):
    """Half the width of the 95 % confidence interval of the mean (Student's t), or None for one value."""
    if len(values) < 2:
        return None
    return T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1] * stdev(values) / math.sqrt(len(values))


def column(item, key):
    return [figures[key] for figures in item["runs"].values() if key in figures]


def markdown(results):
    """All tables of a study as Markdown."""
    parts = [f"Percent, mean ± standard deviation over seeds ({', '.join(map(str, results['seeds']))})."]
    if results["missing"]:
        parts.append(f"Not run yet: {missing(results)}.")
    parts += [row_table(results), twin_table(results), difference_table(results), ensemble_table(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def missing(results):
    """Rows with the seeds that they lack, as text."""
    seeds = {}
    for run in results["missing"]:
        row, _, seed = run.rpartition(".seed")
        seeds.setdefault(row, []).append(seed)
    return "; ".join(f"{row} with seed{'s' * (len(of) > 1)} {', '.join(of)}" for row, of in seeds.items())


def markdown_table(head, lines):
    """Markdown; nothing for a table without lines."""
    cells = "|".join(["---"] * (head.count("|") + 1))
    return "\n".join([f"| {head} |", f"|{cells}|", *(f"| {' | '.join(line)} |" for line in lines)]) if lines else ""


def row_table(results):
    rows = {name: row for name, row in results["rows"].items() if row["runs"]}
    twins = any(column(row, "twins") for row in rows.values())
    keys = (*SIX_RECALLS, "rsum", *(["twins"] if twins else []))
    lines = [
        [f"{row['title']} (`{name}`)", str(len(row["runs"])), *(spread(column(row, key)) for key in keys)]
        for name, row in rows.items()
    ]
    return markdown_table(f"row | seeds | {HEAD}{' | twins' if twins else ''}", lines)


def twin_table(results):
    """Twins told apart, by what the caption says; nothing for other data."""
    rows = [row for row in results["rows"].values() if column(row, "twins")]
    keys = sorted({key for row in rows for run in row["runs"].values() for key in run if key.startswith("twins: ")})
    lines = [[row["title"], *(spread(column(row, key)) for key in ("twins", *keys))] for row in rows]
    return markdown_table(" | ".join(["twins told apart, by claim", "all", *(key[7:] for key in keys)]), lines)


def difference_table(results):
    found = results["differences"].values()
    twins = any(column(item, "twins") for item in found)
    keys = ("r1", "r1i", *(["twins"] if twins else []))
    lines = []
    for item in found:
        values = column(item, "rsum")
        half = interval(values)
        between = "" if half is None else f"{mean(values) - half:+.1f} to {mean(values) + half:+.1f}"
        each = ", ".join(f"{value:+.1f}" for value in values)
        lines.append([item["title"], spread(values), between, each, *(spread(column(item, key)) for key in keys)])
    head = "difference, seed by seed | rsum | 95 % interval of its mean | each seed | i2t R@1 | t2i R@1"
    return markdown_table(head + (" | twins" if twins else ""), lines)


def ensemble_table(results):
    lines = []
    for name, item in results["ensembles"].items():
        mixing = mixing_gains(results, name)
        lines.append([item["title"], str(len(item["runs"])), *(spread(column(item, key)) for key in ("r1", "r1i")),
                      spread(column(item, "rsum")), spread(column(item, "gain")),
                      spread(mixing) if mixing else ""])  # fmt: skip
    return markdown_table(
        "ensemble | choices of seeds | i2t R@1 | t2i R@1 | rsum | gain over the mean of its members | "
        "gain over two seeds of one row",
        lines,
    )
