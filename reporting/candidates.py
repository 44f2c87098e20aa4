"""The best candidates of every query, and the positions of its own ones: what the pages of a report show."""

from typing import NamedTuple

import numpy as np

SHOWN = 10  # candidates shown for a query


class Found(NamedTuple):
    """The best candidates of Q queries.  Candidates are numbered through the whole split."""

    ids: np.ndarray  # (Q, SHOWN) candidates, best first
    scores: np.ndarray  # (Q, SHOWN)
    own_positions: np.ndarray  # (Q, own) positions from 1 of the query's own candidates among all
    own_scores: np.ndarray  # (Q, own)

    @property
    def ranks(self):
        """(Q,) from 1, as evaluation counts them."""
        return self.own_positions.min(1)


def find_best(sims, captions_ask, offset=0, ties="worst"):
    """One block of similarities -> Found, for its images or its captions.  sims (N, per · N).

    offset: of the candidates' numbers.  ties: the order of equal scores, as in reporting/ranks.py.
    """
    per, parts = sims.shape[1] // len(sims), []
    every = np.arange(sims.shape[not captions_ask])
    shown, places = min(SHOWN, len(every)), np.empty_like(every)  # places: of each candidate, from 0
    for q, row in enumerate(transposed_rows(sims) if captions_ask else sims):
        own = slice(q // per, q // per + 1) if captions_ask else slice(q * per, (q + 1) * per)
        others = np.concatenate([every[: own.start], every[own.stop :]])
        before = every[::-1] if ties == "released" else np.concatenate([others, every[own]])
        lowest = min(np.partition(row, -shown)[-shown], row[own].min())  # what scores less is not shown
        some = before[row[before] >= lowest]
        order = some[np.argsort(-row[some], kind="stable")]
        places[order] = every[: len(order)]
        parts.append((order[:shown] + offset, row[order[:shown]], places[own] + 1, row[own]))
    return Found(*map(np.stack, zip(*parts)))


def transposed_rows(sims, block=512):
    """The columns of sims one by one, without a second whole matrix."""
    for start in range(0, sims.shape[1], block):
        yield from np.ascontiguousarray(sims[:, start : start + block].T)


def both_ways(blocks, ties="worst"):
    """Blocks of a diagonal (one, or five folds) -> {'images': Found, 'captions': Found}."""
    n, m = blocks[0].shape
    images = [find_best(sims, False, k * m, ties) for k, sims in enumerate(blocks)]
    captions = [find_best(sims, True, k * n, ties) for k, sims in enumerate(blocks)]
    return {
        kind: Found(*map(np.concatenate, zip(*parts))) for kind, parts in (("images", images), ("captions", captions))
    }
