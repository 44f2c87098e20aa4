"""GSMN's similarity, and one of SCAN's, written plainly from docs/method.md: the reference for the fast code.

Like the released code it goes through the captions one by one and forms the attended contexts and the
neighbours' features of every pair.  It uses nothing of graph.py, only parameters by their released names.
"""

import math

import torch
import torch.nn.functional as F

EPSILON = 1e-8


def literal_scores(model, images, captions, boxes, depends):
    """images (I, R, D), captions a list of (n, D), boxes (I, R, 4) -> visual and textual scores (I, C) each."""
    visual = torch.stack([visual_scores(model, images, words, boxes) for words in captions], 1)
    columns = [textual_scores(model, images, words, pairs) for words, pairs in zip(captions, depends)]
    return visual, torch.stack(columns, 1)


def matched(nodes, answers, smooth, blocks):
    """Cosines (I, N, K) of each of the nodes (I, N, D) with what it attends to of the answers (I, M, D)."""
    raw = F.leaky_relu(nodes @ answers.transpose(1, 2), 0.1)  # (I, N, M)
    weights = torch.softmax(smooth * raw / (raw.norm(dim=1, keepdim=True) + EPSILON), 2)
    nodes, context = (x.unflatten(2, (blocks, -1)) for x in (nodes, weights @ answers))  # (I, N, K, d)
    norms = nodes.norm(dim=3) * context.norm(dim=3)
    return (nodes * context).sum(3) / norms.clamp(min=EPSILON)


def scan_scores(images, words, smooth):
    """SCAN's t-i AVG of images (I, R, D) with one caption (n, D) -> (I,)."""
    return matched(words.expand(len(images), -1, -1), images, smooth, 1).mean((1, 2))


def visual_scores(model, images, words, boxes):
    match = matched(images, words.expand(len(images), -1, -1), model.smooth, model.blocks)  # (I, R, K)
    graph = model.i2t_match_G
    conv = graph.graph_convolution_1
    edges = spatial_weights(conv, boxes)  # (I, R, R, 8): of neighbour j for node i
    return node_scores(graph, convolve(graph, conv, match, edges, edges.new_ones(edges.shape[1], edges.shape[1])))


def textual_scores(model, images, words, pairs):
    match = matched(words.expand(len(images), -1, -1), images, model.smooth, model.blocks)  # (I, n, K)
    graph = model.t2i_match_G
    conv = graph.graph_convolution_3
    n = len(words)
    relation = torch.softmax(model.smooth * words @ words.t(), 1)
    adjacency = words.new_ones(n, n)
    if model.is_sparse:
        adjacency = words.new_zeros(n, n)
        for a, b in pairs[1:]:
            if a in range(n) and b in range(n):
                adjacency[a, b] = adjacency[b, a] = 1
        adjacency = adjacency + torch.eye(n).to(adjacency)
        relation = adjacency * relation
        relation = relation / (relation.norm(dim=1, keepdim=True) + EPSILON)
    edges = relation.unsqueeze(-1) * conv.params.view(-1)  # (n, n, 8)
    edges = edges / edges.sum(1, keepdim=True)
    return node_scores(graph, convolve(graph, conv, match, edges.expand(len(images), n, n, 8), adjacency))


def spatial_weights(conv, boxes):
    x, y = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
    dx, dy = (c.unsqueeze(2) - c.unsqueeze(1) for c in (x, y))  # (I, R, R)
    rho, theta = torch.sqrt(dx**2 + dy**2), torch.atan2(dx, dy)
    kernels = []
    for k in range(8):
        turn = (theta - conv.mean_theta[k]).abs()
        turn = torch.minimum(turn, (2 * math.pi - turn).abs())
        near = torch.exp(-0.5 * (rho - conv.mean_rho[k]) ** 2 / (1e-14 + conv.precision_rho[k] ** 2))
        kernels.append(near * torch.exp(-0.5 * turn**2 / (1e-14 + conv.precision_theta[k] ** 2)))
    weights = torch.stack(kernels, -1)
    weights = torch.where(weights.isnan(), torch.zeros(()), weights)
    return torch.where(weights.sum(-1, keepdim=True) > 0, weights / weights.sum(-1, keepdim=True), torch.zeros(()))


def convolve(graph, conv, match, edges, adjacency):
    """match (I, N, K), edges (I, N, N, 8), adjacency (N, N) -> (I, N, H)."""
    hidden = []
    for k, linear in enumerate(conv.conv_weights):
        w = edges[..., k] * adjacency  # (I, N, N)
        if graph.propagation == "self":
            mixed = w.sum(2, keepdim=True) * match
        else:
            mixed = torch.stack([(w[:, i, :, None] * match).sum(1) for i in range(match.shape[1])], 1)
        out = mixed @ linear.weight.t()
        out = out if linear.bias is None else out + linear.bias
        hidden.append(out if graph.propagation == "self" else torch.tanh(out))
    return torch.cat(hidden, -1)


def node_scores(graph, hidden):
    weight_1, weight_2 = (
        layer.weight_g * layer.weight_v / layer.weight_v.norm(dim=1, keepdim=True)
        for layer in (graph.out_1, graph.out_2)
    )
    hidden = torch.tanh(hidden @ weight_1.t() + graph.out_1.bias)
    return (hidden @ weight_2.t() + graph.out_2.bias).mean((1, 2))
