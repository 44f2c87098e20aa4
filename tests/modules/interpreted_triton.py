"""The Triton kernel against graph.py and the C kernel, on a CPU; test_gpu_kernel.py runs this file.

Triton's interpreter is chosen when a process starts:
TRITON_INTERPRET=1 python -m pytest -m '' tests/modules/interpreted_triton.py
"""

import pytest
import torch
from tiny import random_case, small_opt

import model
from modules import gpu_kernel


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


def network(blocks=4, hidden=16, width=64, **changes):
    torch.manual_seed(1)
    sizes = {"num_block": blocks, "feat_dim": blocks, "hid_dim": hidden, "embed_size": width}
    return model.GSMN(small_opt(**sizes, **changes))


def scores(net, case, kernel):
    net.kernel = kernel
    with torch.no_grad():
        return torch.stack(net.forward_scores(*case))


@pytest.mark.parametrize(
    "propagation, is_sparse, regions, lengths, sizes",
    [
        ("neighbors", True, 5, (3, 17, 1), {"blocks": 2, "width": 24}),  # a block narrower than the matrix units take
        slow("self", False, 5, (3, 1, 7), {"blocks": 4, "width": 24}),
        slow("self", True, 20, (3, 18, 2), {"blocks": 1, "hidden": 8, "width": 16}),
        slow("neighbors", False, 1, (1, 31), {"blocks": 3, "hidden": 24, "width": 60}),
        slow("neighbors", True, 36, (4, 12), {"blocks": 16, "hidden": 32, "width": 256}),
        slow("self", False, 36, (9,), {"blocks": 16, "hidden": 32, "width": 256}),
    ],
)
def test_kernel_is_graph_and_c(propagation, is_sparse, regions, lengths, sizes):
    net = network(propagation=propagation, is_sparse=is_sparse, **sizes)
    case = random_case(regions, lengths, images=2, width=sizes["width"])
    fused = scores(net, case, "triton")
    assert (fused - scores(net, case, "torch")).abs().max() < 1e-6
    assert (fused - scores(net, case, "auto")).abs().max() < 1e-6  # the C kernel, where it is compiled


def test_not_a_number_stays_in_its_row():
    net, case = network(1, 8, 16), random_case(3, (2,), images=2, width=16)
    case[0][1, 2, 5] = float("nan")
    assert scores(net, case, "triton").isnan().tolist() == [[[False], [True]]] * 2


@pytest.mark.slow
def test_zero_vectors():
    net, case = network(propagation="neighbors"), random_case(3, (2, 3), images=2, width=64)
    case[0][0], case[1][1][2] = 0, 0
    assert (scores(net, case, "triton") - scores(net, case, "torch")).abs().max() < 1e-6


def test_with_gradients_graph_computes(monkeypatch):
    net, case = network(), random_case(3, (2, 7), images=2, width=64)
    monkeypatch.setattr(gpu_kernel, "pair_kernel", None)
    net.kernel = "triton"
    net.forward_sim(*case).sum().backward()
    assert net.i2t_match_G.out_1.bias.grad.isfinite().all()
