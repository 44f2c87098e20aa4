"""The two sides of a similarity: embedded images and embedded captions, with what belongs to their rows.

Evaluation, ensembles and processes pass sides on without knowing their fields.  I images, C captions, R regions,
n words, D embedding width.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from runtime.transfer import send


@dataclass(frozen=True)
class ImageSide:
    """Embedded images."""

    emb: torch.Tensor  # (I, R, D), or (I, D) for a system with one vector an image
    boxes: torch.Tensor | None = None  # (I, R, 4) as parts of the image's width and height

    def __len__(self):
        return len(self.emb)

    def take(self, rows):
        """Some of the images, by a slice or a list of numbers."""
        return ImageSide(chosen(self.emb, rows), chosen(self.boxes, rows))

    def on(self, device):
        """With the embeddings on `device`."""
        return replace(self, emb=send(self.emb, device))


@dataclass(frozen=True)
class CaptionSide:
    """Embedded captions."""

    emb: Any  # (C, n, D) padded, or a list of (n, D), or (C, D) for a system with one vector a caption
    lengths: list  # C numbers of words
    depends: list | None = None  # C lists of [governor, dependent] pairs, ROOT's first

    def __len__(self):
        return len(self.lengths)

    def take(self, rows):
        """Some of the captions, by a slice or a list of numbers."""
        return CaptionSide(chosen(self.emb, rows), chosen(self.lengths, rows), chosen(self.depends, rows))

    def on(self, device):
        """With the embeddings on `device`; a list goes in one copy."""
        if torch.is_tensor(self.emb):
            return replace(self, emb=send(self.emb, device))
        if torch.device(device).type == "cpu":
            return self
        words = send(torch.cat(self.emb), device).split([len(caption) for caption in self.emb])
        return replace(self, emb=list(words))


def chosen(field, rows):
    """Rows of a tensor or a list; None stays None."""
    if field is None or torch.is_tensor(field) or isinstance(rows, slice):
        return None if field is None else field[rows]
    return [field[i] for i in rows]
