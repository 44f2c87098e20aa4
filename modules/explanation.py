"""The score of one image and one sentence, part by part, as a system's `explain` returns it.

Letters for shapes: R regions, n words, as in graph.py.
"""

from typing import NamedTuple

import numpy as np


class Explanation(NamedTuple):
    """The parts of one pair's score, in numpy arrays; None for what a system does not have.

    `alpha` or `beta` has to be there, and `regions` or `words`.
    """

    score: float
    regions: np.ndarray | None  # (R,) a number for each region
    words: np.ndarray | None  # (n,) a number for each word
    alpha: np.ndarray | None  # (R, n) attention of each region to the words
    beta: np.ndarray | None  # (n, R) attention of each word to the regions
    edges: np.ndarray | None = None  # (n, n) weight of neighbour j (last) for word i, in a graph of the words
    adds: bool = True  # the numbers add up to the score; else they are cosines, and the system says how it gathers them
