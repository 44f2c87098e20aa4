"""The retrieval report of an evaluation: a static site of metrics, curves and pages of queries.

`evaluation.main` makes it for `--report DIR`: one Report, told of each model as it is evaluated. The pages are
templates/*.html; templates/report.js shows the queries from data/*.js, which are read as scripts so that the
site works from disk.
"""

import contextlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from files.errors import InputError, optional_package
from files.names import image_names
from reporting.rendering import TEMPLATES, template
from reporting.thumbnails import drawings, make_thumbnails

TOP = 10  # candidates shown for a query
CHUNK = 200  # queries in one file of data
CURVE = 100  # the largest K of the recall curves
CURVE_TICKS = (1, 2, 5, 10, 20, 50, 100)
BINS = ((1, 1), (2, 5), (6, 10), (11, 50), (51, 100), (101, 500), (501, 0))  # of ranks; 0: no end
GENERATOR = "gsmn-vsrn retrieval report"
CONTENTS = {"index.html", "images.html", "captions.html", "report.css", "report.js", "data", "thumbs", "explain"}
FIGURES = ("rsum", "ar", "r1", "r5", "r10", "medr", "meanr", "ari", "r1i", "r5i", "r10i", "medri", "meanri")


class Found(NamedTuple):
    """What a model found for Q queries. Candidates are numbered through the whole split."""

    ids: np.ndarray  # (Q, TOP) candidates, best first
    scores: np.ndarray  # (Q, TOP)
    own_positions: np.ndarray  # (Q, own) positions from 1 of the query's own candidates among all
    own_scores: np.ndarray  # (Q, own)
    ranks: np.ndarray  # (Q,) from 1, as evaluation counts them


# ---- what a model found ----


def best_of(row, own, ties="worst"):
    """row (C,) scores, own: range of the query's own candidates -> (best TOP, their scores, own positions, own scores).

    ties: the order of equal scores, as in modules/ranks.py; the first own candidate's position is the query's rank.
    """
    k = min(TOP, len(row))
    best = np.flatnonzero(row >= np.partition(row, -k)[-k])
    is_own = (best >= own.start) & (best < own.stop)
    keys = (best, is_own, -row[best]) if ties == "worst" else (-best, -row[best])
    best = best[np.lexsort(keys)[:k]]
    return best, row[best], own_positions(row, own, ties), row[own.start : own.stop]


def own_positions(row, own, ties):
    """Positions from 1 of the query's own candidates among all, (own,)."""
    scores = row[own.start : own.stop, None]  # (own, 1)
    above, equal = np.count_nonzero(row > scores, axis=1), row == scores  # (own,), (own, C)
    if ties == "released":  # equals of a higher index come first
        return above + np.count_nonzero(equal & (np.arange(len(row)) > np.array(own)[:, None]), axis=1) + 1
    rivals = np.count_nonzero(equal, axis=1) - np.count_nonzero(equal[:, own.start : own.stop], axis=1)
    earlier = np.tril(equal[:, own.start : own.stop], -1)  # own equals, which keep their order
    return above + rivals + np.count_nonzero(earlier, axis=1) + 1


def find_best(sims, ranks, per, offset, captions_ask, ties="worst"):
    """One block of similarities -> Found, for its images or its captions. sims (N, per · N); ranks from 0."""
    n = len(sims)
    rows = transposed_rows(sims) if captions_ask else sims
    owns = (range(q // per, q // per + 1) if captions_ask else range(q * per, (q + 1) * per) for q in range(len(ranks)))
    found = zip(*(best_of(row, own, ties) for row, own in zip(rows, owns)))
    ids, scores, positions, own_scores = map(np.stack, found)
    return Found(ids + offset * (n if captions_ask else n * per), scores, positions, own_scores, ranks + 1)


def transposed_rows(sims, block=512):
    """The columns of sims one by one, without a second whole matrix."""
    for start in range(0, sims.shape[1], block):
        yield from np.ascontiguousarray(sims[:, start : start + block].T)


def both_ways(blocks, ranks, ties="worst"):
    """Blocks of a diagonal (one, or five folds) and their ranks -> {'images': Found, 'captions': Found}."""
    per = blocks[0].shape[1] // blocks[0].shape[0]
    found = {}
    for way, kind in enumerate(("images", "captions")):
        parts = [find_best(sims, r[way][0], per, k, way == 1, ties) for k, (sims, r) in enumerate(zip(blocks, ranks))]
        found[kind] = Found(*map(np.concatenate, zip(*parts)))
    return found


# ---- the site ----


class Report:
    """Collects an evaluation and writes it as a folder of pages.

    folder: where to; an earlier report there is replaced. images: folder of image files, or None. split: for
    the title. Raises InputError at once for what can be known before an evaluation: the folder holds something
    else, there is no folder of images, or jinja2 or Pillow is missing.
    """

    def __init__(self, folder, images=None, split="", ties="worst", command="", explanations=None):
        self.folder, self.images, self.split = Path(folder).resolve(), images, split
        self.ties, self.command, self.explanations = ties, command, explanations
        optional_package("jinja2", "--report")
        if images:
            optional_package("PIL", "--report", "pillow")
            if not Path(images).is_dir():
                raise InputError(f"--images {images}: no such folder")
        check_place(self.folder)
        self.models, self.dataset = [], None

    def check(self, dataset):
        """InputError before a model is evaluated where a file of the images' names does not fit the split."""
        image_names(dataset)
        if self.explanations:
            self.explanations.check(dataset)

    def add(self, result, sims, dataset, data_name):
        """One model's result and similarities, as evaluation.evaluate has them. Keeps little of them."""
        kind = "full" if "full" in sims else "fold5"
        ranks = result[kind]["ranks"]
        ranks = ranks if isinstance(ranks, list) else [ranks]
        self.models.append(
            {"path": result["model"], "result": result, "ranks": ranks, **both_ways(sims[kind], ranks, self.ties)}
        )
        self.dataset, self.data_name, self.kind = dataset, data_name, kind

    def write(self):
        """Write the site beside its place and put it there whole; prints where."""
        for model, name in zip(self.models, short_names([model["path"] for model in self.models])):
            model["name"] = name
        with replaced(self.folder) as folder:
            (folder / "thumbs").mkdir()
            (folder / "data").mkdir()
            thumbs, names = make_thumbnails(self.dataset, self.images, folder / "thumbs", self.folder / "thumbs")
            self.write_data(folder / "data", thumbs, names)
            self.write_pages(folder, self.explain(folder / "explain"))
        print(f"Report: {self.folder / 'index.html'}")

    def explain(self, folder):
        """The pages of --explain -> [(folder's name, model's name, pages, bytes)]."""
        if not self.explanations:
            return []
        folds = 5 if self.kind == "fold5" else 1
        return self.explanations.write(folder, self.models, self.images, folds)

    def write_data(self, folder, thumbs, names):
        site = {
            "models": [m["name"] for m in self.models],
            "thumbs": thumbs,
            "names": names,
            "chunk": CHUNK,
            "per": len(self.dataset) // self.dataset.n_images,
        }
        write_script(folder, "site", site)
        write_script(folder, "texts", texts_of(self.dataset))
        if None in thumbs:
            for k, part in enumerate(split_into_chunks(drawings(self.dataset))):
                write_script(folder, f"regions-{k}", part)
        kinds = ("images", "captions")
        write_script(folder, "ranks", {kind: [m[kind].ranks.tolist() for m in self.models] for kind in kinds})
        jobs = [(kind, k) for kind in kinds for k in range(-(-len(self.models[0][kind].ids) // CHUNK))]
        for kind, k in tqdm(jobs, desc="report", disable=None, leave=False):
            part = slice(k * CHUNK, (k + 1) * CHUNK)
            write_script(
                folder, f"{kind}-{k}", [[as_lists(values[part]) for values in m[kind][:4]] for m in self.models]
            )

    def write_pages(self, folder, explained):
        common = {
            "generator": GENERATOR,
            "data_name": self.data_name,
            "split": self.split,
            "n_images": self.dataset.n_images,
            "n_captions": len(self.dataset),
            "names": [m["name"] for m in self.models],
            "bins": [(bin_value(b), bin_label(b)) for b in BINS],
        }
        summary = {
            "tables": self.tables(),
            "curves": self.curves(),
            "histograms": self.histograms(),
            "gains": self.gains(),
            "explained": explained,
            "folds": self.kind == "fold5",
            "ks": CURVE_TICKS,
            "logs": [round(math.log(k or 1, CURVE), 4) for k in range(CURVE + 1)],
        }
        for name, source, more in (
            ("index.html", "index.html", summary),
            ("images.html", "queries.html", {"kind": "images"}),
            ("captions.html", "queries.html", {"kind": "captions"}),
        ):
            text = template(source).render(common, page=name, **more)
            (folder / name).write_text(text, encoding="utf-8")
        for name in ("report.css", "report.js"):
            shutil.copyfile(TEMPLATES / name, folder / name)

    # ---- what stands on the first page ----

    def tables(self):
        """[(title, [(name, path, figures as printed)])]: a row for each model, then their folds."""
        tables = []
        if "full" in self.models[0]["result"]:
            tables.append(("", [row(m["name"], m["path"], m["result"]["full"]) for m in self.models]))
        if "fold5" in self.models[0]["result"]:
            tables.append(
                ("Mean of five folds", [row(m["name"], m["path"], m["result"]["fold5"]) for m in self.models])
            )
            folds = [
                row(f"{m['name']}, fold {k}", m["path"], fold)
                for m in self.models
                for k, fold in enumerate(m["result"]["fold5"]["folds"], 1)
            ]
            tables.append(("Each fold", folds))
        return tables

    def curves(self):
        """For each direction, each model's recall in percent at K = 1 ... CURVE: [[[float]]]."""
        return [[recall_curve([r[way][0] for r in m["ranks"]]) for m in self.models] for way in (0, 1)]

    def histograms(self):
        """For each direction and model, how many queries have a rank in each of BINS."""
        return [
            [[count(m[kind].ranks, low, high) for low, high in BINS] for m in self.models]
            for kind in ("images", "captions")
        ]

    def gains(self):
        """For an ensemble, against each single model: (its number, [(better, equal, worse) for each direction])."""
        last = len(self.models) - 1
        return [
            (
                k,
                [
                    count_changes(self.models[last][kind].ranks, self.models[k][kind].ranks)
                    for kind in ("images", "captions")
                ],
            )
            for k in range(last)
        ]


def row(name, path, figures):
    return name, path, [f"{figures[k]:.1f}" for k in FIGURES]


def recall_curve(folds):
    """Ranks from 0 of each fold -> mean recall in percent at K = 1 ... CURVE, computed as evaluation does."""
    return [float(np.mean([100.0 * np.count_nonzero(r < k) / len(r) for r in folds])) for k in range(1, CURVE + 1)]


def count(ranks, low, high):
    return int(np.count_nonzero((ranks >= low) & (ranks <= (high or np.inf))))


def count_changes(new, old):
    return [int(np.count_nonzero(found)) for found in (new < old, new == old, new > old)]


def bin_value(bounds):
    return f"{bounds[0]}-{bounds[1] or ''}"


def bin_label(bounds):
    low, high = bounds
    return str(low) if low == high else f"{low}–{high}" if high else f"{low} and more"


def short_names(paths):
    """What tells paths apart: their parts without those they share at the beginning and end.

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


def texts_of(dataset):
    """The captions' texts; without a file of them, the words of their ids."""
    texts = dataset.captions
    if texts is None:
        words = dataset.vocab.idx2word
        texts = [" ".join(words[i] for i in dataset.tokens[c][1:-1]) for c in range(len(dataset))]
    return list(texts)


# ---- files ----


def as_lists(values):
    """An array as lists of numbers; four decimals of a score are enough to look at."""
    return values.tolist() if values.dtype.kind == "i" else [[round(x, 4) for x in row] for row in values.tolist()]


def split_into_chunks(items):
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


def write_script(folder, name, value):
    """A file of data that a page reads as a script, from disk too."""
    text = json.dumps(value, separators=(",", ":"))
    (folder / f"{name}.js").write_text(f'report.put("{name}", {text});\n', encoding="ascii")


def check_place(folder):
    """InputError unless the folder is missing, empty or an earlier report, and can be made."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--report {folder}: is a file; name a folder")
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if there - CONTENTS or (there and not is_report(folder)):
        other = sorted(there - CONTENTS or there)[0]
        raise InputError(f"--report {folder}: holds {other}, which is no part of a report; name another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--report {folder}: cannot be made ({error.strerror})") from None
    if not os.access(folder.parent, os.W_OK):
        raise InputError(f"--report {folder}: cannot be made (no right to write in {folder.parent})")


def is_report(folder):
    index = folder / "index.html"
    return index.is_file() and GENERATOR in index.read_text(encoding="utf-8", errors="replace")[:1000]


@contextlib.contextmanager
def replaced(folder):
    """A folder to fill; at the end it takes the place of `folder`, or vanishes on an error."""
    building, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    try:
        if old.exists() and not folder.exists():  # an earlier run was killed between the two renames
            os.rename(old, folder)
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)
        building.mkdir()
        yield building
        if folder.exists():
            os.rename(folder, old)
        os.rename(building, folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise InputError(f"{folder}: the report cannot be written ({error.strerror or error})") from error
    finally:
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)
