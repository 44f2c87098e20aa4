"""Which file a name means, and which pictures have other proportions than the sizes of the data set."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny import message

from files.names import Matcher, find_pictures, image_names
from files.pictures import other_proportions, proportions_differ


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


COCO_2017 = ["train2017/000000000042.jpg", "val2017/000000391895.jpg"]


@pytest.mark.parametrize(
    "files, names, expected",
    [
        (["a.jpg", "x/b.jpg", "c.jpg"], ["a.jpg", "x/b.jpg", "x/c.jpg", "d.jpg"], ["a.jpg", "x/b.jpg", "c.jpg", None]),
        (COCO_2017, ["x/COCO_val2014_000000000042.jpg", "COCO_train2014_000000391895.jpg"], COCO_2017),
        (["COCO_val2014_000000000007.jpg"], ["000000000007.jpg"], ["COCO_val2014_000000000007.jpg"]),
        (["a.JPG", "b.png"], ["a.jpg", "b.jpg"], ["a.JPG", "b.png"]),  # another ending
        (["1.jpg"], ["1.jpg", "01.jpg"], ["1.jpg", None]),  # a file belongs to one name
        (["1.jpg"], ["001.jpg", "01.jpg"], [None, None]),  # both could mean it
        (["b.jpg", "b.png"], ["b.gif"], [None]),  # two files could be meant
        (["a.jpg"], ["x" * 300, "../images/a.jpg"], [None, None]),  # names that no file can have
        (["a.jpg"], ["photos\\a.jpg"], ["a.jpg"]),
        (["x/a.jpg"], ["C:\\data\\photos\\x\\a.jpg"], ["x/a.jpg"]),
        (["a.jpg"], ["/home/me/photos/a.jpg"], ["a.jpg"]),
        (["x/b.jpg", "y/b.jpg"], ["/home/me/photos/x/b.jpg"], ["x/b.jpg"]),  # the longest end decides
        (["caf\u00e9.jpg"], ["cafe\u0301.jpg"], ["caf\u00e9.jpg"]),
        (["cafe\u0301.jpg"], ["caf\u00e9.jpg"], ["cafe\u0301.jpg"]),
        (["x/a.jpg"], ["X/A.JPG"], ["x/a.jpg"]),
        (["a.jpg"], ["https://example.org/photos/a.jpg?width=640"], ["a.jpg"]),
    ],
)
def test_which_file_a_name_means(folder, files, names, expected):
    assert found(folder(*files, "other/z.jpg"), *names) == expected


def test_the_exact_spelling_comes_first():
    assert find_pictures("nowhere", ["a.jpg"]) == [None]
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


def test_pictures_of_other_proportions_are_counted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side in the file
    files = [*(tmp_path / f"{name}.jpg" for name in "abcde"), None]
    for path, size, more in zip(
        files, [(60, 40), (60, 45), (40, 60), (60, 40)], [{}, {}, {"exif": exif}, {"exif": exif}]
    ):
        Image.new("RGB", size).save(path, **more)
    files[4].write_text("no picture")
    sizes = np.float32([(600, 400)] * 6)
    said = other_proportions(sizes, files)
    assert said.startswith("2 of 6 pictures") and f"{files[1]} is 60 x 45, the data set says 600 x 400" in said
    assert other_proportions(sizes[:1], files[:1]) is None
    assert other_proportions(np.float32([(224, 224)] * 6), files) is None  # stretched before the boxes were found
    assert other_proportions(np.float32([(224, 224)] * 5 + [(600, 400)]), files).startswith("4 of 6")
