"""tools/prepare_captions.py: three kinds of source, exact ids, five captions an image, nothing overwritten."""

import csv
import json

import pytest
from tiny import shared

import vocab
from files.errors import InputError
from files.text import read_ids, read_lines
from tools import prepare_captions

TEXTS = ["a red dog runs .", "the dog is red .", "a dog .", "red dog on grass", "it's a dog, red"]


class Place:
    def __init__(self, root):
        self.root, self.folder = root, root / "data" / "mine"

    def prepare(self, source, *flags):
        where = ["--data_path", self.root / "data", "--data_name", "mine", "--vocab_path", self.root / "vocab"]
        prepare_captions.main([*map(str, [source, *where, *flags])])

    def lines(self, name):
        return read_lines(self.folder / f"{name}.txt")

    def words(self):
        return vocab.load_vocab(self.root / "vocab", "mine")

    def table(self, rows, name="captions.csv", delimiter=","):
        path = self.root / name
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
        return path

    def json(self, content):
        path = self.root / "source.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def content(self):
        return {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def rows(n, texts=TEXTS):
    return [(f"{i}.jpg", f"{text} {i}") for i in range(n) for text in texts]


def error(place, source, *flags):
    with pytest.raises(InputError) as info:
        place.prepare(source, *flags)
    return str(info.value)


# ---- sources


def test_table_is_divided(place, capsys):
    place.prepare(place.table(rows(12)), "--dev", 3, "--test", 2)
    names = {split: place.lines(f"{split}_imagename") for split in ("train", "dev", "test")}
    assert {split: len(some) for split, some in names.items()} == {"train": 7, "dev": 3, "test": 2}
    assert sorted(name for some in names.values() for name in some) == sorted(f"{i}.jpg" for i in range(12))
    for split, some in names.items():
        captions = place.lines(f"{split}_caps")
        assert captions == [f"{text} {name[:-4]}" for name in some for text in TEXTS]
        ids = list(read_ids(place.folder / f"{split}_precaps_stan.txt", len(place.words())))
        assert ids == [vocab.encode(text, place.words()) for text in captions]
    # the vocabulary is that of vocab.py on the files written
    assert place.words().word2idx == vocab.build_vocab(place.root / "data", "mine").word2idx
    assert "train: 7 images, 35 captions of" in capsys.readouterr().out


def test_many_unknown_words_are_told(place, capsys):
    source = place.table(rows(6))
    place.prepare(source, "--dev", 2, "--threshold", 6)  # the images' numbers come five times
    said = capsys.readouterr().out
    assert "dev: 2 images, 10 captions of 5.6 words, 17.9 % <unk>" in said
    assert "a lower --threshold keeps rarer words: 2 (first: train)" in said
    place.prepare(source, "--dev", 2, "--threshold", 1, "--overwrite")
    said = capsys.readouterr().out
    assert "note" not in said and "dev: 2 images, 10 captions of 5.6 words, 0.0 % <unk>" in said


def test_draw_depends_on_the_seed_alone(place):
    source = place.table(rows(12))
    place.prepare(source, "--dev", 3)
    first = place.lines("dev_imagename")
    place.prepare(source, "--dev", 3, "--seed", 1, "--overwrite")
    assert place.lines("dev_imagename") != first
    place.prepare(source, "--dev", 3, "--overwrite")
    assert place.lines("dev_imagename") == first


@pytest.mark.parametrize(
    "make",
    [
        lambda text: ("csv", text),
        lambda text: ("csv", "image,caption\n" + text),
        lambda text: ("csv", "\ufeffimage_name,comment\n" + text),
        lambda text: ("csv", text.replace("\n", "\r\n")),
        lambda text: ("tsv", text.replace('"', "").replace("a.jpg,", "a.jpg\t")),
        lambda text: ("token", text.replace('"', "").replace("a.jpg,", "a.jpg#3\t")),
    ],
    ids=["plain", "titles", "BOM", "CRLF", "tabs", "Flickr"],
)
def test_forms_of_table(place, make):
    text = 'a.jpg,one\na.jpg,"two, with a comma"\na.jpg,three  with   spaces \na.jpg,four\na.jpg,five\n'
    ending, text = make(text)
    source = place.root / f"x.{ending}"
    source.write_bytes(text.encode())
    place.prepare(source, "--split", "train")
    assert place.lines("train_caps") == ["one", "two, with a comma", "three with spaces", "four", "five"]
    assert place.lines("train_imagename") == ["a.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        "image_name| comment_number| comment\na.jpg| 0| one\na.jpg| 1| two, with | bar\na.jpg| 2   three\n",
        "a.jpg| 0| one\na.jpg| 1| two, with | bar\na.jpg| 2| three\n",
        'image,comment_number,comment\na.jpg,0,one\na.jpg,1,"two, with | bar"\na.jpg,2,three\n',
        "a.jpg#zhc#0\tone\na.jpg#zhc#1\ttwo, with | bar\na.jpg#zhc#2\tthree\n",
        "a.jpg#enr#0 one\na.jpg#enr#1  two, with | bar\na.jpg#enr#2 three\n",
        "a.jpg#0 one\na.jpg#1 two, with | bar\na.jpg#2 three\n",
    ],
    ids=["Kaggle", "bars", "numbers", "language", "blanks and language", "blanks"],
)
def test_forms_of_table_with_numbers(place, text):
    source = place.root / "x.csv"
    source.write_text(text)
    place.prepare(source, "--split", "train", "--fewer", "repeat")
    assert place.lines("train_caps")[:3] == ["one", "two, with | bar", "three"]
    assert place.lines("train_imagename") == ["a.jpg"]


def test_captions_without_blanks_are_told(place, capsys):
    """Not a lower threshold, which would only hide that a caption is one word."""
    texts = ["一只棕色的狗在草地上奔跑", "狗在跑", "草地上有一只狗", "棕色的狗", "一只狗在公园里玩耍"]
    source = place.root / "x.txt"
    lines = [f"{i}.jpg#zhc#{k}\t{text}{i}\n" for i in range(6) for k, text in enumerate(texts)]
    source.write_text("".join(lines), encoding="utf-8")
    place.prepare(source, "--dev", 2)
    said = capsys.readouterr().out
    assert "note: 1.0 words a caption; words must be separated by blanks first" in said and "threshold" not in said
    assert place.lines("dev_imagename")[0].endswith(".jpg")


def test_printed_bytes_are_refused(place):
    source = place.table([(f"{i}.jpg", str(text.encode())) for i in range(2) for text in TEXTS])
    assert f"{source}, line 1: captions are written as b'...'" in error(place, source, "--split", "train")
    assert not place.folder.exists()


def test_notes_stand_before_an_error(place, capsys):
    source = place.table(rows(3, TEXTS[:2]))
    assert "no image with captions is left" in error(place, source, "--split", "train")
    assert "note: images with fewer than five captions left out; --fewer repeat keeps" in capsys.readouterr().out


def test_quotes_in_tab_separated_captions_are_text(place):
    source = place.root / "x.tsv"
    source.write_text('a\t"free hugs" sign\na\t" open\na\tc\na\td\na\te\n')
    place.prepare(source, "--split", "train")
    assert place.lines("train_caps") == ['"free hugs" sign', '" open', "c", "d", "e"]


def karpathy(*images):
    return {
        "images": [
            {"filename": f"{i}.jpg", "split": split, **more, "sentences": [{"raw": f"{text} {i}"} for text in TEXTS]}
            for i, (split, more) in enumerate(images)
        ]
    }


def test_karpathy(place):
    source = place.json(karpathy(("val", {}), ("train", {}), ("test", {}), ("restval", {}), ("train", {})))
    place.prepare(source)
    assert place.lines("train_imagename") == ["1.jpg", "3.jpg", "4.jpg"]  # in the source's order
    assert place.lines("dev_imagename") == ["0.jpg"] and place.lines("test_imagename") == ["2.jpg"]
    assert place.lines("dev_caps") == [f"{text} 0" for text in TEXTS]
    place.prepare(source, "--restval", "drop", "--overwrite")
    assert place.lines("train_imagename") == ["1.jpg", "4.jpg"]


def test_testall(place):
    place.prepare(place.json(karpathy(("train", {}), *[("test", {})] * 10)), "--testall")
    assert place.lines("testall_imagename") == [f"{i}.jpg" for i in range(1, 11)]
    assert place.lines("test_imagename") == ["1.jpg", "2.jpg"]
    assert "five folds" in error(place, place.json(karpathy(("train", {}), ("test", {}))), "--testall")


def coco(n, **more):
    return {
        "images": [{"id": 100 - i, "file_name": f"{i}.jpg"} for i in range(n)],
        "annotations": [{"id": k, "image_id": 100 - k % n, "caption": f"{TEXTS[k // n]}\n"} for k in range(5 * n)],
        **more,
    }


def test_coco(place):
    place.prepare(place.json(coco(3)), "--split", "train")
    assert place.lines("train_imagename") == ["0.jpg", "1.jpg", "2.jpg"]
    assert place.lines("train_caps") == TEXTS * 3


def test_coco_from_other_tools(place):
    """Categories and boxes between the captions, ids as texts, captions without ids: all captions are there."""
    place.prepare(place.json(coco(3)), "--split", "train")
    expected = place.content()
    odd = coco(3, categories=[{"id": 1, "name": "dog"}])
    odd["annotations"] = [
        {"image_id": (str, float)[k % 2](one["image_id"]), "caption": one["caption"]}
        for k, one in enumerate(odd["annotations"])
    ] + [{"id": 7, "image_id": 98, "category_id": 1, "bbox": [0, 0, 9, 9]}]
    expected[place.root / "source.json"] = place.json(odd).read_bytes()
    place.prepare(place.root / "source.json", "--split", "train")  # nothing to write: no --overwrite
    assert place.content() == expected


def test_coco_names_of_2014_with_pictures_of_2017(place):
    (place.root / "photos" / "val2017").mkdir(parents=True)
    for i in range(3):
        (place.root / "photos" / "val2017" / f"{i:012}.jpg").touch()
    named = coco(3, images=[{"id": 100 - i, "file_name": f"COCO_val2014_{i:012}.jpg"} for i in range(3)])
    place.prepare(place.json(named), "--split", "train", "--images", place.root / "photos")
    assert place.lines("train_imagename") == [f"val2017/{i:012}.jpg" for i in range(3)]


def test_coco_mini(place):
    source = shared("real/coco_mini/captions_train2017.json")
    place.prepare(source, "--dev", 10, "--test", 10, "--images", source.parent / "images")
    assert [len(place.lines(f"{split}_caps")) for split in ("train", "dev", "test")] == [300, 50, 50]


def test_ids_are_the_published_ones(place):
    reference = shared("real/f30k_precomp")
    names, captions = read_lines(reference / "test_imagename.txt"), read_lines(reference / "test_caps.txt")
    source = place.table([(names[i // 5], text) for i, text in enumerate(captions)])
    place.prepare(source, "--split", "test", "--vocab", shared("real/vocab/f30k_precomp_vocab.json"))
    for name in ("precaps_stan", "caps", "imagename"):
        assert place.lines(f"test_{name}") == read_lines(reference / f"test_{name}.txt")


# ---- five captions, and what is wrong with them


def test_fewer_and_more_than_five(place, capsys):
    source = place.table(rows(2) + rows(3)[10:12] + [("9.jpg", str(k)) for k in range(7)])
    place.prepare(source, "--split", "train")
    assert place.lines("train_imagename") == ["0.jpg", "1.jpg", "9.jpg"]
    assert place.lines("train_caps")[10:] == list("01234")
    said = capsys.readouterr().out
    assert "images with fewer than five captions left out" in said and "line 11: 2" in said
    assert "images with more than five captions, of which the first five are taken: 1 (first:" in said
    place.prepare(source, "--split", "train", "--fewer", "repeat", "--overwrite")
    a, b = (f"{text} 2" for text in TEXTS[:2])
    assert place.lines("train_caps")[10:15] == [a, b, a, b, a]


def test_empty_and_foreign_captions_are_told(place, capsys):
    source = place.table([*rows(2), ("0.jpg", "  "), *[("2.jpg", "ein Hündchen"), ("2.jpg", "一只狗。")] * 3])
    place.prepare(source, "--split", "train")
    assert place.lines("train_caps")[10:12] == ["ein Hündchen", "一只狗。"]
    said = capsys.readouterr().out
    assert f"empty captions left out: 1 (first: {source}, line 11)" in said
    assert "letters beyond a-z" in said and f"(first: {source}, line 12)" in said


def test_images_that_are_not_there(place, capsys):
    (place.root / "photos" / "val").mkdir(parents=True)
    (place.root / "photos" / "0.jpg").touch()
    (place.root / "photos" / "val" / "1.jpg").touch()
    source = place.json(karpathy(("train", {}), ("train", {"filepath": "val"}), ("train", {})))
    message = error(place, source, "--images", place.root / "photos")
    assert "image 2: 2.jpg is not in" in message and "--missing drop" in message
    assert not place.folder.exists()
    place.prepare(source, "--images", place.root / "photos", "--missing", "drop")
    assert place.lines("train_imagename") == ["0.jpg", "val/1.jpg"]
    assert "images left out that are not in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, told",
    [
        ("a.jpg,one,two\n", "line 1: 3 columns"),
        ("image,caption\na.jpg\n", "line 2: 1 columns"),
        ('a.jpg,one\nb.jpg,"two\nthree\n', "is a quote left open"),
        ("a.jpg,one\n,two\n", "line 2: no image name"),
        ("a.jpg,one\nb.jpg,two\xff\n", "line 2: byte 0xff is not UTF-8"),
        ("", "no image with captions is left"),
        ("a.jpg,one\n", "no image with captions is left"),
    ],
)
def test_bad_tables(place, text, told):
    source = place.root / "x.csv"
    source.write_bytes(text.encode("latin1"))
    message = error(place, source, "--split", "train")
    assert told in message and str(source) in message


@pytest.mark.parametrize(
    "content, told",
    [
        ([], "neither Karpathy's"),
        ({"images": [{"filename": "a", "split": "train"}]}, "image 0: has no list of sentences"),
        ({"images": [{"filename": "a", "split": "odd", "sentences": []}]}, "split 'odd'"),
        ({"images": [{"split": "train", "sentences": []}]}, "no text called 'filename'"),
        ({"images": [{"filename": "a", "split": "train", "sentences": [{"raw": "\ud800"}]}]}, "surrogate"),
        ({"images": [{"filename": "a", "split": "train", "sentences": [{}]}]}, "image 0, sentence 0: has no text"),
        ({"images": [{"filename": "a", "split": "train", "sentences": []}] * 2}, "image 1: a is also the name of"),
        ({"annotations": [], "images": 3}, "not COCO's annotations"),
        ({"annotations": [{"id": 5}], "images": []}, "annotation 5: has no image_id"),
        ({"annotations": [3], "images": []}, "entry 0 of annotations is not a table"),
        (coco(1, annotations=[{"id": 5, "image_id": 100}]), "annotation 5: has no text called 'caption'"),
        (coco(1, annotations=[{"image_id": 100, "bbox": []}]), "none of its 1 annotations has a caption"),
        (coco(1, images=[{"file_name": "a"}]), "entry 0 of images has no id"),
        (coco(1, images=[{"id": 100, "file_name": n} for n in "ab"]), "the image number 100 occurs twice, for a and b"),
        (coco(2, images=[{"id": 100, "file_name": "a"}]), "annotation 1: belongs to image 99, which the file"),
        (coco(2, images=[{"id": i, "file_name": "a"} for i in (99, 100)]), "a is also the name of"),
    ],
)
def test_bad_json(place, content, told):
    assert told in error(place, place.json(content), "--split", "train")


def test_bad_divisions(place):
    table, own = place.table(rows(4)), place.json(karpathy(("train", {})))
    assert "--dev N --test N" in error(place, table)
    assert "no image of 4 for train" in error(place, table, "--dev", 2, "--test", 2)
    assert "its own splits" in error(place, own, "--dev", 1)
    assert "--images" in error(place, table, "--images", place.root / "nowhere")


# ---- nothing is overwritten or half written


def test_same_again_changes_nothing(place, capsys):
    source = place.table(rows(6))
    place.prepare(source, "--dev", 2)
    before = place.content()
    capsys.readouterr()
    place.prepare(source, "--dev", 2)
    said = capsys.readouterr().out
    assert place.content() == before and said.count(": unchanged") == 7 and "written" not in said


def test_other_content_needs_overwrite(place, capsys):
    place.prepare(place.table(rows(6)), "--dev", 2)
    (place.folder / "train_caps.json").write_text("[]")
    (place.folder / "train_ims.npy").touch()
    before = place.content()
    other = place.table(rows(6, TEXTS[::-1]), "other.csv")
    before[other] = other.read_bytes()
    assert "--overwrite" in error(place, other, "--dev", 2)
    assert place.content() == before
    place.prepare(other, "--dev", 2, "--overwrite")
    assert place.lines("train_caps")[0].startswith(TEXTS[-1])
    said = capsys.readouterr().out  # the images are the same, in the same order: their features still fit
    assert "must be made again" in said and "train_caps.json" in said and "train_ims" not in said


def test_an_interrupted_run_is_taken_up(place, monkeypatch):
    source, write, written = place.table(rows(6)), prepare_captions.atomic_write, []

    def interrupted(path, how):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, how)

    monkeypatch.setattr(prepare_captions, "atomic_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.prepare(source, "--dev", 2)
    assert len(list(place.folder.iterdir())) == 2
    monkeypatch.setattr(prepare_captions, "atomic_write", write)
    place.prepare(source, "--dev", 2)
    assert len(list(place.folder.iterdir())) == 6


def test_splits_prepared_one_by_one_share_a_vocabulary(place):
    dev = place.table(rows(2, [f"{text} unseen unseen" for text in TEXTS]), "dev.csv")
    assert "prepare train first" in error(place, dev, "--split", "dev")
    place.prepare(place.table(rows(6)), "--split", "train")
    words = place.words().word2idx
    place.prepare(dev, "--split", "dev")
    assert place.words().word2idx == words and "unseen" not in words
