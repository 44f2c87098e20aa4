"""Unusual input that is right works and gives the same numbers; wrong input found late, or by a worker, is one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import spoil
import torch
from spoil import TINY, all_of, array, bytes_of, flag, put, remove

import data
import train


def sims(script, flags, monkeypatch, capsys):
    """The similarity matrix of test.py -> (array, what it said on stderr)."""
    code, said = spoil.run(script, f"{flags} --save_sims sims.npy", monkeypatch, capsys)
    assert not code, said
    return np.load("sims.npy"), "\n".join(said)


def windows(content):
    return b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")


def a_row_each():
    """Features, boxes and sizes repeated for each caption."""
    for name in ("ims", "ims_bbx", "ims_size"):
        path = f"{TINY}/test_{name}.npy"
        np.save(path, np.load(path).repeat(5, axis=0))


def objects():
    """Sizes as the released files have them: pickled dicts."""
    path = f"{TINY}/test_ims_size.npy"
    np.save(path, np.array([{"image_w": int(w), "image_h": int(h)} for w, h in np.load(path).tolist()]))


OF_GSMN = "test_ims_bbx.npy", "test_ims_size.npy", "test_caps.json"
no_ids = remove("test_precaps_stan.txt")

# title: (script, what is changed, what is said, greatest difference)
SAME = {
    "float16": ("test", array("test_ims", lambda x: x.astype(np.float16)), "", 2e-3),
    "float64": ("test", array("test_ims", lambda x: x.astype(np.float64)), "", 0),
    "big endian": ("test vsrn", array("test_ims", lambda x: x.astype(">f4")), "", 0),
    "Fortran order": ("test", array("test_ims", np.asfortranarray), "stored in Fortran order, which is slow", 0),
    "Windows' ids": ("test", bytes_of("test_precaps_stan.txt", windows), "", 0),
    "Windows' captions": ("test", all_of(no_ids, bytes_of("test_caps.txt", windows)), "making the word ids", 0),
    "no newline at the end": ("test vsrn", bytes_of("test_caps.txt", lambda x: x.rstrip(b"\n")), "", 0),
    "a row for each caption": ("test", a_row_each, "", 0),
    "sizes in dicts": ("test", objects, "", 0),
    "float64 boxes": ("test", array("test_ims_bbx", lambda x: x.astype(np.float64)), "", 0),
    "vsrn: no other files": ("test vsrn", all_of(no_ids, remove(*OF_GSMN)), "", 0),
}


@pytest.mark.parametrize("title", SAME)
def test_the_same_in_another_form(title, place, monkeypatch, capsys):
    script, change, words, tolerance = SAME[title]
    expected, _ = sims(script, "", monkeypatch, capsys)
    change()
    found, said = sims(script, "", monkeypatch, capsys)
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)
    assert words in said and bool(words) == bool(said)


@pytest.mark.parametrize("script", ["test", "test vsrn"])
def test_a_split_with_one_image(script, place, monkeypatch, capsys):
    expected, _ = sims(script, "", monkeypatch, capsys)
    for name in ("ims", "ims_bbx", "ims_size"):
        array(f"test_{name}", lambda x: x[:1])()
    for name in ("caps.txt", "precaps_stan.txt"):
        bytes_of(f"test_{name}", lambda x: b"\n".join(x.split(b"\n")[:5]) + b"\n")()
    found, _ = sims(script, "--json metrics.json", monkeypatch, capsys)
    assert found.shape == (1, 5) and np.abs(found - expected[:1, :5]).max() < 1e-6
    assert '"rsum": 600.0' in Path("metrics.json").read_text()


@pytest.mark.parametrize("script", ["train", "train vsrn"])
@pytest.mark.parametrize(
    "flags", ["--batch_size 1", "--batch_size 39", "--batch_size 1000 --max_violation", "--accumulate 999999999"]
)
def test_batches_of_any_size(script, flags, place, monkeypatch, capsys):
    """One pair alone, a last batch of one, all in one, more parts than pairs; dev is far below 5,000 captions."""
    code, said = spoil.run(script, flags, monkeypatch, capsys)
    assert not code, said
    assert Path("run/ck/checkpoint_0.pth.tar").exists()


@pytest.mark.parametrize("script", ["train", "train vsrn"])
def test_a_vocabulary_that_knows_no_word(script, place, monkeypatch, capsys):
    words = spoil.vocab.Vocabulary([*spoil.vocab.SPECIAL, "zebra"])
    spoil.vocab.serialize_vocab(words, "vocab/tiny_precomp_vocab.json")
    remove("train_precaps_stan.txt", "dev_precaps_stan.txt")()
    code, said = spoil.run(script, "", monkeypatch, capsys)
    assert not code and f"{TINY}/train_caps.txt: 100 % of the words are <unk>" in "\n".join(said)


# ---- found late


@pytest.mark.parametrize("script", ["train", "train vsrn", "test", "test vsrn"])
def test_broken_features_found_by_a_worker(script, place, monkeypatch, capsys, workers_end):
    """Files too large to be looked through beforehand: the row is named when a worker reads it."""
    monkeypatch.setattr(data, "CHECKED_BYTES", 0)
    split = script.split()[0]
    array(f"{split}_ims", put(np.nan, 3, 1, 2))()
    code, said = spoil.run(script, "--workers 2", monkeypatch, capsys)
    assert code == 2 and len(said) == 1
    assert said[0].startswith(f"error: {TINY}/{split}_ims.npy, row 3: NaN or infinity")
    assert not list(Path(".").glob("run/ck/*.tar"))


def test_a_run_moves_to_another_machine(place, monkeypatch, capsys, caplog):
    """Trained on a GPU that is not here, its data elsewhere: resumed and evaluated all the same."""
    assert not spoil.run("train", "", monkeypatch, capsys)[0]
    path = "run/ck/checkpoint_0.pth.tar"
    flag(path, "device", "cuda:77")()
    flag(path, "data_path", "gone")()
    shutil.copy(path, "moved.pth.tar")
    with caplog.at_level("WARNING"):
        train.main("--resume moved.pth.tar --data_path data --num_epochs 2 --logger_name b --model_name b".split())
    assert "--device: cuda:77" in caplog.text and "--data_path: gone in the checkpoint" in caplog.text
    assert torch.load("b/checkpoint_1.pth.tar", weights_only=False)["opt"].data_path == "data"
    found, _ = sims("test", "--model_path moved.pth.tar", monkeypatch, capsys)
    assert found.shape == (4, 20)
