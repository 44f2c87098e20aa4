"""Checkpoints with wrong types and sizes inside: each is one line that names the file and the field."""

import argparse
import hashlib
import pathlib
import tracemalloc
from functools import partial

import numpy as np
import pickle_samples
import pytest
import torch
from tiny import gsmn, message, same, small_opt, state

from checkpoints import checkpoint
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from checkpoints.loading import check_shapes
from checkpoints.resume import capture_rng, restore, restore_optimizer
from model import build_model
from tools import convert
from vocab import SPECIAL

WRONG = {  # field: values that it cannot have
    "model": [[{1: torch.ones(1)}] * 4, [{"a": "b"}] * 4, {"a": torch.ones(1)}, [1, 2], [{"a": 1}] * 4],
    "opt": [None, {"embed_size": 4}],
    "caption_model": [{"a": 1}],
    "epoch": ["last", None, 2.5, -1, True],
    "Eiters": [float("inf")],
    "step": [10**30],
    "best_rsum": [float("nan"), [1]],
    "saved": ["today"],
    "validate_due": [1],
    "vocab": [["<pad>", "<start>", "<end>", "dog"], [*SPECIAL, "dog", "dog"], [*SPECIAL, 3]],
    "optimizer": [[1]],
    "rng": ["x"],
    "versions": [3],
}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in WRONG.items() for value in values])
def test_wrong_field(field, value, tmp_path):
    torch.save(state(**{field: value}), tmp_path / "x.pth.tar")
    assert f"{tmp_path / 'x.pth.tar'}: '{field}' is not " in message(load_checkpoint, tmp_path / "x.pth.tar")


@pytest.mark.parametrize("value", [torch.ones(3), [[1]], argparse.Namespace()])
def test_wrong_flag(value, tmp_path):
    torch.save(state(opt=argparse.Namespace(embed_size=value)), tmp_path / "x.pth.tar")
    assert "for embed_size" in message(load_checkpoint, tmp_path / "x.pth.tar")


def test_lists_within_lists_harm_nobody(tmp_path):
    """Two fields that nobody reads: one deep, one of the same two lists sixteen levels up, 2^16 ways through them."""
    wide = ["x"]
    for _ in range(16):
        wide = [wide] * 16
    deep = pickle_samples.Raw(b"]" * 20_000 + b"a" * 19_999)
    pickle_samples.torch_save(state(deep=deep, wide=wide), tmp_path / "x.pth.tar")
    load_checkpoint(tmp_path / "x.pth.tar")
    assert "x.pth.tar" in message(convert.main, [str(tmp_path / "x.pth.tar"), str(tmp_path / "x.safetensors")])
    pickle_samples.torch_save(state(vocab=deep), tmp_path / "x.pth.tar")
    assert "'vocab'" in message(load_checkpoint, tmp_path / "x.pth.tar")


def test_whatever_goes_wrong_is_one_line(tmp_path, monkeypatch):
    save_checkpoint(state(), tmp_path / "x.pth.tar")
    monkeypatch.setattr(checkpoint, "complete", lambda *_: {}["a place nobody thought of"])
    found = message(load_checkpoint, tmp_path / "x.pth.tar")
    assert found.startswith(f"{tmp_path / 'x.pth.tar'}: incomplete, damaged, or no checkpoint")


# ---- values of other libraries


VALUES = {  # flag: (in the file, as read)
    "learning_rate": (np.float64(0.5), 0.5),
    "embed_size": (np.int64(4), 4),
    "bi_gru": (np.bool_(True), True),
    "margin": (np.float16(0.25), 0.25),
    "data_path": (pathlib.PurePosixPath("/data/x"), "/data/x"),
    "vocab_path": (pathlib.PureWindowsPath("C:\\v"), "C:\\v"),
    "device": (torch.device("cuda", 1), "cuda:1"),
}


@pytest.mark.parametrize("save", [save_checkpoint, partial(torch.save, _use_new_zipfile_serialization=False)])
def test_numbers_paths_and_devices_of_other_programs(save, tmp_path):
    opt = argparse.Namespace(**{name: value for name, (value, _) in VALUES.items()})
    save(state(opt=opt, best_rsum=np.float64(3.5), epoch=np.int32(7)), tmp_path / "x.pth.tar")
    found = load_checkpoint(tmp_path / "x.pth.tar")
    same([found["best_rsum"], found["epoch"], found["model"]], [3.5, 7, gsmn()])
    same([getattr(found["opt"], name) for name in VALUES], [value for _, value in VALUES.values()])


@pytest.mark.parametrize("code", ["V8", "U4", "(1000000,)f8"])
def test_numpy_types_that_are_no_numbers(code, tmp_path):
    bad = pickle_samples.call("numpy", "dtype", pickle_samples.text(code))
    pickle_samples.torch_save(state(extra=pickle_samples.Raw(bad)), tmp_path / "x.pth.tar")
    assert "damaged" in message(load_checkpoint, tmp_path / "x.pth.tar")


# ---- sizes that a file only claims


def refusal(model, further=None, **changes):
    """What check_shapes says of these state dicts and a VSRN's opt with changes."""
    saved = {"model": model, "further": further or {}}
    return message(check_shapes, build_model, small_opt("vsrn", **changes), saved, "x")


@pytest.fixture(scope="module")
def net():
    return build_model(small_opt("vsrn"))


CLAIMS = {
    "a million layers": ({"num_layers": 10**6}, "--num_layers 1000000, but it holds"),
    "10^17 layers": ({"num_layers": 10**17}, "--num_layers 100000000000000000, but it holds"),
    "250 million wide": ({"embed_size": 250_000_000}, "img_enc.fc.weight is 16 x 8, but by its opt 250000000 x 8"),
    "10^18 wide": ({"embed_size": 10**18}, "describes no vsrn model"),
    "text": ({"embed_size": "4"}, "describes no vsrn model"),
    "two layers": ({"num_layers": 2}, "txt_enc.rnn.weight_ih_l1 is missing"),
    "a caption model that the file lacks": ({"dim_word": 10**9}, "its opt describes"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_claimed_sizes_take_no_memory(net, case):
    changes, expected = CLAIMS[case]
    tracemalloc.start()
    assert expected in refusal(net.state_list(), **changes)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_shapes_that_fit_and_others(net):
    first, second = net.state_list()
    captions = net.caption_model.state_dict()
    without_counts = {name: value for name, value in first.items() if "batches" not in name}  # torch before 0.4.1
    for image, further, width in ((first, {"caption_model": captions}, 8), (without_counts, {}, 512)):
        opt = small_opt("vsrn", dim_hidden=width)
        check_shapes(build_model, opt, {"model": [image, second], "further": further}, "x")
    assert "txt_enc.more" in refusal([first, {**second, "more": torch.ones(1)}])
    assert "txt_enc.embed.weight" in refusal([first, {name: value.long() for name, value in second.items()}])
    assert "1 state dicts" in refusal([first])
    assert "caption_model.fc.weight" in refusal([first, second], {"caption_model": {**captions, **gsmn()[0]}})
    assert "8 x 16, but by its opt 9 x 16" in refusal([first, second], {"caption_model": captions}, dim_hidden=9)


# ---- an optimiser's state


def adam_state():
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict(), layer


BREAK = [
    lambda s: s["state"][0].pop("exp_avg"),
    lambda s: s["state"][0].update(exp_avg=torch.ones(2, 3).long()),
    lambda s: s["state"][0]["exp_avg"].fill_(torch.nan),
    lambda s: s["state"][1].update(exp_avg_sq=torch.ones(5)),
    lambda s: s["state"][1]["exp_avg_sq"].fill_(-1),
    lambda s: s["state"][0].update(step=torch.ones(2)),
    lambda s: s["state"][0].update(step=10**400),
    lambda s: s["state"][0].update(step=torch.tensor(-1.0)),
    lambda s: s["state"].update({7: s["state"][0]}),
    lambda s: s["param_groups"][0].update(params=[0]),
    lambda s: s["param_groups"].append({}),
    *(lambda s, rate=rate: s["param_groups"][0].update(lr=rate) for rate in (float("inf"), -1.0, [])),
    lambda s: s["param_groups"][0].update(betas=(0.9,)),
    lambda s: s["param_groups"][0].update(betas=(0.9, 1)),
]
BREAK_RNG = [
    lambda rng: rng.update(torch=torch.ones(3)),
    lambda rng: rng.update(python=(3, (2**80,) * 625, None)),
    lambda rng: rng.update(numpy=("MT19937", torch.ones(5), 0, 0, 0.0)),
    lambda rng: rng.update(numpy=(*rng["numpy"][:2], 10**9, 0, 0.0)),
    lambda rng: rng.pop("python"),
]


@pytest.mark.parametrize("what, change", [*(("optimizer", c) for c in BREAK), *(("rng", c) for c in BREAK_RNG)])
def test_broken_states_of_a_run(what, change):
    state, layer = adam_state()
    layer.load_state_dict = layer.further_parts = lambda *_: {}
    optimizer = torch.optim.Adam(layer.parameters())
    saved = {"model": [], "further": {}, "optimizer": state, "rng": capture_rng()}
    restore(saved, layer, optimizer, "x.pth.tar")
    change(saved[what])
    found = message(restore, saved, layer, optimizer, "x.pth.tar")
    assert found.startswith("x.pth.tar: ") and {"optimizer": "optimiser", "rng": "random"}[what] in found


def test_moments_that_claim_more_memory_than_they_have():
    """One number with strides of 0: Adam would write beyond it.  Settings that need other entries are not taken."""
    saved, layer = adam_state()
    for entry in saved["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            entry[name] = torch.ones(1).expand(entry[name].shape)
    saved["param_groups"][0].update(amsgrad=True, differentiable=True, eps=0.5)
    optimizer = torch.optim.Adam(layer.parameters())
    restore_optimizer(saved, layer, optimizer, "x.pth.tar")
    moments = [optimizer.state[p][name] for p in layer.parameters() for name in ("exp_avg", "exp_avg_sq")]
    assert all(moment.is_contiguous() and bool((moment == 1).all()) for moment in moments)
    assert optimizer.param_groups[0]["eps"] == 0.5 and not optimizer.param_groups[0]["amsgrad"]
    optimizer.step()


def test_the_older_format_is_named_with_its_checksum(tmp_path, capsys):
    """A byte changed in it changes weights without a word; the user can compare."""
    path = tmp_path / "x.pth.tar"
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    load_checkpoint(path)
    said = capsys.readouterr().err
    assert str(path) in said and hashlib.sha256(path.read_bytes()).hexdigest() in said
    torch.save(state(), path)
    load_checkpoint(path)
    assert capsys.readouterr().err == ""
