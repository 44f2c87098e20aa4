"""The files that an evaluation writes: ranks, metrics and the report."""

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from checkpoints.evaluation_options import RANKS
from files.errors import InputError, warn
from files.writing import atomic_write, check_writable, is_stream
from reporting.explained_queries import Explanations
from reporting.pages import Report


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
        if self.sims and is_stream(self.sims):
            raise InputError(f"{self.sims}: a pipe or a device, but similarities need a file; give the name of one")
        if (self.images or self.explain or self.explain_pairs) and not self.report:
            raise InputError("--images and --explain are for --report; say with --report DIR where to write it")
        sims = self.sims and os.path.realpath(self.sims)  # a link stays one
        return self._replace(sims=sims, ranks=self.ranks if self.try_ranks(check_writable) else None)

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
            warn(f"the ranks are not kept: {error}, with --ranks")
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
            text = json.dumps([without_ranks(result) for result in results], indent=1, default=str)
            atomic_write(self.json, lambda f: f.write(text.encode()))
        if self.try_ranks(lambda path: save_ranks(results[-1]["full" if full else "fold5"], path)):
            print(f"Ranks: {Path(self.ranks).resolve()} (--ranks '' writes none)", file=sys.stderr)


def save_ranks(metrics, path):
    """Ranks from 0 and best matches, image to text as rt and text to image as rti, to a torch file."""
    folds = metrics["ranks"] if isinstance(metrics["ranks"], list) else [metrics["ranks"]]
    rt, rti = ([tuple(map(torch.from_numpy, fold[way])) for fold in folds] for way in (0, 1))
    single = len(folds) == 1
    atomic_write(path, lambda f: torch.save({"rt": rt[0] if single else rt, "rti": rti[0] if single else rti}, f))


def without_ranks(value):
    """Results of an evaluation without the arrays of ranks."""
    if isinstance(value, dict):
        return {k: without_ranks(v) for k, v in value.items() if k != "ranks"}
    return [without_ranks(v) for v in value] if isinstance(value, list) else value
