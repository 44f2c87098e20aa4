"""Ranks and recalls of a similarity matrix, counted without sorting, under each order of equal scores.

docs/method.md, section 4.  Everywhere: N images, M = 5N captions, sims (N, M); the captions of image i are
columns 5i to 5i + 4 (`per` stands for the five); ranks count from 0.
"""

from typing import NamedTuple

import numpy as np

from files.errors import InputError
from reporting.metrics import METRICS, recalls

TIES = ("worst", "released")  # the orders of equal scores that --ties offers
ORDERS = (*TIES, "best")


class NotFiniteError(InputError):
    """NaN or infinity among the numbers that a model computed."""


class Ranks(NamedTuple):
    """Ranks of Q queries under each order of equal scores, and the candidate that ranks first."""

    worst: np.ndarray  # (Q,) the true candidate comes last among equals
    released: np.ndarray  # (Q,) equals in falling order of their index: a stable ascending sort, reversed
    best: np.ndarray  # (Q,) the true candidate comes first among equals
    lowest: np.ndarray  # (Q,) the candidate with the highest score; of several, the one with the lowest index
    highest: np.ndarray  # (Q,) the same; of several, the one with the highest index

    def of(self, ties):
        """(ranks, the candidate that ranks first), each (Q,), for one of TIES."""
        return (self.worst, self.lowest) if ties == "worst" else (self.released, self.highest)


def rank_captions(sims, per):
    """Image to text: each image's rank is the best rank among its own captions -> Ranks of the N images."""
    ranks = np.empty((5, len(sims)), np.int64)
    for i, row in enumerate(sims):
        start, stop = i * per, (i + 1) * per
        score = row[start:stop].max()
        others = np.flatnonzero(row >= score)  # the captions that matter, few where the rank is good
        scores = row[others]
        above = np.count_nonzero(scores > score)
        equal = others[scores == score]
        own = equal[(start <= equal) & (equal < stop)]
        first = others[scores == scores.max()]
        later = np.count_nonzero(equal > own[-1])
        ranks[:, i] = above + len(equal) - len(own), above + later, above, first[0], first[-1]
    return Ranks(*ranks)


def rank_images(sims, per):
    """Text to image: each caption's rank is that of its own image -> Ranks of the M captions.

    Works row by row, because the matrix may be a file larger than memory.
    """
    n_captions = sims.shape[1]
    own = sims[np.arange(n_captions) // per, np.arange(n_captions)]  # (M,) scores of the true pairs
    at_least, rivals, later = np.zeros((3, n_captions), np.int32)  # images scoring no less, equally, equally and later
    top, lowest, highest = np.full(n_captions, -np.inf, sims.dtype), *np.zeros((2, n_captions), np.int64)
    for i, row in enumerate(sims):
        at_least += row >= own
        equal = row == own
        equal[i * per : (i + 1) * per] = False  # an image is no rival of itself
        if equal.any():
            rivals += equal
            later[: i * per] += equal[: i * per]  # captions of earlier images
        best = np.flatnonzero(row >= top)  # few, except in the first rows
        lowest[best[row[best] > top[best]]] = i
        highest[best] = i
        top[best] = row[best]
    worst = at_least.astype(np.int64) - 1  # the own image scores no less than itself
    above = worst - rivals
    return Ranks(worst, above + later, above, lowest, highest)


def captions_per_image(sims):
    """M / N; InputError when it is no whole number."""
    n_images, n_captions = sims.shape
    if n_captions % n_images:
        raise InputError(f"{n_captions} captions do not divide evenly among {n_images} images")
    return n_captions // n_images


def check_finite(sims, first=0):
    """InputError naming the first image and caption whose similarity is not finite; first: number of row 0."""
    for i, row in enumerate(sims, first):
        if not np.isfinite(row).all():
            c = int(np.flatnonzero(~np.isfinite(row))[0])
            raise NotFiniteError(f"similarity of image {i} and caption {c} is {row[c]}, not a finite number")


def i2t(sims, npts=None, return_ranks=False, ties="worst"):
    """Image to text.  sims (N, 5N) -> (r1, r5, r10, medr, meanr): recalls in percent, ranks from 1.

    npts: take the first npts images and their captions only.  ties: the order of equal scores, one of TIES.
    With return_ranks also (ranks from 0, best caption), each (N,).  InputError when a similarity is not finite.
    """
    return one_direction(rank_captions, sims, npts, return_ranks, ties)


def t2i(sims, npts=None, return_ranks=False, ties="worst"):
    """Text to image.  sims (N, 5N) -> as i2t; the ranks are those of the 5N captions."""
    return one_direction(rank_images, sims, npts, return_ranks, ties)


def one_direction(rank, sims, npts, return_ranks, ties):
    per = captions_per_image(sims)
    npts = len(sims) if npts is None else npts
    sims = sims[:npts, : npts * per]
    check_finite(sims)
    ranks, first = rank(sims, per).of(ties)
    return (recalls(ranks), (ranks, first)) if return_ranks else recalls(ranks)


def metrics(sims, ties="worst"):
    """Both directions of one similarity matrix -> dict.

    The figures of METRICS by their keys.  'ties': the rule, and the figures under each of ORDERS.  'ranks': (rt, rti),
    each (ranks from 0, best candidate).  InputError when a similarity is not finite.
    """
    per = captions_per_image(sims)
    check_finite(sims)
    images, captions = rank_captions(sims, per), rank_images(sims, per)
    orders = {
        order: {metric.key: metric.of(getattr(images, order), getattr(captions, order)) for metric in METRICS}
        for order in ORDERS
    }
    return {**orders[ties], "ties": {"rule": ties, **orders}, "ranks": (images.of(ties), captions.of(ties))}


def five_folds(sims):
    """sims (N, M) -> the five blocks (N/5, M/5) of its diagonal."""
    return [sims[rows, columns] for rows, columns in fold_slices(*sims.shape)]


def fold_slices(images, captions):
    """So many images and captions -> the slices (images, captions) of each of five folds."""
    n, m = images // 5, captions // 5
    return [(slice(k * n, (k + 1) * n), slice(k * m, (k + 1) * m)) for k in range(5)]


def mean_of_folds(folds):
    """The metrics of each fold -> their mean, as metrics has them; 'ranks' is a list, 'folds' the folds' own."""
    ties = {
        order: {key: float(np.mean([fold["ties"][order][key] for fold in folds])) for key in folds[0]["ties"][order]}
        for order in ORDERS
    }
    rule = folds[0]["ties"]["rule"]
    return {**ties[rule], "ties": {"rule": rule, **ties}, "ranks": [fold["ranks"] for fold in folds], "folds": folds}
