"""tools/check_data.py: what is missing for which model, exit codes, oddities found and counted."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from tiny import message

import data
from tools import check_data


@pytest.fixture
def check(tiny_data, capsys):
    """Runs the tool on the tiny data set -> (exit code, what it printed)."""

    def check(*flags):
        capsys.readouterr()
        where = ["--data_path", tiny_data.data_path, "--vocab_path", tiny_data.vocab_path]
        code = check_data.main([*where, "--data_name", tiny_data.data_name, *flags])
        check.said = capsys.readouterr()
        return code, check.said.out

    check.folder = tiny_data.folder
    return check


def change(path, how):
    """Replace an array by how(array), or set its items {place: value}."""
    array = np.load(path)
    if isinstance(how, dict):
        for place, value in how.items():
            array[place] = value
    np.save(path, array if isinstance(how, dict) else how(array))


def line_of(said, split, start):
    """The first line of a split's part of the report that begins with `start`."""
    part = said.split(f"\n{split}\n")[1].split("\n\n")[0]
    return next(line.strip() for line in part.split("\n") if line.strip().startswith(start))


def can_start(said):
    return {line.split(":")[0] for line in said.split("\n") if line.endswith(": training can start")}


WORDS = {"SCAN", "VSE++", "VSRN"}  # what reads features and words alone
ALL = {"GSMN sparse", "GSMN dense", *WORDS}


def test_complete_data(check):
    code, said = check()
    assert code == 0 and can_start(said) == ALL
    assert line_of(said, "train", "ims.npy").endswith("float32 (40, 4, 8), 5.25e-06 GB")
    assert "the ids of caps.txt, line for line" in said and "missing: names" in line_of(said, "dev", "imagename.txt")
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in check.folder.iterdir()}
    assert {line.split()[-1] for line in said.split("\n") if line.strip().startswith("sha256")} == digests
    assert "sha256" not in check("--no_checksum")[1]


@pytest.mark.parametrize(
    "missing, able",
    [
        (["train_caps.json"], {"GSMN dense", *WORDS}),
        (["dev_ims_bbx.npy"], WORDS),
        (["train_ims_size.npy"], WORDS),
        (["train_caps.txt"], {"GSMN sparse", "GSMN dense"}),
        (["dev_precaps_stan.txt"], ALL),  # ids are then made from the captions
        (["dev_precaps_stan.txt", "dev_caps.txt"], set()),
        (["train_ims.npy"], set()),
        (["test_ims.npy", "test_caps.txt"], ALL),  # not for training
        ([f"dev_{ending}" for ending in check_data.FILES if ending != "imagename.txt"], set()),
    ],
)
def test_what_is_missing(check, missing, able):
    for name in missing:
        (check.folder / name).unlink()
    code, said = check("--no_checksum")
    assert can_start(said) == able and code == (0 if able else 1)
    for way, flags in {"GSMN sparse": ["gsmn", "--is_sparse"], "GSMN dense": ["gsmn"], "VSRN": ["vsrn"]}.items():
        assert check("--quick", "--model", *flags)[0] == (0 if way in able else 1)


def test_flags(check, tmp_path):
    assert "--is_sparse" in message(check, "--is_sparse", "--model", "vsrn")
    assert "no such folder (--images)" in message(check, "--images", str(tmp_path / "none"))
    (check.folder / "train_ims_bbx.npy").unlink()
    assert check("--quick", "--model", "gsmn")[0] == 1
    assert check("--quick", "--model", "gsmn", "--boxes", "none")[0] == 0


def test_no_vocabulary_and_no_folder(check, tmp_path):
    (tmp_path / "vocab" / "tiny_precomp_vocab.json").unlink()
    code, said = check()
    assert code == 1 and "cannot start: no vocabulary" in said and "python vocab.py" in said
    with pytest.raises(check_data.InputError, match="no such folder"):
        check_data.main(["--data_path", str(tmp_path), "--data_name", "nothing"])


def test_nan_is_found_before_training_meets_it(check):
    change(check.folder / "train_ims.npy", {(3, 2, 1): np.nan, 7: np.inf})
    assert check("--quick")[0] == 0
    code, said = check()
    assert code == 1 and not can_start(said)
    assert "rows of features with NaN or infinity: 2 (first: row 3)" in said


def test_counts_of_odd_features(check, monkeypatch):
    """Features are read three images at a time."""
    x = np.load(check.folder / "train_ims.npy")
    same = {(1, 2): x[1, 0], (5, 3): x[5, 0], (5, 1): x[5, 0], (6, 1): 0, 38: 9, 39: x[0]}
    change(check.folder / "train_ims.npy", same)
    sizes, repeated = [], check_data.repeated
    monkeypatch.setattr(check_data, "repeated", lambda x: (sizes.append(x.shape), repeated(x))[1])
    monkeypatch.setattr(check_data, "CHUNK_BYTES", 3 * 4 * 4 * 8)
    code, said = check()
    assert code == 0 and sizes[:14] == [*[(3, 4)] * 13, (1, 4)] and f"values {x.min():.4g} to 9" in said
    assert "regions that repeat another of their image: 6 (first: row 1, region 2)" in said
    assert "regions all zero: 1 (first: row 6, region 1)" in said
    assert "images with the features of an earlier one: 1 (first: row 39)" in said


def test_a_row_for_each_caption(check, monkeypatch):
    """All rows are compared, those beyond the sample of training too."""
    change(check.folder / "train_ims.npy", lambda x: x.repeat(5, axis=0))
    code, said = check()
    assert code == 0 and "earlier one" not in said
    change(check.folder / "train_ims.npy", {(12, 0, 0): 9})
    code, said = check()
    assert code == 1 and "rows 10 to 14" in line_of(said, "train", "VSRN")
    monkeypatch.setattr(data, "COMPARED_IMAGES", 2)
    assert check("--quick")[0] == 0
    code, said = check()
    assert code == 1 and "of their image's five: 1 (first: row 12)" in line_of(said, "train", "VSRN")


def test_boxes_outside_their_image(check):
    path = check.folder / "train_ims_bbx.npy"
    change(path, {(2, 1): [90, 90, 203, 95], (3, 0): [10, 10, 10, 20]})  # image 2 is 202 wide
    code, said = check()
    assert code == 0 and can_start(said) == ALL
    assert "boxes that reach outside their image: 1 (first: row 2, region 1)" in said
    assert "boxes without area: 1 (first: row 3, region 0)" in said
    change(path, {(2, 1): [90, 90, 302, 95]})
    code, said = check()
    assert code == 0 and can_start(said) == WORDS and "lies outside its image" in said


def test_captions(check):
    path = check.folder / "train_caps.txt"
    lines = path.read_text().splitlines()
    lines[6], lines[8] = lines[5], "ein&nbsp;Hund ."
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = check()[1]
    assert "entities" in said and "--plain): 1 (first: line 9)" in said
    assert "captions with other ids than caps.txt gives with this vocabulary: 2 (first: line 7)" in said
    path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    said = check()[1]
    assert (
        "199 captions" in line_of(said, "train", "caps.txt") and "not the captions of caps.txt, which has 199" in said
    )
    assert can_start(said) == {"GSMN sparse", "GSMN dense"}


def test_unknown_words_and_bare_ids(check):
    path = check.folder / "dev_precaps_stan.txt"
    lines = path.read_text().splitlines()
    words = sum(line.count(",") - 1 for line in lines)
    lines[1] = ",".join(["1", *["3"] * (lines[1].count(",") - 1), "2"])
    lines[4] = lines[4].removeprefix("1,")
    path.write_text("\n".join(lines) + "\n")
    said = check("--model", "gsmn")[1]
    rate = 100 * (lines[1].count(",") - 1) / words
    assert f"{rate:.1f} % of the words <unk>" in line_of(said, "dev", "precaps_stan.txt")
    assert "captions not from <start> to <end>: 1 (first: line 5)" in said
    assert "captions with other ids than caps.txt gives with this vocabulary: 2 (first: line 2)" in said


def test_dependencies(check):
    path = check.folder / "train_caps.json"
    trees = json.loads(path.read_text())
    # a parser that does not parse hangs every word on the first
    path.write_text(json.dumps([[[0, 1], *([1, k] for k in range(2, len(tree) + 1))] for tree in trees]))
    assert "flat" in check("--no_checksum")[1]
    trees[3].append([2, 2])
    trees[4] = trees[4][1:]
    trees[9][-1][0] = 99
    path.write_text(json.dumps(trees))
    said = check("--no_checksum")[1]
    for what in (
        "captions with a word that depends on itself: 1 (first: caption 3)",
        "captions whose first pair is not ROOT's: 1 (first: caption 4)",
        "captions with words that depend on nothing: 1 (first: caption 4)",
        "captions with pairs outside their words, which are skipped: 1 (first: caption 9)",
    ):
        assert what in said and "flat" not in said


@pytest.mark.parametrize(
    "names, said",
    [
        ("aba", "not usable: {path}: 3 lines"),
        ("abcdefghia", "images whose name an earlier one has: 1 (first: image 9)"),
        ("abcdefghij", None),
        ([name for name in "abcdefghij" for _ in range(5)], None),  # a line for each caption
    ],
)
def test_names_that_do_not_fit(check, names, said):
    path = check.folder / "dev_imagename.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    found = check("--quick")[1].split("\ndev\n")[1].split("\n\n")[0]
    assert f"imagename.txt     {len(names)} names" in found
    assert said.format(path=path) in found if said else "not usable" not in found and "earlier one" not in found


def test_pictures_of_other_proportions_are_counted(check, tmp_path):
    """Sizes of image i are 200 + i x 100 + i; one picture is turned, one missing, one of another format."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        size = (100 + i, 200 + i) if i == 3 else (2 * (200 + i), 2 * (100 + i))
        Image.new("RGB", size).save(folder / f"{i}.jpg")
    (check.folder / "dev_imagename.txt").write_text("".join(f"{i}.jpg\n" for i in range(10)))
    code, said = check("--quick", "--images", str(folder))
    assert code == 0 and line_of(said, "dev", "--images").endswith("9 of 10 pictures")
    assert line_of(said, "dev", "not there") == "not there: 1 (first: 9.jpg)"
    assert "3.jpg is 103 x 203, the data set says 203 x 103" in line_of(said, "dev", "1 of 10 pictures")
    assert "no names of the images" in line_of(said, "train", "--images")
    (check.folder / "dev_imagename.txt").write_text("a\n")
    assert "dev_imagename.txt: " in line_of(check("--images", str(folder))[1], "dev", "--images")


def test_a_warning_comes_once(check):
    for split in ("train", "dev", "test", "testall"):
        (check.folder / f"{split}_precaps_stan.txt").unlink()
        (check.folder / f"{split}_caps.json").unlink()  # GSMN sparse cannot be opened, GSMN dense and VSRN are
        path = check.folder / f"{split}_caps.txt"
        path.write_text("".join(f"{line.encode()!r}\n" for line in path.read_text().splitlines()))
    said = check("--no_checksum")[1]
    assert "b'...'" in line_of(said, "dev", "captions are")
    warnings = [line for line in check.said.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == len(set(warnings)) == 8  # ids are made, and what the captions look like: for each split


def test_a_truncated_file_is_told(check):
    path = check.folder / "train_ims_size.npy"
    path.write_bytes(path.read_bytes()[:-40])
    code, said = check("--model", "gsmn")
    assert code == 1 and "train_ims_size.npy: truncated" in line_of(said, "train", "GSMN dense")
