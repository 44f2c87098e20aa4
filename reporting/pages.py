"""The retrieval report of an evaluation: a static site of metrics, curves and pages of queries.

`--report DIR` makes one Report, and adds each model when it has been evaluated. The pages are templates/*.html;
templates/report.js shows the queries from data/*.js, which a page reads as scripts so that the site works from disk.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from files.errors import InputError, optional_package, reason
from files.pictures import warn_proportions
from files.writing import temporary_name
from reporting.candidates import both_ways
from reporting.explained_queries import page_links
from reporting.explanation import caption_text
from reporting.provenance import provenance
from reporting.rendering import TEMPLATES, template
from reporting.summary import KINDS, short_names, summary
from reporting.thumbnails import drawings, image_files, make_thumbnails, read_regions

CHUNK = 200  # queries in one file of data
GENERATOR = "gsmn-vsrn retrieval report"
CONTENTS = {"index.html", "images.html", "captions.html", "report.css", "report.js", "data", "thumbs", "explain"}


# ---- the site ----


class Report:
    """Collects an evaluation and writes it as a folder of pages.

    folder: where to; an earlier report there is replaced. images: folder of image files, or None. split: for
    the title. ties: the order of equal scores. command: what was run. InputError at once where the folder holds
    something else, there is no folder of images, or jinja2 or Pillow is missing.
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
        """Find the split's image files, before a model is evaluated; InputError where their names do not fit it."""
        self.dataset = dataset
        self.files, self.names = image_files(dataset, self.images)
        _, sizes = read_regions(dataset)
        if any(self.files) and sizes is not None:
            warn_proportions(sizes, self.files)
        if self.explanations:
            self.explanations.check(dataset)

    def add(self, result, sims, dataset, data_name):
        """One model's result and similarities, as evaluation.evaluate has them. Keeps little of them."""
        if self.dataset is None:
            self.check(dataset)
        self.data_name, self.kind = data_name, "full" if "full" in sims else "fold5"
        blocks, ranks = sims[self.kind], result[self.kind]["ranks"]
        ranks = ranks if isinstance(ranks, list) else [ranks]
        found = both_ways(blocks, ranks, self.ties)
        self.models.append({"path": result["model"], "result": result, "ranks": ranks, **found})

    def write(self):
        """Write the site beside its place and put it there whole; prints where."""
        for model, name in zip(self.models, short_names([model["path"] for model in self.models])):
            model["name"] = name
        if self.folder.exists():
            print(f"{self.folder}: replacing the report")
        with replaced(self.folder) as folder:
            for name in ("thumbs", "data"):
                (folder / name).mkdir()
            thumbs = make_thumbnails(self.files, folder / "thumbs")
            explained = {}
            if self.explanations:
                folds = 5 if self.kind == "fold5" else 1
                explained = self.explanations.write(folder / "explain", self.models, self.images, folds)
            self.write_data(folder / "data", thumbs, explained)
            self.write_pages(folder, explained)
        print(f"Report: {self.folder / 'index.html'}")

    def write_data(self, folder, thumbs, explained):
        site = {
            "models": [m["name"] for m in self.models],
            "thumbs": thumbs,
            "names": self.names,
            "chunk": CHUNK,
            "per": len(self.dataset) // self.dataset.n_images,
            "explained": page_links(explained),
        }
        write_script(folder, "site", site)
        write_script(folder, "texts", [caption_text(self.dataset, c) for c in range(len(self.dataset))])
        write_script(folder, "ranks", {kind: [m[kind].ranks.tolist() for m in self.models] for kind in KINDS})
        for k, regions in enumerate(chunks(drawings(self.dataset)) if None in thumbs else ()):
            write_script(folder, f"regions-{k}", regions)
        for kind in KINDS:
            fields = [[list(chunks(values)) for values in m[kind][:4]] for m in self.models]
            for k in tqdm(range(len(fields[0][0])), desc="report", disable=None, leave=False):
                write_script(folder, f"{kind}-{k}", [[as_lists(parts[k]) for parts in model] for model in fields])

    def write_pages(self, folder, explained):
        common = {
            "generator": GENERATOR,
            "data_name": self.data_name,
            "split": self.split,
            "n_images": self.dataset.n_images,
            "n_captions": len(self.dataset),
            "names": [m["name"] for m in self.models],
        }
        first_page = {
            **summary(self.models),
            "provenance": provenance(self.dataset, command=self.command),
            "explained": explained,
            "folds": self.kind == "fold5",
        }
        for name, source, more in (
            ("index.html", "index.html", first_page),
            ("images.html", "queries.html", {"kind": "images"}),
            ("captions.html", "queries.html", {"kind": "captions"}),
        ):
            text = template(source).render(common, page=name, **more)
            (folder / name).write_text(text, encoding="utf-8")
        for name in ("report.css", "report.js"):
            shutil.copyfile(TEMPLATES / name, folder / name)


# ---- files ----


def chunks(values):
    """values in parts of CHUNK."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def as_lists(values):
    """An array as lists of numbers; four decimals of a score are enough to look at."""
    return values.tolist() if values.dtype.kind == "i" else [[round(x, 4) for x in row] for row in values.tolist()]


def write_script(folder, name, value):
    """A file of data that a page reads as a script, from disk too."""
    text = json.dumps(value, separators=(",", ":"))
    (folder / f"{name}.js").write_text(f'report.put("{name}", {text});\n', encoding="ascii")


def check_place(folder):
    """InputError unless the folder is missing, empty or an earlier report, and can be made."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise InputError(f"--report {folder}: no folder can be made here ({reason(error)})") from None
    index = folder / "index.html"
    is_report = index.is_file() and GENERATOR in index.read_text(encoding="utf-8", errors="replace")[:1000]
    if there - CONTENTS or (there and not is_report):
        raise InputError(f"--report {folder}: holds {min(there - CONTENTS or there)}, no report; name another folder")
    if not os.access(folder.parent, os.W_OK):
        raise InputError(f"--report {folder}: cannot be made (no right to write in {folder.parent})")


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
