"""SCAN and VSE++: numbers of the released code, and their definitions written out pair by pair."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from plain import scan_score
from tiny import shared, small_opt

import data
import evaluation
import train
from model import build_model
from systems.options import completed
from training.health import GuardedAdam
from vocab import deserialize_vocab

BASE = {"img_dim": 64, "embed_size": 128, "word_dim": 32, "vocab_size": 50, "data_name": "f30k_precomp"}
RECIPES = {
    "t2i_lse": {},
    "t2i_avg": {"agg_func": "Mean"},
    "i2t_lse": {"cross_attn": "i2t", "lambda_lse": 5.0, "lambda_softmax": 4.0},
    "i2t_avg": {"cross_attn": "i2t", "agg_func": "Mean", "lambda_softmax": 4.0},
}
NORMS = ("clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "no_norm", "softmax")
SCAN = {
    **RECIPES,
    **{
        f"{way}_mean_{norm}": {"cross_attn": way, "agg_func": "Mean", "raw_feature_norm": norm}
        for way in ("t2i", "i2t")
        for norm in NORMS[1:]
    },
    **{
        f"{way}_{name}": {"cross_attn": way, "agg_func": name.title()}
        for way in ("t2i", "i2t")
        for name in ("max", "sum")
    },
}
VSEPP = {"cosine": {}, "order": {"measure": "order", "use_abs": True}, "no_imgnorm": {"no_imgnorm": True}}
VARIANTS = [("scan", name) for name in SCAN] + [("vsepp", name) for name in VSEPP]
TRAINED = [("scan", name) for name in RECIPES] + [("vsepp", name) for name in VSEPP]


def flags(model, name, **changes):
    own = {**SCAN[name], "bi_gru": True} if model == "scan" else VSEPP[name]
    return completed(Namespace(data_path=shared("golden/scan"), **BASE, **own), model=model, **changes)


def golden(model):
    return np.load(shared(f"golden/{model}") / "expected.npz")


def start(model, opt):
    net = build_model(opt)
    net.load_state_dict(torch.load(shared(f"golden/{model}") / "init.pth", weights_only=True))
    return net


def split_of(opt, split="train"):
    words = deserialize_vocab(shared("golden/scan") / "f30k_precomp_vocab.json")
    return data.PrecompDataset(split, "f30k_precomp", words, opt)


@pytest.mark.parametrize("model, name", VARIANTS)
@pytest.mark.parametrize("hardest", [False, True], ids=["sum", "max"])
def test_first_batch(model, name, hardest):
    """Scores, loss and the gradient's norm of each parameter."""
    expected, opt = golden(model), flags(model, name, max_violation=hardest)
    net, end = start(model, opt), "max" if hardest else "sum"
    split = split_of(opt)
    batch = data.collate([split[i] for i in expected["order"][0].tolist()])
    assert batch.ids == expected["batch0_ids"].tolist()
    scores = net.similarity(*net.encode_sides(batch))
    np.testing.assert_allclose(scores.detach(), expected[f"{name}_scores"], rtol=2e-6, atol=2e-6)
    loss = net.forward_loss(scores)
    np.testing.assert_allclose(loss.item(), expected[f"{name}_loss_{end}"], rtol=1e-6)
    loss.backward()
    parts = {"0": net.img_enc, "1": net.txt_enc}
    for grad_name, norm in zip(expected["grad_names"], expected[f"{name}_grad_norms_{end}"]):
        part, _, parameter = str(grad_name).partition(".")
        found = parts[part].get_parameter(parameter).grad.norm().item()
        assert found == pytest.approx(norm, rel=2e-5), grad_name


@pytest.mark.parametrize("model, name", TRAINED)
@pytest.mark.parametrize("hardest", [False, True], ids=["sum", "max"])
def test_first_steps(model, name, hardest):
    """Ten, or five with the hardest negatives: rounding decides between equal ones, and grows a thousandfold by ten."""
    expected, opt = golden(model), flags(model, name, max_violation=hardest)
    net, split = start(model, opt), split_of(opt)
    optimizer, losses = GuardedAdam(net.parameters(), 0.0002), []
    end, count = ("max", 5) if hardest else ("sum", 10)
    for order in expected["order"][:count].tolist():
        losses.append(train.train_step(net, optimizer, data.collate([split[i] for i in order]), 2.0)["loss"].item())
    np.testing.assert_allclose(losses, expected[f"{name}_train_losses_{end}"][:count], rtol=2e-5)


@pytest.mark.parametrize("model, name", VARIANTS)
def test_test_split(model, name):
    """All pairs by the blocks of the evaluation."""
    opt = flags(model, name)
    net = start(model, opt).eval()
    dataset = split_of(opt, "test")
    loader = data.make_loader(dataset, data.in_order(len(dataset), 32), 0)
    sims = evaluation.score_all(net, *evaluation.encode_split(net, loader))
    np.testing.assert_allclose(sims, golden(model)[f"{name}_test_sims"], rtol=2e-6, atol=2e-6)


def test_weight_norm():
    opt = flags("scan", "t2i_lse", precomp_enc_type="weight_norm")
    net = build_model(opt)
    net.load_state_dict(torch.load(shared("golden/scan") / "init_weight_norm.pth", weights_only=True))
    split, expected = split_of(opt), golden("scan")
    batch = data.collate([split[i] for i in expected["order"][0].tolist()])
    scores = net.similarity(*net.encode_sides(batch)).detach()
    np.testing.assert_allclose(scores, expected["weight_norm_scores"], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("path", ["scan/model_t2i_lse/model_best.pth.tar", "vsepp/model_best.pth.tar"])
def test_released_checkpoint(path, tmp_path, capsys):
    """It names no system; test.py finds out."""
    import test

    places = ["--data_path", str(shared("golden/scan")), "--vocab_path", str(shared("golden/scan"))]
    test.main(["--model_path", str(shared("golden") / path), *places, "--device", "cpu", "--ranks", "",
               "--save_sims", str(tmp_path / "sims.npy")])  # fmt: skip
    expected = golden(path.split("/")[0])
    np.testing.assert_allclose(np.load(tmp_path / "sims.npy"), expected["checkpoint_test_sims"], rtol=2e-6, atol=2e-6)
    if "checkpoint_i2t_metrics" in expected:
        printed = capsys.readouterr().out
        assert "Image to text: " + " ".join(f"{x:.1f}" for x in expected["checkpoint_i2t_metrics"]) in printed


# ---- the definition, pair by pair


@pytest.mark.parametrize("way", ["t2i", "i2t"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gather", ["LogSumExp", "Mean", "Max", "Sum"])
def test_scan_by_its_definition(way, norm, gather):
    """Ragged captions; scores and gradients in double precision, with memory for few pairs at once."""
    opt = small_opt("scan", cross_attn=way, raw_feature_norm=norm, agg_func=gather, sim_memory=0.02)
    net = build_model(opt).double()
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(3, 4, 16, generator=rng, dtype=torch.double, requires_grad=True)
    words = [torch.randn(n, 16, generator=rng, dtype=torch.double, requires_grad=True) for n in (5, 1, 3, 2)]
    scores = net.forward_sim(images, words, cap_lens=[5, 1, 3, 2])
    expected = torch.stack([torch.stack([scan_score(opt, image, caption) for caption in words]) for image in images])
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn(3, 4, generator=rng, dtype=torch.double)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), [images, *words]) for x in (scores, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    assert net.forward_sim(images[:0], words, cap_lens=[5, 1, 3, 2]).shape == (0, 4)
