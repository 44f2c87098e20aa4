"""The order similarity of images and captions, in tiles."""

import torch

TILE_SIZE = 1 << 20  # numbers in one temporary of the order similarity: 4 MB, which a CPU's caches hold
GPU_TILE_SIZE = 1 << 26  # the same on a GPU, where each tile starts kernels: 256 MB


class OrderSimilarity(torch.autograd.Function):
    """−‖max(0, s − i)‖₂ of images i (I, D) and captions s (C, D) -> (I, C)  (docs/method.md, section 3.3).

    Tile by tile, forward and backward: no (images, captions, D) tensor.  Its gradient at 0 is 0.
    """

    @staticmethod
    def forward(ctx, images, captions):
        sims = images.new_empty(len(images), len(captions))
        for i, c in tiles(*sims.shape, images.shape[1], tile_size(images)):
            sims[i, c] = -torch.linalg.vector_norm(violation(images[i], captions[c]), dim=2)
        ctx.save_for_backward(images, captions, sims)
        return sims

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        images, captions, sims = ctx.saved_tensors
        grad = torch.where(sims < 0, grad / sims, 0)  # d sims / d captions = violation / sims
        to_images, to_captions = torch.zeros_like(images), torch.zeros_like(captions)
        for i, c in tiles(*sims.shape, images.shape[1], tile_size(images)):
            part = violation(images[i], captions[c]).mul_(grad[i, c].unsqueeze(2))
            to_images[i] -= part.sum(1)
            to_captions[c] += part.sum(0)
        return to_images, to_captions


def violation(images, captions):
    """max(0, s − i) of all pairs of one tile: (images, captions, D)."""
    return (captions.unsqueeze(0) - images.unsqueeze(1)).clamp_(min=0)


def tile_size(x):
    return TILE_SIZE if x.device.type == "cpu" else GPU_TILE_SIZE


def tiles(images, captions, dim, size):
    """Slices of images and captions that cover all pairs, at most `size` numbers (or one pair) in each."""
    across = max(1, min(captions, size // dim))
    down = max(1, size // (across * dim))
    for i in range(0, images, down):
        for c in range(0, captions, across):
            yield slice(i, i + down), slice(c, c + across)


def order_similarity(images, captions):
    """(I, D), (C, D) -> (I, C), the order violation's negative."""
    return OrderSimilarity.apply(images, captions)


def vector_similarity(images, captions, measure):
    """Images (I, D), captions (C, D) -> (I, C): inner products, or the order similarity (--measure order)."""
    return order_similarity(images, captions) if measure == "order" else images @ captions.t()
