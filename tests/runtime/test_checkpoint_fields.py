"""Checkpoints with wrong types and sizes inside: each is one line that names the file and the field."""

import argparse
import os
import pathlib
import pickle
import time
import tracemalloc
import zipfile

import numpy as np
import pickle_samples
import pytest
import torch
from tiny import gsmn, message, same, state

from checkpoints import checkpoint
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from checkpoints.fields import check_optimizer, check_shapes
from files import pickles
from files.arrays import open_array, read_sizes
from files.checksum import sha256
from files.pictures import picture_size, read_picture
from files.text import read_bytes, read_json, read_lines
from model import MatchingModel
from reporting.thumbnails import thumbnail
from systems.options import completed
from tools.own_data.region_files import lines_of
from vocab import SPECIAL

WRONG = {
    "number as a name": ({"model": [{1: torch.ones(1)}, {}, {}, {}]}, "'model' is not a list of state dicts"),
    "weights of text": ({"model": [{"a": "b"}, {}, {}, {}]}, "'model' is not a list of state dicts"),
    "opt is a table": ({"opt": {"embed_size": 4}}, "'opt' is not the flags of a run"),
    "epoch None": ({"epoch": None}, "'epoch' is not a whole number from 0 on"),
    "epoch 2.5": ({"epoch": 2.5}, "'epoch' is not a whole number from 0 on"),
    "epoch -1": ({"epoch": -1}, "'epoch' is not a whole number from 0 on"),
    "epoch true": ({"epoch": True}, "'epoch' is not a whole number from 0 on"),
    "Eiters 1e400": ({"Eiters": float("inf")}, "'Eiters' is not a whole number"),
    "step 10^30": ({"step": 10**30}, "'step' is not a whole number"),
    "rsum NaN": ({"best_rsum": float("nan")}, "'best_rsum' is not a finite number"),
    "rsum list": ({"best_rsum": [1]}, "'best_rsum' is not a finite number"),
    "saved text": ({"saved": "today"}, "'saved' is not a finite number"),
    "due 1": ({"validate_due": 1}, "'validate_due' is not true or false"),
    "vocab without <unk>": ({"vocab": ["<pad>", "<start>", "<end>", "dog"]}, "begins with <pad> <start> <end> <unk>"),
    "vocab with a double": ({"vocab": [*SPECIAL, "dog", "dog"]}, "'vocab' is not a list of different words"),
    "vocab of numbers": ({"vocab": [*SPECIAL, 3]}, "'vocab' is not a list of different words"),
    "optimizer list": ({"optimizer": [1]}, "'optimizer' is not an optimiser's state"),
    "optimizer without groups": ({"optimizer": {"state": {}}}, "'optimizer' is not an optimiser's state"),
    "rng text": ({"rng": "x"}, "'rng' is not a table of random states"),
    "versions": ({"versions": 3}, "'versions' is not a table"),
    "flag that is a tensor": (
        {"opt": argparse.Namespace(embed_size=torch.ones(3))},
        "opt holds a Tensor for embed_size",
    ),
    "flag that is a table": ({"opt": argparse.Namespace(model={})}, "opt holds a dict for model"),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_field(case, legacy, tmp_path):
    changes, expected = WRONG[case]
    torch.save(state(**changes), tmp_path / "x.pth.tar", _use_new_zipfile_serialization=not legacy)
    found = message(load_checkpoint, tmp_path / "x.pth.tar")
    assert expected in found and found.startswith(f"{tmp_path / 'x.pth.tar'}: ")


def test_options_that_hold_themselves(tmp_path):
    opt = argparse.Namespace(embed_size=4)
    opt.itself = opt
    torch.save(state(opt=opt), tmp_path / "x.pth.tar")
    assert "its opt holds a Namespace for itself" in message(load_checkpoint, tmp_path / "x.pth.tar")


@pytest.mark.parametrize("depth", [30, 1000, 100_000])
def test_lists_within_lists(depth, tmp_path):
    deep = pickle_samples.Raw(b"]" * depth + b"a" * (depth - 1))
    pickle_samples.torch_save(state(more=deep), tmp_path / "x.pth.tar")
    assert "more than 20 deep" in message(load_checkpoint, tmp_path / "x.pth.tar")


def test_shared_containers_cost_no_time(tmp_path):
    """Lists of the same two lists, sixteen levels: 2^16 ways to go through them, one walk."""
    value = ["x"]
    for _ in range(16):
        value = [value] * 16
    torch.save(state(more=value), tmp_path / "x.pth.tar")
    began = time.monotonic()
    load_checkpoint(tmp_path / "x.pth.tar")
    assert time.monotonic() - began < 30


def test_whatever_goes_wrong_is_one_line(tmp_path, monkeypatch):
    save_checkpoint(state(), tmp_path / "x.pth.tar")
    monkeypatch.setattr(checkpoint, "complete", lambda *_: {}["a place nobody thought of"])
    found = message(load_checkpoint, tmp_path / "x.pth.tar")
    assert found.startswith(f"{tmp_path / 'x.pth.tar'}: damaged, or no checkpoint (KeyError")


# ---- values of other libraries


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_numbers_paths_and_devices_of_other_programs(legacy, tmp_path):
    opt = argparse.Namespace(
        learning_rate=np.float64(0.5), embed_size=np.int64(4), bi_gru=np.bool_(True), margin=np.float16(0.25),
        data_path=pathlib.PurePosixPath("/data/x"), vocab_path=pathlib.PureWindowsPath("C:\\v"),
        device=torch.device("cuda", 1),
    )  # fmt: skip
    before = state(opt=opt, best_rsum=np.float64(3.5), epoch=np.int32(7))
    torch.save(before, tmp_path / "x.pth.tar", _use_new_zipfile_serialization=not legacy)
    found = load_checkpoint(tmp_path / "x.pth.tar")
    assert found["best_rsum"] == 3.5 and type(found["best_rsum"]) is float
    assert found["epoch"] == 7 and type(found["epoch"]) is int
    wanted = {"learning_rate": 0.5, "embed_size": 4, "bi_gru": True, "margin": 0.25}
    wanted |= {"data_path": "/data/x", "vocab_path": "C:\\v", "device": "cuda:1"}
    for name, value in wanted.items():
        assert getattr(found["opt"], name) == value and type(getattr(found["opt"], name)) is type(value)
    same(found["model"], gsmn())


@pytest.mark.parametrize("code", ["V8", "U4", "(1000000,)f8"])
def test_numpy_types_that_are_no_numbers(code, tmp_path):
    bad = pickle_samples.call("numpy", "dtype", pickle_samples.text(code))
    pickle_samples.torch_save(state(extra=pickle_samples.Raw(bad)), tmp_path / "x.pth.tar")
    assert "damaged" in message(load_checkpoint, tmp_path / "x.pth.tar")


# ---- sizes that a file only claims


class Parts(MatchingModel):
    """A model of two parts, as wide and deep as its options say."""

    parts = ("first", "second")

    def __init__(self, opt):
        super().__init__(opt)
        self.first = torch.nn.GRU(3, opt.embed_size, opt.num_layers)
        self.second = torch.nn.Sequential(torch.nn.Linear(opt.embed_size, 2), torch.nn.BatchNorm1d(2))


def options(**changes):
    return completed(argparse.Namespace(num_layers=1, embed_size=4), **changes)


def states(**changes):
    net = Parts(options())
    return {"model": [net.first.state_dict(), net.second.state_dict()], "further": changes}


CLAIMS = {
    "a million layers": ({"num_layers": 10**6}, "--num_layers 1000000, but it holds 11 tensors"),
    "10^17 layers": ({"num_layers": 10**17}, "--num_layers 100000000000000000, but it holds 11 tensors"),
    "250 million wide": ({"embed_size": 250_000_000}, "first.weight_ih_l0 is 12 x 3, but by its opt 750000000 x 3"),
    "10^18 wide": ({"embed_size": 10**18}, "describes no gsmn model"),
    "text": ({"embed_size": "4"}, "describes no gsmn model"),
    "two layers": ({"num_layers": 2}, "first.weight_ih_l1 is missing"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_claimed_sizes_take_no_memory(case):
    changes, expected = CLAIMS[case]
    tracemalloc.start()
    found = message(check_shapes, Parts, options(**changes), states(), "x.pth.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert expected in found and found.startswith("x.pth.tar: ") and peak < 50e6


def test_shapes_that_fit():
    check_shapes(Parts, options(), states(), "x")
    first, second = states()["model"]
    old = {name: value for name, value in second.items() if "batches" not in name}
    check_shapes(Parts, options(), {**states(), "model": [first, old]}, "x")  # torch before 0.4.1 did not count batches
    more = {**states(), "model": [first, {**second, "more": torch.ones(1)}]}
    assert "second.more is in the file" in message(check_shapes, Parts, options(), more, "x")
    whole = {**states(), "model": [{name: value.long() for name, value in first.items()}, second]}
    found = message(check_shapes, Parts, options(), whole, "x")
    assert "first.weight_ih_l0 holds torch.int64, not torch.float32" in found
    assert "1 state dicts, but a gsmn model has 2" in message(
        check_shapes, Parts, options(), {**states(), "model": [first]}, "x"
    )


class WithCaptions(Parts):
    def __init__(self, opt):
        super().__init__(opt)
        self.caption_model = torch.nn.Linear(opt.dim_hidden, 2)


def test_the_caption_model_is_compared_or_bounded():
    """A released file lacks it: then its widths may not outgrow the file beyond all measure."""
    inside = states(caption_model=torch.nn.Linear(3, 2).state_dict())
    check_shapes(WithCaptions, options(dim_hidden=3), inside, "x")
    found = message(check_shapes, WithCaptions, options(dim_hidden=4), inside, "x")
    assert "caption_model.weight is 2 x 3, but by its opt 2 x 4" in found
    check_shapes(WithCaptions, options(dim_hidden=512), states(), "x")
    found = message(check_shapes, WithCaptions, options(dim_hidden=10**9), states(), "x")
    assert "its opt describes 2,000,000," in found


def test_a_pickle_that_unpacks_to_gigabytes(tmp_path):
    """Two megabytes that a zip's compression blows up to 2 GB: refused by its own account of the sizes."""
    path = tmp_path / "x.pth.tar"
    zeros = bytes(1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x/data.pkl", "w") as file:
            for _ in range(64):
                file.write(zeros)
        archive.writestr("x/version", "3\n")
    assert "data.pkl is compressed" in message(load_checkpoint, path)


def test_a_pickle_of_too_many_operations(tmp_path, monkeypatch):
    save_checkpoint(state(more=list(range(3000))), tmp_path / "x.pth.tar")
    load_checkpoint(tmp_path / "x.pth.tar")
    monkeypatch.setattr(pickles, "PICKLE_STEPS", 1000)
    assert "more than 1,000 operations" in message(load_checkpoint, tmp_path / "x.pth.tar")
    monkeypatch.setattr(pickles, "PICKLE_STEPS", 10**6)
    monkeypatch.setattr(pickles, "PICKLE_BYTES", 1000)
    assert "operations or 0 MB" in message(load_checkpoint, tmp_path / "x.pth.tar")


# ---- an optimiser's state


def adam_state(steps=1):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(steps):
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    return optimizer.state_dict(), layer


def test_optimiser_states_that_fit():
    for steps in (0, 1):
        saved, layer = adam_state(steps)
        check_optimizer(saved, list(layer.parameters()), "x")


BREAK = {
    "missing moment": (lambda s: s["state"][0].pop("exp_avg"), "exp_avg of parameter 0"),
    "misshapen moment": (lambda s: s["state"][1].update(exp_avg_sq=torch.ones(5)), "exp_avg_sq of parameter 1"),
    "moment of text": (lambda s: s["state"][1].update(exp_avg_sq="x"), "exp_avg_sq of parameter 1"),
    "step": (lambda s: s["state"][0].update(step=torch.ones(2)), "step of parameter 0"),
    "another parameter": (lambda s: s["state"].update({7: s["state"][0]}), "an entry for parameter 7"),
    "a parameter's name": (lambda s: s["state"].update(w={}), "an entry for parameter 'w'"),
    "fewer parameters": (lambda s: s["param_groups"][0].update(params=[0]), "its parameters are not the 2"),
    "two groups": (lambda s: s["param_groups"].append({}), "its parameters are not the 2"),
    "rate": (lambda s: s["param_groups"][0].update(lr=float("inf")), "lr is inf"),
    "moments of whole numbers": (
        lambda s: s["state"][0].update(exp_avg=torch.ones(2, 3).long()),
        "exp_avg of parameter 0",
    ),
    "moment NaN": (lambda s: s["state"][0]["exp_avg"].fill_(torch.nan), "exp_avg of parameter 0"),
    "squares below 0": (lambda s: s["state"][0]["exp_avg_sq"].fill_(-1), "exp_avg_sq of parameter 0"),
    "step 10^400": (lambda s: s["state"][0].update(step=10**400), "step of parameter 0"),
    "step -1": (lambda s: s["state"][0].update(step=torch.tensor(-1.0)), "step of parameter 0"),
    "rate -1": (lambda s: s["param_groups"][0].update(lr=-1.0), "lr is -1.0"),
    "betas": (lambda s: s["param_groups"][0].update(betas=(0.9,)), "betas are (0.9,)"),
}


@pytest.mark.parametrize("case", BREAK)
def test_broken_optimiser_state(case):
    change, expected = BREAK[case]
    saved, layer = adam_state()
    change(saved)
    found = message(check_optimizer, saved, list(layer.parameters()), "x.pth.tar")
    assert expected in found and found.startswith("x.pth.tar: the optimiser's state is broken")


RNG = {
    "torch": lambda rng: rng.update(torch=torch.ones(3)),
    "python": lambda rng: rng.update(python=(3, (2**80,) * 625, None)),
    "numpy": lambda rng: rng.update(numpy=("MT19937", torch.ones(5), 0, 0, 0.0)),
    "position": lambda rng: rng.update(numpy=(*rng["numpy"][:2], 10**9, 0, 0.0)),
    "missing": lambda rng: rng.pop("python"),
}


@pytest.mark.parametrize("case", RNG)
def test_random_states_out_of_range(case):
    saved, layer = adam_state()
    rng = checkpoint.capture_rng()
    broken = dict(rng)
    RNG[case](broken)
    optimizer = torch.optim.Adam(layer.parameters())
    found = message(checkpoint.restore_training, {"optimizer": saved, "rng": broken}, layer, optimizer, "x.pth.tar")
    assert found.startswith("x.pth.tar: its random states are broken")
    checkpoint.restore_training({"optimizer": saved, "rng": rng}, layer, optimizer, "x.pth.tar")


def test_moments_that_claim_more_memory_than_they_have():
    """One number with strides of 0: Adam would write beyond it.  Settings that need other entries are not taken."""
    saved, layer = adam_state()
    for entry in saved["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            entry[name] = torch.ones(1).expand(entry[name].shape)
    saved["param_groups"][0].update(amsgrad=True, differentiable=True, eps=0.5)
    optimizer = torch.optim.Adam(layer.parameters())
    checkpoint.restore_training({"optimizer": saved, "rng": checkpoint.capture_rng()}, layer, optimizer, "x.pth.tar")
    moments = [optimizer.state[p][name] for p in layer.parameters() for name in ("exp_avg", "exp_avg_sq")]
    assert all(moment.is_contiguous() and bool((moment == 1).all()) for moment in moments)
    assert len({moment.data_ptr() for moment in moments}) == 4
    assert optimizer.param_groups[0]["eps"] == 0.5 and not optimizer.param_groups[0]["amsgrad"]
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()


def test_a_part_that_the_model_lacks():
    found = message(check_shapes, Parts, options(), states(caption_model=gsmn()[0]), "x.pth.tar")
    assert found.startswith("x.pth.tar: holds a caption_model")


# ---- what is no regular file

READERS = {"load_checkpoint": load_checkpoint, "open_array": open_array, "read_sizes": read_sizes}
READERS |= {"read_lines": read_lines, "read_json": read_json, "read_bytes": read_bytes, "read_picture": read_picture}
READERS["lines_of"] = lambda path: list(lines_of(path))


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_refused_at_once(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        assert f"{tmp_path / name}: a pipe or a device, not a regular file" in message(READERS[reader], tmp_path / name)


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert picture_size(tmp_path / "pipe.jpg") is None and thumbnail(tmp_path / "pipe.jpg", tmp_path, tmp_path) is None


@pytest.mark.parametrize("reader", READERS)
def test_names_no_file_can_have(reader, tmp_path):
    for name in ("n" * 300, "zero\0byte"):
        assert "cannot be read" in message(READERS[reader], tmp_path / name)


def test_a_pipe_in_the_folder_to_resume_from(tmp_path):
    os.mkfifo(tmp_path / "checkpoint_7.pth.tar")
    save_checkpoint(state(), tmp_path / "checkpoint_1.pth.tar")
    said = []
    assert checkpoint.newest(tmp_path, said.append).name == "checkpoint_1.pth.tar"
    assert len(said) == 1 and "not a regular file" in said[0]


def test_a_link_to_a_checkpoint(tmp_path):
    save_checkpoint(state(), tmp_path / "x.pth.tar")
    (tmp_path / "link").symlink_to(tmp_path / "x.pth.tar")
    assert load_checkpoint(tmp_path / "link")["epoch"] == 1


def test_the_older_format_is_named_with_its_checksum(tmp_path, capsys):
    """A byte changed in it changes weights without a word; the user can compare."""
    path = tmp_path / "x.pth.tar"
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    load_checkpoint(path)
    wanted = f"{path}: the older file format has no checksums; compare its sha256, {sha256(path)}"
    assert wanted in capsys.readouterr().err
    torch.save(state(), path)
    load_checkpoint(path)
    assert capsys.readouterr().err == ""


def test_sha256_is_the_known_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_pickle_of_pythons_own_is_no_checkpoint(tmp_path):
    (tmp_path / "x.pth.tar").write_bytes(pickle.dumps({"epoch": 1}))
    assert "damaged" in message(load_checkpoint, tmp_path / "x.pth.tar")
