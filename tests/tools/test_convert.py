"""tools/convert.py: nothing is lost on the way to safetensors and back; features lose what float16 must."""

import argparse
import json
import os
import sys

import numpy as np
import pytest
import torch
from tiny import gsmn, message, same, shared, state

from checkpoints import checkpoint
from checkpoints.resume import capture_rng
from files import pickles
from tools import convert


def there_and_back(path, folder):
    """A checkpoint is the same after -> the JSON between."""
    pytest.importorskip("safetensors")
    between, after = folder / "a.safetensors", folder / "after.pth.tar"
    convert.main([str(path), str(between)])
    convert.main([str(between), str(after)])
    same(plain(pickles.read_torch_file(path)), pickles.read_torch_file(after))
    return json.loads(between.with_suffix(".json").read_text())


def plain(value):
    """OrderedDicts become dicts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if type(value) is list else value


def test_our_checkpoint(tmp_path):
    """The tensors have the model's names."""
    safetensors = pytest.importorskip("safetensors.torch")
    groups = [{"betas": (0.9, 0.999), "params": [0]}]
    more = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": groups},
        "extra": {"$tensor": "x", "inf": float("inf"), "nan": float("nan"), "no": None},
        "half": torch.ones(3).half(),
        "turned": torch.arange(6).view(2, 3).t(),
        "vocab": ["\xe9", "a"],
    }
    checkpoint.save_checkpoint(state(gsmn(), rng=capture_rng(), **more), tmp_path / "x.pth.tar")
    there_and_back(tmp_path / "x.pth.tar", tmp_path)
    tensors = safetensors.load_file(tmp_path / "a.safetensors")
    assert torch.equal(tensors["i2t_match_G.out_1.weight_g"], gsmn()[2]["out_1.weight_g"])
    assert {name.partition(".")[0] for name in tensors} > set(convert.PARTS[4])


def test_shared_memory_and_equal_names(tmp_path):
    """Two views of one tensor, and two places that would give one name."""
    base = torch.arange(4.0)
    full = {"a": {"b.c": base[:2], "b": {"c": base[1:]}}, "opt": argparse.Namespace(x=(1, [2, (3,)]))}
    torch.save(full, tmp_path / "x.pth.tar")
    there_and_back(tmp_path / "x.pth.tar", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "gsmn/model_dense/model_best.pth.tar",
        "gsmn/model_dense/model_best_legacyformat.pth.tar",
        "vsrn/f30k_precomp/checkpoint1_py2.pth.tar",
        "vsrn/coco_precomp/checkpoint2.pth.tar",
    ],
)
def test_released_files(name, tmp_path):
    outline = there_and_back(shared("golden") / name, tmp_path)
    assert outline["opt"]["$namespace"]["data_name"] in ("f30k_precomp", "coco_precomp")  # readable by eye


def test_what_cannot_be_converted(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    source, target, back = (str(tmp_path / name) for name in ("x.pth.tar", "x.safetensors", "y.pth.tar"))
    torch.save(state(), source)
    for pair in ([source, back], [target, str(tmp_path / "x.npy")]):
        assert "must end in" in message(convert.main, pair)
    convert.main([source, target])
    outline = (tmp_path / "x.json").read_text()
    for old, new in (("img_enc.fc.bias", "img_enc.fc.bios"), ("{", "")):
        (tmp_path / "x.json").write_text(outline.replace(old, new, 1))
        assert "x.json" in message(convert.main, [target, back])
    os.truncate(target, os.path.getsize(target) - 1)
    assert "damaged" in message(convert.main, [target, back])
    os.remove(target)
    assert f"{target}: no such file" in message(convert.main, [target, back])
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install safetensors" in message(convert.main, [source, str(tmp_path / "z.safetensors")])
    assert not os.path.exists(back)


@pytest.mark.parametrize("order", ["C", "F"])
def test_features(order, tmp_path):
    array = np.random.default_rng(0).normal(size=(700, 3, 4)).astype(np.float32)  # more than two chunks
    path = tmp_path / "dev_ims.npy"
    np.save(path, np.asarray(array, order=order))
    convert.halve(path, path)
    halved = np.load(path)
    assert halved.dtype == np.float16 and np.array_equal(halved, array.astype(np.float16))
    assert "float16" in message(convert.halve, path, path)


def test_nothing_is_replaced_without_being_asked(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    torch.save(state(), "x.pth.tar")
    np.save("x.npy", np.ones((2, 3, 4), np.float32))
    convert.main(["x.pth.tar", "y.safetensors"])
    for command in (["x.pth.tar", "y.safetensors"], ["y.safetensors", "x.pth.tar"], ["x.npy", "x.npy"]):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert f"{command[1]}: exists" in message(convert.main, command)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        convert.main([*command, "--overwrite"])
    os.remove("y.safetensors")
    assert "y.json: exists" in message(convert.main, ["x.pth.tar", "y.safetensors"])


@pytest.mark.parametrize("value", [1e5, np.nan, -np.inf])
def test_features_that_do_not_fit(value, tmp_path):
    array = np.ones((300, 3, 4), np.float32)
    array[280, 1, 2] = value
    path = tmp_path / "dev_ims.npy"
    np.save(path, array)
    before = path.read_bytes()
    assert "image 280" in message(convert.halve, path, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
