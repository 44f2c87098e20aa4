"""The retrieval report of an evaluation: a static site of metrics, curves and pages of queries.

`--report DIR` makes one Report, and adds each model when it has been evaluated.  The pages are templates/*.html;
templates/report.js shows the queries from data/*.js, which a page reads as scripts so that the site works from disk.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from files.errors import InputError, reason, warn
from files.pictures import other_proportions
from files.writing import temporary_name
from reporting.explanation import caption_text
from reporting.image_view import ImageViewer
from reporting.rendering import TEMPLATES, template
from reporting.summary import KINDS, short_names, summary

SHOWN = 10  # candidates shown for a query
GENERATOR = "gsmn-vsrn retrieval report"
CONTENTS = {"index.html", "images.html", "captions.html", "report.css", "report.js", "data", "thumbs", "explain"}


class Report:
    """Collects an evaluation and writes it as a folder of pages.

    folder: where to; an earlier report there is replaced.  images: folder of image files, or None.  explanations: an
    explained_queries.Explanations, or None.  InputError at once where the folder holds something else.
    """

    def __init__(self, folder, images=None, explanations=None):
        self.folder, self.images, self.explanations = Path(folder).resolve(), images, explanations
        check_place(self.folder)
        self.models = []

    def check(self, dataset):
        """Find the split's image files, before a model is evaluated; InputError where their names do not fit it."""
        self.dataset, self.viewer = dataset, ImageViewer(dataset, self.images)
        sizes, files = self.viewer.sizes, self.viewer.files
        if any(files) and sizes is not None and (found := other_proportions(sizes, files)):
            warn(found)
        if self.explanations:
            self.explanations.check(dataset)

    def add(self, result, sims):
        """One model's result and similarities, as evaluation.evaluate has them.  Keeps little of them."""
        kind = "full" if "full" in sims else "fold5"
        self.folds = len(sims[kind])
        self.models.append({"result": result, **both_ways(sims[kind], result[kind]["ties"]["rule"])})

    def write(self):
        """Write the site beside its place and put it there whole; prints where."""
        paths = [model["result"]["model"] for model in self.models]
        names = [*short_names(paths[:-1]), paths[-1]] if len(paths) > 1 else short_names(paths)  # with "ensemble"
        for model, name in zip(self.models, names):
            model["name"] = name
        if self.folder.exists():
            print(f"{self.folder}: replacing the report")
        with replaced(self.folder) as folder:
            for name in ("thumbs", "data"):
                (folder / name).mkdir()
            explained = {}
            if self.explanations:
                split = self.dataset.split
                explained = self.explanations.write(folder / "explain", self.models, split, self.folds)
            self.write_data(folder, explained)
            self.write_pages(folder, explained)
        print(f"Report: {self.folder / 'index.html'}")

    def write_data(self, folder, explained):
        texts = [caption_text(self.dataset, c) for c in range(len(self.dataset))]
        per = len(texts) // self.dataset.n_images
        site = {
            "models": [model["name"] for model in self.models],
            "thumbs": self.viewer.write_thumbnails(folder / "thumbs", texts[::per]),
            "names": self.viewer.names,
            "per": per,
            "explained": [
                (page.kind, page.query, name, f"explain/{place}/{page.file}")
                for name, (place, pages) in explained.items()
                for page, *_ in pages
            ],
            "texts": texts,
            "ranks": {kind: [model[kind].ranks.tolist() for model in self.models] for kind in KINDS},
        }
        write_script(folder, "site", site)
        for kind in KINDS:
            write_script(folder, kind, [list(map(as_lists, model[kind])) for model in self.models])

    def write_pages(self, folder, explained):
        common = {
            "generator": GENERATOR,
            "data_name": self.dataset.folder.name,
            "split": self.dataset.split,
            "n_images": self.dataset.n_images,
            "n_captions": len(self.dataset),
            "names": [model["name"] for model in self.models],
        }
        for name, source, more in (
            ("index.html", "index.html", {**summary(self.models), "explained": explained}),
            ("images.html", "queries.html", {"kind": "images"}),
            ("captions.html", "queries.html", {"kind": "captions"}),
        ):
            text = template(source).render(common, page=name, **more)
            (folder / name).write_text(text, encoding="utf-8")
        for name in ("report.css", "report.js"):
            shutil.copyfile(TEMPLATES / name, folder / name)


class Found(NamedTuple):
    """The best candidates of Q queries.  Candidates are numbered through the whole split."""

    ids: np.ndarray  # (Q, SHOWN) candidates, best first
    scores: np.ndarray  # (Q, SHOWN)
    own_positions: np.ndarray  # (Q, own) positions from 1 of the query's own candidates among all
    own_scores: np.ndarray  # (Q, own)

    @property
    def ranks(self):
        """(Q,) from 1, as evaluation counts them."""
        return self.own_positions.min(1)


def find_best(sims, captions_ask, offset=0, ties="worst"):
    """One block of similarities -> Found, for its images or its captions.  sims (N, per · N).

    offset: of the candidates' numbers.  ties: the order of equal scores, as in reporting/ranks.py.
    """
    per, parts = sims.shape[1] // len(sims), []
    every = np.arange(sims.shape[not captions_ask])
    shown, places = min(SHOWN, len(every)), np.empty_like(every)  # places: of each candidate, from 0
    for q, row in enumerate(transposed_rows(sims) if captions_ask else sims):
        own = slice(q // per, q // per + 1) if captions_ask else slice(q * per, (q + 1) * per)
        others = np.concatenate([every[: own.start], every[own.stop :]])
        before = every[::-1] if ties == "released" else np.concatenate([others, every[own]])
        lowest = min(np.partition(row, -shown)[-shown], row[own].min())  # what scores less is not shown
        some = before[row[before] >= lowest]
        order = some[np.argsort(-row[some], kind="stable")]
        places[order] = every[: len(order)]
        parts.append((order[:shown] + offset, row[order[:shown]], places[own] + 1, row[own]))
    return Found(*map(np.stack, zip(*parts)))


def transposed_rows(sims, block=512):
    """The columns of sims one by one, without a second whole matrix."""
    for start in range(0, sims.shape[1], block):
        yield from np.ascontiguousarray(sims[:, start : start + block].T)


def both_ways(blocks, ties="worst"):
    """Blocks of a diagonal (one, or five folds) -> {'images': Found, 'captions': Found}."""
    n, m = blocks[0].shape
    images = [find_best(sims, False, k * m, ties) for k, sims in enumerate(blocks)]
    captions = [find_best(sims, True, k * n, ties) for k, sims in enumerate(blocks)]
    return {
        kind: Found(*map(np.concatenate, zip(*parts))) for kind, parts in (("images", images), ("captions", captions))
    }


def as_lists(values):
    """An array as lists of numbers; four decimals of a score are enough to look at."""
    return values.tolist() if values.dtype.kind == "i" else [[round(x, 4) for x in row] for row in values.tolist()]


def write_script(folder, name, value):
    """A file of data that a page reads as a script, from disk too."""
    text = json.dumps(value, separators=(",", ":"))
    (folder / "data" / f"{name}.js").write_text(f'report.put("{name}", {text});\n', encoding="ascii")


def check_place(folder):
    """InputError unless the folder is missing, empty or an earlier report, and can be made."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError(f"no right to write in {folder.parent}")
    except OSError as error:
        raise InputError(f"--report {folder}: no folder can be made here ({reason(error)})") from None
    index = folder / "index.html"
    is_report = index.is_file() and GENERATOR in index.read_text(encoding="utf-8", errors="replace")[:1000]
    if there - CONTENTS or (there and not is_report):
        raise InputError(f"--report {folder}: holds {min(there - CONTENTS or there)}, no report; name another folder")


@contextlib.contextmanager
def replaced(folder):
    """A folder to fill; at the end it takes the place of `folder`, or vanishes on an error."""
    old, building = (Path(temporary_name(folder.parent, "work")) for _ in range(2))
    try:
        building.mkdir()
        yield building
        if folder.exists():
            os.rename(folder, old)
        os.rename(building, folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise InputError(f"{folder}: the report cannot be written ({reason(error)})") from error
    finally:
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)
