"""testall.py --eccv: the scores are those of the package called directly; COCO's numbers are found or asked for."""

import json
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
from tiny import make_tiny, message, shared, write_model

import testall
from reporting import eccv
from tools import coco_ids

package = pytest.importorskip("eccv_caption")
IMAGES = [7, 3, 11, 5, 2, 19, 13, 17, 23, 29]  # COCO's numbers of ten images, and of their captions
CAPTIONS = [100 * image + 7 * k % 5 for image in IMAGES for k in range(5)]
WAYS = "image_to_caption", "caption_to_image"
OWNER = dict(zip(CAPTIONS, np.repeat(IMAGES, 5).tolist()))


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """The package with ten images: each query of ECCV and CxC has further right answers."""
    rng = np.random.default_rng(0)
    i2t = {image: [c for c in CAPTIONS if OWNER[c] == image] for image in IMAGES}
    t2i = {caption: [image] for caption, image in OWNER.items()}

    def more(table, pool, queries):
        return {q: [*table[q], *rng.choice([x for x in pool if x not in table[q]], 4, False).tolist()] for q in queries}

    tables = {
        "coco": (i2t, t2i),
        "cxc": (more(i2t, CAPTIONS, IMAGES), more(t2i, IMAGES, CAPTIONS[3:])),
        "eccv": (more(i2t, CAPTIONS, IMAGES[2:]), more(t2i, IMAGES, CAPTIONS[::4])),
        "pm": (more(i2t, CAPTIONS, IMAGES), more(t2i, IMAGES, CAPTIONS)),
    }
    for name, pair in tables.items():
        for way, table in zip(WAYS, pair):
            (tmp_path / f"{name}_{way}.json").write_text(json.dumps(table))

    class Small(package.Metrics):
        def __init__(self):
            self.verbose, self.pm_gts, self.coco_ids = False, {}, np.zeros(25000, int)
            for name in ("coco", "cxc", "eccv"):
                getattr(self, f"set_{name}_gts")(*(str(tmp_path / f"{name}_{way}.json") for way in WAYS))

    monkeypatch.setattr(package, "Metrics", Small)
    return tmp_path


def split(folder, name="testall", captions=None, n=50):
    made = MagicMock(folder=folder, split=name, captions=captions)
    made.__len__.return_value = n
    return made


def checked(dataset):
    scores = eccv.Eccv()
    scores.check(dataset)
    return scores


def write_ids(folder, numbers):
    (folder / "testall_cocoids.txt").write_text("".join(f"{number}\n" for number in numbers))


def test_scores_are_the_packages(answers, capsys):
    """Against the package with whole lists, sorted in the plainest way."""
    sims = np.random.default_rng(1).normal(size=(10, 50)).astype(np.float32)
    write_ids(answers, CAPTIONS)
    checked(split(answers)).add(result := {}, {"full": [sims]})

    i2t = {g: [CAPTIONS[c] for c in sorted(range(50), key=lambda c: -row[c])] for g, row in zip(IMAGES, sims)}
    t2i = {c: [IMAGES[g] for g in sorted(range(10), key=lambda g: -row[g])] for c, row in zip(CAPTIONS, sims.T)}
    direct = package.Metrics()
    names = ("eccv_r1", "eccv_map_at_r", "eccv_rprecision", "cxc_recalls")
    expected = direct.compute_all_metrics(i2t, t2i, names, (1, 5, 10))
    direct.set_pm_gts(*(str(answers / name) for name in eccv.PLAUSIBLE))
    expected["pmrp"] = direct.pmrp({"i2t": i2t, "t2i": t2i}, "all")
    assert result["eccv"] == expected and len({str(one) for one in expected.values()}) > 5
    figures = [f"{100 * expected['pmrp'][way]:.1f}" for way in ("i2t", "t2i")]
    assert "PMRP: image to text {}, text to image {}\n".format(*figures) in capsys.readouterr().out


def test_from_the_command_line(answers, tmp_path, capsys):
    """The 5K's similarities are scored, beside the usual figures, and stand in the json."""
    tiny = make_tiny(tmp_path / "tiny", splits={"testall": 10})
    write_model(tiny, tmp_path / "m.pth.tar")
    write_ids(tiny.folder, CAPTIONS)
    flags = ["--model_path", str(tmp_path / "m.pth.tar"), "--device", "cpu", "--ranks=", "--eccv"]
    testall.main([*flags, "--json", str(tmp_path / "m.json"), "--save_sims", str(tmp_path / "sims.npy")])
    said, (result,) = capsys.readouterr(), json.loads((tmp_path / "m.json").read_text())
    checked(split(tiny.folder)).add(again := {}, {"full": [np.load(tmp_path / "sims.npy")]})
    assert result["eccv"] == again["eccv"] and "pmrp" not in again["eccv"]
    assert eccv.PLAUSIBLE[0] in said.err and "ECCV" in said.out and "full" in result
    (tiny.folder / "testall_cocoids.txt").unlink()
    assert "testall_cocoids.txt" in message(testall.main, flags) and "Computing" not in capsys.readouterr().out


def test_numbers_that_do_not_fit_are_told(answers):
    for place, numbers, words in (
        (49, [], "49 captions"),
        (2, ["x", *CAPTIONS[3:]], "line 3"),
        (4, [12, *CAPTIONS[5:]], "caption 4,"),
        (4, [CAPTIONS[5], CAPTIONS[4], *CAPTIONS[6:]], "caption 4,"),
        (45, CAPTIONS[:5], "caption 45,"),
    ):
        write_ids(answers, [*CAPTIONS[:place], *numbers])
        said = message(checked, split(answers))
        assert "testall_cocoids.txt" in said and words in said
    write_ids(answers, CAPTIONS)
    for text in ("{", "[]", '{"12": [3]}'):
        (answers / eccv.PLAUSIBLE[1]).write_text(text)
        assert eccv.PLAUSIBLE[1] in message(checked, split(answers))


def test_other_splits_and_a_missing_package_are_told_at_once(answers, monkeypatch):
    """Not after COCO's numbers have been asked for, which would lead nowhere."""
    assert "--split testall" in message(checked, split(answers, "test", n=10))
    assert "--split" in message(testall.main, ["--eccv", "--split", "dev", "--model_path", "."])
    monkeypatch.setitem(sys.modules, "eccv_caption", None)
    assert "pip install eccv_caption" in message(testall.main, ["--eccv", "--model_path", __file__])


def test_published_order(tmp_path, capsys):
    """SCAN's testall has the package's own order; other captions of that number do not."""
    texts = shared("real/coco_precomp/testall_caps.txt").read_text().splitlines()
    scores = checked(split(tmp_path, captions=texts, n=25000))
    assert scores.captions == scores.metrics.coco_ids.tolist()
    assert len(set(scores.images)) == 5000
    moved = split(tmp_path, captions=texts[5:] + texts[:5], n=25000)
    assert "testall_cocoids.txt" in message(scores.check, moved)
    scores.check(split(tmp_path, n=25000))
    assert "order" in capsys.readouterr().err


def test_pictures_know_their_numbers(answers):
    (answers / "annotations").mkdir()
    order = [c for image in sorted(IMAGES) for c in CAPTIONS if OWNER[c] == image]
    np.save(answers / "annotations/coco_test_ids.npy", order)
    scores = checked(split(answers))
    assert scores.captions == order and scores.images == sorted(IMAGES)


# ---- tools/coco_ids.py


@pytest.fixture
def annotated(tmp_path, monkeypatch):
    """Ten images' captions in another order than the annotations', some texts of several images."""

    def text(caption):
        k = CAPTIONS.index(caption) % 5
        return ("A man, riding a wave." if k < 2 else f"The {OWNER[caption]}th picture -- no. {k}").title()

    annotations = [{"id": c, "image_id": OWNER[c], "caption": text(c)} for c in sorted(CAPTIONS)]
    images = [{"id": image, "file_name": f"{image}.jpg"} for image in IMAGES]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    folder = tmp_path / "data" / "coco_precomp"
    folder.mkdir(parents=True)
    (folder / "testall_caps.txt").write_text("".join(f"{text(c).lower()} .\n" for c in CAPTIONS))
    monkeypatch.chdir(tmp_path)
    return folder


def test_numbers_are_found_by_the_texts(annotated, capsys):
    coco_ids.main(["captions.json", "--data_name", "coco_precomp"])
    assert "testall_cocoids.txt: 50 captions" in capsys.readouterr().out
    found = list(map(int, (annotated / "testall_cocoids.txt").read_text().split()))
    assert [OWNER[c] for c in found] == [OWNER[c] for c in CAPTIONS]
    for five, true in zip(np.reshape(found, (10, 5)), np.reshape(CAPTIONS, (10, 5))):
        assert five[2:].tolist() == true[2:].tolist() and set(five) == set(true)  # the first two read the same


def test_captions_without_numbers_are_told(annotated):
    def told():
        return message(coco_ids.main, ["captions.json", "--data_name", "coco_precomp"])

    source = annotated / "testall_caps.txt"
    lines = source.read_text().splitlines()
    source.write_text("\n".join([*lines[:7], "something else", *lines[8:]]) + "\n")
    assert "testall_caps.txt, lines 6 to 10" in told()
    annotated.parents[1].joinpath("captions.json").write_text('{"images": [], "annotations": []}')
    assert "captions.json" in told() and not (annotated / "testall_cocoids.txt").exists()
