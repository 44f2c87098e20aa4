"""Two ways in which a training fails: numbers that are not finite, and collapse."""

import logging
from collections import deque

import torch

from files.errors import InputError
from runtime import global_batch


def stop_training(why):
    raise InputError(f"{why}: training stopped. Lower --learning_rate; the checkpoints written before are good")


@torch.no_grad()
def first_not_finite(model, batch):
    """Where NaN or infinity first appears on a batch's way through the model, in words."""
    model = global_batch.model_inside(model)
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            return f"the weights {name}"
    if not batch.ids:  # this process has no share of this batch
        return "another process's share of the batch"
    embeddings = model.forward_emb(batch.images, batch.captions, batch.lengths)
    for what, rows in zip(("the embedding of the image of caption", "the embedding of caption"), embeddings):
        bad = (~torch.isfinite(rows)).flatten(1).any(1).nonzero()
        if len(bad):
            return f"{what} {batch.ids[bad[0]]}"
    return "the similarities"


class CollapseWatch:
    """Warns when the hardest-negative loss stays at 2 · margin · batch, its value where all similarities are equal."""

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
