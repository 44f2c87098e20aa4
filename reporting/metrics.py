"""The table of metrics: what an evaluation computes of its ranks.  A new metric is one entry of METRICS.

Ranks count from 0; `images` and `captions` are those of the two directions' queries, (N,) and (M,).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

I2T, T2I, BOTH = "Image to text", "Text to image", "Both directions"
RECALLS = ("r1", "r5", "r10", "medr", "meanr")  # of image to text; with i behind, of text to image
SIX_RECALLS = ("r1", "r5", "r10", "r1i", "r5i", "r10i")  # rsum is their sum


class Metric(NamedTuple):
    """One figure of an evaluation."""

    key: str  # in results and JSON files
    title: str  # above a column
    direction: str  # I2T, T2I or BOTH
    of: Callable  # of(images, captions) -> the figure
    unit: str = "percent"  # "percent", "sum" or "rank": figures of one unit share a chart
    lower_is_better: bool = False
    line: str = ""  # its line in the printed block, which several may share; "": not printed

    @property
    def full_title(self):
        """The title with its direction, for places that show metrics of both."""
        return {I2T: "i2t ", T2I: "t2i ", BOTH: ""}[self.direction] + self.title


def recall(ranks, k):
    """Percentage of the ranks below k."""
    return 100.0 * np.count_nonzero(ranks < k) / len(ranks)


def average(ranks):
    return sum(recall(ranks, k) for k in (1, 5, 10)) / 3


def median_rank(ranks):
    """The median, from 1, rounded down."""
    return float(np.floor(np.median(ranks)) + 1)


def mean_rank(ranks):
    """The mean, from 1."""
    return float(ranks.mean() + 1)


def recalls(ranks):
    """Ranks from 0 -> the figures of RECALLS."""
    return (*(recall(ranks, k) for k in (1, 5, 10)), median_rank(ranks), mean_rank(ranks))


def sum_of_recalls(images, captions, ks=(1, 5, 10)):
    return sum(recall(images, k) for k in ks) + sum(recall(captions, k) for k in ks)


def one_direction(direction, short, end, way):
    """The entries of one direction.  short: its name in a line; end: of the keys; way: 0 or 1, its ranks of the two."""

    def of(function):
        return lambda *ranks: function(ranks[way])

    return (
        Metric(f"ar{end}", "Average", direction, of(average), line=f"Average {short} Recall"),
        *(Metric(f"r{k}{end}", f"R@{k}", direction, of(partial(recall, k=k)), line=direction) for k in (1, 5, 10)),
        Metric(f"medr{end}", "Med r", direction, of(median_rank), "rank", True, direction),
        Metric(f"meanr{end}", "Mean r", direction, of(mean_rank), "rank", True, direction),
    )


METRICS = [  # in the order of the printed block
    Metric("rsum", "rsum", BOTH, sum_of_recalls, "sum", line="rsum"),
    *one_direction(I2T, "i2t", "", 0),
    *one_direction(T2I, "t2i", "i", 1),
    Metric("r1r5", "R@1 + R@5", BOTH, partial(sum_of_recalls, ks=(1, 5)), "sum"),
]


def columns():
    """{direction: its Metrics}: the columns of a table, with those of both directions first."""
    return {way: [metric for metric in METRICS if metric.direction == way] for way in (BOTH, I2T, T2I)}


def printed_lines():
    """{line of the printed block: its Metrics}."""
    lines = {}
    for metric in METRICS:
        if metric.line:
            lines.setdefault(metric.line, []).append(metric)
    return lines
