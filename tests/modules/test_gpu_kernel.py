"""The Triton kernel: right in Triton's interpreter, and used only where a trial shows that it is right and faster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import random_case, small_opt

import model
from checkpoints.evaluation_options import OVERRIDES
from files.errors import InputError
from modules import cpu_kernel, gpu_kernel
from systems.options import defaults


def network(blocks=4, hidden=16, width=64, **changes):
    torch.manual_seed(1)
    sizes = {"num_block": blocks, "feat_dim": blocks, "hid_dim": hidden, "embed_size": width}
    return model.GSMN(small_opt(**sizes, **changes))


def scores(net, case, kernel):
    net.kernel = kernel
    with torch.no_grad():
        return torch.stack(net.forward_scores(*case))


@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(marked):
    """Ragged lengths, one word, one region, regions no power of two, 1 to 16 blocks: interpreted_triton.py."""
    pytest.importorskip("triton")
    file = Path(__file__).with_name("interpreted_triton.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, str(file)]
    done = subprocess.run(
        command, cwd=file.parents[2], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "capability, words, neighbors, precision, shared",
    [(80, 16, False, "ieee", 163), (90, 32, True, "tf32", 227)],
)
def test_it_compiles_for_cards(tmp_path, monkeypatch, capability, words, neighbors, precision, shared):
    """No GPU is needed for that.  shared: KB of shared memory that a program may have on the card."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    fixed = {
        "D": 1024, "K": 16, "H": 32, "d": 64, "RP": 64, "NP": words, "BP": 64, "HP": 32,
        "NEIGHBORS": neighbors, "EDGES": False, "PRECISION": precision,
    }  # fmt: skip
    numbers = {"R": "i32", "longest": "i32", "C": "i32", "smooth": "fp32", "lengths": "*i64"}
    names = [name for name in gpu_kernel.pair_kernel.arg_names if name not in fixed]
    signature = {name: numbers.get(name, "*fp32") for name in names}
    if triton.__version__ >= "3.3":
        signature |= dict.fromkeys(fixed, "constexpr")
    source = ASTSource(gpu_kernel.pair_kernel, signature, fixed)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    assert compiled.asm["cubin"] and compiled.metadata.shared <= shared * 1024


def test_the_groups_share_a_power_of_two():
    assert gpu_kernel.groups([1, 16, 17, 32, 33]) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert gpu_kernel.groups([40]) == [slice(0, 1)]
    assert [gpu_kernel.padded_size(n) for n in (1, 16, 17, 36, 64)] == [16, 16, 32, 64, 64]


# ---- a kernel that must earn its place


@pytest.fixture
def like_a_gpu(monkeypatch):
    """--kernel auto takes this CPU for a GPU; the test puts a stand-in for the kernel."""
    monkeypatch.setattr(cpu_kernel, "kernel", lambda *_: None)
    monkeypatch.setattr(gpu_kernel, "available", lambda device: True)
    monkeypatch.setattr(gpu_kernel, "TRIALS", {})


def test_a_good_kernel_is_used_after_one_trial(like_a_gpu, monkeypatch):
    net, case = network(), random_case(3, (2, 3, 3), images=2, width=64)
    expected, calls = scores(net, case, "torch"), []

    def fused(graphs, regions, edges, words, word_edges, length, most):
        calls.append(len(length))
        return expected[:, : len(edges)].unbind()

    monkeypatch.setattr(gpu_kernel, "scores", fused)
    monkeypatch.setattr(gpu_kernel, "best_time", lambda task: 1 if task.func is fused else 2)
    assert torch.equal(scores(net, case, "auto"), expected) and calls == [3, 3]  # the trial, and the scores
    assert torch.equal(scores(net, case, "auto"), expected) and calls == [3, 3, 3]


def test_long_captions_go_through_graph(like_a_gpu, monkeypatch):
    """The kernel scores those of at most 32 words, graph.py the others of the same call."""
    net, case = network(), random_case(3, (40, 3, 2, 70, 20), images=2, width=64)
    expected, calls = scores(net, case, "torch"), []

    def fused(graphs, regions, edges, words, word_edges, length, most):
        calls.append(length.tolist())
        return expected[:, :, [case[4].index(n) for n in length.tolist()]].unbind()

    monkeypatch.setattr(gpu_kernel, "scores", fused)
    assert (scores(net, case, "triton") - expected).abs().max() < 1e-6
    assert calls == [[2, 3], [20]]


@pytest.mark.parametrize(
    "fault, says",
    [
        ("wrong", "differs from torch by 0.001"),
        ("nan", "differs from torch by nan"),
        ("slow", "takes 2000.0 ms for what torch does in 1000.0 ms"),
        ("error", "does not run: RuntimeError: out of resource"),
    ],
)
def test_a_bad_kernel_is_said_once_and_left_out(like_a_gpu, monkeypatch, caplog, fault, says):
    net, case = network(), random_case(3, (2, 3, 3), images=2, width=64)
    expected = scores(net, case, "torch")

    def fused(*_):
        if fault == "error":
            raise RuntimeError("out of resource\nshared memory, Required: 300000")
        return expected + {"wrong": 1e-3, "nan": float("nan"), "slow": 0}[fault]

    monkeypatch.setattr(gpu_kernel, "scores", fused)
    monkeypatch.setattr(gpu_kernel, "best_time", lambda task: 2 if task.func is fused else 1)
    for _ in range(2):
        assert torch.equal(scores(net, case, "auto"), expected)
    assert caplog.text.count(says) == 1 and "torch computes the similarity instead" in caplog.text


def test_triton_needs_a_gpu():
    net, case = network(), random_case(3, (2,), images=2, width=64)
    with pytest.raises(
        InputError, match="--kernel triton: needs Triton and a CUDA device, not cpu; give --kernel auto"
    ):
        scores(net, case, "triton")


def test_the_flag_is_train_pys_and_evaluations():
    assert defaults("gsmn")["kernel"] == "auto" and "kernel" in OVERRIDES
