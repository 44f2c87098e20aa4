"""Which file a name means, and which pictures have other proportions than the sizes of the data set."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny import message

from files.names import Matcher, find_pictures, image_names
from files.pictures import other_proportions, proportions_differ, warn_proportions


@pytest.fixture
def folder(tmp_path):
    """Makes files in a folder: folder(names) -> the folder."""

    def make(*names):
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "images"

    return make


def found(folder, *names):
    return [path and str(path.relative_to(folder)) for path in find_pictures(folder, names)]


def test_the_name_itself_comes_first(folder):
    images = folder("a.jpg", "val2014/b.jpg", "c.jpg")
    names = "a.jpg", "val2014/b.jpg", "val2014/c.jpg", "d.jpg"
    assert found(images, *names) == ["a.jpg", "val2014/b.jpg", "c.jpg", None]


def test_coco_names_of_2014_mean_pictures_of_2017(folder):
    images = folder("train2017/000000000042.jpg", "val2017/000000391895.jpg")
    names = [f"{name}.jpg" for name in ("x/COCO_val2014_000000000042", "COCO_train2014_000000391895", "COCO_x_7")]
    assert found(images, *names) == ["train2017/000000000042.jpg", "val2017/000000391895.jpg", None]
    images = folder("COCO_val2014_000000000007.jpg")
    assert found(images, "000000000007.jpg") == ["COCO_val2014_000000000007.jpg"]


def test_another_ending(folder):
    assert found(folder("a.JPG", "b.png"), "a.jpg", "b.jpg") == ["a.JPG", "b.png"]


def test_a_file_belongs_to_one_name(folder):
    """A picture that is missing is not taken for the one whose name has the same number."""
    images = folder("1.jpg", "b.jpg", "b.png")
    assert found(images, "1.jpg", "01.jpg") == ["1.jpg", None]
    assert found(images, "001.jpg", "01.jpg") == [None, None]  # both could mean it
    assert found(images, "b.gif") == [None]  # two files could be meant


def test_names_that_no_file_can_have(folder):
    assert found(folder("a.jpg"), "x" * 300, "../images/a.jpg") == [None, None]
    assert find_pictures(folder("a.jpg") / "nowhere", ["a.jpg"]) == [None]


@pytest.mark.parametrize(
    "name, file",
    [
        ("photos\\a.jpg", "a.jpg"),
        ("C:\\data\\photos\\x\\a.jpg", "x/a.jpg"),
        ("/home/me/photos/a.jpg", "a.jpg"),
        ("/home/me/photos/x/b.jpg", "x/b.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("X/A.JPG", "x/a.jpg"),
        ("https://example.org/photos/a.jpg?width=640", "a.jpg"),
    ],
)
def test_names_that_differ_in_spelling_only(folder, name, file):
    images = folder(file, "other/c.jpg")
    assert found(images, name) == [file]
    if file == "x/b.jpg":
        assert found(folder("x/b.jpg", "y/b.jpg"), name) == [file]  # the longest end decides


def test_the_exact_spelling_comes_first():
    match = Matcher(["a.jpg", "A.jpg", "x/b.jpg", "b.jpg", "1.jpg", "y/1.jpg"])
    assert [match(name) for name in ("A.jpg", "a.jpg", "b.jpg", "z/A.jpg", "a.JPG", "1.png")] == [1, 0, 3, 1, 0, None]


def test_links_that_lead_out_of_the_folder(folder, tmp_path, capsys):
    images = folder("a.jpg")
    (tmp_path / "private.jpg").touch()
    (images / "b.jpg").symlink_to(tmp_path / "private.jpg")
    (images / "c.jpg").symlink_to(images / "a.jpg")
    names = ["a.jpg", "b.jpg", "c.jpg"]
    assert found(images, *names) == ["a.jpg", None, "c.jpg"] and "links" in capsys.readouterr().err
    assert None not in find_pictures(images, names, links=True)
    (tmp_path / "link").symlink_to(images)
    assert find_pictures(tmp_path / "link", ["a.jpg"]) == [tmp_path / "link" / "a.jpg"]


def test_a_line_for_each_image_or_caption(tmp_path):
    class Split(SimpleNamespace):
        def __len__(self):
            return 10

    dataset, path = Split(folder=tmp_path, split="dev", tokens=[[]] * 10, n_images=2), tmp_path / "dev_imagename.txt"
    assert image_names(dataset) is None
    path.write_text("a\nb\n")
    assert image_names(dataset) == ["a", "b"]
    path.write_text("a\n" * 5 + "b\n" * 5)
    assert image_names(dataset) == ["a", "b"]
    path.write_text("a\n")
    assert message(image_names, dataset).startswith(f"{path}: 1 lines")


# ---- proportions


@pytest.mark.parametrize(
    "size, other, differ",
    [
        ((333, 500), (375, 500), True),
        ((500, 333), (333, 500), True),
        ((500, 375), (640, 480), False),
        ((333, 500), (213, 320), False),
        ((500, 375), (50, 37), False),  # resized, the height rounded down
        ((500, 375), (50, 35), True),
    ],
)
def test_proportions(size, other, differ):
    assert proportions_differ(size, other) == proportions_differ(other, size) == differ


def test_pictures_of_other_proportions_are_counted(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side in the file
    files = [*(tmp_path / f"{name}.jpg" for name in "abcde"), None]
    for path, size, more in zip(
        files, [(60, 40), (60, 45), (40, 60), (60, 40)], [{}, {}, {"exif": exif}, {"exif": exif}]
    ):
        Image.new("RGB", size).save(path, **more)
    files[4].write_text("no picture")
    sizes = np.float32([(600, 400)] * 6)
    assert other_proportions(sizes, files) == [(1, (600, 400), (60, 45)), (3, (600, 400), (40, 60))]
    warn_proportions(sizes, files)
    said = capsys.readouterr().err
    assert "2 of 6 pictures" in said and f"{files[1]} is 60 x 45" in said
    warn_proportions(sizes[:1], files[:1])
    assert capsys.readouterr().err == ""
    assert other_proportions(np.float32([(224, 224)] * 6), files) == []  # stretched before the boxes were found
    assert len(other_proportions(np.float32([(224, 224)] * 5 + [(600, 400)]), files)) == 4
