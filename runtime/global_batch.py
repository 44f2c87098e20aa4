"""The loss of a batch that is spread over processes, over micro-batches, or both.

Every pair of the whole batch counts, whatever divides it: embeddings of all captions come together, each process
scores its own images against them, and the loss sees the score matrix of the whole batch.
"""

import contextlib
from itertools import chain

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime import distributed
from vocab import END


def replicate(model, accumulate=1):
    """What training calls on a batch: model itself, or with several processes or micro-batches a Joint of it."""
    if distributed.size() == accumulate == 1:
        return model
    return distributed.replicate(Joint(model, accumulate), model)


def inner(replica):
    """The model that replicate was given."""
    replica = getattr(replica, "module", replica)  # of DistributedDataParallel
    return replica.model if isinstance(replica, Joint) else replica


class Joint(nn.Module):
    """Losses of the global batch, each process calling it with its own share.

    accumulate: the share is encoded in so many parts, and each part again when gradients are due, so that
    the encoders' memory is that of one part.  Random numbers (dropout) are the same both times.  BatchNorm's
    statistics are those of a part (of all processes).
    """

    def __init__(self, model, accumulate=1):
        super().__init__()
        self.model = model
        self.accumulate = accumulate

    def forward(self, batch):
        """data.Batch -> {name: loss}, to be added up; the values are the same on all processes."""
        everyone = distributed.gather_objects((batch.lengths, batch.depends))
        counts = [len(lengths) for lengths, _ in everyone]
        embedded = [self.embed(part, sum(counts)) for part in split(batch, self.accumulate)]
        images, words, own = zip(*embedded)
        words = self.gather_captions(torch.cat(words), [lengths for lengths, _ in everyone])
        scores = self.scores(torch.cat(images), words, batch.bboxes, everyone)
        scores = distributed.gather(scores, counts, own=True)
        losses = {self.model.retrieval: self.model.forward_loss(scores)}
        for name in own[0]:
            losses[name] = distributed.total(sum(one[name] for one in own), own=True)
        return losses

    def embed(self, part, whole):
        """A part -> images' and captions' embeddings, captions' words flat, and its weight of its own losses."""
        if self.accumulate == 1:
            return embed(self.model, part, whole)
        return checkpoint(
            embed, self.model, part, whole, use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), unchanged_buffers(self.model)),
        )  # fmt: skip

    def gather_captions(self, words, lengths):
        """Flat words or captions of this process -> a list of (n, D) of all captions, or (C, D)."""
        if self.model.one_vector:
            return distributed.gather(words, [len(some) for some in lengths])
        return distributed.gather(words, [sum(some) for some in lengths]).split(joined(lengths))

    def scores(self, images, words, bboxes, everyone):
        """This process's rows of the score matrix: its images, all captions."""
        lengths, depends = (None if some[0] is None else joined(some) for some in zip(*everyone))
        if len(images):
            return self.model.forward_sim(images, words, bboxes, depends, lengths)
        none = images.new_zeros(0, len(lengths))
        return none + nothing(images, *words, *self.parameters())


def embed(model, part, whole):
    """model.embed of a part that may be empty, its own losses weighted for a batch of `whole` pairs."""
    if part.ids:
        images, captions, own = model.embed(part)
        return images, flat(captions, part.lengths), {k: loss * (len(part.ids) / whole) for k, loss in own.items()}
    images = model.encode_images(part.images)  # no rows; BatchNorm's exchange still takes place
    captions = model.encode_captions(torch.full((1, 1), END), [1])[:0]
    return images, flat(captions, []), dict.fromkeys(model.own, nothing(images, captions, *model.parameters()))


def nothing(*tensors):
    """0, with a gradient of 0 for every tensor: what waits for their gradients does not wait in vain."""
    return sum(0 * x.sum() for x in tensors if x.requires_grad)


def joined(lists):
    return list(chain.from_iterable(lists))


def flat(captions, lengths):
    """Captions (B, n, D) padded -> their words (sum of lengths, D); captions (B, D) as they are."""
    if captions.dim() == 2:
        return captions
    width = captions.shape[1]
    rows = [torch.arange(b * width, b * width + n) for b, n in enumerate(lengths)]
    rows = torch.cat(rows) if rows else torch.arange(0)
    return captions.flatten(0, 1).index_select(0, rows.to(captions.device))


def split(batch, n):
    """A Batch in n parts, which differ by one pair at most; some may be empty."""
    parts = []
    for k in range(n):
        rows = slice(len(batch.ids) * k // n, len(batch.ids) * (k + 1) // n)
        part = batch._make(None if field is None else field[rows] for field in batch)
        parts.append(part._replace(captions=part.captions[:, : max(part.lengths, default=1)]))
    return parts


@contextlib.contextmanager
def unchanged_buffers(model):
    """BatchNorm's running statistics afterwards are as before: the second encoding does not count."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(model.buffers(), before):
                buffer.copy_(old)
