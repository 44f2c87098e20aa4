"""Losses of a batch's score matrix.  A new one is a class here, or anywhere, and its entry in systems.table.LOSSES."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Loss(nn.Module):
    """What training needs of a loss.  Its own parameters, if any, are trained and saved with the model's."""

    @classmethod
    def of(cls, opt):
        """The loss that complete flags describe."""
        return cls()

    def start_epoch(self, epoch):
        """Called at the beginning of each epoch, counted from 0."""

    def forward(self, scores, excluded=None):
        """scores (B, B), images down, captions across, true pairs on the diagonal -> the loss, a scalar.

        excluded (B, B): True for pairs beside the diagonal that are no negatives of one another; None for none.
        """
        raise NotImplementedError

    def collapsed_at(self, pairs):
        """The loss of a batch of `pairs` pairs that all have one score, where training can get stuck there; or None."""
        return None


class ContrastiveLoss(Loss):
    """Triplet loss: a hinge over a batch's score matrix in both directions, summed  (docs/method.md, section 2.5).

    With max_violation only the hardest negative of each row and column counts (VSE++), from epoch `warmup` on.
    """

    def __init__(self, margin=0.2, max_violation=False, warmup=0):
        super().__init__()
        self.margin, self.max_violation, self.warmup = margin, max_violation, warmup
        self.hardest = max_violation

    @classmethod
    def of(cls, opt):
        return cls(opt.margin, opt.max_violation, opt.warmup_sum)

    def start_epoch(self, epoch):
        self.hardest = self.max_violation and epoch >= self.warmup

    def forward(self, scores, excluded=None):
        true = scores.diagonal()
        captions = images = negatives(scores, excluded)  # wrong ones, in either direction
        if self.hardest:
            captions, images = captions.amax(1, keepdim=True), images.amax(0, keepdim=True)  # (B, 1), (1, B)
        cost_s = F.relu(self.margin + captions - true.unsqueeze(1))
        cost_im = F.relu(self.margin + images - true.unsqueeze(0))
        return cost_s.sum() + cost_im.sum()

    def collapsed_at(self, pairs):
        return 2 * self.margin * pairs if self.hardest else None


def negatives(scores, excluded=None):
    """scores (B, B) with -infinity on the diagonal and at excluded pairs."""
    itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores.masked_fill(itself if excluded is None else itself | excluded, -math.inf)


def observed(scores, excluded=None):
    """Of a batch's scores (B, B): mean of the true pairs, standard deviation of all, and mean of the hardest negatives
    of rows and columns, NaN where there is no negative.  They stay on the device.
    """
    scores = scores.detach()
    others = negatives(scores, excluded)
    hardest = torch.cat([others.amax(1), others.amax(0)])
    without = hardest.isneginf()
    return {
        "positive": scores.diagonal().mean(),
        "score_spread": scores.std(correction=0),
        "hardest_negative": hardest.masked_fill(without, 0).sum() / (~without).sum(),
    }
