"""What an evaluation prints and writes: the block of metrics, the files of ranks and metrics, the report."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from files.errors import InputError, warn
from files.writing import atomic_write, check_writable
from modules.ranks import RECALLS
from reporting.explained_queries import Explanations
from reporting.pages import Report
from runtime.options import RANKS

NAMES = {"r1": "R@1", "r5": "R@5", "r10": "R@10"}


# ---- printed


def print_metrics(metrics):
    """The block of lines that the field's tables are read from; a line on equal scores where they matter."""
    print(f"rsum: {metrics['rsum']:.1f}")
    print(f"Average i2t Recall: {metrics['ar']:.1f}")
    print("Image to text: {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}".format(*(metrics[k] for k in RECALLS)))
    print(f"Average t2i Recall: {metrics['ari']:.1f}")
    print("Text to image: {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}".format(*(metrics[k + "i"] for k in RECALLS)))
    print_ties(metrics)


def print_fold(metrics):
    """The shorter block of one of five folds."""
    print("Image to text: {:.1f}, {:.1f}, {:.1f}, {:.1f}, {:.1f}".format(*(metrics[k] for k in RECALLS)))
    print("Text to image: {:.1f}, {:.1f}, {:.1f}, {:.1f}, {:.1f}".format(*(metrics[k + "i"] for k in RECALLS)))
    print(f"rsum: {metrics['rsum']:.1f} ar: {metrics['ar']:.1f} ari: {metrics['ari']:.1f}")
    print_ties(metrics)


def print_folds(mean):
    """Each fold's block, then that of their mean."""
    for fold in mean["folds"]:
        print_fold(fold)
    print("-----------------------------------")
    print("Mean metrics: ")
    print_metrics(mean)


def print_ties(metrics):
    """One line with each recall that depends on the order of equal scores; nothing where none does."""
    ties = metrics["ties"]
    moved = [name + way for way in ("", "i") for name in NAMES if ties["worst"][name + way] != ties["best"][name + way]]
    if moved:
        values = ", ".join(f"{title(name)} {range_of(ties, name)}" for name in [*moved, "rsum"])
        print(f"Equal scores, lowest to highest (released order): {values}")


def title(name):
    """A metric's name as printed: 'r1i' -> 't2i R@1'."""
    return name if name == "rsum" else f"t2i {NAMES[name[:-1]]}" if name.endswith("i") else f"i2t {NAMES[name]}"


def range_of(ties, name):
    return "{:.2f} to {:.2f} ({:.2f})".format(*(ties[order][name] for order in ("worst", "best", "released")))


# ---- written


class Outputs(NamedTuple):
    """The files an evaluation writes, None or '' where it writes none, and the command that asked for them."""

    ranks: str | None
    json: str | None
    report: str | None  # folder of pages
    images: str | None  # folder of image files, for the pages
    sims: str | None
    command: str
    explain: int = 0  # worst queries each way to explain in the report
    explain_pairs: tuple = ()  # pairs to explain, as IMAGE:CAPTION

    def checked(self):
        """These outputs; InputError where one cannot be written, a warning where that is the default file of ranks."""
        for path in filter(None, (self.sims, self.json)):
            check_writable(path)
        if self.images and not self.report:
            raise InputError("--images is for --report; say with --report DIR where to write it")
        if (self.explain or self.explain_pairs) and not self.report:
            raise InputError("--explain is for --report; say with --report DIR where to write it")
        return self if self.try_ranks(check_writable) else self._replace(ranks=None)

    def try_ranks(self, act):
        """act(the file of ranks), if there is one -> whether it succeeded.

        The released evaluation leaves this file wherever it runs, so an evaluation does not fail for want of it
        unless the user gave its name.
        """
        try:
            if self.ranks:
                act(self.ranks)
            return bool(self.ranks)
        except InputError as error:
            if str(self.ranks) != RANKS:
                raise
            warn(f"{error}; the ranks are not kept")
            return False

    def new_report(self, split, ties, overrides):
        """The Report to fill, or None; overrides: the evaluation's, with which --explain loads its models again."""
        if not self.report:
            return None
        asked = self.explain or self.explain_pairs
        explanations = Explanations(self.explain, self.explain_pairs, split, overrides) if asked else None
        return Report(self.report, self.images, split, ties, self.command, explanations)

    def write(self, results, full):
        """The files of ranks (of the last result: full split or folds) and metrics."""
        if self.json:
            save_json(results, self.json)
        if self.try_ranks(lambda path: save_ranks(results[-1]["full" if full else "fold5"], path)):
            print(f"Ranks: {Path(self.ranks).resolve()} (--ranks '' writes none)", file=sys.stderr)


def save_ranks(metrics, path):
    """Ranks from 0 and best matches, image to text as rt and text to image as rti, to a torch file."""
    pairs = metrics["ranks"] if isinstance(metrics["ranks"], list) else [metrics["ranks"]]
    rt, rti = ([tuple(map(torch.from_numpy, pair[k])) for pair in pairs] for k in (0, 1))
    single = len(pairs) == 1
    atomic_write(path, lambda f: torch.save({"rt": rt[0] if single else rt, "rti": rti[0] if single else rti}, f))


def save_json(results, path):
    """The results of an evaluation without the arrays of ranks."""
    text = json.dumps([without_ranks(result) for result in results], indent=1, default=str)
    atomic_write(path, lambda f: f.write(text.encode()))


def without_ranks(value):
    if isinstance(value, dict):
        return {k: without_ranks(v) for k, v in value.items() if k != "ranks"}
    return [without_ranks(v) for v in value] if isinstance(value, list) else value
