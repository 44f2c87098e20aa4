"""GSMN, the Graph Structured Network for image-text matching (arXiv 2004.00277).

docs/method.md describes it in section 2.  graph.py has its equations, modules/similarity.py scores all pairs with them.
"""

import torch
import torch.fx.experimental._config

import graph
from model import EncoderImage, EncoderText, MatchingModel
from modules import similarity
from modules.compiling import compiled


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

    def forward_scores(self, img_emb, cap_emb, bboxes, depends, cap_lens):
        """The two graphs' scores of all pairs: visual (I, C) and textual (I, C).

        img_emb (I, R, D); cap_emb (C, n, D) padded, or a list of (n_c, D); bboxes (I, R, 4) normalised,
        or None for no geometry; depends: for each caption its [governor, dependent] pairs, ROOT first
        (sparse models only); cap_lens: words of each caption.  Padding takes no part, so a pair's score
        does not depend on the other pairs.
        """
        if bboxes is None:
            bboxes = torch.zeros(*img_emb.shape[:2], 4)
        graphs = similarity.Graphs(
            self.i2t_match_G,
            self.t2i_match_G,
            self.blocks,
            self.smooth,
            self.sim_memory,
            self.node_matching,
            self.kernel,
        )
        depends = depends if self.is_sparse else None
        return similarity.pair_scores(graphs, img_emb, cap_emb, bboxes, depends, cap_lens)

    def similarity(self, images, captions):
        """Visual plus textual score of all pairs (I, C)."""
        visual, textual = self.forward_scores(
            images.emb, captions.emb, images.boxes, captions.depends, captions.lengths
        )
        return visual + textual


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
