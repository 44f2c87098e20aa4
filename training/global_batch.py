"""The loss of a batch that is divided over processes, over micro-batches, or both.

Every pair of the whole batch counts: the embeddings of all captions go to every process, each process scores its own
images against them, and the loss is computed from the score matrix of the whole batch.
"""

import contextlib
from itertools import chain

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from modules.sides import CaptionSide, ImageSide
from runtime import distributed
from runtime.batches import Share
from runtime.transfer import send
from vocab import END


def training_module(model, accumulate=1):
    """The module that training calls on a batch: `model`, or with several processes or micro-batches a GlobalBatch.

    After its backward pass distributed.add_gradients completes the gradients.  Every process gets the main one's
    weights, since different kinds of CPU draw different random numbers.
    """
    if distributed.size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.__class__ = SyncedBatchNorm  # the same parameters, buffers and names
                layer.forward = torch.compiler.disable(layer.forward)  # with --compile: it exchanges numbers
    return model if distributed.size() == accumulate == 1 else GlobalBatch(model, accumulate)


class GlobalBatch(nn.Module):
    """Losses of the whole batch, each process calling it with its own share.

    accumulate: the share is encoded in this many parts, and each part again when its gradients are computed, so that
    the encoders need the memory of one part.  Random numbers (dropout) are the same both times.  BatchNorm's
    statistics are those of one part (over all processes).
    """

    def __init__(self, model, accumulate=1):
        super().__init__()
        self.model = model
        self.accumulate = accumulate
        for weight in model.criterion.parameters():
            # every process computes the whole loss, and their gradients are added
            weight.register_hook(lambda gradient: gradient / distributed.size())

    def forward(self, batch, excluded=None):
        """batches.Batch -> {name: loss}, to be added up; the values are the same on all processes.

        With several processes the batch needs its `shares` (batches.with_shares).  excluded (B, B), of the whole batch.
        """
        shares = batch.shares or [Share(batch.lengths, batch.depends, batch.ids)]
        counts = [len(share.ids) for share in shares]
        parts = [self.encode_part(part, sum(counts)) for part in split(batch, self.accumulate)]
        images, words, extra_losses = zip(*parts)
        images = ImageSide(torch.cat(images), batch.bboxes)
        scores = self.own_scores(images, gather_captions(torch.cat(words), shares, self.model.one_vector))
        scores = distributed.gather(scores, counts)
        losses = {self.model.retrieval_loss: self.model.forward_loss(scores, excluded)}
        for name in extra_losses[0]:
            losses[name] = distributed.total_loss(sum(part[name] for part in extra_losses))
        return losses

    def encode_part(self, part, pairs):
        """A part of the share -> embeddings of images and captions, captions' words flat, and weighted extra losses."""
        if self.accumulate == 1:
            return encode_weighted(self.model, part, pairs)
        return checkpoint(
            encode_weighted, self.model, part, pairs, use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), unchanged_buffers(self.model)),
        )  # fmt: skip

    def own_scores(self, images, captions):
        """This process's rows of the score matrix: its images, all captions."""
        if len(images):
            return self.model.similarity(images, captions)
        # no scores, but both sides get gradients, in whose exchanges the other processes wait for this one
        return images.emb.new_zeros(0, len(captions)) + sum(0 * x.sum() for x in (images.emb, *captions.emb))


def gather_captions(words, shares, one_vector):
    """Flat words (or vectors) of this process's captions, every process's Share -> CaptionSide of the whole batch."""
    lengths = list(chain.from_iterable(share.lengths for share in shares))
    depends = None if shares[0].depends is None else list(chain.from_iterable(share.depends for share in shares))
    counts = [len(share.lengths) if one_vector else sum(share.lengths) for share in shares]
    words = distributed.gather_for_all(words, counts)
    return CaptionSide(words if one_vector else words.split(lengths), lengths, depends)


def encode_weighted(model, part, pairs):
    """model.encode of a part that may be empty; the losses it gives are weighted for a batch of `pairs` pairs."""
    if part.ids:
        images, captions, losses = model.encode(part)
        losses = {name: loss * (len(part.ids) / pairs) for name, loss in losses.items()}
        return images.emb, flat_words(captions.emb, part.lengths), losses
    images = model.encode_images(part.images)  # no rows, but BatchNorm's exchange still takes place
    captions = model.encode_captions(torch.full((1, 1), END), [1])[:0]
    return images, flat_words(captions, []), dict.fromkeys(model.extra_losses, images.new_zeros(()))


def flat_words(captions, lengths):
    """Captions (B, n, D) padded -> their words (sum of lengths, D); captions (B, D) as they are."""
    if captions.dim() == 2:
        return captions
    rows = [b * captions.shape[1] + i for b, n in enumerate(lengths) for i in range(n)]
    return captions.flatten(0, 1).index_select(0, send(torch.tensor(rows, dtype=torch.int64), captions.device))


def split(batch, n):
    """A Batch in n parts, whose sizes differ by one pair at most; a part may be empty."""
    parts, batch = [], batch._replace(shares=None)
    for k in range(n):
        rows = distributed.nth_part(len(batch.ids), k, n)
        part = batch._make(None if field is None else field[rows] for field in batch)
        parts.append(part._replace(captions=part.captions[:, : max(part.lengths, default=1)]))
    return parts


@contextlib.contextmanager
def unchanged_buffers(model):
    """BatchNorm's running statistics afterwards are as before: the second encoding of a part does not count."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(model.buffers(), before):
                buffer.copy_(old)


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the rows of all processes, on any device; names and numbers as with one process."""

    synced = True

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        """(B, C) or (B, C, ...); a process may have no row."""
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x.to(self.running_mean.dtype)  # a sum in bfloat16 could not even count the rows
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        rows = x.new_full((1,), x.numel() // x.shape[1])
        count, mean = distributed.total(torch.cat([rows, x.sum(dims)])).split([1, x.shape[1]])
        alone = count <= 1  # one value has no variance: use the running statistics, as in systems.vsrn.batch_norm
        count = count.detach().clamp(min=1)  # none in any process: 0 / 0 would make gradients NaN, though not used
        mean = torch.where(alone, self.running_mean, mean / count)
        centred = x - mean.view(shape)
        variance = distributed.total(centred.square().sum(dims)) / count
        with torch.no_grad():  # running mean and unbiased variance, as torch keeps them
            momentum = self.momentum * (~alone).to(mean)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)
            self.num_batches_tracked += 1
        variance = torch.where(alone, self.running_var, variance)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(dtype)
