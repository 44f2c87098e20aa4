"""The best candidates of every query, and the positions of its own ones: what the pages of a report show."""

from typing import NamedTuple

import numpy as np

SHOWN = 10  # candidates shown for a query


class Found(NamedTuple):
    """The best candidates of Q queries. Candidates are numbered through the whole split."""

    ids: np.ndarray  # (Q, SHOWN) candidates, best first
    scores: np.ndarray  # (Q, SHOWN)
    own_positions: np.ndarray  # (Q, own) positions from 1 of the query's own candidates among all
    own_scores: np.ndarray  # (Q, own)
    ranks: np.ndarray  # (Q,) from 1, as evaluation counts them


def best_of(row, own, ties="worst"):
    """row (C,) scores, own: range of the query's own candidates -> (best ids, their scores, own positions, own scores).

    The best are SHOWN candidates, or all where there are fewer.
    ties: the order of equal scores, as in reporting/ranks.py; the first own candidate's position is the query's rank.
    """
    k = min(SHOWN, len(row))
    best = np.flatnonzero(row >= np.partition(row, -k)[-k])
    is_own = (best >= own.start) & (best < own.stop)
    keys = (best, is_own, -row[best]) if ties == "worst" else (-best, -row[best])
    best = best[np.lexsort(keys)[:k]]
    return best, row[best], own_positions(row, own, ties), row[own.start : own.stop]


def own_positions(row, own, ties):
    """Positions from 1 of the query's own candidates among all, (own,)."""
    scores = row[own.start : own.stop, None]  # (own, 1)
    above, equal = np.count_nonzero(row > scores, axis=1), row == scores  # (own,), (own, C)
    if ties == "released":  # equals of a higher index come first
        return above + np.count_nonzero(equal & (np.arange(len(row)) > np.array(own)[:, None]), axis=1) + 1
    rivals = np.count_nonzero(equal, axis=1) - np.count_nonzero(equal[:, own.start : own.stop], axis=1)
    earlier = np.tril(equal[:, own.start : own.stop], -1)  # own equals, which keep their order
    return above + rivals + np.count_nonzero(earlier, axis=1) + 1


def find_best(sims, ranks, per, offset, captions_ask, ties="worst"):
    """One block of similarities -> Found, for its images or its captions. sims (N, per · N); ranks from 0."""
    n = len(sims)
    rows = transposed_rows(sims) if captions_ask else sims
    owns = (range(q // per, q // per + 1) if captions_ask else range(q * per, (q + 1) * per) for q in range(len(ranks)))
    found = zip(*(best_of(row, own, ties) for row, own in zip(rows, owns)))
    ids, scores, positions, own_scores = map(np.stack, found)
    return Found(ids + offset * (n if captions_ask else n * per), scores, positions, own_scores, ranks + 1)


def transposed_rows(sims, block=512):
    """The columns of sims one by one, without a second whole matrix."""
    for start in range(0, sims.shape[1], block):
        yield from np.ascontiguousarray(sims[:, start : start + block].T)


def both_ways(blocks, ranks, ties="worst"):
    """Blocks of a diagonal (one, or five folds) and their ranks -> {'images': Found, 'captions': Found}."""
    per = blocks[0].shape[1] // blocks[0].shape[0]
    found = {}
    for way, kind in enumerate(("images", "captions")):
        parts = [find_best(sims, r[way][0], per, k, way == 1, ties) for k, (sims, r) in enumerate(zip(blocks, ranks))]
        found[kind] = Found(*map(np.concatenate, zip(*parts)))
    return found
