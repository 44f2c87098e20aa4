"""Log lines of a training: its start, its steps with their figures and the time left, its end."""

import datetime
import logging
import shlex
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from checkpoints.checkpoint import BEST
from files.errors import InputError
from reporting.run_page import write_run_page
from runtime import distributed
from systems.options import defaults
from systems.table import system_of

NO_LOSSES = ("grad_norm", "positive", "hardest_negative", "score_spread")  # among a step's figures


class BesideBars(logging.StreamHandler):
    """Writes log lines to stderr without breaking tqdm's progress bars."""

    def emit(self, record):
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def start_logging():
    """Log lines with their time to stderr, from level INFO on; a warning and an error say that they are one."""
    for level, word in ((logging.INFO, ""), (logging.WARNING, "warning: "), (logging.ERROR, "error: ")):
        logging.addLevelName(level, word)
    form, when = "%(asctime)s %(levelname)s%(message)s", "%m-%d %H:%M"
    logging.basicConfig(level=logging.INFO, format=form, datefmt=when, handlers=[BesideBars()])


def announce_start(training):
    """Model, data, steps and folders, one line each, and about how large a checkpoint is."""
    opt, progress, steps = training.opt, training.progress, len(training.loader)
    logging.info("%s", system_of(opt).kind(opt))
    weights = sum(p.numel() for p in training.model.parameters())
    trained = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    where = str(training.model.device).replace("cpu", f"cpu, {torch.get_num_threads()} threads")
    where += f", {distributed.size()} processes" if distributed.size() > 1 else ""
    logging.info("%s weights, on %s", f"{weights:,}", where)
    for split, loader in (("train", training.loader), ("dev", training.val_loader)):
        items = loader.dataset
        logging.info("%s: %s images, %s captions", items.folder / split, f"{items.n_images:,}", f"{len(items):,}")
    start = f", from epoch {progress.epoch}, step {progress.step}" if progress.Eiters else ""
    logging.info("%s of %d steps, %d pairs a step%s", in_epochs(opt), steps, opt.batch_size, start)
    size = 4 * (weights + 2 * trained)  # float32, with both of Adam's means
    logging.info("Checkpoints: %s, about %s each", opt.model_name, tqdm.format_sizeof(size, "B"))
    count = (opt.keep or opt.num_epochs - progress.epoch) + 1
    if distributed.is_main() and shutil.disk_usage(opt.model_name).free < count * size:
        logging.warning("%s: too little disk is free for %d of them; --keep 2 needs three", opt.model_name, count)
    logging.info("Log and curves: %s", opt.logger_name)


def in_epochs(opt):
    return f"{opt.num_epochs} epoch{'' if opt.num_epochs == 1 else 's'}"


class Step(NamedTuple):
    """One step of training."""

    figures: dict  # {name: scalar tensor, or number once read}: losses, norm of the gradient, scores
    facts: dict  # {name: number} known to the host
    ids: list  # numbers of this process's captions
    pairs: int  # of all processes

    def losses(self):
        """'loss', the sum, and its parts."""
        return {name: value for name, value in self.figures.items() if name not in NO_LOSSES}


def read(steps):
    """[Step] with numbers for tensors.  It waits for the device once, whatever the number of steps."""
    tensors = [tensor for step in steps for tensor in step.figures.values()]
    numbers = iter(torch.stack(tensors).tolist() if tensors else ())
    return [step._replace(figures={name: next(numbers) for name in step.figures}) for step in steps]


def log_line(training, step):
    """A Step in the log: the sum of its losses, those beside the retrieval loss, norm, time, and the time that the rest
    takes at the run's pace so far, validations and checkpoints included.
    """
    progress, steps, (start, first) = training.progress, len(training.loader), training.began
    facts, losses = step.facts, step.losses()
    del losses[training.model.retrieval_loss]
    parts = [f"{name.removeprefix('Le_')} {value:.4g}" for name, value in losses.items()]
    grad = step.figures["grad_norm"]
    parts += [f"grad {grad:.0f}" if grad >= 10 else f"grad {grad:.2g}"]
    left = training.opt.num_epochs * steps - progress.epoch * steps - progress.step
    seconds = (time.time() - start) / max(1, progress.Eiters - first) * left
    eta = f"{seconds:.0f}s" if seconds < 1000 else f"{seconds / 3600:.1f}h"
    parts += [f"{facts['batch_time']:.2g}s/it", f"ETA {eta}"]
    logging.info("Epoch %d %d/%d %s", facts["epoch"], facts["step"] + 1, steps, " ".join(parts))


def announce_end(training):
    """How long the run took, its best validation, its page, and the command that tests the best model."""
    opt, best = training.opt, Path(training.opt.model_name) / BEST
    took = datetime.timedelta(seconds=round(time.time() - training.began[0]))
    logging.info("Finished %s in %s", in_epochs(opt), took)
    announce_best(training)
    if distributed.is_main():
        try:
            kind = system_of(opt).kind(opt)
            page = write_run_page(opt.logger_name, kind, best, opt.select, defaults(opt.model))
            logging.info("Summary and curves: %s", page)
        except (InputError, LookupError, TypeError) as error:  # no reason to fail
            logging.warning("%s: no summary page (%s)", opt.logger_name, error)
    test = ["python", "test.py", "--model_path", str(best), "--data_path", opt.data_path]
    logging.info("Test it: %s", shlex.join([*test, "--vocab_path", opt.vocab_path]))


def announce_best(training):
    opt, progress = training.opt, training.progress
    epoch = f" of epoch {progress.best_epoch}" if progress.best_epoch >= 0 else ""
    title = {"rsum": "rsum", "r1r5": "r1 + r5"}[opt.select]
    logging.info("Best model: %s %.1f on dev%s, in %s", title, progress.best_rsum, epoch, Path(opt.model_name) / BEST)
