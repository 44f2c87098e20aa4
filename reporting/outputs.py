"""The files that an evaluation writes: ranks, metrics and the report; what was measured, with what and when."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

import torch

from checkpoints.checkpoint import versions
from checkpoints.evaluation_options import RANKS, overrides_of
from files.errors import InputError, warn
from files.writing import atomic_write, check_writable, is_stream
from reporting.explained_queries import Explanations
from reporting.pages import Report


class Outputs:
    """An observer of an evaluation (evaluation.evaluate) that writes what its user wants to keep.

    opt: the flags of eval_parser; command: what asked for them.  InputError where a file cannot be written; a warning
    at the start where that is the default file of ranks, which the released evaluation leaves wherever it runs.
    """

    def __init__(self, opt, command):
        sims, asked = opt.save_sims, opt.explain or opt.explain_pair
        for path in filter(None, (sims, opt.json)):
            check_writable(path)
        if sims and is_stream(sims):
            raise InputError(f"{sims}: a pipe or a device, but similarities need a file; give the name of one")
        if (opt.images or asked) and not opt.report:
            raise InputError("--images and --explain are for --report; say with --report DIR where to write it")
        self.sims = sims and os.path.realpath(sims)  # a link stays one
        self.ranks, self.json, self.command = opt.ranks, opt.json, command
        try:
            check_writable(opt.ranks or os.devnull)
        except InputError as error:
            if str(opt.ranks) != RANKS:
                raise
            warn(f"the ranks are not kept: {error}, with --ranks")
            self.ranks = None
        explanations = Explanations(opt.explain, opt.explain_pair, opt.images, overrides_of(opt)) if asked else None
        self.report = Report(opt.report, opt.images, explanations) if opt.report else None

    def check(self, dataset):
        """Look at the split before the evaluation; InputError where the report cannot be made of it."""
        self.dataset = dataset
        if self.report:
            self.report.check(dataset)

    def add(self, result, sims):
        """Add to a model's result what it was measured with; note it for the report."""
        result["provenance"] = provenance(self.dataset, command=self.command)
        if self.report:
            self.report.add(result, sims)

    def write(self, results, full):
        """The files of ranks (of the last result: full split or folds) and metrics, and the report."""
        if self.json:
            text = json.dumps([without_ranks(result) for result in results], indent=1, default=str)
            atomic_write(self.json, lambda f: f.write(text.encode()))
        if self.report:
            self.report.write()
        if self.ranks:
            save_ranks(results[-1]["full" if full else "fold5"], self.ranks)
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


def provenance(dataset, command=None):
    """The record: data folder, split and its counts, command, date, versions (git's commit among them).

    dataset: the split; command: by default the command line.
    """
    return {
        "data": str(dataset.folder.resolve()),
        "split": dataset.split,
        "images": dataset.n_images,
        "captions": len(dataset),
        "command": command or shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": versions(),
    }
