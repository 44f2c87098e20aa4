"""VSE++, visual-semantic embeddings with hard negatives (arXiv 1707.05612): docs/method.md, section 9."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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


def order_similarity(images, captions):
    """−‖max(0, s − i)‖₂ of images i (I, D) and captions s (C, D) -> (I, C)  (docs/method.md, section 3.3).

    Image by image, also in the backward pass, which computes the violations again: no (I, C, D) tensor.
    """
    rows = [checkpoint(of_one_image, image, captions, use_reentrant=False) for image in images]
    return torch.stack(rows) if rows else captions.new_zeros(0, len(captions))


def of_one_image(image, captions):
    return -torch.linalg.vector_norm((captions - image).clamp(min=0), dim=1)


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
        return order_similarity(images.emb, captions.emb)
