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


def find_best(sims, ranks, per, offset, captions_ask, ties="worst"):
    """One block of similarities -> Found, for its images or its captions. sims (N, per · N); ranks from 0.

    ties: the order of equal scores, as in reporting/ranks.py; the first own candidate's position is the query's rank.
    """
    n, parts, every = len(sims), [], np.arange(sims.shape[not captions_ask])
    places = np.empty_like(every)  # of each candidate, from 0
    for q, row in enumerate(transposed_rows(sims) if captions_ask else sims):
        own = np.arange(q // per, q // per + 1) if captions_ask else np.arange(q * per, (q + 1) * per)
        before = every[::-1] if ties == "released" else np.concatenate([np.delete(every, own), own])
        order = before[np.argsort(-row[before], kind="stable")]
        places[order] = every
        best = order[:SHOWN]
        parts.append((best + offset * (n if captions_ask else n * per), row[best], places[own] + 1, row[own]))
    return Found(*map(np.stack, zip(*parts)), ranks + 1)


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
