"""Pictures as they lie on disk -> batches: layouts, odd files, errors, crops that repeat themselves."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import message

import data
import evaluation
import train
import vocab
from files import pictures
from modules import backbone
from systems.options import completed
from tools import check_data

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220), "grey": (120, 120, 120)}
COLOURS["white"] = (255, 255, 255)
WORDS = vocab.Vocabulary([*vocab.SPECIAL, "a", "picture", "of", "something", *COLOURS, *"01234567"])


def picture(path, colour, size=(60, 40), **save):
    """A picture of one colour with a white top left corner."""
    image = Image.new("RGB", size, COLOURS[colour])
    image.paste((255, 255, 255), (0, 0, size[0] // 4, size[1] // 4))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **save)


def options(root, **changed):
    values = {"data_path": str(root), "crop_size": 32, "use_restval": False, "seed": 5, "model": "vsrn"}
    return completed(argparse.Namespace(**values), **changed)


def captions_of(n, count=5):
    return [f"a picture of {list(COLOURS)[n % 4]} {i}" for i in range(count)]


def make_coco(root):
    """Six pictures: 0, 1 train (picture 1 with six captions), 2 dev, 3 test, 4, 5 restval."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True)
    splits = {"train": [0, 1], "dev": [2], "test": [3], "restval": [4, 5]}
    content = {"train2014": ([], []), "val2014": ([], [])}
    for split, numbers in splits.items():
        year, ids = "train2014" if split == "train" else "val2014", []
        for n in numbers:
            name = f"COCO_{year}_{n:012}.jpg"
            picture(folder / "images" / year / name, list(COLOURS)[n % 4])
            content[year][0].append({"id": 100 + n, "file_name": name})
            for i, text in enumerate(captions_of(n, 6 if n in (1, 3) else 5)):
                ids.append(1000 * n + i)
                content[year][1].append({"id": ids[-1], "image_id": 100 + n, "caption": text})
        np.save(folder / "annotations" / f"coco_{split}_ids.npy", np.array(ids))
    for year, (images, annotations) in content.items():
        text = json.dumps({"images": images, "annotations": annotations})
        (folder / "annotations" / f"captions_{year}.json").write_text(text)
    return folder


def make_flickr(root, name="f8k"):
    folder, entries = root / name, []
    for n, split in enumerate(["train", "val", "test", "train"]):
        picture(folder / "images" / f"{n}.png", list(COLOURS)[n % 4])
        sentences = [{"raw": text} for text in captions_of(n)]
        entries.append({"filename": f"{n}.png", "split": split, "sentences": sentences})
    (folder / pictures.KARPATHY[name]).write_text(json.dumps({"images": entries}))
    return folder


def colour_of(image):
    """The name of the colour at the centre of a normalised picture (3, H, W)."""
    middle = image[:, image.shape[1] // 2, image.shape[2] // 2]
    pixel = (middle * torch.tensor(pictures.DEVIATION) + torch.tensor(pictures.MEAN)) * 255
    return min(COLOURS, key=lambda name: (pixel - torch.tensor(COLOURS[name])).abs().sum().item())


def test_coco_splits(tmp_path):
    make_coco(tmp_path)
    opt = options(tmp_path)
    train = data.open_split("train", "coco", WORDS, opt)
    assert (len(train), train.n_images) == (11, 2)
    assert [train.image_of(i) for i in range(11)] == [0] * 5 + [1] * 6
    assert train.captions[10] == "a picture of green 5"
    with_restval = data.open_split("train", "coco", WORDS, options(tmp_path, use_restval=True))
    assert (len(with_restval), with_restval.n_images) == (21, 4)
    for split, colour in (("dev", "blue"), ("test", "grey"), ("testall", "grey")):
        dataset = data.open_split(split, "coco", WORDS, opt)
        assert (len(dataset), dataset.n_images) == (5, 1)  # five of six
        assert colour_of(dataset[0].image) == colour_of(dataset.image(0)) == colour
        assert dataset[3].caption == vocab.encode(f"a picture of {colour} 3", WORDS)


@pytest.mark.parametrize("name", ["f8k", "f30k"])
def test_flickr_splits(tmp_path, name):
    make_flickr(tmp_path, name)
    found = [data.open_split(split, name, WORDS, options(tmp_path)) for split in ("train", "dev", "test")]
    assert [(len(d), d.n_images) for d in found] == [(10, 2), (5, 1), (5, 1)]
    assert [colour_of(d.image(0)) for d in found] == ["red", "green", "blue"]


def test_pictures_of_2017_are_found_by_names_of_2014(tmp_path):
    folder = make_coco(tmp_path)
    (folder / "images" / "train2017").mkdir()
    for path in [*(folder / "images").glob("*2014/*")]:
        path.rename(folder / "images" / "train2017" / path.name.rpartition("_")[2])
    dataset = data.open_split("test", "coco", WORDS, options(tmp_path))
    assert [path.name for path in dataset.pictures] == ["000000000003.jpg"]
    assert colour_of(dataset.image(0)) == "grey"


def test_check_data_on_pictures(tmp_path, capsys):
    folder = make_flickr(tmp_path)
    where = ["--data_path", str(tmp_path), "--data_name", "f8k", "--vocab_path", str(tmp_path)]
    assert check_data.main(where) == 1 and "VSRN: training cannot start: no vocabulary" in capsys.readouterr().out
    vocab.serialize_vocab(WORDS, tmp_path / "f8k_vocab.json")
    assert check_data.main(where) == 0
    said = capsys.readouterr().out
    assert "10 captions of 2 images" in said and "VSRN: training can start" in said
    assert "GSMN dense: training cannot start" in said and "VSE++: training can start" in said
    assert check_data.main([*where, "--model", "gsmn"]) == 1
    (folder / "images" / "1.png").unlink()
    assert check_data.main([*where, "--model", "vsrn"]) == 1
    assert "images/1.png: no such picture; 1 of 1 are missing" in capsys.readouterr().out


def test_vocabulary_of_pictures(tmp_path):
    make_coco(tmp_path)
    built = vocab.build_vocab(tmp_path, "coco", threshold=5)
    words = {"a", "picture", "of", "red", "green", "blue"}  # 11 captions of train, 5 of dev, no test
    assert set(built.word2idx) == words | set(vocab.SPECIAL)


def test_crops_depend_on_seed_epoch_and_caption_only(tmp_path):
    folder = make_coco(tmp_path)
    for seed, path in enumerate((folder / "images" / "train2014").iterdir()):  # no two crops alike
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    def epoch(number, workers=0, seed=5, start=0):
        train, _ = data.get_loaders("coco", WORDS, 4, workers, options(tmp_path, seed=seed))
        train.batch_sampler.set_epoch(number, start)
        return {i: image for batch in train for i, image in zip(batch.ids, batch.images)}

    def equal(a, b):
        return [torch.equal(a[i], b[i]) for i in a]

    first = epoch(0)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert all(equal(first, epoch(0)))
    assert torch.equal(before, torch.get_rng_state())
    assert all(equal(first, epoch(0, workers=2)))
    assert all(equal(epoch(1, start=2), epoch(1))) and len(epoch(1, start=2)) == 3
    assert not any(equal(first, epoch(1))) and not any(equal(first, epoch(0, seed=6)))
    assert all(equal(epoch(1), epoch(1, workers=1)))


def test_evaluation_transform():
    """The centre of a picture whose shorter side is brought to 256; of 512 x 256 the pixels themselves."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    expected = (pixels[16:240, 144:368] / 255 - pictures.MEAN) / pictures.DEVIATION
    evaluation, training = data.make_transforms(224)
    picture = Image.fromarray(pixels)
    np.testing.assert_allclose(evaluation(picture).permute(1, 2, 0), expected, atol=1e-5)
    assert training(picture).shape == (3, 224, 224)


CLEAR = Image.new("RGBA", (6, 6), (0, 0, 0, 0))
KINDS = {  # picture, how it is saved, its value as 8-bit RGB, what is said of the change
    "RGBA": (CLEAR, {}, 255, "white"),
    "LA": (CLEAR.convert("LA"), {}, 255, "white"),
    "P": (CLEAR.quantize(4), {"transparency": 0}, 255, "white"),
    "L": (Image.new("L", (6, 6), 7), {"transparency": 7}, 255, "white"),
    "half of black": (Image.new("RGBA", (6, 6), (0, 0, 0, 128)), {}, 127, "white"),
    "I;16": (Image.fromarray(np.full((6, 6), 128 * 257, np.uint16)), {}, 128, "16"),
    "I": (Image.fromarray(np.full((6, 6), 128 * 257, np.int32)), {"format": "TIFF"}, 128, "16"),
    "grey": (Image.new("L", (6, 6), 7), {}, 7, None),
    "CMYK": (Image.new("CMYK", (6, 6), (0, 0, 0, 255)), {"format": "JPEG"}, 0, None),
    "opaque P": (Image.new("RGB", (6, 6), (9, 9, 9)).convert("P", palette=Image.Palette.ADAPTIVE), {}, 9, None),
    "1": (Image.new("1", (6, 6), 1), {}, 255, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_that_are_not_8_bit_rgb(tmp_path, kind):
    image, how, value, change = KINDS[kind]
    image.save(tmp_path / "x.png", **how)
    for side, size in ((None, (6, 6)), (3, (3, 3))):
        found, said = pictures.open_picture(tmp_path / "x.png", side)
        assert (found.mode, found.size) == ("RGB", size) and found.getpixel((0, 0)) == (value,) * 3
        assert said is None if change is None else change in said


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64


@pytest.mark.parametrize("kind, word", [("float", "8 bits"), ("beyond", "8 bits"), ("heic", "HEIC"), ("svg", "page")])
def test_pictures_that_cannot_be_read_say_why(tmp_path, kind, word):
    path = tmp_path / "x.tif"
    if kind in ("float", "beyond"):
        Image.fromarray(np.full((6, 6), 70000, np.float32 if kind == "float" else np.int32)).save(path)
    else:
        path.write_bytes(HEIC if kind == "heic" else b"<?xml version='1.0'?><svg/>")
    said = message(pictures.open_picture, path)
    assert str(path) in said and word in said


@pytest.mark.parametrize("orientation, corner", [(1, (2, 2)), (3, (37, 57)), (6, (2, 37)), (8, (57, 2))])
def test_exif_rotation(tmp_path, orientation, corner):
    """The white corner lies where a viewer that obeys the camera's note shows it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(tmp_path / "x.jpg", "blue", exif=exif)
    found = np.array(pictures.open_picture(tmp_path / "x.jpg")[0])
    assert found.shape[:2] == ((40, 60) if orientation < 5 else (60, 40))
    assert found[corner].min() > 200


@pytest.mark.parametrize("content, workers", [(slice(60), 0), (b"a dog", 0), (b"", 1)])
def test_damaged_picture_is_named(tmp_path, content, workers, workers_end):
    path = make_flickr(tmp_path) / "images" / "2.png"
    path.write_bytes(path.read_bytes()[content] if isinstance(content, slice) else content)
    said = message(lambda: list(data.get_test_loader("test", "f8k", WORDS, 4, workers, options(tmp_path))))
    assert "images/2.png: not a readable picture" in said


# ---- faults of annotations


def change(name, how):
    """A fault: how(content of a JSON file)."""

    def apply(folder):
        content = json.loads((folder / name).read_text())
        how(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def ids(*numbers):
    return lambda folder: np.save(folder / "annotations/coco_test_ids.npy", np.array(numbers, type(sum(numbers))))


VAL, IDS = "annotations/captions_val2014.json", "coco_test_ids.npy"
COCO_FAULTS = {
    "no ids": (lambda f: (f / "annotations" / IDS).unlink(), f"{IDS}: no such file"),
    "foreign id": (ids(77), "annotation 77"),
    "number twice": (ids(3000, 3001, 3000), f"{IDS}: annotation 3000 occurs twice"),
    "no whole numbers": (ids(3000.5), "float64"),
    "few captions": (ids(3000, 3001), "fewer than 5"),
    "no captions": (ids(), "no captions"),
    "no annotations": (lambda f: (f / VAL).unlink(), "captions_val2014.json: no such file"),
    "other json": (lambda f: (f / VAL).write_text("[1, 2]"), "captions_val2014.json: has no list of images"),
    "numbers unique within an image only": (
        change(VAL, lambda c: [one.update(id=one["id"] % 1000) for one in c["annotations"]]),
        "annotation number 0 occurs twice, for COCO_val2014_000000000002.jpg and COCO_val2014_000000000003.jpg",
    ),
    "no numbers": (change(VAL, lambda c: [one.pop("id") for one in c["annotations"]]), "entry 0 of annotations: "),
    "no picture": (lambda f: (f / "images/val2014/COCO_val2014_000000000003.jpg").unlink(), "1 of 1 are missing"),
    "no folder": (lambda f: (f / "images").rename(f / "pictures"), "images: no such folder"),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_faults_of_coco_are_named(tmp_path, fault):
    folder = make_coco(tmp_path)
    apply, told = COCO_FAULTS[fault]
    apply(folder)
    said = message(data.open_split, "test", "coco", WORDS, options(tmp_path))
    assert str(folder) in said and told in said


def test_names_must_differ_and_the_folder_exist(tmp_path):
    opt = options(tmp_path)
    assert "f8k: no such folder" in message(data.open_split, "test", "f8k", WORDS, opt)
    change(pictures.KARPATHY["f8k"], lambda c: c["images"][3].update(filename="0.png"))(make_flickr(tmp_path))
    assert "image 3: 0.png is also the name" in message(data.open_split, "train", "f8k", WORDS, opt)


# ---- training


def test_pictures_through_the_scripts(tmp_path, monkeypatch):
    """Train, evaluate and resume; pretrained weights are asked for at the start of a run only."""
    make_flickr(tmp_path)
    vocab.serialize_vocab(WORDS, tmp_path / "f8k_vocab.json")
    asked, classifier = [], backbone.classifier

    def offline(name, pretrained):
        asked.append(pretrained)
        return classifier(name, pretrained=False)

    monkeypatch.setattr(backbone, "classifier", offline)
    run = tmp_path / "run"
    flags = (
        f"--model vsrn --device cpu --workers 0 --data_name f8k --data_path {tmp_path} --vocab_path {tmp_path} "
        "--cnn_type shufflenet_v2_x0_5 --crop_size 32 --embed_size 8 --word_dim 8 --batch_size 4 --num_epochs"
    ).split()
    train.main([*flags, "1", "--logger_name", str(run)])
    result = evaluation.evalrank(run / "model_best.pth.tar", split="testall", ranks=None, device="cpu")
    assert result["rsum"] == 600  # a single image cannot be missed
    train.main([*flags, "2", "--resume", str(run)])
    assert asked == [True, False, False, False, False]  # a checkpoint's model is first built without memory
    config = json.loads((run / "config.json").read_text())
    assert list(config["data"]) == [str(tmp_path / "f8k/dataset_flickr8k.json")]
