"""Captions padded to a few common lengths: the scores and gradients of every caption alone, in few kernels."""

import copy
import itertools
import random

import pytest
import torch
from tiny import random_case, small_opt

import graph
import model
from modules import blocks
from modules.kernel import scores as compiled

LENGTHS = (3, 1, 18, 3, 2, 7, 12, 1)


@pytest.fixture(autouse=True)
def without_the_kernel(monkeypatch):
    monkeypatch.setattr(compiled, "load", lambda *_: None)


def network(**changes):
    torch.manual_seed(1)
    sizes = {"num_block": 8, "feat_dim": 8, "hid_dim": 16, "embed_size": 64}
    return model.GSMN(small_opt(**sizes | changes))


def by_definition(net, images, words, boxes, depends):
    """Both scores by graph.py, one caption after the other, without padding."""
    columns = []
    for rows, pairs in zip(words, depends):
        adjacency = graph.adjacency([pairs], [len(rows)]).to(rows) if net.is_sparse else None
        nodes = graph.nodes(images, net.blocks), graph.nodes(rows[None], net.blocks)
        visual, textual = graph.node_matching(*nodes, net.smooth)
        edges = net.t2i_match_G.edges(rows[None], adjacency, net.smooth)
        columns.append(
            [
                net.i2t_match_G(visual, net.i2t_match_G.edges(boxes)),
                net.t2i_match_G(textual.transpose(0, 1), edges).t(),
            ]
        )
    return [torch.cat(side, 1) for side in zip(*columns)]


def scores_and_gradients(net, case, compute, dtype=torch.float64):
    """Both scores, and gradients of a mixture of them in everything they depend on."""
    net = copy.deepcopy(net).to(dtype)
    images, words, boxes, depends, lengths = case
    inputs = [x.to(dtype).requires_grad_() for x in (images, *words)]
    scores = compute(net, inputs[0], inputs[1:], boxes.to(dtype), depends, lengths)
    weight = torch.randn(scores[0].shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    wanted = inputs + [p for n, p in net.named_parameters() if "match_G" in n and "params" not in n]
    gradients = torch.autograd.grad((scores[0] * weight + scores[1] * weight.sin()).sum(), wanted)
    return [*(s.detach() for s in scores), *gradients]


def alone(net, images, words, boxes, depends, lengths):
    return by_definition(net, images, words, boxes, depends)


def together(net, images, words, boxes, depends, lengths):
    words = torch.nn.utils.rnn.pad_sequence(words, batch_first=True)
    return net.forward_scores(images, words, boxes, depends, lengths)


def error(found, exact):
    """Largest difference of two lists of tensors, in parts of the largest number of each tensor, at least 1e-6."""
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-6)).item() for a, b in zip(found, exact))


@pytest.mark.parametrize("propagation, is_sparse", [("self", False), ("neighbors", False), ("neighbors", True)])
@pytest.mark.parametrize("regions, lengths", [(36, LENGTHS), (1, (1, 4, 2)), (5, (1,)), (5, (40, 1))])
def test_padding_changes_rounding_only(propagation, is_sparse, regions, lengths):
    net = network(propagation=propagation, is_sparse=is_sparse)
    case = random_case(regions=regions, lengths=lengths, width=64)
    exact = scores_and_gradients(net, case, alone)
    assert error(scores_and_gradients(net, case, together), exact) < 1e-12
    single = scores_and_gradients(net, case, together, torch.float32)
    assert max((a - b).abs().max() for a, b in zip(single[:2], exact)) < 1e-6
    rounding = error(scores_and_gradients(net, case, alone, torch.float32), exact)
    # as for the C kernel: sums in another order, without vector instructions thousands of numbers one after the other
    assert error(single, exact) < 2e-5 + 10 * rounding


def test_what_stands_in_the_padding_does_not_matter():
    net = network(propagation="neighbors", is_sparse=True)
    images, words, boxes, depends, lengths = random_case(lengths=LENGTHS, width=64)
    scores, gradients = [], []
    for value in (0.0, float("nan"), float("inf")):
        padded = torch.nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=value).requires_grad_()
        scores.append(net.forward_sim(images, padded, boxes, depends, lengths))
        gradients.append(torch.autograd.grad(scores[-1].square().sum(), padded)[0])
        for gradient, n in zip(gradients[-1], lengths):
            assert not gradient[n:].any()
    assert all(torch.equal(a, scores[0]) for a in scores) and all(torch.equal(a, gradients[0]) for a in gradients)


@pytest.mark.parametrize("propagation", ["self", "neighbors"])
def test_a_score_does_not_depend_on_its_company(propagation):
    net = network(propagation=propagation).double()
    images, words, boxes, depends, lengths = random_case(lengths=LENGTHS, width=64)
    images, words = images.double(), [w.double() for w in words]
    with torch.no_grad():
        whole = net.forward_sim(images, words, boxes, depends, lengths)
        for c in (1, 2, 5):
            few = net.forward_sim(images[1:2], words[c : c + 2], boxes[1:2], depends[c : c + 2], lengths[c : c + 2])
            torch.testing.assert_close(few, whole[1:2, c : c + 2], rtol=0, atol=1e-13)
    assert net.forward_sim(images[:0], words, boxes[:0], depends, lengths).shape == (0, len(words))


@pytest.mark.parametrize("seed", range(20))
def test_buckets_have_the_least_padding(seed):
    """Against all ways to cut."""
    rng = random.Random(seed)
    lengths, most = sorted(rng.choices(range(1, 12), k=rng.randint(1, 9))), rng.randint(1, 4)
    area = lambda cut: sum((part.stop - part.start) * lengths[part.stop - 1] for part in cut)  # noqa: E731
    found = blocks.buckets(lengths, most)
    ends = [c for k in range(most) for c in itertools.combinations(range(1, len(lengths)), k)]
    ways = [[slice(a, b) for a, b in itertools.pairwise((0, *cut, len(lengths)))] for cut in ends]
    assert len(found) <= most and [i for part in found for i in range(len(lengths))[part]] == list(range(len(lengths)))
    assert area(found) == min(map(area, ways))
