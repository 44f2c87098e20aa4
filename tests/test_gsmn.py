"""GSMN against numbers of the released code and against the literal definition."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import dataset, golden, golden_or_skip, pair_scores, random_case, shared, small_opt

import data
import graph
import train
from checkpoints.checkpoint import load_checkpoint
from files.arrays import released_boxes
from modules import literal
from systems.gsmn import GSMN
from systems.options import completed
from training.health import GuardedAdam


@pytest.fixture(scope="module", params=["dense", "sparse"])
def tested(request):
    """A trained model, its test split encoded, and what the released code computed from it."""
    saved = load_checkpoint(golden(f"model_{request.param}/model_best.pth.tar"))
    net = GSMN(completed(saved["opt"]))
    net.load_state_dict(saved["model"])
    batch = data.collate([dataset("test")[i] for i in range(100)])
    with torch.no_grad():
        images, captions = (side.emb for side in net.encode_sides(batch))
    order = np.argsort(batch.ids)
    embedded = SimpleNamespace(
        images=images[order[::5]],
        captions=captions[order],
        lengths=np.array(batch.lengths)[order].tolist(),
        depends=[batch.depends[i] for i in order],
        boxes=batch.bboxes[order[::5]],
    )
    return net, embedded, np.load(golden(f"expected_{request.param}.npz")), request.param


def test_embeddings(tested):
    _, e, _, kind = tested
    full = np.load(golden_or_skip(f"expected_{kind}.npz"))
    if "img_emb" not in full:
        shared("golden/gsmn")
    assert e.lengths == full["cap_lens"].tolist()
    np.testing.assert_allclose(e.images, full["img_emb"], atol=2e-7)
    np.testing.assert_allclose(e.captions, full["cap_emb"], atol=2e-7)


def test_similarities_with_right_boxes(tested):
    net, e, expected, _ = tested
    np.testing.assert_array_equal(e.boxes, expected["boxes_correct"])
    with torch.no_grad():
        visual, textual = pair_scores(net, e.images, e.captions, e.boxes, e.depends, e.lengths)
    np.testing.assert_allclose(visual, expected["correct_i2t_sims"], atol=2e-6)
    np.testing.assert_allclose(textual, expected["correct_t2i_sims"], atol=2e-6)
    np.testing.assert_allclose(visual + textual, expected["correct_sims"], atol=2e-6)


def test_similarities_with_released_boxes(tested):
    net, e, expected, _ = tested
    split = dataset("test")
    quirk = released_boxes(split.raw_boxes, split.sizes, 100, 16)
    np.testing.assert_array_equal(quirk, expected["quirk_bbox"][:20])
    with torch.no_grad():
        sims = net.forward_sim(e.images, e.captions, torch.from_numpy(quirk), e.depends, e.lengths)
    np.testing.assert_allclose(sims, expected["quirk_sims"], atol=2e-6)
    folds = released_boxes(split.raw_boxes, split.sizes, 100, 16, fold5=True)
    np.testing.assert_array_equal(folds.reshape(5, 4, 36, 4), expected["fold5_bbox"])


def trained_from_golden(kind, loss):
    options = json.loads(golden("opt_train.json").read_text())[kind][loss]
    net = GSMN(completed(argparse.Namespace(**options)))
    net.load_state_dict(torch.load(golden_or_skip(f"init_{kind}.pth"), weights_only=True))
    return net, options, np.load(golden_or_skip(f"train_{kind}.npz"))


# true gradient 0: what the released code stored is rounding noise
NOISE = ("3.graph_convolution_3.params", "2.out_2.bias", "3.out_2.bias")


def named(net):
    return {
        f"{k}.{name}": p
        for k, part in enumerate(net.parts)
        for name, p in getattr(net, part).named_parameters()
        if f"{k}.{name}" not in NOISE
    }


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("loss", ["sum", "max"])
def test_first_batch(kind, loss):
    net, _, expected = trained_from_golden(kind, loss)
    split = dataset("train")
    batch = data.collate([split[int(i)] for i in expected["order"][0]])
    np.testing.assert_array_equal(batch.captions, expected["batch0_targets"])
    np.testing.assert_array_equal(batch.bboxes, expected["batch0_bboxes"])
    images, captions = (side.emb for side in net.encode_sides(batch))
    scores = net.forward_sim(images, captions, batch.bboxes, batch.depends, batch.lengths)
    np.testing.assert_allclose(scores.detach(), expected["batch0_scores"], atol=2e-6)
    value = net.forward_loss(scores)
    np.testing.assert_allclose(value.item(), expected[f"loss_{loss}"], rtol=1e-5)
    value.backward()
    norms = dict(zip(expected["grad_names"], expected[f"grad_norms_{loss}"]))
    full = np.load(golden_or_skip(f"train_{kind}_grads.npz")) if loss == "max" else {}
    for name, p in named(net).items():
        np.testing.assert_allclose(p.grad.norm(), norms[name], rtol=1e-3, err_msg=name)
        if loss == "max":
            scale = np.abs(full[name]).max()
            np.testing.assert_allclose(p.grad, full[name], atol=1e-4 * scale + 1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("loss", ["sum", "max"])
def test_ten_steps(kind, loss):
    net, options, expected = trained_from_golden(kind, loss)
    split = dataset("train")
    optimizer = GuardedAdam(net.parameters(), options["learning_rate"])
    losses = []
    for order in expected["order"]:
        batch = data.collate([split[int(i)] for i in order])
        losses.append(train.train_step(net, optimizer, batch, options["grad_clip"])["loss"].item())
    np.testing.assert_allclose(losses, expected[f"step_losses_{loss}"], rtol=2e-3)
    norms = dict(zip(expected["grad_names"], expected[f"final_norms_{loss}"]))
    for name, p in named(net).items():
        np.testing.assert_allclose(p.detach().norm(), norms[name], rtol=2e-3, atol=5e-5, err_msg=name)


# ---- against the literal definition

MANY = {"regions": 36, "lengths": (3, 1, 18, 3, 2, 7, 12, 1)}  # lengths that are padded to fewer


@pytest.mark.parametrize("propagation", ["self", "neighbors"])
@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("case", [MANY, {"regions": 1}, {"images": 1}, {"lengths": (1,)}, {"lengths": (40, 1)}])
def test_fast_is_literal(propagation, is_sparse, case):
    torch.manual_seed(1)
    net = GSMN(small_opt(propagation=propagation, is_sparse=is_sparse)).double()
    images, words, boxes, depends, lengths = random_case(**case)
    images, words, boxes = images.double(), [w.double() for w in words], boxes.double()
    words[-1][-1] *= 1e-9  # products of norms below the epsilon
    inputs = [images, *words]
    for x in inputs:
        x.requires_grad_()
    fast = pair_scores(net, images, words, boxes, depends, lengths)
    padded = torch.nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=7.0)
    again = pair_scores(net, images, padded, boxes, depends, lengths)
    torch.testing.assert_close(again, fast, rtol=0, atol=1e-13)
    plain = literal.literal_scores(net, images, words, boxes, depends)
    weight = torch.randn(fast[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = inputs + [p for name, p in net.named_parameters() if "match_G" in name and "params" not in name]
    for a, b in zip(fast, plain):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    grads = [torch.autograd.grad((s[0] * weight + s[1] * weight.sin()).sum(), wanted) for s in (fast, plain)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_without_boxes_all_centres_are_one():
    net = GSMN(small_opt())
    images, words, boxes, depends, lengths = random_case()
    with pytest.raises(ValueError, match="dependencies"):
        GSMN(small_opt(is_sparse=True)).forward_sim(images, words, boxes, None, lengths)
    with torch.no_grad():
        none = net.forward_sim(images, words, None, depends, lengths)
        zero = net.forward_sim(images, words, torch.zeros_like(boxes), depends, lengths)
        some = net.forward_sim(images, words, boxes, depends, lengths)
    assert torch.equal(none, zero) and not torch.equal(none, some)


@pytest.mark.parametrize("dim", [0, -1])
def test_weight_norm_of_a_gpu_is_that_of_a_cpu(dim):
    layer = graph.WeightNormLinear(7, 5, dim).double()
    both = layer.weight(), torch._weight_norm(layer.weight_v, layer.weight_g, dim)
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-13)
    weights = layer.weight_v, layer.weight_g
    gradients = [torch.autograd.grad((x * layer.weight_v.detach().sin()).sum(), weights) for x in both]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_the_shorter_way_round():
    """Angles between a pair's direction and a kernel's mean, over more than one turn."""
    conv = GSMN(small_opt()).double().i2t_match_G.graph_convolution_1
    with torch.no_grad():
        conv.mean_theta.copy_(torch.linspace(-9, 9, 8).unsqueeze(1))
    boxes = torch.rand(1, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        conv.edge_weights(boxes).permute(0, 2, 3, 1), literal.spatial_weights(conv, boxes), rtol=1e-12, atol=1e-14
    )


def test_adjacency():
    pairs = [[0, 2], [2, 1], [2, 2], [9, 1], [1, -1], [0, 1], [0, 1]]
    expected = [[1.0, 1, 0], [1, 1, 1], [0, 1, 2]]
    assert graph.adjacency([pairs], [3])[0].tolist() == expected
    assert graph.adjacency([[]], [1])[0].tolist() == [[1.0]]
    padded = graph.adjacency([[[0, 0]], pairs, []], [1, 3, 2])
    assert padded[1].tolist() == expected
    assert padded[0].tolist() == [[1.0, 0, 0], [0] * 3, [0] * 3]
    assert padded[2].tolist() == [[1.0, 0, 0], [0, 1, 0], [0] * 3]
