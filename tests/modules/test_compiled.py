"""--compile: GSMN's similarity through torch.compile, the same numbers, one program for all batches."""

import inspect

import pytest
import torch
from tiny import pair_scores, random_case, small_opt
from torch._dynamo.utils import counters
from torch._inductor import pattern_matcher

import model
from modules.kernel import scores as kernel
from systems.gsmn import GSMN

# torch 2.6's inductor compiles again where two of its sizes are equal by chance
BY_CHANCE = "guard_size_oblivious(v != a)" in inspect.getsource(pattern_matcher)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(kernel, "load", lambda *_: None)
    duck = torch.fx.experimental._config.use_duck_shape
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.fx.experimental._config.use_duck_shape = duck
    torch._dynamo.reset()


def scores_and_gradients(net, lengths, images, seed):
    regions, words, boxes, depends, lengths = random_case(5, lengths, images, 64, seed)
    words = torch.nn.utils.rnn.pad_sequence(words, batch_first=True).requires_grad_()
    regions.requires_grad_()
    scores = pair_scores(net, regions, words, boxes, depends, lengths)
    wanted = [regions, words, *net.i2t_match_G.parameters(), net.t2i_match_G.out_1.weight_v]
    return [*scores, *torch.autograd.grad(scores[0].square().sum() + scores[1].sum(), wanted)]


def two_nets(propagation, is_sparse, backend):
    """The same net twice, the second one compiled."""
    nets = []
    for _ in range(2):
        torch.manual_seed(1)
        sizes = {"num_block": 8, "feat_dim": 8, "hid_dim": 16, "embed_size": 64, "sim_memory": 1000}
        nets.append(GSMN(small_opt(propagation=propagation, is_sparse=is_sparse, **sizes)))
    nets[1].compile_parts(backend=backend)
    return nets


def compare(propagation, is_sparse, backend):
    """Five batches of other lengths and sizes: equal to eager mode, compiled for the first alone, in one piece."""
    nets = two_nets(propagation, is_sparse, backend)
    assert list(nets[0].state_dict()) == list(nets[1].state_dict())
    rng, graphs = torch.Generator().manual_seed(0), []
    for batch in range(5):
        # every length twice: torch compiles a program of its own for a bucket of one caption
        lengths = 2 * torch.randint(2, 20, (6 + (batch == 3),), generator=rng).tolist()
        plain, compiled = (scores_and_gradients(net, lengths, 12 + (batch == 4), batch) for net in nets)
        assert_equal(compiled, plain)
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    if backend == "eager" or not BY_CHANCE:
        assert graphs == [3] * 5  # node_matching, and the structure level of either side


def assert_equal(compiled, plain):
    for a, b in zip(compiled, plain):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp_min(1e-3)


@pytest.mark.slow
def test_one_program_for_all_batches():
    """Tracing alone, which needs no C++ compiler."""
    compare("neighbors", True, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("propagation, is_sparse", [("self", False), ("self", True), ("neighbors", False)])
def test_inductor_computes_the_same(propagation, is_sparse):
    compare(propagation, is_sparse, "inductor")


def test_a_failing_compiler_falls_back_with_one_warning(capsys):
    def no_compiler(graph, inputs):
        raise RuntimeError("no compiler here")

    double, triple = (model.compiled(f, backend=no_compiler) for f in (lambda x: 2 * x, lambda x: 3 * x))
    x = torch.ones(3)
    assert double(x).sum() == double(x).sum() == 6 and triple(x).sum() == 9
    assert capsys.readouterr().err.count("--compile") == 1
