"""SCAN, Stacked Cross Attention (arXiv 1803.08024).  docs/method.md describes it in section 8.

Its attention is GSMN's node-level matching with one block, so graph.py computes it without a tensor of contexts.
Letters for shapes as in graph.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import graph
from model import EncoderImage, EncoderText, MatchingModel
from modules.explanation import Explanation
from modules.layers import l2norm


class EncoderImageWeightNorm(nn.Module):
    """Region features (B, R, img_dim) -> unit vectors (B, R, D); the weight is g · v / ‖v‖, one g for all of it."""

    def __init__(self, img_dim, embed_size, no_imgnorm=False):
        super().__init__()
        self.no_imgnorm = no_imgnorm
        self.fc = WholeWeightNormLinear(img_dim, embed_size)

    forward = EncoderImage.forward


class WholeWeightNormLinear(nn.Module):
    """Linear layer with the weight g · v / ‖v‖, ‖v‖ of the whole matrix; torch's initial values."""

    def __init__(self, in_features, out_features):
        super().__init__()
        start = nn.Linear(in_features, out_features)
        self.bias = nn.Parameter(start.bias.detach())
        self.weight_g = nn.Parameter(start.weight.detach().norm())
        self.weight_v = nn.Parameter(start.weight.detach())

    def forward(self, x):
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm()), self.bias)


class SCAN(MatchingModel):
    """SCAN.  --cross_attn t2i: words attend to regions, i2t: regions attend to words."""

    def __init__(self, opt):
        super().__init__(opt)
        self.words_ask, self.norm, self.gather = opt.cross_attn == "t2i", opt.raw_feature_norm, opt.agg_func
        self.smooth, self.lse, self.sim_memory = opt.lambda_softmax, opt.lambda_lse, opt.sim_memory
        encoder = EncoderImageWeightNorm if opt.precomp_enc_type == "weight_norm" else EncoderImage
        self.img_enc = encoder(opt.img_dim, opt.embed_size, opt.no_imgnorm)
        self.txt_enc = EncoderText(
            opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers, opt.bi_gru, opt.no_txtnorm
        )

    def similarity(self, images, captions):
        """Scores of all pairs (I, C)."""
        words = captions.emb if torch.is_tensor(captions.emb) else pad_sequence(list(captions.emb), batch_first=True)
        place = torch.arange(words.shape[1], device=words.device)
        padding = place >= torch.as_tensor(captions.lengths, device=words.device).unsqueeze(1)
        mask = words.new_zeros(padding.shape).masked_fill(padding, -math.inf)
        return self.block_scores(images.emb, words.masked_fill(padding.unsqueeze(2), 0), mask)

    def block_scores(self, regions, words, mask):
        """Scores (I, C) of regions (I, R, D) and padded words (C, n, D); mask (C, n): 0 for words, -inf for padding."""
        _, cosines = self.matching(regions, words, mask)
        return self.aggregate(cosines, mask if self.words_ask else cosines.new_zeros(cosines.shape[1:]))

    def matching(self, regions, words, mask):
        """Attention (I, R, C, n), and the cosine of each asking node with its context, (I, C, n) or (I, C, R)."""
        regions, words = graph.nodes(regions, 1), graph.nodes(words, 1)
        products = graph.block_products(regions, words)  # (1, I, R, C, n)
        weights = self.attention(products[0], mask)
        ask = graph.words_ask if self.words_ask else graph.regions_ask
        return weights, ask(products, weights, regions, words).squeeze(3)

    @torch.no_grad()
    def explain(self, image, caption):
        """The attention, and the cosine of each word (t2i) or region (i2t) with what it attends to."""
        words = caption.emb  # (1, n, D)
        weights, cosines = self.matching(image.emb, words, words.new_zeros(words.shape[:2]))
        score = self.similarity(image, caption).item()
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
