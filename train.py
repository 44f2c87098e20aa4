"""Train a system of image-text matching on region features or pictures.  README.md has the published recipes.

`set_up` makes the objects of a run.  `train` is the loop over epochs and steps: data, losses, update, log,
now and then a validation and a checkpoint.
"""

from runtime.start import guarded, run

from systems.options import train_options

if __name__ == "__main__":
    guarded(train_options)  # before torch is loaded: --help and mistakes in flags are answered at once

import contextlib
import logging
import math
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
from checkpoints import checkpoint
from checkpoints.loading import check_shapes
from checkpoints.resume import (
    Progress,
    check_data,
    load_resumed,
    lock_run,
    refuse_used_folder,
    restore,
    resume_options,
    settle_folders,
    training_state,
)
from evaluation import encode_split, score_all
from files.identity import data_identity
from model import MatchingModel, build_model
from modules.losses import observed
from reporting.metrics import RECALLS
from reporting.ranks import metrics
from runtime import devices, distributed
from runtime.batches import seed_of, with_shares
from runtime.transfer import send, send_batch
from training import global_batch
from training.announce import Step, announce_best, announce_end, announce_start, log_line, read, start_logging
from training.health import CollapseWatch, GuardedAdam, Stop, check_step
from training.logger import RunLog
from vocab import Vocabulary, load_vocab

ASK_STEPS = 10  # between two exchanges of several GPUs about signals, for which they wait for one another


def main(argv=None):
    start_logging()
    opt, given = train_options(argv)
    with distributed.process_group():
        training = set_up(opt, given)
        with contextlib.closing(training.lock):
            done = training.progress.epoch
            if opt.resume and done >= training.opt.num_epochs:
                logging.info("%s has finished all its %d epochs: nothing is left to do. --num_epochs %d trains further",
                             opt.resume, training.opt.num_epochs, done + 10)  # fmt: skip
                announce_best(training)
                return
            announce_start(training)
            train(training)
            announce_end(training)


@dataclass
class Training:
    """The objects of a run: made by set_up, used by the loop."""

    opt: Namespace
    vocab: Vocabulary
    identity: dict  # of the train split, as files.identity gives it
    loader: DataLoader  # of the train split, batch by batch
    val_loader: DataLoader  # of the dev split
    model: MatchingModel
    replica: nn.Module  # computes the losses of a batch: the model, or its wrapper for several processes
    optimizer: torch.optim.Optimizer
    progress: Progress
    keeper: checkpoint.Keeper
    lock: contextlib.ExitStack  # closed at the end of the run
    log: RunLog
    stop: Stop
    collapse: CollapseWatch
    unread: list  # the Steps whose figures are still on the device
    began: tuple  # time.time() at set-up, and progress.Eiters

    def save(self, name):
        """Write a checkpoint; False where it cannot be written (a message says why)."""
        state = training_state(self.model, self.optimizer, self.opt, self.vocab, self.progress, self.identity)
        return self.keeper.save(state, name)


def set_up(opt, given):
    """Flags -> Training, at its beginning or where --resume left it.  given: names of the flags that were given."""
    opt.device = devices.choose(opt.device)
    path, saved, before = load_resumed(opt.resume) if opt.resume else (None, None, refuse_used_folder(opt.model_name))
    goes_on = False  # in the folder of an earlier run
    if saved:
        asked, opt = opt, resume_options(opt, given, saved["opt"], path, logging.warning)
        goes_on = settle_folders(opt, asked, given, saved, path)
    seed_everything(opt.seed, opt.deterministic)
    data.check_name(opt.data_name, opt)
    if not saved and "img_dim" not in given:
        opt.img_dim = data.feature_width(opt)
    vocab = load_vocab(opt.vocab_path, opt.data_name)
    opt.vocab_size = len(vocab)
    if saved:
        checkpoint.check_vocab(saved, vocab, path)
        check_shapes(build_model, opt, saved, path)
    loader, val_loader = data.get_loaders(
        opt.data_name, vocab, opt.batch_size, opt.workers, opt, distributed.size(), distributed.rank()
    )
    identity = data_identity(loader.dataset)
    if saved:
        check_data(saved, identity, path)
    model = build_model(opt).to(distributed.local_device(opt.device))
    if opt.compile:
        model.compile_parts()
    optimizer = GuardedAdam(model.parameters(), opt.learning_rate)
    progress = restore(saved, model, optimizer, path) if saved else Progress()
    parts = min(opt.accumulate, opt.batch_size, len(loader.dataset))  # more would be empty
    replica = global_batch.training_module(model, parts)
    keeper = distributed.on_main(checkpoint.Keeper, opt.model_name, opt.keep, logging.error)
    lock = distributed.on_main(lock_run, opt, before if goes_on else None)
    log = distributed.on_main(RunLog, opt.logger_name, progress.Eiters if goes_on else None)
    log.config(opt, checkpoint.versions(), [loader.dataset, val_loader.dataset])
    return Training(
        opt, vocab, identity, loader, val_loader, model, replica, optimizer, progress, keeper, lock, log,
        Stop(), CollapseWatch(opt), [], (time.time(), progress.Eiters),
    )  # fmt: skip


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
    """Train to the end of the last epoch, or until a signal.

    The host starts work on the device and goes on; it asks for the device's numbers only in report_steps: every
    --log_step steps, before weights are used or kept, and after each step where the device is the host.
    """
    opt, progress, steps = training.opt, training.progress, len(training.loader)
    device = training.model.device
    ask_steps = 1 if distributed.size() == 1 or device.type == "cpu" else ASK_STEPS
    if progress.validate_due:
        validate_and_keep(training)
        leave_if_asked(training)
    while progress.epoch < opt.num_epochs:
        start_epoch(training)
        batches = with_shares(training.loader)
        bar = tqdm(batches, f"epoch {progress.epoch}", initial=progress.step, total=steps, disable=None)
        start = time.time()
        for batch in bar:
            data_time = time.time() - start
            batch = send_batch(batch, device)

            if distributed.size() > 1:  # a resumed run repeats its dropout
                torch.manual_seed(seed_of(opt.seed, progress.Eiters, distributed.rank()))
            excluded = send(twins(batch, training.loader.dataset), device) if opt.skip_twins else None
            figures = train_step(training.replica, training.optimizer, batch, opt.grad_clip, excluded)
            figures |= observed(training.model.last_scores, excluded)

            pairs, batch_time = len(training.model.last_scores), time.time() - start  # pairs of all processes
            facts = {
                "epoch": progress.epoch,
                "step": progress.step,
                "batch_time": batch_time,
                "data_time": data_time,
                "Eit": progress.Eiters + 1,
                "lr": training.optimizer.param_groups[0]["lr"],
                "pairs_per_second": pairs / batch_time,
            }
            training.unread.append(Step(figures, facts, batch.ids, pairs))
            progress.step, progress.Eiters = progress.step + 1, progress.Eiters + 1

            log_due = progress.Eiters % opt.log_step == 0 or device.type == "cpu"
            validation_due = progress.Eiters % opt.val_step == 0
            save_due = opt.save_every and progress.Eiters % opt.save_every == 0
            if log_due or validation_due or save_due or progress.step == steps:
                report_steps(training, bar)
            if progress.step < steps:  # the end of an epoch validates and saves anyway
                if validation_due:
                    validate_and_keep(training)
                if save_due:
                    training.save(f"checkpoint_{progress.epoch}_{progress.step}.pth.tar")
            if progress.Eiters % ask_steps == 0:
                leave_if_asked(training)
            start = time.time()
        leave_if_asked(training)
        validate_and_keep(training, end_of_epoch=True)
        if progress.step == 0:  # the epoch is complete
            training.save(f"checkpoint_{progress.epoch - 1}.pth.tar")
        leave_if_asked(training)
    training.keeper.check()


def start_epoch(training):
    """Set what depends on the epoch: learning rate (divided by 10 every lr_update epochs), kind of loss, data."""
    opt, epoch = training.opt, training.progress.epoch
    for group in training.optimizer.param_groups:
        group["lr"] = opt.learning_rate * 0.1 ** (epoch // opt.lr_update)
    logging.info("Epoch %d: learning rate %g", epoch, training.optimizer.param_groups[0]["lr"])
    training.model.criterion.start_epoch(epoch)
    training.loader.batch_sampler.set_epoch(epoch, training.progress.step)


def train_step(model, optimizer, batch, grad_clip, excluded=None):
    """One update -> {'loss': the sum, …: its parts, 'grad_norm': before clipping}, scalars on the device.

    excluded: pairs that are no negatives of one another, as modules.losses.Loss takes them.  Where the loss or the norm
    is not finite, GuardedAdam leaves everything as it is, in this step and all later ones.
    """
    model.train()
    losses = model(batch, excluded)
    total = sum(losses.values())
    optimizer.zero_grad()
    total.backward()
    distributed.add_gradients(model.parameters())
    norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))
    optimizer.guard(total.detach(), norm)
    optimizer.step()
    return {"loss": total.detach(), **{name: loss.detach() for name, loss in losses.items()}, "grad_norm": norm}


def twins(batch, dataset):
    """(B, B), B pairs of all processes: True where two pairs have the same image and the same word ids."""
    numbers = {}  # of the different pairs
    ids = chain.from_iterable(share.ids for share in batch.shares) if batch.shares else batch.ids
    pairs = [numbers.setdefault((dataset.image_of(i), *dataset.tokens[i]), len(numbers)) for i in ids]
    pairs = torch.tensor(pairs)
    return pairs.unsqueeze(1) == pairs


def report_steps(training, bar=None):
    """The steps since the last report: curves, a line of log every --log_step steps, collapse.

    InputError where a loss or a gradient was not finite; nothing has been updated or saved since.
    """
    model, steps = training.model, read(training.unread)
    training.unread.clear()
    for step in steps:
        check_step(step, model, training.loader)
        scalars = {name: value for name, value in {**step.facts, **step.figures}.items() if not math.isnan(value)}
        training.log.scalars(scalars, step.facts["Eit"])
        flat = model.criterion.collapsed_at(step.pairs)
        if flat is not None:
            training.collapse.step(step.figures[model.retrieval_loss], step.figures["score_spread"], flat)
        if step.facts["Eit"] % training.opt.log_step == 0:
            log_line(training, step)
            training.log.step(step.facts, step.losses())
        if bar is not None:
            bar.set_postfix(loss=f"{step.figures['loss']:.4g}", step=f"{step.facts['batch_time']:.2g}s")


# ---- validation, checkpoints, the end


def validate_and_keep(training, end_of_epoch=False):
    """Evaluate the dev split, log its metrics, and write model_best.pth.tar where it is the best so far."""
    opt, progress, epoch = training.opt, training.progress, training.progress.epoch
    result = validate(training.val_loader, training.model, training.stop)
    progress.validate_due = result is None and not end_of_epoch
    if result is None:
        return
    training.log.validation(result, progress.Eiters, progress.epoch)
    training.collapse.validation(result["rsum"])
    if end_of_epoch:
        progress.epoch, progress.step = progress.epoch + 1, 0
    if result[opt.select] > progress.best_rsum or not (Path(opt.model_name) / checkpoint.BEST).exists():
        before = progress.best_rsum, progress.best_epoch
        progress.best_rsum, progress.best_epoch = result[opt.select], epoch
        if not training.save(checkpoint.BEST):
            progress.best_rsum, progress.best_epoch = before  # a model that was not written does not count as the best


def validate(val_loader, model, stop):
    """Metrics of the dev split, printed to the log; None when a signal came meanwhile."""
    dataset = val_loader.dataset
    logging.info("Validating: %d images, %d captions", dataset.n_images, len(dataset))
    try:
        stop.immediate = distributed.size() == 1
        result = metrics(score_all(model, *encode_split(model, val_loader)))
    except KeyboardInterrupt:  # of stop.immediate
        return None
    finally:
        stop.immediate = False
    result = {name: value for name, value in result.items() if isinstance(value, float)}  # without ranks and ties
    logging.info("R@1, R@5, R@10, median rank, mean rank:")
    for title, end in (("Image to text", ""), ("Text to image", "i")):
        logging.info("%s: %s", title, ", ".join(f"{result[name + end]:.1f}" for name in RECALLS))
    logging.info("rsum: %.1f  r1 + r5: %.1f", result["rsum"], result["r1r5"])
    return result


def leave_if_asked(training):
    """After a signal to any process: write a checkpoint and end the program."""
    progress, number = training.progress, training.stop.requested()
    if number:
        report_steps(training)
        training.save(f"checkpoint_{progress.epoch}_{progress.step}.pth.tar")
        training.keeper.check()
        place, folder = (progress.epoch, progress.step), training.opt.model_name
        logging.info("Stopped in epoch %d after step %d; --resume %s goes on", *place, folder)
        sys.exit(128 + number)


if __name__ == "__main__":
    run(main)
