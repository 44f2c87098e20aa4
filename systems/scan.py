"""SCAN, Stacked Cross Attention (arXiv 1803.08024).  docs/method.md describes it in section 8.

Its attention is GSMN's node-level matching with one block, so graph.py computes it.  Letters for shapes as there.
"""

from functools import partial

import torch
import torch.nn.functional as F

import graph
from model import EncoderImage, EncoderText, Explanation, MatchingModel
from modules.blocks import all_pairs, for_computing, joined, padded
from modules.layers import l2norm, linear


class SCAN(MatchingModel):
    """SCAN.  --cross_attn t2i: words attend to regions, i2t: regions attend to words."""

    def __init__(self, opt):
        super().__init__(opt)
        self.words_ask, self.norm, self.gather = opt.cross_attn == "t2i", opt.raw_feature_norm, opt.agg_func
        self.smooth, self.lse, self.sim_memory = opt.lambda_softmax, opt.lambda_lse, opt.sim_memory
        layer = partial(graph.WeightNormLinear, dim=-1) if opt.precomp_enc_type == "weight_norm" else linear
        self.img_enc = EncoderImage(opt.img_dim, opt.embed_size, opt.no_imgnorm, layer)
        sizes = opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers
        self.txt_enc = EncoderText(*sizes, opt.bi_gru, opt.no_txtnorm)

    def similarity(self, images, captions):
        """Scores of all pairs (I, C)."""
        if not len(images) or not len(captions):
            return images.emb.new_zeros(len(images), len(captions))
        limit = for_computing(self.sim_memory, self.device)
        return all_pairs(self.block_scores, self.sizes, images, captions, limit)[0]

    def block_scores(self, images, words, depends, lengths, parts):
        """Scores (I, C) of a block, as modules/blocks.py asks for them."""
        words, masks, _ = padded(words, lengths)
        regions, scores = graph.nodes(images.emb, 1), []
        for part in parts:
            longest = int(lengths[part.stop - 1])
            mask = masks[part, :longest]
            _, cosines = self.matching(regions, graph.nodes(words[part, :longest], 1), mask)
            scores.append(self.aggregate(cosines, mask if self.words_ask else cosines.new_zeros(cosines.shape[1:])))
        return (joined(scores, 1),)

    def sizes(self, R, lengths, D, gradients):
        """Bytes, at their peak: as modules/blocks.py asks for them; counted."""
        n, table = lengths.max(), R * lengths  # all are padded to the longest
        if gradients:
            return 0, 4 * (2 * R * D + 2 * R * R), 4 * (4 * n * D + 2 * n * n), 4 * (9 * table + 8 * (R + lengths))
        return 0, 4 * (R * D + R * R), 4 * (3 * n * D + n * n), 4 * (5 * table + 4 * (R + lengths))

    def matching(self, regions, words, mask):
        """Nodes of images and of padded captions, mask (C, n): 0 for words, -inf for padding -> attention (I, R, C, n),
        and the cosine of each asking node with its context, (I, C, n) or (I, C, R).
        """
        products = graph.block_products(regions, words)  # (1, I, R, C, n)
        weights = self.attention(products[0], mask)
        ask = graph.words_ask if self.words_ask else graph.regions_ask
        return weights, ask(products, weights, regions, words).squeeze(3)

    @torch.no_grad()
    def explain(self, image, caption):
        """The attention, and the cosine of each word (t2i) or region (i2t) with what it attends to."""
        words, score = caption.emb, self.similarity(image, caption).item()  # (1, n, D)
        sides = graph.nodes(image.emb, 1), graph.nodes(words, 1)
        weights, cosines = self.matching(*sides, words.new_zeros(words.shape[:2]))
        weights, cosines = weights[0, :, 0].cpu().numpy(), cosines.flatten().cpu().numpy()  # (R, n), (n,) or (R,)
        if self.words_ask:
            return Explanation(score, None, cosines, None, weights.T, adds=False)
        return Explanation(score, cosines, None, weights, None, adds=False)

    def attention(self, affinity, mask):
        """Affinities (I, R, C, n) -> weights of the same shape, which add up to 1 over what is attended to."""
        logits = self.smooth * normalised(affinity, self.norm, 3 if self.words_ask else 1, mask)
        return torch.softmax(logits, 1) if self.words_ask else torch.softmax(logits + mask, 3)

    def aggregate(self, cosines, mask):
        """Cosines (I, C, N) of the asking nodes, mask (C, N) -> one score for each pair, (I, C)."""
        if self.gather == "LogSumExp":
            return torch.logsumexp(self.lse * cosines + mask, 2) / self.lse
        if self.gather == "Max":
            return (cosines + mask).amax(2)
        real = (mask == 0).to(cosines.dtype)
        total = (cosines * real).sum(2)
        return total / real.sum(1) if self.gather == "Mean" else total


def normalised(affinity, how, dim, mask):
    """Affinities (I, R, C, n) by --raw_feature_norm along `dim`; padding, whose affinity is 0, takes no part."""
    if how == "softmax":
        return torch.softmax(affinity + mask if dim == 3 else affinity, dim)
    if how.startswith("clipped"):
        affinity = F.leaky_relu(affinity, 0.1)
    if how.endswith("l2norm"):
        return l2norm(affinity, dim)
    if how.endswith("l1norm"):
        return affinity / (affinity.abs().sum(dim, keepdim=True) + graph.EPS)
    return affinity
