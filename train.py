"""Train GSMN or VSRN on precomputed region features.  README.md has the published recipes."""

import runtime.openmp  # noqa: F401, before torch

import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

import data
from evaluation import RECALLS, encode_data, metrics, shard_xattn
from files.errors import InputError, run
from model import build
from runtime import checkpoint, distributed, global_batch
from runtime.logger import RunLog
from runtime.options import check_options, resume_options, train_options
from vocab import load_vocab

BEST = checkpoint.BEST


def main(argv=None):
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    opt, given = train_options(argv)
    with distributed.process_group():
        train(opt, given)


def train(opt, given):
    saved = load_resumed(opt.resume) if opt.resume else None
    if saved:
        opt = resume_options(opt, given, saved["opt"], logging.warning)
    if opt.preload:
        logging.warning("--preload has no effect any more; copy the features to /dev/shm for a faster disk")
    seed_everything(opt.seed, opt.deterministic)
    vocab = load_vocab(opt.vocab_path, opt.data_name)
    opt.vocab_size = len(vocab)
    if saved:
        checkpoint.check_vocab(saved, vocab, opt.resume)
    train_loader, val_loader = data.get_loaders(
        opt.data_name, vocab, opt.batch_size, opt.workers, opt, distributed.size(), distributed.rank()
    )  # fmt: skip
    model = build_model(opt).to(distributed.local_device(opt.device))
    if opt.compile:
        model.compile_encoders()
    optimizer = torch.optim.Adam(model.parameters(), lr=opt.learning_rate)
    at = SimpleNamespace(epoch=0, step=0, Eiters=0, best_rsum=0.0, validate_due=False)
    if saved:
        restore(saved, model, optimizer, at)
    replica = global_batch.training_module(model, opt.accumulate)
    keeper = distributed.on_main(checkpoint.Keeper, opt.model_name, opt.keep, logging.error)
    log = distributed.on_main(RunLog, opt.logger_name, at.Eiters if saved else None)
    log.config(opt, checkpoint.versions(), [train_loader.dataset, val_loader.dataset])
    stop, watch = Stop(), CollapseWatch(opt)
    steps = len(train_loader)

    def save(name):
        return keeper.save(training_state(model, optimizer, opt, vocab, at), name)

    def leave_if_asked():
        stop.signal = distributed.largest(stop.signal)
        if stop.signal:
            save(f"checkpoint_{at.epoch}_{at.step}.pth.tar")
            keeper.check()
            logging.info("Stopped in epoch %d after step %d; --resume %s goes on", at.epoch, at.step, opt.model_name)
            sys.exit(128 + stop.signal)

    def validate_and_keep(end_of_epoch):
        result = validate(val_loader, model, stop)
        at.validate_due = result is None and not end_of_epoch  # interrupted: to be made up for
        if result is None:
            return
        log.validation(result, at.Eiters, at.epoch)
        if end_of_epoch:
            at.epoch, at.step = at.epoch + 1, 0
        if result[opt.select] > at.best_rsum or not (Path(opt.model_name) / BEST).exists():
            before, at.best_rsum = at.best_rsum, result[opt.select]
            if not save(BEST):
                at.best_rsum = before  # what is not written is not to be beaten

    if at.validate_due:
        validate_and_keep(end_of_epoch=False)
        leave_if_asked()
    while at.epoch < opt.num_epochs:
        set_learning_rate(optimizer, opt, at.epoch)
        model.criterion.max_violation = opt.max_violation and at.epoch >= opt.warmup_sum
        train_loader.batch_sampler.set_epoch(at.epoch, at.step)
        bar = tqdm(train_loader, f"epoch {at.epoch}", initial=at.step, total=steps, disable=None)
        end = time.time()
        for batch in bar:
            data_time = time.time() - end
            distributed.seed_step(opt.seed, at.Eiters)
            losses = train_step(replica, optimizer, batch, opt.grad_clip, at.Eiters)
            pairs = train_loader.batch_sampler.pairs(at.step)  # of all processes
            at.step, at.Eiters = at.step + 1, at.Eiters + 1
            batch_time = time.time() - end
            bar.set_postfix(loss=f"{losses['Le']:.3f}", data=f"{data_time:.3f}s", step=f"{batch_time:.3f}s")
            rate = optimizer.param_groups[0]["lr"]
            log.scalars(
                {
                    "epoch": at.epoch,
                    "step": at.step - 1,
                    "batch_time": batch_time,
                    "data_time": data_time,
                    "Eit": at.Eiters,
                    "lr": rate,
                    **losses,
                    **model.criterion.observed(),
                    "pairs_per_second": pairs / batch_time,
                },
                at.Eiters,
            )
            if at.Eiters % opt.log_step == 0:
                parts = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
                logging.info(
                    "Epoch: [%d][%d/%d]\tEit %d  lr %g  %s\tTime %.3f\tData %.3f",
                    at.epoch,
                    at.step,
                    steps,
                    at.Eiters,
                    rate,
                    parts,
                    batch_time,
                    data_time,
                )
            watch.step(losses["Le"], model.criterion.max_violation, pairs)
            if at.step < steps:  # at the epoch's end both follow anyway
                if at.Eiters % opt.val_step == 0:
                    validate_and_keep(end_of_epoch=False)
                if opt.save_every and at.Eiters % opt.save_every == 0:
                    save(f"checkpoint_{at.epoch}_{at.step}.pth.tar")
            leave_if_asked()
            end = time.time()
        validate_and_keep(end_of_epoch=True)
        if at.step == 0:
            save(f"checkpoint_{at.epoch - 1}.pth.tar")
        leave_if_asked()
    keeper.check()


def seed_everything(seed, deterministic=False):
    """Fix the random generators; deterministic: the algorithms too (docs/method.md, section 5)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)  # torch names what it cannot fix
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def build_model(opt):
    try:
        return build(opt)
    except ValueError as error:
        raise InputError(str(error)) from None


def load_resumed(path):
    """The checkpoint of a file, or the newest complete one of a folder."""
    if os.path.isdir(path):
        path = checkpoint.newest(path, logging.warning)
    saved = checkpoint.load_checkpoint(path)
    check_options(saved["opt"], path)
    if "optimizer" not in saved:
        logging.warning("%s: a released checkpoint, without the optimiser's state: Adam starts anew", path)
    logging.info("=> resuming %s (epoch %d, step %d)", path, saved["epoch"], saved.get("step", 0))
    return saved


def restore(saved, model, optimizer, at):
    """Bring model, optimiser, random states and counters to where a checkpoint left them."""
    load_weights(model, saved)
    if "optimizer" in saved:
        try:
            optimizer.load_state_dict(saved["optimizer"])
            checkpoint.restore_rng(saved["rng"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"--resume: the state of optimiser or random numbers is broken ({error})") from None
    for name in vars(at):
        setattr(at, name, saved.get(name, getattr(at, name)))


def load_weights(model, saved):
    try:
        model.load_state_dict(saved["model"])
        if saved.get("caption_model"):
            model.caption_model.load_state_dict(saved["caption_model"])
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--resume: the checkpoint does not fit this model: {error}") from None


def training_state(model, optimizer, opt, vocab, at):
    """All that a run needs to go on (docs/method.md, section 5)."""
    caption_model = getattr(model, "caption_model", None)
    return {
        **vars(at),
        "model": model.state_list(),
        "opt": opt,
        "optimizer": optimizer.state_dict(),
        "caption_model": caption_model.state_dict() if caption_model else None,
        "vocab": checkpoint.words(vocab),
        "rng": checkpoint.capture_rng(),
    }


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
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))
    if not torch.isfinite(norm):
        stop_training(f"the gradient's norm is {norm.item()} at step {Eiters}")
    optimizer.step()
    losses = {"Le": total, **losses, "grad_norm": norm}
    return {name: value.item() for name, value in losses.items()}


def stop_training(why):
    raise InputError(f"{why}: training stopped. Lower --learning_rate; the checkpoints written before are good")


@torch.no_grad()
def first_not_finite(model, batch):
    """Where NaN or infinity first appears on a batch's way through the model, in words."""
    model = global_batch.model_inside(model)
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            return f"the weights {name}"
    if not batch.ids:  # this process's share; another one's holds it
        return "another process's share of the batch"
    embeddings = model.forward_emb(batch.images, batch.captions, batch.lengths)
    for what, rows in zip(("the embedding of the image of caption", "the embedding of caption"), embeddings):
        bad = (~torch.isfinite(rows)).flatten(1).any(1).nonzero()
        if len(bad):
            return f"{what} {batch.ids[bad[0]]}"
    return "the similarities"


def validate(val_loader, model, stop):
    """Metrics of the dev split, printed to the log; None when a signal came meanwhile."""
    try:
        with stop.at_once():
            result = metrics(shard_xattn(model, *encode_data(model, val_loader)))
    except Interrupted:
        return None
    result = {name: value for name, value in result.items() if isinstance(value, float)}  # without ranks and ties
    for title, end in (("Image to text", ""), ("Text to image", "i")):
        logging.info("%s: %s", title, ", ".join(f"{result[name + end]:.1f}" for name in RECALLS))
    logging.info("rsum: %.1f  r1 + r5: %.1f", result["rsum"], result["r1r5"])
    return result


class Interrupted(Exception):
    """Ctrl-C or SIGTERM where nothing is lost by leaving at once."""


class Stop:
    """Ctrl-C and SIGTERM: the first is remembered until the step is done, a second one leaves at once.

    With several processes all leave after the same step, and a validation is finished first.
    """

    def __init__(self):
        self.signal, self.immediate = None, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        logging.warning("Stopping: a checkpoint is written first; once more to leave at once")
        if self.immediate:
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self):
        self.immediate = distributed.size() == 1
        try:
            yield
        finally:
            self.immediate = False


class CollapseWatch:
    """Says when the hardest-negative loss sits where all similarities are equal: 2 · margin · batch."""

    def __init__(self, opt, window=50):
        self.margin = opt.margin
        self.recent = deque(maxlen=window)

    def step(self, loss, max_violation, batch_size):
        if not max_violation:
            return
        self.recent.append(loss / (2 * self.margin * batch_size))
        if len(self.recent) == self.recent.maxlen and all(abs(x - 1) < 0.01 for x in self.recent):
            logging.warning(
                "The loss has stayed at %.1f = 2 x margin x batch for %d steps: all similarities are equal, the "
                "model has collapsed. Start with the summed loss (--warmup_sum 1) or lower --learning_rate.",
                loss,
                len(self.recent),
            )
            self.recent.clear()


if __name__ == "__main__":
    run(main)
