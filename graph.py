"""Graph equations of GSMN: node-level matching and graph convolutions.

Letters used for shapes: I images, C captions of one length, R regions, n words, K blocks, D embedding
width, d = D/K, N nodes (R or n), H hidden width, 8 kernels.  See docs/method.md, sections 2 and 7.
"""

import math
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-8
KERNELS = 8


def attention(affinity, norm_dim, dim, smooth, mask=None):
    """Softmax over `dim` of smooth · (affinity / its norm along `norm_dim`)  (docs/method.md, section 2.3).

    mask: added before the softmax, -inf at padding, else 0.
    """
    scale = smooth / (torch.linalg.vector_norm(affinity, dim=norm_dim, keepdim=True) + EPS)
    logits = affinity * scale if mask is None else torch.addcmul(mask, affinity, scale)
    return torch.softmax(logits, dim)


class Nodes(NamedTuple):
    """The nodes of X graphs and their Gram matrices, block by block.

    `nodes` computes them once for each graph, since they do not depend on the other side of a pair.
    """

    features: torch.Tensor  # (X, N, D)
    gram: torch.Tensor  # (X, K, N, N): inner products of every two nodes

    def square(self):
        """(X, N, K): squared norms of the nodes' blocks."""
        return self.gram.diagonal(dim1=2, dim2=3).transpose(1, 2)

    def part(self, graphs, n):
        """The first n nodes of some of the graphs, chosen by a slice."""
        return Nodes(self.features[graphs, :n].contiguous(), self.gram[graphs, :, :n, :n].contiguous())


def nodes(features, blocks):
    """Features (X, N, D) -> Nodes of K = `blocks` blocks."""
    x = features.unflatten(2, (blocks, -1)).transpose(1, 2).contiguous()  # (X, K, N, d)
    return Nodes(features, x @ x.transpose(2, 3))


def node_matching(regions, words, smooth, mask=None):
    """Node-level matching of every image with every caption, captions padded to one length.

    regions, words: Nodes of I images and of C captions; mask (C, n): 0 for words, -inf for padding, whose features
    must be 0; None for no padding -> matching vectors (I, C, R, K) of the visual nodes and (I, C, n, K) of the textual
    ones: the cosine of each block of a node with the same block of its context in the other graph
    (docs/method.md, sections 2.3 and 7).
    """
    products = block_products(regions, words)
    affinity = F.leaky_relu(products.sum(0), 0.1)  # (I, R, C, n)
    visual = regions_ask(products, attention(affinity, 1, 3, smooth, mask), regions, words)
    return visual, words_ask(products, attention(affinity, 3, 1, smooth), regions, words)


def block_products(regions, words):
    """Inner products of every region with every word, block by block: (K, I, R, C, n); arguments as node_matching."""
    (I, R, D), (C, n, _), K = regions.features.shape, words.features.shape, regions.gram.shape[1]
    v = regions.features.reshape(I * R, K, D // K).transpose(0, 1)  # (K, I·R, d)
    t = words.features.reshape(C * n, K, D // K).permute(1, 2, 0)  # (K, d, C·n)
    return torch.bmm(v, t).view(K, I, R, C, n)


def regions_ask(products, weights, regions, words):
    """Regions attend to words with weights (I, R, C, n) -> cosines of regions and contexts, (I, C, R, K)."""
    K, I, R, C, n = products.shape
    dot = (weights * products).sum(4)  # (K, I, R, C)
    asking = weights.permute(2, 0, 1, 3)  # (C, I, R, n)
    mixed = asking.reshape(C, I * R, n) @ words.gram.transpose(1, 2).reshape(C, n, K * n)  # α G
    form = (mixed.view(C, I, R, K, n) * asking.unsqueeze(3)).sum(4)  # (C, I, R, K): α G α
    return cosine(dot.permute(1, 3, 2, 0), form.transpose(0, 1), regions.square().unsqueeze(1))


def words_ask(products, weights, regions, words):
    """Words attend to regions with weights (I, R, C, n) -> cosines of words and contexts, (I, C, n, K)."""
    K, I, R, C, n = products.shape
    dot = (weights * products).sum(2)  # (K, I, C, n)
    mixed = regions.gram.reshape(I, K * R, R) @ weights.view(I, R, C * n)  # G β
    form = (mixed.view(I, K, R, C, n) * weights.unsqueeze(1)).sum(2)  # (I, K, C, n): β G β
    return cosine(dot.permute(1, 2, 3, 0), form.permute(0, 2, 3, 1), words.square())


def cosine(dot, context, node):
    """Cosines from scalar products and the squared norms of both sides: dot / max(the norms' product, EPS)."""
    return dot * F.threshold(context * node, EPS**2, EPS**2).rsqrt()


class WeightNormLinear(nn.Module):
    """Linear layer with the weight g · v / ‖v‖, stored as the released `weight_g`, `weight_v`; torch's initial values.

    dim: 0 for the norm of each row of v, (rows, 1); -1 for that of the whole matrix, ().
    """

    def __init__(self, in_features, out_features, dim=0):
        super().__init__()
        start, self.dim = nn.Linear(in_features, out_features), dim
        self.bias = nn.Parameter(start.bias.detach())
        # on the meta device, where shapes count, a norm would load torch's compiler
        weight, shape = start.weight.detach(), () if dim == -1 else (out_features, 1)
        norm = weight.new_empty(shape) if weight.is_meta else torch.norm_except_dim(weight, 2, dim)
        self.weight_g = nn.Parameter(norm)
        self.weight_v = nn.Parameter(weight)

    def weight(self):
        if self.weight_v.device.type == "cpu":  # whose one kernel would start threads, even for a few numbers
            return self.weight_v * (self.weight_g / torch.norm_except_dim(self.weight_v, 2, self.dim))
        return torch._weight_norm(self.weight_v, self.weight_g, self.dim)

    def forward(self, x):
        return F.linear(x, self.weight(), self.bias)


class Kernels(nn.Module):
    """The 8 linear maps of a graph convolution, feat_dim -> hid_dim / 8 each, applied side by side."""

    def __init__(self, feat_dim, hid_dim, bias):
        super().__init__()
        maps = (nn.Linear(feat_dim, hid_dim // KERNELS, bias=bias) for _ in range(KERNELS))
        self.conv_weights = nn.ModuleList(maps)

    def stacked(self):
        """Weights (H, feat_dim) and bias (H) or None of all kernels."""
        weight = torch.cat([m.weight for m in self.conv_weights])
        bias = [m.bias for m in self.conv_weights]
        return weight, None if bias[0] is None else torch.cat(bias)


class SpatialConvolution(Kernels):
    """Gaussian kernels over the polar coordinates between box centres (docs/method.md, section 2.4)."""

    def __init__(self, feat_dim, hid_dim):
        super().__init__(feat_dim, hid_dim, bias=False)
        self.mean_rho = nn.Parameter(torch.rand(KERNELS, 1))
        self.mean_theta = nn.Parameter(torch.empty(KERNELS, 1).uniform_(-math.pi, math.pi))
        self.precision_rho = nn.Parameter(torch.rand(KERNELS, 1))
        self.precision_theta = nn.Parameter(torch.rand(KERNELS, 1))

    def edge_weights(self, boxes):
        """Normalised boxes (I, R, 4) -> (I, 8, R, R): weight of neighbour j (last) for node i, per kernel.

        The 8 weights of a pair add up to 1, or are all 0 where every kernel underflows.
        """
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2  # (I, R, 2)
        delta = (centre.unsqueeze(2) - centre.unsqueeze(1)).unsqueeze(1)  # (I, 1, R, R, 2)
        rho = torch.linalg.vector_norm(delta, dim=-1)
        theta = torch.atan2(delta[..., 0], delta[..., 1])  # x first, as released
        mean_rho, mean_theta, precision_rho, precision_theta = (
            p.view(KERNELS, 1, 1) for p in (self.mean_rho, self.mean_theta, self.precision_rho, self.precision_theta)
        )
        turn = math.pi - (math.pi - (theta - mean_theta).abs()).abs()  # t or 2 π - t, whichever is nearer to 0
        square = (rho - mean_rho).square() / (1e-14 + precision_rho.square())
        square = square + turn.square() / (1e-14 + precision_theta.square())
        weight = torch.exp(-0.5 * square)  # (I, 8, R, R)
        weight = weight.masked_fill(weight.isnan(), 0)
        total = weight.sum(1, keepdim=True)
        return weight / total.masked_fill(total == 0, 1)


class SemanticConvolution(Kernels):
    """Word affinities over the whole sentence or along dependencies (docs/method.md, section 2.4)."""

    def __init__(self, feat_dim, hid_dim):
        super().__init__(feat_dim, hid_dim, bias=True)
        # cancels, so it is never trained; kept for the released files
        self.params = nn.Parameter(torch.empty(KERNELS, 1).uniform_(-1, 1), requires_grad=False)

    def edge_weights(self, words, adjacency, smooth, mask=None):
        """Words (C, n, D), adjacency (C, n, n) or None (dense) -> (C, n, n), the same for all kernels.

        mask (C, n): 0 for words, -inf for padding, which gets no edge.
        """
        logits = smooth * (words @ words.transpose(1, 2))
        if mask is not None:
            logits = logits + mask.unsqueeze(1)
        weight = torch.softmax(logits, -1)
        if adjacency is None:
            return weight
        weight = adjacency * weight
        total = weight.sum(-1, keepdim=True)
        return adjacency * weight / total.masked_fill(total == 0, 1)


class StructureMatching(nn.Module):
    """Structure-level matching: convolve matching vectors over a graph, score every node, take the mean.

    edges  `self`: (X, N, 8), the factor Σ_j w_ijk of the node's own vector, or None where it is 1;
           `neighbors`: (X, 8 or 1, N, N), the weight of neighbour j (last) for node i.
    Source: docs/method.md, section 2.4.
    """

    def __init__(self, feat_dim, hid_dim, out_dim, propagation="self"):
        super().__init__()
        self.propagation = propagation
        self.add_module(self.released_name, self.convolution_class(feat_dim, hid_dim))
        self.out_1 = WeightNormLinear(hid_dim, hid_dim)
        self.out_2 = WeightNormLinear(hid_dim, out_dim)

    def convolution(self):
        return getattr(self, self.released_name)

    def convolve(self, match, edges):
        """match (X, Y, N, K), edges of the X graphs -> (X, Y, N, H)."""
        weight, bias = self.convolution().stacked()
        hidden = match @ weight.t()  # (X, Y, N, H)
        if self.propagation == "neighbors":
            X, Y, N, H = hidden.shape
            by_kernel = hidden.view(X, Y, N, KERNELS, H // KERNELS).permute(0, 3, 2, 1, 4)  # (X, 8, N, Y, H/8)
            mixed = edges @ by_kernel.flatten(3)  # (X, 8, N, Y·H/8)
            hidden = mixed.view(by_kernel.shape).permute(0, 3, 2, 1, 4).reshape(X, Y, N, H)
        elif edges is not None:
            hidden = (hidden.unflatten(3, (KERNELS, hidden.shape[3] // KERNELS)) * edges[:, None, ..., None]).flatten(3)
        if bias is not None:
            hidden = hidden + bias
        return torch.tanh(hidden) if self.propagation == "neighbors" else hidden

    def node_scores(self, match, edges):
        """Matching vectors (X, Y, N, K) of X graphs against Y others -> a score for every node (X, Y, N)."""
        return self.out_2(torch.tanh(self.out_1(self.convolve(match, edges)))).squeeze(-1)

    def forward(self, match, edges, share=None):
        """Matching vectors (X, Y, N, K) of X graphs against Y others -> mean of the nodes' scores (X, Y).

        share (X, N): of every node in the mean where graphs are padded, 0 for padding; None for equal shares.
        """
        scores = self.node_scores(match, edges)
        return scores.mean(2) if share is None else (scores @ share.unsqueeze(2)).squeeze(2)


class VisualGraph(StructureMatching):
    """The image's graph: regions as nodes, fully connected, edges from the boxes alone."""

    released_name = "graph_convolution_1"
    convolution_class = SpatialConvolution

    def edges(self, boxes):
        """Normalised boxes (I, R, 4) -> edges as StructureMatching takes them."""
        weight = self.graph_convolution_1.edge_weights(boxes)
        return weight if self.propagation == "neighbors" else weight.sum(-1).transpose(1, 2)


class TextualGraph(StructureMatching):
    """The caption's graph: words as nodes, joined all with all or, sparse, along dependencies."""

    released_name = "graph_convolution_3"
    convolution_class = SemanticConvolution

    def edges(self, words, adjacency, smooth, mask=None):
        """Words (C, n, D), adjacency (C, n, n) or None (dense) -> edges as StructureMatching takes them.

        mask (C, n): 0 for words, -inf for padding; None for no padding.
        """
        if self.propagation == "self" and adjacency is None:
            return None
        weight = self.graph_convolution_3.edge_weights(words, adjacency, smooth, mask)
        if self.propagation == "neighbors":
            return weight.unsqueeze(1)
        return weight.sum(-1, keepdim=True).expand(-1, -1, KERNELS)


def adjacency(depends, lengths):
    """Dependency pairs of captions -> (C, n, n), n the longest: symmetric, plus the identity, 0 for padding.

    A caption's first pair, ROOT, is left out, and so are pairs that point outside the caption.  A pair of a word with
    itself gives 2 on the diagonal (docs/method.md, section 2.4).
    """
    counts, lengths = [max(len(pairs) - 1, 0) for pairs in depends], torch.as_tensor(lengths)
    numbers = chain.from_iterable(chain.from_iterable(pairs[1:] for pairs in depends))
    pairs = torch.from_numpy(np.fromiter(numbers, np.int64, 2 * sum(counts))).view(-1, 2)
    caption = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    inside = ((pairs >= 0) & (pairs < lengths[caption, None])).all(1)
    caption, (governor, dependent) = caption[inside], pairs[inside].t()
    n = int(lengths.max())
    matrix = torch.zeros(len(depends), n, n)
    matrix[caption, governor, dependent] = matrix[caption, dependent, governor] = 1
    matrix.diagonal(dim1=1, dim2=2).add_(torch.arange(n) < lengths.unsqueeze(1))
    return matrix
