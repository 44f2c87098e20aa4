"""GSMN, the Graph Structured Network for image-text matching (arXiv 2004.00277).

docs/method.md describes it in section 2; graph.py has its equations.  On a CPU the C kernel (modules/kernel/) scores
all pairs; without a C compiler, and on a GPU, graph.py does, block by block.  Both compute section 7.  Letters for
shapes as in graph.py.
"""

from dataclasses import replace

import torch
import torch.fx.experimental._config
import torch.nn.functional as F

import graph
from model import EncoderImage, EncoderText, Explanation, MatchingModel, compiled
from modules.blocks import all_pairs, for_computing, joined, padded
from modules.kernel import scores as kernel_scores
from modules.sides import ImageSide
from runtime.transfer import send


class GSMN(MatchingModel):
    """GSMN.  ValueError for widths that do not fit together."""

    parts = ("img_enc", "txt_enc", "i2t_match_G", "t2i_match_G")

    def __init__(self, opt):
        super().__init__(opt)
        if opt.embed_size % opt.num_block:
            raise ValueError(f"--embed_size {opt.embed_size} is not divisible by --num_block {opt.num_block}")
        if opt.feat_dim != opt.num_block:
            raise ValueError(f"--feat_dim {opt.feat_dim} must equal --num_block {opt.num_block}")
        if opt.hid_dim % graph.KERNELS:
            raise ValueError(f"--hid_dim {opt.hid_dim} is not divisible by the {graph.KERNELS} kernels")
        if opt.out_dim != 1:
            raise ValueError(f"--out_dim {opt.out_dim}: a node has one score, only 1 is defined")
        self.is_sparse = opt.is_sparse
        self.blocks, self.smooth, self.sim_memory = opt.num_block, opt.lambda_softmax, opt.sim_memory
        self.node_matching = graph.node_matching  # or the same compiled
        self.kernel = opt.kernel  # auto: C on a CPU, graph.py elsewhere; torch: graph.py only
        self.img_enc = EncoderImage(opt.img_dim, opt.embed_size, opt.no_imgnorm)
        sizes = opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers
        self.txt_enc = EncoderText(*sizes, opt.bi_gru, opt.no_txtnorm)
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
        InputError if one image and one caption exceed the memory.
        """
        if not self.is_sparse:
            captions = replace(captions, depends=None)
        elif captions.depends is None:
            raise ValueError("a sparse GSMN scores captions by their dependencies, and there are none")
        regions, dtype, device = images.emb, self.i2t_match_G.out_1.bias.dtype, images.emb.device
        if not regions.numel() or not len(captions):
            return regions.new_zeros(2, len(images), len(captions), dtype=dtype).unbind()
        boxes = torch.zeros(*regions.shape[:2], 4) if images.boxes is None else images.boxes
        images = ImageSide(regions.to(dtype), send(boxes, device).to(dtype))
        limit, kernel = for_computing(self.sim_memory, device), None
        if self.kernel == "auto" and device.type == "cpu" and dtype == torch.float32:
            kernel = kernel_scores.load(self.blocks, self.i2t_match_G.out_1.weight_v.shape[0])
        if kernel:
            return kernel_scores.all_pairs(kernel, self, images, captions, limit).unbind()
        return all_pairs(self.block_scores, self.sizes, images, captions, limit).unbind()

    def block_scores(self, images, words, depends, lengths, parts):
        """Both scores (I, C) of a block, as modules/blocks.py asks for them."""
        words, mask, share = padded(words, lengths)
        regions, nodes = graph.nodes(images.emb, self.blocks), graph.nodes(words, self.blocks)
        adjacency = None
        if depends is not None:
            adjacency = send(graph.adjacency(depends, lengths).to(words.dtype), words.device)
        text_edges = self.t2i_match_G.edges(words, adjacency, self.smooth, mask)
        visual, textual, n = [], [], mask.shape[1]
        for part in parts:
            longest = int(lengths[part.stop - 1])
            own = mask[part, :longest].contiguous()
            match = self.node_matching(regions, nodes.part(part, longest), self.smooth, own)
            visual.append(match[0])
            textual.append(F.pad(match[1].transpose(0, 1), (0, 0, 0, n - longest)))  # (C, I, n, K)
        visual = self.i2t_match_G(joined(visual, 1), self.i2t_match_G.edges(images.boxes))
        return visual, self.t2i_match_G(joined(textual, 0), text_edges, share).t()

    def sizes(self, R, lengths, D, gradients):
        """Bytes, at their peak: as modules/blocks.py asks for them; counted."""
        K, H, n = self.blocks, self.i2t_match_G.out_1.weight_v.shape[0], lengths.max()  # all are padded to the longest
        block, table, hidden = K * R * lengths, R * lengths, H * (R + lengths)
        if gradients:
            image = 2 * R * D + (2 * K + 50) * R * R
            caption = 4 * n * D + (3 * K + 12) * n * n
            pair = 4.5 * block + 9 * table + 7 * hidden
        else:
            image = R * D + (K + 30) * R * R
            caption = 3 * n * D + (2 * K + 6) * n * n
            pair = 3 * block + 4 * table + 2 * hidden
        return 0, 4 * image, 4 * caption, 4 * pair

    def similarity(self, images, captions):
        """Visual plus textual score of all pairs (I, C)."""
        visual, textual = self.pair_scores(images, captions)
        return visual + textual

    @torch.no_grad()
    def explain(self, image, caption):
        """What each region and each word adds to the score, from the pieces that compute it."""
        regions, words = image.emb, caption.emb  # (1, R, D), (1, n, D)
        boxes = regions.new_zeros(*regions.shape[:2], 4) if image.boxes is None else image.boxes.to(regions)
        adjacency = graph.adjacency(caption.depends, caption.lengths).to(words) if self.is_sparse else None
        affinity = F.leaky_relu(regions @ words.transpose(1, 2), 0.1)  # (1, R, n)
        region_match, word_match = graph.node_matching(  # (1, 1, R or n, K)
            graph.nodes(regions, self.blocks), graph.nodes(words, self.blocks), self.smooth
        )
        visual, textual = self.i2t_match_G, self.t2i_match_G
        in_regions = visual.node_scores(region_match, visual.edges(boxes)).flatten()
        in_words = textual.node_scores(word_match, textual.edges(words, adjacency, self.smooth)).flatten()
        parts = (
            in_regions / len(in_regions),  # a score is the mean of its nodes
            in_words / len(in_words),
            graph.attention(affinity, 1, 2, self.smooth)[0],
            graph.attention(affinity, 2, 1, self.smooth)[0].t(),
            textual.graph_convolution_3.edge_weights(words, adjacency, self.smooth)[0],
        )
        return Explanation((in_regions.mean() + in_words.mean()).item(), *(part.cpu().numpy() for part in parts))
