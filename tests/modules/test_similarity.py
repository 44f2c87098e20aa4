"""The compiled kernel and the tiles: the same numbers as graph.py, whatever the memory, the threads, the batch."""

import copy
import itertools
import os
import random
import signal

import numpy as np
import pytest
import torch
from tiny import pair_scores, random_case, small_opt

import evaluation
import model
from modules import blocks
from modules.kernel import scores as compiled
from modules.sides import CaptionSide, ImageSide
from systems.gsmn import GSMN

SIZES = [(4, 8, 16), (16, 32, 64), (19, 24, 57)]  # blocks, hidden width, embedding; the first is that of tiny.py
LENGTHS = (3, 1, 18, 3, 2, 7, 12, 1)  # more than blocks.BUCKETS different ones


needs_kernel = pytest.mark.skipif(
    compiled.load(16, 32) is None, reason="the C kernel is switched off (GSMN_NATIVE=0) or cannot be compiled (CC)"
)


def network(blocks=16, hidden=32, width=64, **changes):
    torch.manual_seed(1)
    sizes = {"num_block": blocks, "feat_dim": blocks, "hid_dim": hidden, "embed_size": width}
    return GSMN(small_opt(**sizes, **changes))


def scores_and_gradients(net, images, words, boxes, depends, lengths):
    """Both scores, and gradients of a mixture of them in everything they depend on."""
    words = torch.nn.utils.rnn.pad_sequence(words, batch_first=True)
    inputs = {"images": images.clone().requires_grad_(), "words": words.requires_grad_()}
    scores = pair_scores(net, inputs["images"], inputs["words"], boxes, depends, lengths)
    weight = torch.randn(scores[0].shape, generator=torch.Generator().manual_seed(2)).to(images)
    wanted = inputs | {n: p for n, p in net.named_parameters() if "match_G" in n and "params" not in n}
    loss = (scores[0] * weight + scores[1] * weight.sin()).sum()
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    return {"visual": scores[0].detach(), "textual": scores[1].detach()} | dict(zip(wanted, gradients))


def as_double(net, images, words, boxes, depends, lengths):
    exact = copy.deepcopy(net).double()
    return exact, images.double(), [w.double() for w in words], boxes.double(), depends, lengths


def error(found, exact):
    """Largest difference over the largest number, for every tensor."""
    return {
        name: ((found[name] - exact[name]).abs().max() / exact[name].abs().max().clamp_min(1e-6)).item()
        for name in exact
    }


@needs_kernel
@pytest.mark.parametrize("propagation, is_sparse", [("self", True), ("neighbors", False), ("neighbors", True)])
@pytest.mark.parametrize("blocks, hidden, width", SIZES)
@pytest.mark.parametrize("regions", [36, 1])
def test_kernel_is_as_exact_as_torch(propagation, is_sparse, blocks, hidden, width, regions):
    """Against float64: scores to rounding, gradients about as near as those of float32 torch."""
    net = network(blocks, hidden, width, propagation=propagation, is_sparse=is_sparse, lambda_softmax=20.0)
    case = random_case(regions=regions, lengths=(3, 1, 18, 3, 2, 7), width=width)
    exact = scores_and_gradients(*as_double(net, *case))
    found = error(scores_and_gradients(net, *case), exact)
    net.kernel = "torch"
    eager = error(scores_and_gradients(net, *case), exact)
    assert max(one[side] for one in (found, eager) for side in ("visual", "textual")) < 3e-6
    for name in exact:
        assert found[name] < 10 * eager[name] + 2e-5, name


@needs_kernel
@pytest.mark.parametrize("propagation", ["self", "neighbors"])
def test_kernel_does_not_depend_on_memory_threads_or_company(propagation):
    net = network(propagation=propagation, is_sparse=True)
    case = random_case(regions=36, lengths=(3, 1, 18, 3, 2, 7, 9) * 3, images=11, width=64)
    images, words, boxes, depends, lengths = case
    threads = torch.get_num_threads()
    with torch.no_grad():
        whole = net.forward_sim(*case)
        net.sim_memory = 9  # blocks of few images and captions
        assert torch.equal(net.forward_sim(*case), whole)
        alone = net.forward_sim(images[4:5], words[2:3], boxes[4:5], depends[2:3], lengths[2:3])
        assert torch.equal(alone, whole[4:5, 2:3])
    gradients = scores_and_gradients(net, *case)
    try:
        torch.set_num_threads(3)
        with torch.no_grad():
            assert torch.equal(net.forward_sim(*case), whole)
        for name, value in scores_and_gradients(net, *case).items():
            torch.testing.assert_close(value, gradients[name], rtol=0, atol=0, msg=name)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("propagation", ["self", "neighbors"])
def test_tiles_change_rounding_only(propagation):
    """Without the kernel, recomputed in the backward pass: small blocks against one."""
    net = network(propagation=propagation, lambda_softmax=20.0, kernel="torch")
    case = random_case(regions=36, lengths=(3, 1, 18, 3, 2, 7), width=64)
    net.sim_memory = 1e4
    whole = scores_and_gradients(net, *case)
    net.sim_memory = 4
    tiles = scores_and_gradients(net, *case)
    assert (tiles["visual"] - whole["visual"]).abs().max() < 1e-6
    assert (tiles["textual"] - whole["textual"]).abs().max() < 1e-6
    assert max(error(tiles, whole).values()) < 1e-4


@pytest.mark.parametrize("budget", [1, 1000, 8000, 10**7])
def test_blocks_of_an_evaluation_fit_the_budget(budget):
    rows = np.array([1, 3, 3, 5, 30, 7] * 5)
    cut = evaluation.pieces(rows, 16, budget)
    assert [i for part in cut for i in range(30)[part]] == list(range(30))
    for items in (rows[part] for part in cut):
        assert len(items) == 1 or (max(items) * len(items) * 16 * 4 <= budget / 2 and len(items) ** 2 * 4 <= budget / 8)
    assert (len(cut) == 30) == (budget == 1) and (len(cut) == 1) == (budget == 10**7)


@needs_kernel
def test_evaluation_does_not_depend_on_memory(monkeypatch):
    net, blocks = network(propagation="neighbors"), []
    images, words, boxes, _, lengths = random_case(regions=36, lengths=(3, 1, 18, 3, 2, 7), images=5, width=64)
    with torch.no_grad():
        whole = net.forward_sim(images, words, boxes, None, lengths)
    similarity = net.similarity
    monkeypatch.setattr(net, "similarity", lambda some, texts: blocks.append(len(some)) or similarity(some, texts))
    for net.sim_memory in (256, 12, 8):
        found = evaluation.score_all(net, ImageSide(images, boxes), CaptionSide(words, lengths))
        assert torch.equal(torch.from_numpy(found), whole)
    assert blocks[0] == 5


def test_calls_alive_at_once_do_not_share_memory():
    net = network(propagation="neighbors")
    cases = [random_case(width=64, seed=seed) for seed in (0, 1)]
    alone = [scores_and_gradients(net, *case)["images"] for case in cases]
    images = [case[0].clone().requires_grad_() for case in cases]
    scores = [pair_scores(net, x, *case[1:]) for x, case in zip(images, cases)]
    weight = torch.randn(scores[0][0].shape, generator=torch.Generator().manual_seed(2))
    for x, (visual, textual), expected in zip(images, scores, alone):
        (visual * weight + textual * weight.sin()).sum().backward()
        assert torch.equal(x.grad, expected)


def test_not_a_number_stays_in_its_row():
    net = network()
    images, words, boxes, depends, lengths = random_case(regions=7, width=64)
    images[1, 3, 5] = float("nan")
    with torch.no_grad():
        scores = net.forward_sim(images, words, boxes, depends, lengths)
    assert scores.isnan().any(1).tolist() == [False, True, False, False] and scores[1].isnan().all()


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("propagation", ["self", "neighbors"])
@pytest.mark.parametrize("precision", [None, 1e-20])
def test_gradients_at_degenerate_values_are_finite(propagation, kernel, precision):
    """Zero vectors, boxes with one centre, and kernels that underflow but where distance and angle are their own."""
    net = network(propagation=propagation, is_sparse=True, lambda_softmax=100.0, kernel=kernel)
    images, words, boxes, depends, lengths = random_case(regions=36, width=64)
    images[0], images[1, 2], words[1][:], words[2][3] = 0, 0, 0, 0
    boxes[2] = boxes[2, :1]
    if precision:
        conv = net.i2t_match_G.graph_convolution_1
        for parameter in (conv.precision_rho, conv.precision_theta):
            torch.nn.init.constant_(parameter, precision)
        assert not conv.edge_weights(boxes)[0, :, 0, 1].any()
    found = scores_and_gradients(net, images, words, boxes, depends, lengths)
    assert all(value.isfinite().all() for value in found.values())


@needs_kernel  # without it the child waits for torch's threads, which a fork does not copy
def test_a_forked_process_computes_too():
    """Its parent's threads do not exist in it."""
    net, case, threads = GSMN(small_opt()), random_case(), torch.get_num_threads()
    torch.set_num_threads(2)
    with torch.no_grad():
        before = net.forward_sim(*case)
        child = os.fork()
        if not child:
            signal.alarm(60)
            os._exit(0 if torch.equal(net.forward_sim(*case), before) else 1)
    torch.set_num_threads(threads)
    assert os.waitpid(child, 0)[1] == 0


def test_bfloat16_ranks_alike():
    """--amp bf16 keeps the order of even an untrained model's candidates, nearly, and float32 everything else."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(20, 6, 8, generator=rng)
    ids, boxes = torch.randint(4, 20, (40, 6), generator=rng), torch.rand(20, 6, 4, generator=rng)
    sims = []
    for amp in ("off", "bf16"):
        torch.manual_seed(1)
        sizes = {"num_block": 16, "feat_dim": 16, "hid_dim": 32, "embed_size": 64}
        net = model.build_model(small_opt(model="gsmn", amp=amp, lambda_softmax=20.0, kernel="torch", **sizes))
        images, words, lengths = net.encode_images(features), net.encode_captions(ids, [6] * 40), [6] * 40
        sims.append(net.forward_sim(images, words, boxes, None, lengths))
        assert {images.dtype, words.dtype, sims[-1].dtype} == {torch.float32}
    sims[1].sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    order = [s.argsort(1).argsort(1).float().flatten() for s in sims]
    assert not torch.equal(*sims) and torch.corrcoef(torch.stack(order))[0, 1] > 0.98


# ---- captions padded to a few common lengths


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_what_stands_in_the_padding_does_not_matter(kernel):
    net = network(propagation="neighbors", is_sparse=True, kernel=kernel)
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
