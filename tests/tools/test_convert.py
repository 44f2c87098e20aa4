"""tools/convert.py: nothing is lost on the way to safetensors and back; features lose what float16 must."""

import argparse
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import gsmn, message, same, shared, state, vsrn

from checkpoints import checkpoint
from files import pickles
from tools import convert


def there_and_back(path, folder):
    """The content of a checkpoint before and after, and the JSON between."""
    pytest.importorskip("safetensors")
    between, after = folder / "a.safetensors", folder / "after.pth.tar"
    convert.main(["checkpoint", str(path), str(between)])
    convert.main(["checkpoint", str(between), str(after)])
    return (
        pickles.read_torch_file(path),
        pickles.read_torch_file(after),
        json.loads(between.with_suffix(".json").read_text()),
    )


def test_our_checkpoint(tmp_path):
    groups = [{"betas": (0.9, 0.999), "params": [0]}]
    more = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": groups},
        "extra": {"$tensor": "x", "inf": float("inf"), "nan": float("nan"), "no": None},
        "half": torch.ones(3).half(),
        "turned": torch.arange(6).view(2, 3).t(),
        "vocab": ["\xe9", "a"],
    }
    full = state(gsmn(), rng=checkpoint.capture_rng(), **more)
    checkpoint.save_checkpoint(full, tmp_path / "x.pth.tar")
    before, after, _ = there_and_back(tmp_path / "x.pth.tar", tmp_path)
    same(before, after)


def test_names_are_the_models(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch.save(state(gsmn()), tmp_path / "x.pth.tar")
    there_and_back(tmp_path / "x.pth.tar", tmp_path)
    tensors = safetensors.load_file(tmp_path / "a.safetensors")
    assert torch.equal(tensors["i2t_match_G.out_1.weight_g"], gsmn()[2]["out_1.weight_g"])
    assert {name.partition(".")[0] for name in tensors} == set(convert.PARTS[4])


def test_metadata_of_state_dicts(tmp_path):
    """torch keeps format versions of layers in an attribute."""
    torch.save(state([torch.nn.BatchNorm1d(2).state_dict(), *vsrn()[1:]]), tmp_path / "x.pth.tar")
    before, after, _ = there_and_back(tmp_path / "x.pth.tar", tmp_path)
    same(before["model"][0]._metadata, after["model"][0]._metadata)
    assert before["model"][0]._metadata[""]["version"] == 2
    assert type(after["model"][0]) is OrderedDict


def test_shared_memory_and_equal_names(tmp_path):
    """Two views of one tensor, and two places that would give one name."""
    base = torch.arange(4.0)
    full = {"a": {"b.c": base[:2], "b": {"c": base[1:]}}, "opt": argparse.Namespace(x=(1, [2, (3,)]))}
    torch.save(full, tmp_path / "x.pth.tar")
    before, after, _ = there_and_back(tmp_path / "x.pth.tar", tmp_path)
    same(before, after)


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
    before, after, outline = there_and_back(shared("golden") / name, tmp_path)
    same(before, after)
    assert outline["opt"]["$namespace"]["data_name"] == before["opt"].data_name  # readable by eye


def test_scan_file(tmp_path):
    """A sibling's file, which our models cannot use, converts all the same."""
    torch.save(state(gsmn()[:2]), tmp_path / "x.pth.tar")
    before, after, _ = there_and_back(tmp_path / "x.pth.tar", tmp_path)
    same(before, after)


def test_messages(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    source, target = tmp_path / "x.pth.tar", tmp_path / "x.safetensors"
    torch.save(state(), source)
    assert "must end in .safetensors" in message(convert.main, ["checkpoint", str(source), "y.pth.tar"])
    convert.main(["checkpoint", str(source), str(target)])
    back = ["checkpoint", str(target), str(tmp_path / "y.pth.tar")]
    outline = target.with_suffix(".json").read_text()
    target.with_suffix(".json").write_text(outline.replace("img_enc.fc.bias", "img_enc.fc.bios"))
    assert "does not belong to" in message(convert.main, back)
    target.write_bytes(target.read_bytes()[:-1])
    assert "damaged or no safetensors file" in message(convert.main, back)
    target.unlink()
    assert f"{target}: no such file" in message(convert.main, back)
    os.mkfifo(target)
    assert f"{target}: a pipe or a device, not a regular file" in message(convert.main, back)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    again = ["checkpoint", str(source), str(tmp_path / "z.safetensors")]
    assert "pip install safetensors" in message(convert.main, again)
    assert not (tmp_path / "y.pth.tar").exists()


def features(folder, array, split="dev"):
    path = folder / "tiny" / f"{split}_ims.npy"
    path.parent.mkdir()
    np.save(path, array)
    return path, ["features", "--data_path", str(folder), "--data_name", "tiny", "--split", split]


@pytest.mark.parametrize("order", ["C", "F"])
def test_features(order, tmp_path):
    array = np.random.default_rng(0).normal(size=(700, 3, 4)).astype(np.float32)  # more than two chunks
    path, _ = features(tmp_path, np.asarray(array, order=order))
    stated = convert.halve(path, path)
    halved = np.load(path)
    assert halved.dtype == np.float16 and np.array_equal(halved, array.astype(np.float16))
    normal = np.abs(array) >= np.finfo(np.float16).tiny
    error = np.abs(halved.astype(np.float64) / array - 1)[normal].max()
    assert stated == pytest.approx(error, rel=1e-3) and error <= 2**-11


def test_nothing_is_replaced_without_being_asked(tmp_path, capsys):
    """Originals stay as they are; a file in the way is an error until --overwrite."""
    path, command = features(tmp_path, np.ones((2, 3, 4), np.float32))
    convert.main(command)
    beside = path.with_name("dev_ims_float16.npy")
    assert np.load(path).dtype == np.float32 and np.load(beside).dtype == np.float16
    assert f"put it in the place of {path}" in capsys.readouterr().out
    assert message(convert.main, command) == f"{beside}: exists; give another name, or --overwrite to replace it"
    in_place = [*command, "--output", str(path)]
    assert message(convert.main, in_place) == f"{path}: exists; give another name, or --overwrite to replace it"
    convert.main([*in_place, "--overwrite"])
    assert np.load(path).dtype == np.float16


@pytest.mark.parametrize("name", ["y.safetensors", "y.json"])
def test_converted_checkpoints_replace_nothing(name, tmp_path):
    pytest.importorskip("safetensors")
    torch.save(state(), tmp_path / "x.pth.tar")
    (tmp_path / name).write_text("mine")
    command = ["checkpoint", str(tmp_path / "x.pth.tar"), str(tmp_path / "y.safetensors")]
    assert (
        message(convert.main, command) == f"{tmp_path / name}: exists; give another name, or --overwrite to replace it"
    )
    assert (tmp_path / name).read_text() == "mine"
    convert.main([*command, "--overwrite"])
    back = ["checkpoint", str(tmp_path / "y.safetensors"), str(tmp_path / "x.pth.tar")]
    assert "x.pth.tar: exists" in message(convert.main, back)


@pytest.mark.parametrize("value, text", [(1e5, "100000"), (np.nan, "nan"), (-np.inf, "-inf")])
def test_features_that_do_not_fit(value, text, tmp_path):
    array = np.ones((300, 3, 4), np.float32)
    array[280, 1, 2] = value
    path, command = features(tmp_path, array)
    before = path.read_bytes()
    assert f"{path}, image 280: {text} does not fit into float16" in message(convert.main, command)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_features_halved_before(tmp_path):
    path, command = features(tmp_path, np.ones((2, 3, 4), np.float16))
    assert f"{path}: float16, only float32" in message(convert.main, command)


def test_command_line(tmp_path):
    """The script runs from any folder, and a mistake is one line and exit code 2."""
    script = Path(convert.__file__)
    run = subprocess.run(
        [sys.executable, script, "features", "--data_name", "none", "--split", "dev"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and run.stderr == "error: data/none/dev_ims.npy: no such file\n"
