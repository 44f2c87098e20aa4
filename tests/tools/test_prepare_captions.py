"""tools/prepare_captions.py: sources of many forms, exact ids, five captions an image, nothing overwritten."""

import csv
import io
import json

import pytest
from tiny import message, shared

import vocab
from files.text import read_ids, read_lines
from tools import prepare_captions

TEXTS = ["a red dog runs .", "the dog is red .", "a dog, which barks", "red dog on grass", "it's a dog, red"]


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

    def file(self, content, name="captions.csv"):
        path = self.root / name
        content = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def table(self, rows, name="captions.csv"):
        return self.file(table(rows), name)

    def json(self, content):
        return self.file(content, "source.json")

    def content(self):
        return {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def table(rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


def rows(n, texts=TEXTS):
    return [(f"{i}.jpg", f"{text} {i}") for i in range(n) for text in texts]


def error(place, source, *flags):
    return message(place.prepare, source, *flags)


# ---- forms of sources: each holds the same two images with the same five captions

ROWS = rows(2)
TITLED = [("image", "caption"), *ROWS]
TABBED = "".join(f"{name}\t{text}\n" for name, text in ROWS)
LISTED = [{"image": f"{i}.jpg", "caption": [f"{text} {i}" for text in TEXTS]} for i in range(2)]


def numbered(form, mark="#"):
    return "".join(form.format(name=name, n=f"{mark}{k % 5}", text=text) for k, (name, text) in enumerate(ROWS))


def turned(rows):
    return [row[::-1] for row in rows]


def coco(n, **more):
    return {
        "images": [{"id": 100 - i, "file_name": f"{i}.jpg"} for i in range(n)],
        "annotations": [
            {"id": k, "image_id": 100 - k % n, "caption": f"{TEXTS[k // n]} {k % n}\n"} for k in range(5 * n)
        ],
        **more,
    }


def odd_coco():
    """Categories, boxes between the captions, ids as texts, captions without ids."""
    content = coco(2, categories=[{"id": 1, "name": "dog"}])
    for k, one in enumerate(content["annotations"]):
        one["image_id"] = (str, float)[k % 2](one["image_id"])
        del one["id"]
    content["annotations"].append({"id": 7, "image_id": 99, "category_id": 1, "bbox": [0, 0, 9, 9]})
    return content


FORMS = {
    "COCO.json": coco(2),
    "odd COCO.json": odd_coco(),
    "plain.csv": table(ROWS),
    "titles.csv": table(TITLED),
    "BOM.csv": "\ufeff" + table([("image_name", "comment"), *ROWS]),
    "CRLF.csv": table(TITLED).replace("\n", "\r\n"),
    "mac.csv": table(TITLED).replace("\n", "\r"),
    "semicolon.csv": table(TITLED, ";"),
    "tabs.tsv": TABBED,
    "caption first.csv": table(turned(ROWS)),
    "caption first, titles.csv": table([("Caption", "File Name"), *turned(ROWS)]),
    "title and filepath.tsv": "title\tfilepath\n" + "".join(f"{text}\t{name}\n" for name, text in ROWS),
    "index.csv": table([("", "image", "caption"), *[(k, *row) for k, row in enumerate(ROWS)]]),
    "other columns.csv": table([("id", "filename", "wide", "raw"), *[(7, name, 64, text) for name, text in ROWS]]),
    "split.csv": table([("image", "caption", "split"), *[(*row, "train") for row in ROWS]]),
    "titles twice.csv": table(TITLED[:6]) + "\ufeff" + table([TITLED[0], *TITLED[6:]]),
    "five in a cell.csv": table([("raw", "filename"), *[(json.dumps(e["caption"]), e["image"]) for e in LISTED]]),
    "list of Python.csv": table([("image", "captions"), *[(e["image"], str(e["caption"])) for e in LISTED]]),
    "Kaggle.csv": "image_name| comment_number| comment\n" + numbered("{name}| {n}| {text}\n", ""),
    "bars.txt": numbered("{name}| {n}| {text}\n", ""),
    "glued.txt": numbered("{name}| {n}| {text}\n", "").replace("| 3|", "| 3  ", 1),
    "number column.csv": table([("image", "caption_number", "caption"), *[(n, 0, text) for n, text in ROWS]]),
    "Flickr.token": numbered("{name}{n}\t{text}\n"),
    "language.txt": numbered("{name}{n}\t{text}\n", "#zhc#"),
    "blanks.txt": numbered("{name}{n} {text}\n"),
    "list.json": LISTED,
    "single.json": [{"image": name, "caption": text, "image_id": name[0]} for name, text in ROWS],
    "lines.jsonl": "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in ROWS),
    "lines.json": "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in ROWS),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_sources(place, name, capsys):
    place.prepare(place.file(FORMS[name], name), "--split", "train")
    assert "creating index" not in capsys.readouterr().out  # which pycocotools would say
    assert place.lines("train_imagename") == ["0.jpg", "1.jpg"]
    assert place.lines("train_caps") == [text for _, text in ROWS]


@pytest.mark.parametrize("asked", ["picture,words", "2,3"])
def test_columns_may_be_named(place, asked):
    content = [("one", "picture", "words"), *[(7, name[0], text) for name, text in ROWS]]
    source = place.table(content if "," in asked and not asked[0].isdigit() else content[1:])
    assert "--columns" in error(place, source, "--split", "train")
    assert "'nine'" in error(place, source, "--split", "train", "--columns", "nine,9")
    place.prepare(source, "--split", "train", "--columns", asked)
    assert place.lines("train_imagename") == ["0", "1"] and place.lines("train_caps")[9] == ROWS[9][1]


@pytest.mark.parametrize("mark, other", [("|", ","), ("\t", "|")])
def test_one_cell_does_not_decide_the_form(place, mark, other):
    def with_mark(mark):
        return [(ROWS[0][0], ROWS[0][1].replace("dog", f"dog {mark} dog")), *ROWS[1:]]

    place.prepare(place.table(with_mark(mark)), "--split", "train")
    assert place.lines("train_imagename") == ["0.jpg", "1.jpg"]
    text = "".join(f"{text}{mark}{name}\n" for name, text in with_mark(other))
    place.prepare(place.file(text, "caption first.txt"), "--split", "train", "--overwrite")
    assert place.lines("train_imagename") == ["0.jpg", "1.jpg"]


def test_numbers_and_quotes_that_are_text_stay(place):
    """sku0#1 is an image of its own where its number stands before several captions."""
    lines = "".join(f'sku{i // 2}#{i % 2 + 1}\t"{text}\n' for i in range(4) for text in TEXTS)
    place.prepare(place.file(lines, "x.tsv"), "--split", "train")
    assert place.lines("train_imagename") == ["sku0#1", "sku0#2", "sku1#1", "sku1#2"]
    assert place.lines("train_caps")[0] == f'"{TEXTS[0]}'


@pytest.mark.parametrize(
    "content, word",
    [
        ("a.jpg,one,two\n", "--columns"),
        ("7,one\n8,two\n", "--columns"),
        ("image,caption\na.jpg\n", "line 2"),
        ("image,caption\na.jpg,one, two\n", "line 2"),
        ('a.jpg,one\nb.jpg,"two\nthree\n', "quote"),
        ("a.jpg,one\nb.jpg,two\n,two\n", "line 3"),
        (b"a.jpg,one\nb.jpg,two\xff\n", "line 2"),
        ("image,caption,split\na.jpg,one,odd\n", "'odd'"),
        ("", "no image"),
        ("a.jpg,one two\n", "no image"),
        ("a.jpg\tb'a dog'\n" * 5, "b'...'"),  # as Python 3 prints bytes
    ],
)
def test_bad_tables(place, content, word):
    message = error(place, place.file(content, "x.csv"), "--split", "train")
    assert word in message and "x.csv" in message and not place.folder.exists()


# ---- Karpathy's and COCO's JSON


def karpathy(*images):
    return {
        "images": [
            {"filename": f"{i}.jpg", "split": split, **more, "sentences": [{"raw": f"{text} {i}"} for text in TEXTS]}
            for i, (split, more) in enumerate(images)
        ]
    }


def test_karpathy(place):
    splits = ("validation", "train", "test", "restval", "train")
    source = place.json(karpathy(*[(split, {}) for split in splits]))
    place.prepare(source)
    assert place.lines("train_imagename") == ["1.jpg", "3.jpg", "4.jpg"]  # in the source's order
    assert place.lines("dev_imagename") == ["0.jpg"] and place.lines("test_imagename") == ["2.jpg"]
    assert place.lines("dev_caps") == [f"{text} 0" for text in TEXTS]
    place.prepare(source, "--restval", "drop", "--overwrite")
    assert place.lines("train_imagename") == ["1.jpg", "4.jpg"]


def test_tokens_stand_for_a_missing_text(place, capsys):
    content = karpathy(("train", {}))
    for sentence in content["images"][0]["sentences"]:
        sentence["tokens"] = sentence.pop("raw").split()
    place.prepare(place.json(content))
    assert place.lines("train_caps")[0] == f"{TEXTS[0]} 0" and "tokens" in capsys.readouterr().out


def test_testall(place):
    place.prepare(place.json(karpathy(("train", {}), *[("test", {})] * 10)), "--testall")
    assert place.lines("testall_imagename") == [f"{i}.jpg" for i in range(1, 11)]
    assert place.lines("test_imagename") == ["1.jpg", "2.jpg"]
    assert "--testall" in error(place, place.json(karpathy(("train", {}), ("test", {}))), "--testall")


def test_coco_mini(place):
    source = shared("real/coco_mini/captions_train2017.json")
    place.prepare(source, "--dev", 10, "--test", 10, "--images", source.parent / "images")
    assert [len(place.lines(f"{split}_caps")) for split in ("train", "dev", "test")] == [300, 50, 50]


@pytest.mark.parametrize(
    "content, word",
    [
        ([1], "list of objects"),
        ([{"image": "a.jpg", "caption": 3}], "entry 0"),
        ({"a.jpg": "b"}, "images"),
        ({"images": [{"filename": "a", "split": "train"}]}, "image 0"),
        ({"images": [{"filename": "a", "split": "odd", "sentences": []}]}, "'odd'"),
        ({"images": [{"split": "train", "sentences": []}]}, "filename"),
        ({"images": [{"filename": "a", "split": "train", "sentences": [{"raw": "\ud800"}]}]}, "surrogate"),
        ({"images": [{"filename": "a", "split": "train", "sentences": [{}]}]}, "sentence 0"),
        ({"images": [{"filename": "a", "split": "train", "sentences": []}] * 2}, "image 1"),
        ({"annotations": [], "images": 3}, "images"),
        ({"annotations": [{"id": 5}], "images": []}, "image_id"),
        ({"annotations": [3], "images": []}, "annotations"),
        (coco(1, annotations=[{"id": 5, "image_id": 100}]), "annotation 5"),
        (coco(1, annotations=[{"image_id": 100, "bbox": []}]), "caption"),
        (coco(1, images=[{"file_name": "a"}]), "entry 0 of images"),
        (coco(1, images=[{"id": 100, "file_name": n} for n in "ab"]), "number 100"),
        (coco(2, images=[{"id": 100, "file_name": "a"}]), "image 99"),
        (coco(2, images=[{"id": i, "file_name": "a"} for i in (99, 100)]), "name of"),
    ],
)
def test_bad_json(place, content, word):
    message = error(place, place.json(content), "--split", "train")
    assert word in message and "source.json" in message


# ---- splits, ids and vocabulary


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
    place.prepare(place.table(rows(12)), "--dev", 3, "--test", 2, "--seed", 1, "--overwrite")
    assert place.lines("dev_imagename") != names["dev"]
    place.prepare(place.table(rows(12)), "--dev", 3, "--test", 2, "--overwrite")
    assert place.lines("dev_imagename") == names["dev"]


def test_bad_divisions(place):
    table, own = place.table(rows(4)), place.json(karpathy(("train", {})))
    assert "--dev N" in error(place, table)
    assert "4 images" in error(place, table, "--dev", 2, "--test", 2)
    assert "--split" in error(place, own, "--dev", 1)
    assert "--images" in error(place, table, "--images", place.root / "nowhere")
    assert "--images" in error(place, table, "--images", "x" * 5000)


def test_ids_are_the_published_ones(place):
    reference, some = shared("real/f30k_precomp"), {"caps": 500, "precaps_stan": 500, "imagename": 100}
    published = {name: read_lines(reference / f"test_{name}.txt")[:n] for name, n in some.items()}
    source = place.table([(published["imagename"][i // 5], text) for i, text in enumerate(published["caps"])])
    place.prepare(source, "--split", "test", "--vocab", shared("real/vocab/f30k_precomp_vocab.json"))
    assert {name: place.lines(f"test_{name}") for name in some} == published


def test_splits_prepared_one_by_one_share_a_vocabulary(place):
    dev = place.table(rows(2, [f"{text} unseen unseen" for text in TEXTS]), "dev.csv")
    assert "train" in error(place, dev, "--split", "dev")
    place.prepare(place.table(rows(6)), "--split", "train")
    words = place.words().word2idx
    place.prepare(dev, "--split", "dev")
    assert place.words().word2idx == words and "unseen" not in words


# ---- captions and images that are noted


def five(text):
    """Five captions that begin with this one."""
    return [("0.jpg", f"{text} {k}") for k in range(5)]


@pytest.mark.parametrize(
    "there, told",
    [
        (rows(1) + rows(2)[5:7], "--fewer"),
        (rows(1) + [("0.jpg", "one more")], "more than five"),
        (rows(1) + [("0.jpg", "  ")], "empty"),
        (five("ein Hündchen"), "beyond a-z"),
        (five("A&nbsp;man says &quot;hi&quot;"), "entities"),
        (five("The man\u2019s dog"), "curly"),
        ([(f"0.jpg#zhc#{k}", "一只棕色的狗在草地上奔跑") for k in range(5)], "blanks"),
    ],
)
def test_what_is_noted(place, capsys, there, told):
    source = place.table(there)
    place.prepare(source, "--split", "train", "--threshold", 1)
    said = capsys.readouterr().out
    assert told in said and f"(first: {source}, line" in said
    assert place.lines("train_imagename") == ["0.jpg"]


@pytest.mark.parametrize(
    "text, mended, plain",
    [
        ("A&nbsp;man says &quot;hi&quot; &#39;", None, 'A man says "hi" \''),
        ("The man\u2019s \u201cdog\u201d", None, 'The man\'s "dog"'),
        ("a\u200b dog\ufeff", "a dog", "a dog"),
        ("a cafe\u0301", "a café", "a café"),
        ("AT&T; a & b", None, None),
    ],
)
def test_marks_that_make_two_words_of_one(place, text, mended, plain):
    place.prepare(place.table([("image", "caption"), *[("0.jpg", text)] * 5]), "--split", "train")
    assert place.lines("train_caps")[0] == (mended or text)
    place.prepare(place.root / "captions.csv", "--split", "train", "--plain", "--overwrite")
    assert place.lines("train_caps")[0] == (plain or text)


def test_fewer_captions_may_repeat(place):
    source = place.table(rows(2) + rows(3)[10:12])
    place.prepare(source, "--split", "train", "--fewer", "repeat")
    a, b = (f"{text} 2" for text in TEXTS[:2])
    assert place.lines("train_caps")[10:] == [a, b, a, b, a]


def test_notes_stand_before_an_error(place, capsys):
    assert "no image" in error(place, place.table(rows(3, TEXTS[:2])), "--split", "train")
    assert "--fewer repeat" in capsys.readouterr().out


def test_images_that_are_not_there(place, capsys):
    (place.root / "photos" / "val").mkdir(parents=True)
    source = place.json(karpathy(("train", {}), ("train", {"filepath": "val"}), ("train", {})))
    flags = "--images", place.root / "photos", "--missing", "drop"
    assert "agree" in error(place, source, *flags)  # not one is there
    (place.root / "photos" / "0.jpg").touch()
    (place.root / "photos" / "val" / "1.jpg").touch()
    message = error(place, source, *flags[:2])
    assert "image 2: 2.jpg" in message and "--missing drop" in message and not place.folder.exists()
    place.prepare(source, *flags)
    assert place.lines("train_imagename") == ["0.jpg", "val/1.jpg"]
    assert "left out" in capsys.readouterr().out


# ---- nothing is overwritten or half written


def test_the_same_command_writes_what_is_missing_only(place, capsys):
    """Also after an interruption, which leaves some files."""
    source = place.table(rows(6))
    place.prepare(source, "--dev", 2)
    before = place.content()
    place.prepare(source, "--dev", 2)
    assert place.content() == before and "0 files written, 6 unchanged" in capsys.readouterr().out
    for path in sorted(place.folder.iterdir())[2:]:
        path.unlink()
    place.prepare(source, "--dev", 2)
    assert place.content() == before


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
