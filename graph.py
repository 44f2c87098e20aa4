"""The graphs: which word answers which region, how a node's neighbours change its match (GSMN), and how
regions change one another (VSRN).

Letters used for shapes: I images, C captions of one length, R regions, n words, K blocks, D embedding
width, d = D/K, N nodes (R or n), H hidden width, 8 kernels.  See docs/method.md, sections 2, 3.1 and 7.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-8
KERNELS = 8
TINY = 1e-30  # under every square root: its gradient stays finite, its value far below EPS


def safe_norm(x, dim):
    """Euclidean norm along `dim` (kept as a size of 1); its gradient at 0 is 0, not NaN."""
    return x.square().sum(dim, keepdim=True).clamp_min(TINY).sqrt()


def attention(affinity, norm_dim, dim, smooth):
    """Softmax over `dim` of smooth · (affinity / its norm along `norm_dim`)  (docs/method.md, section 2.3)."""
    return torch.softmax(smooth * affinity / (safe_norm(affinity, norm_dim) + EPS), dim)


def block_gram(x, blocks):
    """(X, N, D) -> (X, N·N, K): inner products of every two nodes of one graph, block by block."""
    X, N, D = x.shape
    x = x.view(X, N, blocks, D // blocks).transpose(1, 2)  # (X, K, N, d)
    return (x @ x.transpose(2, 3)).permute(0, 2, 3, 1).reshape(X, N * N, blocks)


def block_norm(x, blocks):
    """(X, N, D) -> (X, N, K): the norm of every block of every node."""
    return safe_norm(x.view(*x.shape[:2], blocks, -1), -1).squeeze(-1)


def context_norm(weights, gram):
    """(X, Q, N) attention weights, (X, N·N, K) block Gram -> (X, Q, K) norms of the attended contexts.

    ‖Σ_j w_j x_j‖² = vec(w wᵀ) · vec(G), all blocks in one product (docs/method.md, section 7).
    """
    outer = (weights.unsqueeze(-1) * weights.unsqueeze(-2)).flatten(2)  # (X, Q, N·N)
    return (outer @ gram).clamp_min(TINY).sqrt()


def node_matching(regions, words, blocks, smooth, block_dtype=None):
    """Node-level matching of every image with every caption, captions of one length.

    regions (I, R, D), words (C, n, D) -> matching vectors (I, C, R, K) of the visual nodes and
    (I, C, n, K) of the textual ones: the cosine of each block of a node with the same block of what it
    attends to in the other graph (docs/method.md, sections 2.3 and 7).  The block product, and nothing else,
    is computed in `block_dtype` where that is given.
    """
    (I, R, D), (C, n, _) = regions.shape, words.shape
    v = regions.reshape(I * R, blocks, D // blocks).transpose(0, 1)  # (K, I·R, d)
    t = words.reshape(C * n, blocks, D // blocks).permute(1, 2, 0)  # (K, d, C·n)
    products = torch.bmm(v.to(block_dtype or v.dtype), t.to(block_dtype or t.dtype)).to(v.dtype)
    products = products.view(blocks, I, R, C, n)
    affinity = F.leaky_relu(products.sum(0), 0.1)  # (I, R, C, n)

    to_words = attention(affinity, 1, 3, smooth)  # regions ask, words answer
    dot = (to_words * products).sum(4).permute(1, 3, 2, 0)  # (I, C, R, K)
    norm = context_norm(to_words.permute(2, 0, 1, 3).reshape(C, I * R, n), block_gram(words, blocks))
    norm = norm.view(C, I, R, blocks).transpose(0, 1) * block_norm(regions, blocks).unsqueeze(1)
    visual = dot / norm.clamp_min(EPS)

    to_regions = attention(affinity, 3, 1, smooth)  # words ask, regions answer
    dot = (to_regions * products).sum(2).permute(1, 2, 3, 0)  # (I, C, n, K)
    norm = context_norm(to_regions.permute(0, 2, 3, 1).reshape(I, C * n, R), block_gram(regions, blocks))
    norm = norm.view(I, C, n, blocks) * block_norm(words, blocks)
    textual = dot / norm.clamp_min(EPS)
    return visual, textual


class WeightNormLinear(nn.Module):
    """Linear layer with the weight g · v / ‖v‖ row by row, stored as the released `weight_g`, `weight_v`."""

    def __init__(self, in_features, out_features):
        super().__init__()
        start = nn.Linear(in_features, out_features)
        self.bias = nn.Parameter(start.bias.detach())
        self.weight_g = nn.Parameter(start.weight.detach().norm(dim=1, keepdim=True))
        self.weight_v = nn.Parameter(start.weight.detach())

    def weight(self):
        return self.weight_v * (self.weight_g / safe_norm(self.weight_v, 1))

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
        self.mean_theta = nn.Parameter((torch.rand(KERNELS, 1) * 2 - 1) * math.pi)
        self.precision_rho = nn.Parameter(torch.rand(KERNELS, 1))
        self.precision_theta = nn.Parameter(torch.rand(KERNELS, 1))

    def edge_weights(self, boxes):
        """Normalised boxes (I, R, 4) -> (I, 8, R, R): weight of neighbour j (last) for node i, per kernel.

        The 8 weights of a pair add up to 1, or are all 0 where every kernel underflows.
        """
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2  # (I, R, 2)
        delta = (centre.unsqueeze(2) - centre.unsqueeze(1)).unsqueeze(1)  # (I, 1, R, R, 2)
        rho = delta.square().sum(-1).sqrt()
        theta = torch.atan2(delta[..., 0], delta[..., 1])  # x first, as released
        mean_rho, mean_theta, precision_rho, precision_theta = (
            p.view(KERNELS, 1, 1) for p in (self.mean_rho, self.mean_theta, self.precision_rho, self.precision_theta)
        )
        turn = (theta - mean_theta).abs()
        turn = torch.minimum(turn, (2 * math.pi - turn).abs())
        weight = torch.exp(-0.5 * (rho - mean_rho).square() / (1e-14 + precision_rho.square()))
        weight = weight * torch.exp(-0.5 * turn.square() / (1e-14 + precision_theta.square()))
        weight = torch.nan_to_num(weight, nan=0.0)  # (I, 8, R, R)
        total = weight.sum(1, keepdim=True)
        return weight / torch.where(total > 0, total, torch.ones_like(total))


class SemanticConvolution(Kernels):
    """Word affinities over the whole sentence or along dependencies (docs/method.md, section 2.4)."""

    def __init__(self, feat_dim, hid_dim):
        super().__init__(feat_dim, hid_dim, bias=True)
        # cancels, so it is never trained; kept for the released files
        self.params = nn.Parameter(torch.rand(KERNELS, 1) * 2 - 1, requires_grad=False)

    def edge_weights(self, words, adjacency, smooth):
        """Words (C, n, D), adjacency (C, n, n) or None (dense) -> (C, n, n), the same for all kernels."""
        weight = torch.softmax(smooth * (words @ words.transpose(1, 2)), -1)
        if adjacency is None:
            return weight
        weight = adjacency * weight
        total = weight.sum(-1, keepdim=True)
        return adjacency * weight / torch.where(total > 0, total, torch.ones_like(total))


class StructureMatching(nn.Module):
    """Structure-level matching: convolve matching vectors over a graph, score every node, take the mean.

    edges  `self`: (X, N, 8), the factor Σ_j w_ijk of the node's own vector, or None where it is 1;
           `neighbors`: (X, 8 or 1, N, N), the weight of neighbour j (last) for node i.
    Source: docs/method.md, section 2.4.
    """

    def __init__(self, propagation):
        super().__init__()
        self.propagation = propagation

    def add_scoring(self, hid_dim, out_dim):
        self.out_1 = WeightNormLinear(hid_dim, hid_dim)
        self.out_2 = WeightNormLinear(hid_dim, out_dim)

    def convolve(self, match, edges):
        """match (X, Y, N, K), edges of the X graphs -> (X, Y, N, H)."""
        weight, bias = self.kernels().stacked()
        hidden = match @ weight.t()  # (X, Y, N, H)
        if self.propagation == "neighbors":
            X, Y, N, H = hidden.shape
            by_kernel = hidden.view(X, Y, N, KERNELS, -1).permute(0, 3, 2, 1, 4)  # (X, 8, N, Y, H/8)
            mixed = edges @ by_kernel.flatten(3)  # (X, 8, N, Y·H/8)
            hidden = mixed.view(by_kernel.shape).permute(0, 3, 2, 1, 4).reshape(X, Y, N, H)
        elif edges is not None:
            hidden = hidden * edges.repeat_interleave(hidden.shape[-1] // KERNELS, -1).unsqueeze(1)
        if bias is not None:
            hidden = hidden + bias
        return torch.tanh(hidden) if self.propagation == "neighbors" else hidden

    def node_scores(self, match, edges):
        """Matching vectors (X, Y, N, K) of X graphs against Y others -> a score for every node (X, Y, N)."""
        return self.out_2(torch.tanh(self.out_1(self.convolve(match, edges)))).squeeze(-1)

    def forward(self, match, edges):
        """Matching vectors (X, Y, N, K) of X graphs against Y others -> mean of the nodes' scores (X, Y)."""
        return self.node_scores(match, edges).mean(2)


class VisualGraph(StructureMatching):
    """The image's graph: regions as nodes, fully connected, edges from the boxes alone."""

    def __init__(self, feat_dim, hid_dim, out_dim, propagation="self"):
        super().__init__(propagation)
        self.graph_convolution_1 = SpatialConvolution(feat_dim, hid_dim)
        self.add_scoring(hid_dim, out_dim)

    def kernels(self):
        return self.graph_convolution_1

    def edges(self, boxes):
        """Normalised boxes (I, R, 4) -> edges as StructureMatching takes them."""
        weight = self.graph_convolution_1.edge_weights(boxes)
        return weight if self.propagation == "neighbors" else weight.sum(-1).transpose(1, 2)


class TextualGraph(StructureMatching):
    """The caption's graph: words as nodes, joined all with all or, sparse, along dependencies."""

    def __init__(self, feat_dim, hid_dim, out_dim, propagation="self"):
        super().__init__(propagation)
        self.graph_convolution_3 = SemanticConvolution(feat_dim, hid_dim)
        self.add_scoring(hid_dim, out_dim)

    def kernels(self):
        return self.graph_convolution_3

    def edges(self, words, adjacency, smooth):
        """Words (C, n, D), adjacency (C, n, n) or None (dense) -> edges as StructureMatching takes them."""
        if self.propagation == "self" and adjacency is None:
            return None
        weight = self.graph_convolution_3.edge_weights(words, adjacency, smooth)
        if self.propagation == "neighbors":
            return weight.unsqueeze(1)
        return weight.sum(-1, keepdim=True).expand(-1, -1, KERNELS)


def adjacency(depends, length):
    """Dependency pairs of captions of one length -> (C, n, n): symmetric, plus the identity.

    A pair of a word with itself gives 2 on the diagonal (docs/method.md, section 2.4).
    """
    matrix = torch.zeros(len(depends), length, length)
    for c, pairs in enumerate(depends):
        for governor, dependent in inside(pairs, length):
            matrix[c, governor, dependent] = matrix[c, dependent, governor] = 1
    return matrix + torch.eye(length)


def inside(pairs, length):
    """A caption's dependency pairs without the first, ROOT, and without those that point outside the caption."""
    return [(a, b) for a, b in pairs[1:] if 0 <= a < length and 0 <= b < length]


class RegionRelations(nn.Module):
    """VSRN's relation layer: every region takes in the regions it is related to  (VSRN paper, eqs. 2-3).

    W ends in a BatchNorm that starts at 0, so an untrained layer hands its input on unchanged.
    """

    def __init__(self, dim):
        super().__init__()
        self.g = nn.Conv1d(dim, dim, 1)
        self.W = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim))
        self.theta = nn.Conv1d(dim, dim, 1)
        self.phi = nn.Conv1d(dim, dim, 1)
        nn.init.zeros_(self.W[1].weight)
        nn.init.zeros_(self.W[1].bias)

    def forward(self, regions):
        """Regions (B, R, D) -> related regions (B, R, D)."""
        query, key, value = (pointwise(layer, regions) for layer in (self.theta, self.phi, self.g))
        relation = query @ key.transpose(1, 2) / regions.shape[1]  # (B, R, R), no softmax
        update = pointwise(self.W[0], relation @ value).transpose(1, 2)  # (B, D, R)
        # channels first in memory: torch's statistics are ten times less exact in the other layout
        return regions + batch_norm(self.W[1], update.contiguous()).transpose(1, 2)


def pointwise(convolution, x):
    """A 1x1 convolution, read from its layer, of (B, R, D): one product, no axis moved."""
    return F.linear(x, convolution.weight.squeeze(-1), convolution.bias)


def batch_norm(layer, x):
    """layer(x), x (B, D) or (B, D, R).  One value alone has no variance; running statistics then stand in."""
    if x.numel() > x.shape[1] or not layer.training or getattr(layer, "synced", False):
        return layer(x)
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
