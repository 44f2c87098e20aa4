"""What ends a training early, or should: signals, numbers that are not finite, collapse."""

import logging
import math
import os
import signal
import threading
from collections import deque

import torch

from files.errors import InputError
from runtime import distributed
from runtime.workers import STOPPING

SPREAD = 0.02  # of the margin: the scores of a collapsed model have a smaller standard deviation
NEAR = 0.1  # of the loss of equal scores: a model that does not learn stays within it
LOW = 100  # rsum, of 600, that a model which learns exceeds soon
CURE = "Start with the summed loss (--warmup_sum 1) or lower --learning_rate."


class Stop:
    """Handles the signals that end a training: the first one waits until the step is done, the second leaves at once.

    With several processes all of them leave after the same step, and a running validation is finished first.
    A SIGHUP that is ignored (nohup) stays so.  Outside of the main thread Python handles no signals.
    """

    def __init__(self):
        self.signal = 0
        self.immediate = False  # while it is True, the first signal raises KeyboardInterrupt: nothing is lost
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.handle)

    def handle(self, number, frame):
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        logging.warning("Stopping after a checkpoint is written; press Ctrl-C again to leave at once")
        if self.immediate:
            raise KeyboardInterrupt

    def requested(self):
        """The signal that arrived in any process, the same answer in all; 0 for none.  Waits for the others."""
        self.signal = distributed.largest(self.signal)
        return self.signal


class GuardedAdam(torch.optim.Adam):
    """Adam in fused kernels, which stops for good once `guard` has seen a number that is not finite.

    The flag stays on the device, so that no step waits for it: after it is set, steps leave weights and moments as
    they are.  Whoever reads the losses later finds the first one that is not finite, and the weights of that step.
    found_inf is the name under which torch's fused optimisers look for such a flag (torch.amp's scaler sets it too).
    """

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr, fused=True)
        self.found_inf = None

    def guard(self, *numbers):
        """numbers: scalar tensors of this step."""
        broken = (torch.stack(numbers).sum() * 0 != 0).float()  # NaN · 0 and infinity · 0 are NaN, which is not 0
        self.found_inf = broken if self.found_inf is None else torch.maximum(self.found_inf, broken)


def check_step(step, model, loader):
    """InputError where the loss or the gradient of an announce.Step is not finite; it names where a loss broke."""
    number, loss, norm = step.facts["Eit"] - 1, step.figures["loss"], step.figures["grad_norm"]
    if math.isfinite(loss) and math.isfinite(norm):
        return
    why = f"the gradient's norm is {norm} at step {number}"
    if not math.isfinite(loss):
        batch = loader.collate_fn([loader.dataset[i] for i in step.ids])
        why = f"the loss is {loss} at step {number}, first in {first_not_finite(model, batch)}"
    raise InputError(f"{why}: training stopped. Lower --learning_rate; the checkpoints written before are good")


@torch.no_grad()
def first_not_finite(model, batch):
    """The part of the model where NaN or infinity first appears for a batch, in words."""
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            return f"the weights {name}"
    if not batch.ids:  # this process has no share of this batch
        return "another process's share of the batch"
    for what, side in zip(("the image of caption", "caption"), model.encode_sides(batch)):
        bad = (~torch.isfinite(side.emb)).flatten(1).any(1).nonzero()
        if len(bad):
            return f"the embedding of {what} {batch.ids[bad[0]]}"
    return "the similarities"


class CollapseWatch:
    """Warns when the hardest-negative loss stays at 2 · margin · batch while the scores of a batch hardly differ, and
    when it stays near this value and a validation is poor.

    The loss alone is not enough: where captions repeat, each pair's hardest negative is its twin, and the loss has the
    same value while the scores of other pairs differ widely.
    """

    def __init__(self, opt, window=50):
        self.margin = opt.margin
        self.recent = deque(maxlen=window)  # of each step: did it look collapsed?
        self.near = deque(maxlen=window)  # of each step: was its loss near the one where all are equal?

    def step(self, loss, spread, flat):
        """loss: of all pairs; spread: standard deviation of the batch's scores; flat: the loss where all are equal."""
        self.near.append(abs(loss - flat) < NEAR * flat)
        self.recent.append(abs(loss - flat) < 0.01 * flat and spread < SPREAD * self.margin)
        if len(self.recent) == self.recent.maxlen and all(self.recent):
            logging.warning(
                f"The retrieval loss has stayed at {loss:.1f} = 2 x margin x batch for {len(self.recent)} steps, and "
                f"all similarities of a batch are equal to within {spread:.2g}: the model has collapsed. {CURE}"
            )
            self.recent.clear()
            self.near.clear()

    def validation(self, rsum):
        """rsum: of the dev split, after the steps so far."""
        if rsum < LOW and sum(self.near) > 0.9 * self.near.maxlen:  # a small last batch of an epoch may differ
            logging.warning(
                "The retrieval loss has stayed near 2 x margin x batch, the value of equal similarities, for "
                f"{len(self.near)} steps, and rsum is {rsum:.1f}: the model hardly learns. {CURE}"
            )
