"""VSE++, visual-semantic embeddings with hard negatives (arXiv 1707.05612): docs/method.md, section 9."""

import torch
from torch import nn

from model import EncoderCaption, MatchingModel
from modules.backbone import EncoderImageFull
from modules.layers import finish, linear
from systems.table import reads_pictures


class EncoderVector(nn.Module):
    """Features of an image's regions, or of one region for the whole image -> one vector, of their mean."""

    def __init__(self, img_dim, embed_size, use_abs, no_imgnorm):
        super().__init__()
        self.use_abs, self.no_imgnorm = use_abs, no_imgnorm
        self.fc = linear(img_dim, embed_size)

    def forward(self, images):
        """(B, R, img_dim) -> (B, D)."""
        return finish(self.fc(images.mean(1)), self.use_abs, self.no_imgnorm)


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


class VSEpp(MatchingModel):
    """VSE++, and its relatives by flags: VSE0, Order++, Order0.  ValueError for an unknown measure."""

    one_vector = True

    def __init__(self, opt):
        super().__init__(opt)
        if opt.measure not in ("cosine", "order"):
            raise ValueError(f"--measure {opt.measure}: it can be cosine or order")
        self.inner_product = opt.measure == "cosine"
        if reads_pictures(opt):
            self.img_enc = EncoderImageFull(
                opt.cnn_type, opt.embed_size, not opt.no_pretrained, opt.finetune, opt.use_abs, opt.no_imgnorm
            )
        else:
            self.add_region_encoder(opt)
        self.txt_enc = EncoderCaption(opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers, opt.use_abs)

    def add_region_encoder(self, opt):
        self.img_enc = EncoderVector(opt.img_dim, opt.embed_size, opt.use_abs, opt.no_imgnorm)

    def similarity(self, images, captions):
        """Scores of all pairs (I, C): inner products, or the order similarity (--measure order)."""
        if self.inner_product:
            return images.emb @ captions.emb.t()
        return OrderSimilarity.apply(images.emb, captions.emb)
