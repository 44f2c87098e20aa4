"""Losses and scores of training steps, which stay on the device until the log needs them."""

from typing import NamedTuple

import torch

OTHERS = ("grad_norm", "positive", "hardest_negative", "score_spread")  # the figures that are no losses


def losses_of(figures):
    """The losses among the figures of a step: 'loss', the sum, and its parts."""
    return {name: value for name, value in figures.items() if name not in OTHERS}


class Step(NamedTuple):
    """One step, for the log."""

    figures: dict  # {name: number}: losses, norm of the gradient, scores
    facts: dict  # {name: number} known to the host
    ids: list  # numbers of this process's captions


class StepFigures:
    """Collects each step's figures as tensors; `read` waits for the device once, whatever the number of steps."""

    def __init__(self):
        self.steps = []

    @property
    def on_host(self):
        """Whether the steps were computed on the CPU, so that `read` waits for no device."""
        return all(values.device.type == "cpu" for _, values, _, _ in self.steps)

    def add(self, figures, facts, ids):
        """figures: {name: scalar tensor}; facts and ids as in Step."""
        self.steps.append((list(figures), torch.stack(list(figures.values())).detach(), facts, ids))

    def read(self):
        """[Step] of all steps since the last reading."""
        steps, self.steps = self.steps, []
        if not steps:
            return []
        values = torch.cat([values for _, values, _, _ in steps]).tolist()  # the one wait
        result, start = [], 0
        for names, _, facts, ids in steps:
            result.append(Step(dict(zip(names, values[start : start + len(names)])), facts, ids))
            start += len(names)
        return result
