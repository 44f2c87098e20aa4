"""The demo data: same bytes again, files that agree with each other, captions true of their scenes."""

import itertools
import json
import re
import shlex
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageColor
from tiny import message

from checkpoints.evaluation_options import eval_parser
from files.arrays import read_sizes
from systems.options import train_options
from tools import demo as command
from tools import make_demo as tool
from tools.make_demo import ATTRIBUTES, COLOURS, Scene, Thing, region_features
from tools.own_data.parsers import is_tree, pairs_of
from vocab import build_vocab, deserialize_vocab, encode, tokenize

NAME = tool.NAME
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
SPLITS = {"train": 13, "dev": 6, "testall": 25, "test": 5}
TWINS = {"train": 6, "dev": 4, "testall": 10, "test": 2}
each_split = pytest.mark.parametrize("split", SPLITS)


def make(out, *more):
    sizes = "--n_train 13 --n_dev 6 --n_testall 25 --regions 12 --img_dim 16"
    tool.main(["--out", str(out), *sizes.split(), *more])
    return out


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made") / "demo")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(demo, split, name):
    path = demo / "data" / NAME / f"{split}_{name}"
    if path.suffix == ".npy":
        return np.load(path)
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_text().splitlines()


def scenes_of(demo, split):
    """(entry of scenes.json, its Scene) of each scene."""
    for item in load(demo, split, "scenes.json"):
        things = tuple(Thing(**{**thing, "box": tuple(thing["box"])}) for thing in item["things"])
        yield item, Scene(item["width"], item["height"], things)


def test_same_flags_same_bytes(demo, tmp_path):
    first = content(demo)
    other = content(make(tmp_path / "again", "--seed=1"))
    assert other.keys() == first.keys()
    assert {path.name for path in first if first[path] == other[path]} == {f"{s}_imagename.txt" for s in SPLITS}
    assert content(make(tmp_path / "again")) == first  # replaces the files of the one made before


@each_split
def test_files_of_a_split_agree(demo, split):
    n, vocab = SPLITS[split], deserialize_vocab(demo / "vocab" / f"{NAME}_vocab.json")
    boxes, w_h = load(demo, split, "ims_bbx.npy"), read_sizes(demo / "data" / NAME / f"{split}_ims_size.npy")
    assert load(demo, split, "ims.npy").shape == (n, 12, 16) and boxes.shape == (n, 12, 4)
    assert (boxes >= 0).all() and (boxes <= np.tile(w_h, 2)[:, None]).all()
    assert (boxes[..., 2:] - boxes[..., :2] > 1).all()
    texts, ids = load(demo, split, "caps.txt"), load(demo, split, "precaps_stan.txt")
    assert len(texts) == len(ids) == len(load(demo, split, "caps.json")) == 5 * n
    assert split != "test" or texts == load(demo, "testall", "caps.txt")[: len(texts)]
    assert vocab.word2idx == build_vocab(demo / "data", NAME).word2idx
    for text, numbers in zip(texts, ids):
        assert text == text.lower() == " ".join(tokenize(text))
        assert [int(i) for i in numbers.split(",")] == encode(text, vocab)


def test_every_thing_has_a_region_and_is_in_the_picture(demo):
    boxes, names = load(demo, "train", "ims_bbx.npy"), load(demo, "train", "imagename.txt")
    for regions, name, (item, scene) in zip(boxes, names, scenes_of(demo, "train")):
        picture = Image.open(demo / "images" / name)
        assert picture.size == (item["width"], item["height"]) and picture.mode == "RGB"
        for thing in scene.things:
            low, high = np.maximum(regions[:, :2], thing.box[:2]), np.minimum(regions[:, 2:], thing.box[2:])
            shared = (high - low).clip(0).prod(1)
            area = (thing.box[2] - thing.box[0]) ** 2
            overlap = shared / ((regions[:, 2:] - regions[:, :2]).prod(1) + area - shared)
            assert overlap.max() > 0.5
            centre = picture.getpixel(tuple(np.reshape(thing.box, (2, 2)).mean(0).round().astype(int).tolist()))
            assert np.abs(np.subtract(centre, ImageColor.getrgb(thing.colour))).max() <= 2


def test_features_are_blind_to_place():
    """The same thing elsewhere, in a box moved with it: the same feature. Another colour: another one."""
    projection = np.random.default_rng(0).normal(0, 1, (len(ATTRIBUTES), 16))

    def feature(colour, x, y):
        scene = Scene(300, 200, (Thing("star", colour, "big", (x, y, x + 60, y + 60)),))
        box = np.array([[x - 5, y - 5, x + 65, y + 65]], np.float32)
        return region_features(scene, box, projection, np.random.default_rng(0))

    assert np.allclose(feature("red", 20, 30), feature("red", 200, 120), atol=1e-5)
    pairs = itertools.combinations(COLOURS, 2)
    assert min(np.abs(feature(a, 20, 30) - feature(b, 20, 30)).max() for a, b in pairs) > 0.1


def test_dependencies_are_trees(demo):
    for text, pairs in zip(load(demo, "train", "caps.txt"), load(demo, "train", "caps.json")):
        words, heads = text.split(), [head for _, head in sorted((word, head) for head, word in pairs)]
        assert is_tree(heads) and pairs == sorted(pairs_of(heads), key=lambda pair: (pair[0] != 0, pair[1]))
        assert len(heads) == len(words) and words[-1] == "." and heads[-1] == pairs[0][1]
        # articles and 'of' hang below the noun behind them
        assert all(head > k for k, (word, head) in enumerate(zip(words, heads), 1) if word in ("a", "an", "the", "of"))


@each_split
def test_captions_are_true_and_differ(demo, split):
    texts = load(demo, split, "caps.txt")
    for i, (item, scene) in enumerate(scenes_of(demo, split)):
        assert len(set(texts[5 * i : 5 * i + 5])) == 5
        assert all(scene.agrees(facts) for facts in item["facts"])
        said = {word for text in texts[5 * i : 5 * i + 5] for word in text.split()}
        assert said & set(COLOURS) == {thing.colour for thing in scene.things}  # a list names them all


@each_split
def test_twins(demo, split):
    """Twins name each other, have two things exchanged, and captions that only say the opposite."""
    texts, items = load(demo, split, "caps.txt"), list(scenes_of(demo, split))
    pairs = [(i, item["twin"]) for i, (item, _) in enumerate(items) if item["twin"] is not None]
    assert len(pairs) == TWINS[split] and {(j, i) for i, j in pairs} == set(pairs)
    for i, j in pairs:
        (item, scene), (other, twin) = items[i], items[j]
        assert i // SPLITS["test"] == j // SPLITS["test"] or split != "testall"  # in the same fold
        a, b = item["swapped"]
        assert item["swapped"] == other["swapped"]
        for thing, same in zip(scene.things, twin.things):
            assert replace(thing, box=same.box) == same
        assert [k for k, t in enumerate(scene.things) if t.box != twin.things[k].box] == sorted((a, b))
        assert scene.relation(a, b) == OPPOSITE[twin.relation(a, b)]
        assert sum(item["telling"]) >= 2
        for telling, facts in zip(item["telling"], item["facts"]):
            assert telling != twin.agrees(facts)
        plain = [re.sub("left|right|above|below", "*", text) for text in texts]  # without directions
        assert len({*plain[5 * i : 5 * i + 5]} & {*plain[5 * j : 5 * j + 5]}) >= 2


@pytest.mark.parametrize("flag", ["n_testall=7", "n_train=0", "twins=1.5"])
def test_impossible_flags(tmp_path, flag):
    assert flag.split("=")[0] in message(make, tmp_path, f"--{flag}") and not list(tmp_path.iterdir())


def test_full_disk(tmp_path):
    features = tmp_path / f"data/{NAME}/train_ims.npy"
    features.parent.mkdir(parents=True)
    features.symlink_to("/dev/full")
    assert str(tmp_path) in message(make, tmp_path)


# ---- what `make demo` runs


def test_the_scripts_take_its_commands(monkeypatch):
    """Every command parses, trains the width that the data has, and reads what was written before."""
    (make, *made), *training, (test, *tested) = [shlex.split(words) for _, words in command.commands()]
    data, trained = tool.parser().parse_args(made), []
    assert make == "tools/make_demo.py" and test == "test_stack.py" and len(training) == len(command.RUNS) == 5
    for script, *flags in training:
        opt, _ = train_options(flags)
        assert script == "train.py" and opt.img_dim == data.img_dim and opt.data_path.startswith(str(data.out))
        trained.append(f"{opt.model_name}/model_best.pth.tar")
    monkeypatch.setattr("checkpoints.evaluation_options.existing", str)  # nothing is trained here
    opt = eval_parser("", stack=True).parse_args(tested)
    assert opt.model_path == trained and opt.json and opt.report and opt.images.startswith(str(data.out))


def test_a_failing_step_stops_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["demo.py"])
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command.subprocess, "run", lambda words, cwd: SimpleNamespace(returncode=2))
    assert command.main() == 2
