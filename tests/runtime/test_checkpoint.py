"""Reading checkpoints: released and own files come out alike; what is none is refused in one line."""

import argparse
import io
import tarfile
import zipfile
from collections import OrderedDict

import pickle_samples
import pytest
import torch
from tiny import gsmn, message, same, shared, state, vsrn

from checkpoints import checkpoint
from checkpoints.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint

# ---- released files


@pytest.mark.parametrize(
    "name, model, vocab_size, epoch, best",
    [
        ("gsmn/model_dense/model_best.pth.tar", "gsmn", 50, 6, 355.0),
        ("gsmn/model_sparse/model_best.pth.tar", "gsmn", 50, 6, 407.0),
        ("vsrn/f30k_precomp/checkpoint1.pth.tar", "vsrn", 59, 40, 213.0),
        ("vsrn/f30k_precomp/checkpoint2.pth.tar", "vsrn", 59, 40, 258.0),
        ("vsrn/coco_precomp/checkpoint1.pth.tar", "vsrn", 60, 40, 248.0),
        ("vsrn/coco_precomp/checkpoint2.pth.tar", "vsrn", 60, 40, 215.0),
    ],
)
def test_released_files(name, model, vocab_size, epoch, best):
    found = load_checkpoint(shared("golden") / name)
    assert len(found["model"]) == {"gsmn": 4, "vsrn": 2}[model]
    assert (found["opt"].model, found["opt"].vocab_size) == (model, vocab_size)
    assert (found["epoch"], found["best_rsum"]) == (epoch, best)
    if model == "gsmn":
        assert {"out_1.weight_g", "out_1.weight_v"} < found["model"][2].keys()
        assert (found["opt"].propagation, found["opt"].boxes) == ("self", "normalized")


@pytest.mark.parametrize(
    "old, new",
    [
        ("gsmn/model_dense/model_best_legacyformat.pth.tar", "gsmn/model_dense/model_best.pth.tar"),
        ("vsrn/f30k_precomp/checkpoint1_py2.pth.tar", "vsrn/f30k_precomp/checkpoint1.pth.tar"),
        ("vsrn/coco_precomp/checkpoint1_py2.pth.tar", "vsrn/coco_precomp/checkpoint1.pth.tar"),
    ],
)
def test_formats_hold_the_same(old, new):
    """Python 2's dicts have no order; all else is equal."""
    old, new = (load_checkpoint(shared("golden") / name) for name in (old, new))
    assert old["opt"] == new["opt"]
    same(old["model"], new["model"])
    assert all(old[key] == new[key] for key in ("epoch", "best_rsum", "Eiters"))


@pytest.mark.parametrize("data_path", ["/data", "/donn\xe9es"])  # latin-1 bytes, which are not UTF-8
@pytest.mark.parametrize("model", [gsmn, vsrn])
def test_python2_file(model, data_path, tmp_path):
    before = state(model(), opt=argparse.Namespace(data_path=data_path, bi_gru=True))
    pickle_samples.torch_save(before, tmp_path / "x.pth.tar", legacy=True, pickler=pickle_samples.Python2Pickler)
    after = load_checkpoint(tmp_path / "x.pth.tar")
    same(before["model"], after["model"])
    assert after["opt"].model == model.__name__ and after["opt"].bi_gru is True
    assert after["opt"].data_path == data_path and type(after["opt"].data_path) is str


def test_file_from_a_gpu(tmp_path):
    """Tensors saved on a CUDA device that is not here come out on the CPU."""
    source, target = tmp_path / "cpu.pth.tar", tmp_path / "gpu.pth.tar"
    torch.save(state(), source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name).replace(pickle_samples.text("cpu"), pickle_samples.text("cuda:3"))
            new.writestr(name, data)
    assert b"cuda:3" in target.read_bytes()
    same(load_checkpoint(target)["model"], gsmn())


# ---- one form for all


def test_defaults_replace_only_what_is_missing(tmp_path):
    known = {"propagation": "neighbors", "boxes": "none", "vocab_size": 9}
    for model, opt, expected in ((gsmn(), known, {"model": "gsmn", **known}), (vsrn(), {}, {"vocab_size": 7})):
        torch.save({"model": model, "opt": argparse.Namespace(**opt)}, tmp_path / "x.pth.tar")
        found = load_checkpoint(tmp_path / "x.pth.tar")
        assert (found["epoch"], found["best_rsum"], found["Eiters"]) == (0, 0.0, 0)
        assert expected.items() <= vars(found["opt"]).items()


def test_data_parallel_names(tmp_path):
    parts = [OrderedDict(("module." + name, value) for name, value in part.items()) for part in gsmn()]
    parts[0] = OrderedDict({"cnn.module.0.weight": torch.ones(1), "fc.weight": torch.ones(1)})
    caption = {"module.decoder.out.weight": torch.ones(2)}
    save_checkpoint(state(parts, caption_model=caption), tmp_path / "x.pth.tar")
    found = load_checkpoint(tmp_path / "x.pth.tar")
    assert list(found["model"][0]) == ["cnn.0.weight", "fc.weight"]
    same([dict(part) for part in found["model"][1:]], [dict(part) for part in gsmn()[1:]])
    assert list(found["further"]["caption_model"]) == ["decoder.out.weight"]


# ---- what is no checkpoint


def saved(content, legacy=False):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def zip_of(name, compression):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, bytes(1 << 20))
    return file.getvalue()


def flipped():
    """One bit of a weight, which torch.load would not notice."""
    weight = gsmn()[0]["fc.weight"].numpy().tobytes()
    return saved(state()).replace(weight, bytes([weight[0] ^ 1]) + weight[1:])


BAD = {
    "empty": (b"", "empty"),
    "gzip": (b"\x1f\x8b\x08\x00", "unpack"),
    "tar": (tarfile.TarInfo("checkpoint.pth.tar").tobuf(), "unpack"),
    "npy": (b"\x93NUMPY\1\0", "NUMPY"),
    "text": (b"hello world", "not a checkpoint"),
    "zip": (zip_of("model/checkpoint.pth.tar", zipfile.ZIP_STORED), "unpack"),
    "zip that unpacks to far more": (zip_of("x/data.pkl", zipfile.ZIP_DEFLATED), "data.pkl is compressed"),
    "zip cut off": (saved(state())[:-50], "damaged"),
    "old cut off": (saved(state(), legacy=True)[:-50], "damaged"),
    "flipped bit": (flipped(), "checksum"),
    "a list": (saved(gsmn()), "list"),
    "no model": (saved({"opt": argparse.Namespace()}), "'model'"),
    "ranks": (saved({"rt": (torch.ones(3),), "rti": (torch.ones(3),)}), "'opt'"),
    "newer": (saved(state(format=checkpoint.FORMAT + 1)), "update"),
    "SCAN": (saved(state(gsmn()[:2])), "2 state dicts"),
    "a name twice": (saved(state([{"a": torch.ones(1), "module.a": torch.zeros(1)}, {}, {}, {}])), "'module.'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file(case, tmp_path):
    content, expected = BAD[case]
    path = tmp_path / "model_best.pth.tar"
    path.write_bytes(content)
    found = message(load_checkpoint, path)
    assert expected in found and found.startswith(f"{path}: ")


# ---- which file is meant


@pytest.mark.parametrize("place", [".", "checkpoint"])
def test_a_folder_of_a_run(place, tmp_path):
    """The best one to evaluate, the newest to resume; in the run's folder, or in the folder checkpoint in it."""
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    save_checkpoint(state(), folder / "ranks.pth.tar")
    for resume in (False, True):
        assert f"{tmp_path}: no model_best.pth.tar" in message(find_checkpoint, tmp_path, resume)
    save_checkpoint(state(epoch=1), folder / "checkpoint_0.pth.tar")
    assert find_checkpoint(str(tmp_path)) == find_checkpoint(tmp_path, resume=True) == folder / "checkpoint_0.pth.tar"
    save_checkpoint(state(epoch=5), folder / "model_best.pth.tar")
    save_checkpoint(state(epoch=2), folder / "checkpoint_1.pth.tar")
    assert find_checkpoint(tmp_path) == folder / "model_best.pth.tar" and load_checkpoint(tmp_path)["epoch"] == 5
    assert find_checkpoint(tmp_path, resume=True) == folder / "checkpoint_1.pth.tar"
