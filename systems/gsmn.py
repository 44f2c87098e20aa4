"""GSMN, the Graph Structured Network for image-text matching (arXiv 2004.00277).

docs/method.md describes it in section 2.  graph.py has its equations, modules/similarity.py scores all pairs with them.
"""

from dataclasses import replace

import torch
import torch.fx.experimental._config

import graph
from model import EncoderImage, EncoderText, MatchingModel
from modules.compiling import compiled
from modules.sides import CaptionSide, ImageSide
from modules.similarity import Graphs, pair_scores


class GSMN(MatchingModel):
    """GSMN.  ValueError for widths that do not fit together."""

    parts = ("img_enc", "txt_enc", "i2t_match_G", "t2i_match_G")

    def __init__(self, opt):
        super().__init__(opt)
        check_widths(opt)
        self.is_sparse = opt.is_sparse
        self.blocks, self.smooth, self.sim_memory = opt.num_block, opt.lambda_softmax, opt.sim_memory
        self.node_matching, self.kernel = graph.node_matching, opt.kernel
        self.img_enc = EncoderImage(opt.img_dim, opt.embed_size, opt.no_imgnorm)
        self.txt_enc = EncoderText(
            opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers, opt.bi_gru, opt.no_txtnorm
        )
        self.i2t_match_G = graph.VisualGraph(opt.feat_dim, opt.hid_dim, opt.out_dim, opt.propagation)
        self.t2i_match_G = graph.TextualGraph(opt.feat_dim, opt.hid_dim, opt.out_dim, opt.propagation)

    def compile_parts(self, **how):
        """torch.compile for the encoders and for graph.py's part of the similarity; how: its arguments."""
        super().compile_parts(**how)
        # two sizes that are equal in the first batch need not be in the next
        torch.fx.experimental._config.use_duck_shape = False
        self.node_matching = compiled(graph.node_matching, **how)
        for side in (self.i2t_match_G, self.t2i_match_G):
            side.forward = compiled(side.forward, **how)

    def pair_scores(self, images, captions):
        """The two graphs' scores of all pairs: visual (I, C) and textual (I, C).

        Without boxes there is no geometry.  Padding takes no part, so a score does not depend on the other pairs.
        """
        parts = self.i2t_match_G, self.t2i_match_G, self.blocks, self.smooth
        graphs = Graphs(*parts, self.sim_memory, self.node_matching, self.kernel)
        if not self.is_sparse:
            captions = replace(captions, depends=None)
        return pair_scores(graphs, images, captions)

    def similarity(self, images, captions):
        """Visual plus textual score of all pairs (I, C)."""
        visual, textual = self.pair_scores(images, captions)
        return visual + textual

    def forward_scores(self, img_emb, cap_emb, bboxes, depends, cap_lens):
        """pair_scores of two sides, given part by part."""
        return self.pair_scores(ImageSide(img_emb, bboxes), CaptionSide(cap_emb, cap_lens, depends))


def check_widths(opt):
    """ValueError where block, feature and kernel widths of GSMN do not fit together."""
    if opt.embed_size % opt.num_block:
        raise ValueError(f"--embed_size {opt.embed_size} is not divisible by --num_block {opt.num_block}")
    if opt.feat_dim != opt.num_block:
        raise ValueError(f"--feat_dim {opt.feat_dim} must equal --num_block {opt.num_block}")
    if opt.hid_dim % graph.KERNELS:
        raise ValueError(f"--hid_dim {opt.hid_dim} is not divisible by the {graph.KERNELS} kernels")
    if opt.out_dim != 1:
        raise ValueError(f"--out_dim {opt.out_dim}: a node has one score, only 1 is defined")
