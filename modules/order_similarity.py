"""The similarity of two vectors: the inner product or the order similarity."""

import torch


class OrderSimilarity(torch.autograd.Function):
    """−‖max(0, s − i)‖₂ of images i (I, D) and captions s (C, D) -> (I, C)  (docs/method.md, section 3.3).

    Image by image, forward and backward: no (I, C, D) tensor.  Its gradient at 0 is 0.
    """

    @staticmethod
    def forward(ctx, images, captions):
        sims = images.new_empty(len(images), len(captions))
        for i, image in enumerate(images):
            sims[i] = -torch.linalg.vector_norm((captions - image).clamp_(min=0), dim=1)
        ctx.save_for_backward(images, captions, sims)
        return sims

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        images, captions, sims = ctx.saved_tensors
        grad = torch.where(sims < 0, grad / sims, 0)  # d sims / d captions = violation / sims
        to_images, to_captions = torch.zeros_like(images), torch.zeros_like(captions)
        for i, image in enumerate(images):
            part = (captions - image).clamp_(min=0).mul_(grad[i].unsqueeze(1))  # (C, D)
            to_images[i] = -part.sum(0)
            to_captions += part
        return to_images, to_captions


def vector_similarity(images, captions, measure):
    """Images (I, D), captions (C, D) -> (I, C): inner products, or the order similarity (--measure order)."""
    return OrderSimilarity.apply(images, captions) if measure == "order" else images @ captions.t()
