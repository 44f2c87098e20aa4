"""The smallest system one can think of: an image is the mean of its regions, a caption the mean of its words."""

import torch
from torch import nn

from model import EncoderImage, MatchingModel
from modules.layers import l2norm
from runtime.commandline import positive
from systems.table import SYSTEMS, System

SYSTEMS["toy"] = System(
    name="toy",
    title="Toy",
    built_by="toy:Toy",
    add_flags=lambda parser: parser.add_argument("--scale", default=1.0, type=positive, help="of the similarities"),
    of_weights=frozenset({"scale"}),
)


class Words(nn.Embedding):
    def forward(self, captions, lengths):
        return l2norm(super().forward(captions).sum(1) / torch.tensor(lengths).unsqueeze(1))


class Toy(MatchingModel):
    one_vector = inner_product = True

    def __init__(self, opt):
        super().__init__(opt)
        self.scale = opt.scale
        self.img_enc = EncoderImage(opt.img_dim, opt.embed_size)
        self.txt_enc = Words(opt.vocab_size, opt.embed_size, padding_idx=0)

    def encode_images(self, images):
        return super().encode_images(images).mean(1)

    def similarity(self, images, captions):
        return self.scale * images.emb @ captions.emb.t()
