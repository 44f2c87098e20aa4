"""files/identity.py: the same items are told from other ones and from another order, whatever file they come from."""

import shutil

import numpy as np
import pytest
from tiny import VSRN, make_tiny, small_opt

import data
from files.identity import data_identity, difference
from vocab import load_vocab

IMAGES = 50


@pytest.fixture
def tiny(tmp_path):
    made = make_tiny(tmp_path, splits={"test": IMAGES})
    (made.folder / "test_imagename.txt").write_text("".join(f"COCO_val2014_{i:012}.jpg\n" for i in range(IMAGES)))
    return made


def identity(tiny, folder="tiny_precomp", **changes):
    words = load_vocab(tiny.vocab_path, tiny.data_name)
    opt = small_opt(data_path=tiny.data_path, **changes)
    return data_identity(data.open_split("test", folder, words, opt))


def copied(tiny, order=range(IMAGES)):
    """A copy of the data, its images in another order -> the name of its folder."""
    other = tiny.folder.with_name("other_precomp")
    shutil.copytree(tiny.folder, other)
    for path in other.glob("*.npy"):
        np.save(path, np.load(path)[order])
    for path in other.glob("*.txt"):
        images = np.reshape(path.read_text().splitlines(), (IMAGES, -1))  # their names, or five lines each
        path.write_text("\n".join(images[order].ravel()) + "\n")
    return other.name


@pytest.mark.parametrize("leave_out", [(), ("caps",), ("imagename",), ("caps", "imagename")])
def test_another_order_is_told(tiny, leave_out):
    name = copied(tiny, np.random.default_rng(0).permutation(IMAGES))
    for left in leave_out:
        (tiny.folder.with_name(name) / f"test_{left}.txt").unlink()
    other = identity(tiny, name)
    assert "another order" in difference(identity(tiny), other)
    assert difference(other, other) == ""


def test_the_same_items_from_other_files(tiny):
    """Word ids of another vocabulary, no texts, other spellings of texts and names, features of another extractor."""
    first = identity(tiny)
    name = copied(tiny)
    folder = tiny.folder.with_name(name)
    texts = (folder / "test_caps.txt").read_text()
    (folder / "test_caps.txt").write_text(texts.upper().replace(" .", "."))
    (folder / "test_imagename.txt").write_text("".join(f"photos/{i:012}.png\n" for i in range(IMAGES)))
    np.save(folder / "test_ims.npy", np.load(folder / "test_ims.npy") * 2)
    assert difference(first, identity(tiny, name)) == difference(first, identity(tiny, name, **VSRN)) == ""
    assert "features" in difference(first, identity(tiny, name), features=True)
    (folder / "test_caps.txt").unlink()
    (folder / "test_imagename.txt").unlink()
    assert difference(first, {**identity(tiny, name), "vocabulary": "other", "ids": "other"}) == ""


def test_other_items(tiny, tmp_path):
    fewer = make_tiny(tmp_path / "fewer", splits={"test": 10})
    first, name = identity(tiny), copied(tiny)
    assert "10 images" in difference(identity(fewer), first)
    captions = tiny.folder.with_name(name) / "test_caps.txt"
    lines = captions.read_text().splitlines()
    captions.write_text("\n".join([*lines[:-1], "a red dog"]) + "\n")
    assert "captions" in difference(first, identity(tiny, name))
    captions.write_text("\n".join(lines) + "\n")
    names = tiny.folder.with_name(name) / "test_imagename.txt"
    names.write_text(names.read_text().replace("0007", "0077"))
    assert "images" in difference(first, identity(tiny, name))
