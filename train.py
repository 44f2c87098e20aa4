"""Train GSMN or VSRN on precomputed region features.  README.md has the published recipes.

`set_up` makes everything that a run needs.  `train` is the loop over epochs and steps: data, losses, update, log,
now and then a validation and a checkpoint.
"""

import runtime.openmp  # noqa: F401, before torch

from files.errors import guarded, run
from runtime.options import train_options

if __name__ == "__main__":
    guarded(train_options)  # before torch is loaded: --help and mistakes in flags are answered at once

import logging
import os
import random
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import data
from evaluation import RECALLS, encode_data, metrics, shard_xattn
from model import MatchingModel, build_model
from runtime import checkpoint, devices, distributed, global_batch
from runtime.announce import announce_end, announce_nothing_to_do, announce_start, start_logging
from runtime.checkpoint_fields import check_shapes
from runtime.health import CollapseWatch, first_not_finite, stop_training
from runtime.interrupts import Interrupted, Stop
from runtime.logger import RunLog
from runtime.resume import (
    Progress,
    load_resumed,
    refuse_used_folder,
    restore,
    resume_options,
    settle_variant,
    training_state,
)
from vocab import Vocabulary, load_vocab

LOG_NAMES = {"grad_norm": "grad_norm before clipping"}


def main(argv=None):
    start_logging()
    opt, given = train_options(argv)
    with distributed.process_group():
        training, start = set_up(opt, given), time.time()
        if opt.resume and training.progress.epoch >= training.opt.num_epochs:
            announce_nothing_to_do(training)
            return
        announce_start(training)
        train(training)
        announce_end(training, time.time() - start)


@dataclass
class Training:
    """What set_up makes and the loop uses."""

    opt: Namespace
    vocab: Vocabulary
    loader: DataLoader  # of the train split, batch by batch
    val_loader: DataLoader  # of the dev split
    model: MatchingModel
    replica: nn.Module  # what gives the losses of a batch: the model, or all processes' models as one
    optimizer: torch.optim.Optimizer
    progress: Progress
    keeper: checkpoint.Keeper
    log: RunLog
    stop: Stop

    def save(self, name):
        """Write a checkpoint; False where it cannot be written (a message says why)."""
        state = training_state(self.model, self.optimizer, self.opt, self.vocab, self.progress)
        return self.keeper.save(state, name)


def set_up(opt, given):
    """Flags -> Training, at its beginning or where --resume left it.  given: names of the flags that were given."""
    opt.device = devices.choose(opt.device)
    saved = load_resumed(opt.resume) if opt.resume else refuse_used_folder(opt.model_name)
    if saved:
        opt = resume_options(opt, given, saved["opt"], logging.warning)
    settle_variant(opt)
    if opt.preload:
        logging.warning("--preload has no effect any more; copy the features to /dev/shm for a faster disk")
    seed_everything(opt.seed, opt.deterministic)
    data.check_name(opt.data_name, opt)
    if not saved and "img_dim" not in given:
        opt.img_dim = data.feature_width(opt)
    vocab = load_vocab(opt.vocab_path, opt.data_name)
    opt.vocab_size = len(vocab)
    if saved:
        checkpoint.check_vocab(saved, vocab, opt.resume)
        check_shapes(build_model, opt, saved, opt.resume)
    loader, val_loader = data.get_loaders(
        opt.data_name, vocab, opt.batch_size, opt.workers, opt, distributed.size(), distributed.rank()
    )
    model = build_model(opt).to(distributed.local_device(opt.device))
    if opt.compile:
        model.compile_parts()
    optimizer = torch.optim.Adam(model.parameters(), lr=opt.learning_rate)
    progress = restore(saved, model, optimizer) if saved else Progress()
    replica = global_batch.training_module(model, opt.accumulate)
    keeper = distributed.on_main(checkpoint.Keeper, opt.model_name, opt.keep, logging.error)
    log = distributed.on_main(RunLog, opt.logger_name, progress.Eiters if saved else None)
    log.config(opt, checkpoint.versions(), [loader.dataset, val_loader.dataset])
    return Training(opt, vocab, loader, val_loader, model, replica, optimizer, progress, keeper, log, Stop())


def seed_everything(seed, deterministic=False):
    """Fix the random generators; deterministic: the algorithms too (docs/method.md, section 5)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)  # torch names the operations it cannot fix
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


# ---- the loop


def train(training):
    """Train to the end of the last epoch, or until a signal."""
    opt, progress, steps = training.opt, training.progress, len(training.loader)
    criterion, collapse = training.model.criterion, CollapseWatch(opt)
    if progress.validate_due:
        validate_and_keep(training)
        leave_if_asked(training)
    while progress.epoch < opt.num_epochs:
        start_epoch(training)
        bar = tqdm(training.loader, f"epoch {progress.epoch}", initial=progress.step, total=steps, disable=None)
        start = time.time()
        for batch in training.stop.batches(bar):
            data_time = time.time() - start

            distributed.seed_step(opt.seed, progress.Eiters)
            criterion.twins = twins(batch, training.loader.dataset) if opt.skip_twins else None
            losses = train_step(training.replica, training.optimizer, batch, opt.grad_clip, progress.Eiters)
            pairs = training.loader.batch_sampler.pairs(progress.step)  # of all processes
            progress.step, progress.Eiters = progress.step + 1, progress.Eiters + 1

            batch_time = time.time() - start
            bar.set_postfix(loss=f"{losses['Le']:.3f}", data=f"{data_time:.3f}s", step=f"{batch_time:.3f}s")
            observed = criterion.observed()
            log_step(training, losses, observed, pairs, batch_time, data_time)
            if criterion.max_violation:
                collapse.step(losses[training.model.retrieval_loss], observed["score_spread"], pairs)

            if progress.step < steps:  # the end of an epoch validates and saves anyway
                if progress.Eiters % opt.val_step == 0:
                    validate_and_keep(training)
                if opt.save_every and progress.Eiters % opt.save_every == 0:
                    training.save(f"checkpoint_{progress.epoch}_{progress.step}.pth.tar")
            leave_if_asked(training)
            start = time.time()
        leave_if_asked(training)  # after a signal during the wait for a batch
        validate_and_keep(training, end_of_epoch=True)
        if progress.step == 0:  # the epoch is complete
            training.save(f"checkpoint_{progress.epoch - 1}.pth.tar")
        leave_if_asked(training)
    training.keeper.check()


def start_epoch(training):
    """Set what depends on the epoch: learning rate, kind of loss, order of the data."""
    opt, epoch = training.opt, training.progress.epoch
    set_learning_rate(training.optimizer, opt, epoch)
    training.model.criterion.max_violation = opt.max_violation and epoch >= opt.warmup_sum
    training.loader.batch_sampler.set_epoch(epoch, training.progress.step)


def set_learning_rate(optimizer, opt, epoch):
    """The initial rate, divided by 10 every lr_update epochs."""
    for group in optimizer.param_groups:
        group["lr"] = opt.learning_rate * 0.1 ** (epoch // opt.lr_update)


def train_step(model, optimizer, batch, grad_clip, Eiters):
    """One update -> {'Le': total loss, …: its parts, 'grad_norm': before clipping}; InputError where not finite."""
    model.train()
    losses = model(batch)
    total = sum(losses.values())
    if not torch.isfinite(total):
        stop_training(f"the loss is {total.item()} at step {Eiters}, first of all {first_not_finite(model, batch)}")
    optimizer.zero_grad()
    total.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))
    if not torch.isfinite(norm):
        stop_training(f"the gradient's norm is {norm.item()} at step {Eiters}")
    optimizer.step()
    losses = {"Le": total, **losses, "grad_norm": norm}
    return {name: value.item() for name, value in losses.items()}


def twins(batch, dataset):
    """(B, B), B pairs of all processes: True where two pairs have the same image and the same word ids."""
    numbers = {}  # of the different pairs
    ids = chain.from_iterable(distributed.gather_objects(batch.ids))
    pairs = [numbers.setdefault((dataset.image_of(i), *dataset.tokens[i]), len(numbers)) for i in ids]
    pairs = torch.tensor(pairs)
    return pairs.unsqueeze(1) == pairs


def log_step(training, losses, observed, pairs, batch_time, data_time):
    """The figures of a step to the curves and, every --log_step steps, as a line to the log."""
    opt, progress, rate = training.opt, training.progress, training.optimizer.param_groups[0]["lr"]
    figures = {
        "epoch": progress.epoch,
        "step": progress.step - 1,
        "batch_time": batch_time,
        "data_time": data_time,
        "Eit": progress.Eiters,
        "lr": rate,
        **losses,
        **observed,
        "pairs_per_second": pairs / batch_time,
    }
    training.log.scalars(figures, progress.Eiters)
    if progress.Eiters % opt.log_step == 0:
        place = f"Epoch: [{progress.epoch}][{progress.step}/{len(training.loader)}]\tEit {progress.Eiters}"
        parts = "  ".join(f"{LOG_NAMES.get(name, name)} {value:.4f}" for name, value in losses.items())
        logging.info("%s  lr %g  %s\tTime %.3f\tData %.3f", place, rate, parts, batch_time, data_time)


# ---- validation, checkpoints, the end


def validate_and_keep(training, end_of_epoch=False):
    """Evaluate the dev split, log its metrics, and write model_best.pth.tar where it is the best so far."""
    opt, progress, epoch = training.opt, training.progress, training.progress.epoch
    result = validate(training.val_loader, training.model, training.stop)
    progress.validate_due = result is None and not end_of_epoch
    if result is None:
        return
    training.log.validation(result, progress.Eiters, progress.epoch)
    if end_of_epoch:
        progress.epoch, progress.step = progress.epoch + 1, 0
    if result[opt.select] > progress.best_rsum or not (Path(opt.model_name) / checkpoint.BEST).exists():
        before = progress.best_rsum, progress.best_epoch
        progress.best_rsum, progress.best_epoch = result[opt.select], epoch
        if not training.save(checkpoint.BEST):
            progress.best_rsum, progress.best_epoch = before  # a later model need not beat one that was not written


def validate(val_loader, model, stop):
    """Metrics of the dev split, printed to the log; None when a signal came meanwhile."""
    dataset = val_loader.dataset
    logging.info("Validating: %d images, %d captions", dataset.n_images, len(dataset))
    try:
        with stop.at_once():
            result = metrics(shard_xattn(model, *encode_data(model, val_loader)))
    except Interrupted:
        return None
    result = {name: value for name, value in result.items() if isinstance(value, float)}  # without ranks and ties
    logging.info("R@1, R@5, R@10, median rank, mean rank:")
    for title, end in (("Image to text", ""), ("Text to image", "i")):
        logging.info("%s: %s", title, ", ".join(f"{result[name + end]:.1f}" for name in RECALLS))
    logging.info("rsum: %.1f  r1 + r5: %.1f", result["rsum"], result["r1r5"])
    return result


def leave_if_asked(training):
    """After a signal: write a checkpoint and end the program."""
    number, progress = training.stop.requested(), training.progress
    if number:
        training.save(f"checkpoint_{progress.epoch}_{progress.step}.pth.tar")
        training.keeper.check()
        place, folder = (progress.epoch, progress.step), training.opt.model_name
        logging.info("Stopped in epoch %d after step %d; --resume %s goes on", *place, folder)
        sys.exit(128 + number)


if __name__ == "__main__":
    run(main)
