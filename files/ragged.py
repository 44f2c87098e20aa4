"""Lists of different lengths in one array."""

from array import array
from itertools import chain

import numpy as np


class Ragged:
    """Lists of numbers (or of pairs) of different lengths in one array: 145,000 captions take 8 MB.

    Ragged[i] is list i; lengths: all their lengths (N,); flat: all numbers, (sum,) or (sum, 2) int32.
    """

    def __init__(self, lists, pairs=False):
        flat, ends = array("i"), [0]
        for one in lists:
            flat.extend(chain.from_iterable(one) if pairs else one)
            ends.append(len(flat))
        self.flat = np.array(flat, np.int32).reshape(-1, 2) if pairs else np.array(flat, np.int32)
        self.starts = np.array(ends) // (2 if pairs else 1)
        self.lengths = np.diff(self.starts)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.flat[self.starts[i] : self.starts[i + 1]].tolist()
