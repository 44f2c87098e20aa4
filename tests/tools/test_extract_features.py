"""tools/extract_features.py: pictures and others' files become regions; interruption; odd pictures, damaged files."""

import base64
import resource
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import message
from torchvision import models
from torchvision.ops import box_iou

from files.arrays import read_boxes, read_sizes
from tools import extract_features
from tools.own_data import region_sources
from tools.own_data.region_files import BUTD, LXMERT
from tools.own_data.region_sources import backbone, last_map

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
TINY = ["--grid", "tiny", "--size", "12", "--workers", "0"]


class Place:
    """A data set `mine` whose pictures lie in photos/; `extract` runs the tool on it."""

    def __init__(self, root):
        self.root, self.folder, self.photos = root, root / "data" / "mine", root / "photos"
        self.folder.mkdir(parents=True)
        self.photos.mkdir()

    def name(self, *names):
        (self.folder / "dev_imagename.txt").write_text("".join(f"{name}\n" for name in names))

    def picture(self, name, size=(24, 12)):
        # top half red, bottom half blue; what lies in between changes with the name
        image = Image.new("RGB", size, (0, 0, 255))
        image.paste((255, len(name), 0), (0, 0, size[0], size[1] // 2))
        image.save(self.photos / name)

    def show(self, *names):
        """Pictures of the dev split."""
        for name in names:
            self.picture(name)
        self.name(*names)

    def extract(self, *flags):
        extract_features.main(["--data_path", str(self.root / "data"), "--data_name", "mine", *map(str, flags)])
        return self.arrays()

    def grid(self, *flags):
        return self.extract("--images", self.photos, *TINY, *flags)

    def error(self, *flags):
        return message(self.extract, *flags)

    def grid_error(self, *flags):
        return message(self.grid, *flags)

    def arrays(self):
        features, boxes = (np.load(self.folder / f"dev_{name}.npy") for name in ("ims", "ims_bbx"))
        return features, boxes, read_sizes(self.folder / "dev_ims_size.npy")


@pytest.fixture
def place(tmp_path, monkeypatch):
    pool = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.AdaptiveAvgPool2d(1))  # its map: means of 2 x 2 pixels
    made, tiny = region_sources.backbone, (pool, (0, 0, 0), (1, 1, 1))
    monkeypatch.setattr(region_sources, "backbone", lambda name, *more: tiny if name == "tiny" else made(name, *more))
    return Place(tmp_path)


# ---- grid


def test_grid_cells_are_where_their_boxes_say(place):
    place.picture("a.png")
    place.picture("bb.png", size=(7, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so
    Image.open(place.photos / "bb.png").rotate(90, expand=True).save(place.photos / "bb.png", exif=exif)
    place.name("bb.png", "a.png")
    features, boxes, sizes = place.grid()
    assert features.shape == (2, 36, 3) and features.dtype == np.float32
    assert sizes.tolist() == [[7, 30], [24, 12]]
    assert boxes[1, 7].tolist() == [4, 2, 8, 4] and boxes[:, -1, 2:].tolist() == sizes.tolist()
    for row, name in enumerate(("bb.png", "a.png")):
        red = np.array([0 if box[1] >= sizes[row, 1] / 2 else 1 for box in boxes[row]])
        clear = np.r_[:12, 24:36]  # the rows of cells that resizing does not blur across
        assert np.array_equal(features[row, clear, 0], red[clear])
        assert np.allclose(features[row, clear, 1] * 255, len(name) * red[clear], rtol=1e-6)


def test_last_map():
    model = backbone("shufflenet_v2_x0_5", pretrained=False)[0].eval()
    sizes = {"image_size": 8, "patch_size": 2, "num_layers": 1, "num_heads": 2, "hidden_dim": 4, "mlp_dim": 4}
    transformer = models.VisionTransformer(**sizes).eval()
    x, small = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        found = last_map(model, x, "shufflenet")
        assert found.shape == (1, 1024, 2, 2)
        assert torch.allclose(model.fc(found.mean((2, 3))), model(x), atol=1e-5)  # what its classifier reads
        tokens = torch.cat([transformer.class_token, transformer._process_input(small)], dim=1)
        expected = transformer.encoder(tokens)[0, 1:].T.reshape(4, 4, 4)
        assert torch.equal(last_map(transformer, small, "vit")[0], expected)
        assert "6 x 6" in message(last_map, transformer, small[:, :, :6, :6], "vit")


# ---- detector


def decided(name, pretrained, made=region_sources.detector):
    """A detector with random weights whose scores are far from equal."""
    model = made(name, pretrained)
    with region_sources.seeded(1), torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.normal_(0, 1000)
    return model


def test_detector_agrees_with_torchvision(place, monkeypatch):
    monkeypatch.setattr(region_sources, "detector", decided)
    pictures = np.random.default_rng(1).integers(0, 255, (2, 64, 96, 3), np.uint8)
    for name, pixels in zip(("a.png", "b.png"), pictures):
        Image.fromarray(pixels).save(place.photos / name)
    place.name("a.png", "b.png")
    flags = ["--images", place.photos, "--detector", DETECTOR, "--no_pretrained", "--size", "64", "--workers", "0"]
    features, boxes, sizes = place.extract(*flags)
    assert features.shape == (2, 36, 1024) and np.isfinite(features).all()
    read_boxes(place.folder / "dev_ims_bbx.npy", sizes)  # inside their images
    model = region_sources.detector(DETECTOR, False).eval()
    model.transform.min_size, model.transform.max_size = (64,), round(64 * 1333 / 800)
    model.roi_heads.score_thresh = 0.0
    own = list(torch.from_numpy(boxes))
    with torch.inference_mode():
        pictures = list(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)
        theirs, inputs = model(pictures), model.transform(pictures)[0]
        assert inputs.image_sizes == [(64, 96)] * 2  # so that boxes have the same pixels before and after
        pooled = model.roi_heads.box_roi_pool(model.backbone(inputs.tensors), own, inputs.image_sizes)
        again = model.roi_heads.box_head(pooled).view(2, 36, -1)
    for their, our in zip(theirs, own):
        assert torch.allclose(their["boxes"][0], our[0], atol=1e-4)
        found = our[(our != torch.tensor([0.0, 0, 96, 64])).any(dim=1)]  # the others fill up
        assert len(found) > 5
        assert box_iou(found, found).fill_diagonal_(0).max() <= region_sources.OVERLAP + 1e-6
    assert np.allclose(again.numpy(), features, atol=1e-5)
    assert not np.array_equal(features[0, 0], features[1, 0])


def test_nothing_detected_is_the_whole_image_and_said(place, capsys):
    place.picture("a.png", size=(40, 30))
    place.picture("dot.png", size=(1, 1))
    place.name("a.png", "dot.png")
    flags = ["--images", place.photos, "--detector", DETECTOR, "--no_pretrained", "--size", "32", "--workers", "0"]
    features, boxes, _ = place.extract(*flags, "--min_score", "1", "--regions", "3", "--batch_size", "1")
    assert boxes.tolist() == [[[0, 0, 40, 30]] * 3, [[0, 0, 1, 1]] * 3]
    assert (features == features[:, :1]).all() and np.isfinite(features).all()
    assert "fewer than 3 detections, filled up with the whole image: 2 (first: a.png: 0)" in capsys.readouterr().out


def test_models_that_are_not_there(place, monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("no network")

    def told(flags):
        return place.error("--images", place.photos, "--workers", "0", *flags.split())

    place.show("a.png")
    assert "ssd300_vgg16" in told("--detector ssd300_vgg16")
    for package, grid in {"timm": "nothing", "efficientnet_lite_pytorch": "efficientnet-lite0"}.items():
        monkeypatch.setitem(sys.modules, package, None)
        assert f"pip install {package.replace('_', '-')}" in told(f"--grid {grid}")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    files = {"--detector fasterrcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"}
    for flags, file in {**files, "--grid resnet18": "resnet18-f37072fd.pth"}.items():
        said = told(flags)
        assert file in said and f"{tmp_path}/hub/checkpoints" in said and "--no_pretrained" in said


# ---- pictures of every kind


def test_bad_pictures(place):
    place.picture("a.jpg", size=(200, 100))
    place.name("a.jpg", "b.jpg")
    assert "square number" in place.grid_error("--regions", "35")
    assert "b.jpg: no such picture; 1 of 2 are missing" in place.grid_error()
    (place.photos / "b.jpg").write_bytes((place.photos / "a.jpg").read_bytes()[:400])
    assert "b.jpg: not a readable picture" in place.grid_error()
    assert not (place.folder / "dev_ims.npy").exists()


def test_names_that_cannot_be_used(place):
    for names, said in {("a.jpg", "c.jpg", "a.jpg"): "line 3", ("a.jpg", " "): "line 2", (): "no image"}.items():
        place.name(*names)
        assert said in place.grid_error()
    (place.folder / "dev_imagename.txt").unlink()
    assert "prepare_captions.py" in place.grid_error()
    assert "prepare_captions.py" in place.grid_error("--split", "train")


# ---- interruption


def test_an_interrupted_run_goes_on(place, capsys):
    names = [f"{'x' * i}.png" for i in range(1, 8)]
    place.show(*names)
    whole = [array.copy() for array in place.grid("--batch_size", "1")]
    for file in place.folder.glob("*.npy"):
        file.unlink()
    (place.photos / names[5]).write_bytes(b"")
    assert names[5] in place.grid_error("--batch_size", "1", "--shard", "2")
    assert not list(place.folder.glob("*.npy"))
    place.show(*names)
    for name in names[:4]:  # these are safe, and not read again
        place.picture(name, size=(9, 9))
    again = place.grid("--batch_size", "1", "--shard", "2")
    assert all(np.array_equal(a, b) for a, b in zip(whole, again))
    assert "4 of them in an earlier run" in capsys.readouterr().out
    assert not list(place.folder.glob(".*"))
    place.grid()
    assert "complete" in capsys.readouterr().out


def test_parts_of_another_run_are_not_taken(place):
    place.show("a.png", "b.png")
    (place.photos / "b.png").write_bytes(b"")
    place.grid_error("--batch_size", "1", "--shard", "1")
    (parts,) = place.folder.glob(".dev_*.parts")
    assert np.load(parts / "dev_ims_size.npy").tolist() == [(24, 12), (0, 0)]
    place.picture("b.png")
    place.picture("a.png", size=(9, 9))
    *_, sizes = place.grid("--dtype", "float16")
    assert sizes[0].tolist() == [9, 9] and not parts.exists()


def test_files_for_other_images_and_overwrite(place):
    place.show("a.png")
    place.grid()
    place.show("a.png", "b.png")
    assert "has 1 items, but dev_imagename.txt 2; --overwrite" in place.grid_error()
    assert len(place.grid("--overwrite")[0]) == 2


def test_no_room(place):
    place.show("a.png")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        said = place.grid_error()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written (File too large)" in said and "the same command goes on" in said
    assert len(place.grid()[0]) == 1


def test_flags_that_do_not_go_together(place):
    assert "--grid" in place.error("--tsv", "a.tsv", "--grid", "resnet18")
    assert "a.tsv" in place.error("--tsv", "a.tsv")
    assert "--npz" in place.error("--npz", "nothing")
    assert "--images, --tsv, --npz" in place.error()


# ---- others' files


def encoded(array, kind="<f4"):
    return base64.b64encode(np.ascontiguousarray(array, kind)).decode()


def regions(seed, count, width=5):
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 50, (count, 2, 2)), axis=1).reshape(count, 4)
    return boxes.astype(np.float32), rng.normal(size=(count, width)).astype(np.float32)


def line(name, boxes, features, conf=None, code=encoded, more=""):
    """A line of a TSV file, an image of 60 x 50 pixels; conf: of LXMERT's layout."""
    cells = {"boxes": code(boxes), "features": code(features), "objects_conf": "" if conf is None else code(conf)}
    values = {"id": name, "width": 60, "height": 50, "num_boxes": len(boxes), **cells}
    layout = BUTD if conf is None else LXMERT
    return "\t".join(str(values.get(column, "")) for column in layout) + f"{more}\n"


class Three(Place):
    """Three images with 3, 4 and 2 boxes, for --regions 3."""

    def __init__(self, root):
        super().__init__(root)
        self.name("COCO_val2014_000000000042.jpg", "000000000007.jpg", "dir/1_a.jpg")
        self.found = [regions(seed, count) for seed, count in enumerate((3, 4, 2))]

    def rows(self, **how):
        return [line(name, *found, **how) for name, found in zip((42, 7, "1_a"), self.found)]

    def tsv(self, *lines, name="a.tsv"):
        (self.root / name).write_text("".join(lines))
        return self.root / name

    def extract(self, *flags):
        return super().extract("--regions", "3", "--overwrite", *flags)

    def check(self, arrays, best=(0, 1, 2)):
        (features, boxes, sizes), best = arrays, list(best)
        assert sizes.tolist() == [[60, 50]] * 3
        assert np.array_equal(boxes[0], self.found[0][0]) and np.array_equal(features[0], self.found[0][1])
        assert np.array_equal(boxes[1], self.found[1][0][best]) and np.array_equal(features[1], self.found[1][1][best])
        assert np.array_equal(boxes[2, :2], self.found[2][0]) and boxes[2, 2].tolist() == [0, 0, 60, 50]
        assert np.allclose(features[2, 2], self.found[2][1].mean(0), rtol=1e-6)


@pytest.fixture
def three(tmp_path):
    return Three(tmp_path)


def test_bottom_up_tsv(three, capsys):
    first, second, third = three.rows()
    path = three.tsv(second, line(99, *regions(9, 3)), third)
    more = three.tsv(first, line(7, *regions(8, 3)), name="b.tsv")
    assert "1 of 3 images of dev are not there (first: COCO_val2014_000000000042.jpg)" in three.error("--tsv", path)
    three.check(three.extract("--tsv", path, more))
    said = capsys.readouterr().out
    assert f"images that come twice, of which the first is taken: 1 (first: {more}, line 2)" in said
    assert "more than 3 boxes, of which the first are taken: 1" in said and "filled up with the whole image" in said


def test_lxmert_tsv_takes_the_most_certain(three):
    confs = [(3, 2, 1), (0.1, 0.4, 0.2, 0.3), (1, 1)]
    names = ["COCO_val2014_000000000042", "COCO_train2014_000000000007", "1_a"]
    lines = [line(name, *found, conf) for name, found, conf in zip(names, three.found, confs)]
    three.check(three.extract("--tsv", three.tsv(*lines)), [1, 3, 2])


def test_npz(three, capsys):
    folder, info = three.root / "npz", np.array({"a": 1}, dtype=object)  # pickled in the file, never read
    folder.mkdir()
    for name, (boxes, x) in zip(("COCO_val2014_000000000042.jpg", "000000000007", "1_a"), three.found):
        x = x.T if name.endswith("7") else x  # as older releases wrote them
        np.savez_compressed(folder / name, x=x, bbox=boxes, image_w=60, image_h=50, info=info)
    three.check(three.extract("--npz", folder))
    (folder / "000000000042.npz").write_bytes(b"PK")  # a damaged one is passed over where another name has the image
    three.extract("--npz", folder)
    assert "damaged parts of files passed over: 1 (first: " in capsys.readouterr().out
    (folder / "000000000042.npz").unlink()
    path = folder / "1_a.npz"
    for content, said in ((path.read_bytes()[:300], "truncated"), (b"<!DOCTYPE html><title>Too large", "a web page")):
        path.write_bytes(content)
        assert f"1_a.npz: {said}" in three.error("--npz", folder)
    np.savez(path, x=three.found[0][1])
    assert "1_a.npz: " in (said := three.error("--npz", folder)) and "need x, bbox" in said


def test_features_and_boxes_in_two_folders(three, capsys):
    """cocobu_att and cocobu_box.  They have no sizes: those of the pictures, else of all boxes, which a note counts."""
    att, box = three.root / "cocobu_att", three.root / "cocobu_box"
    att.mkdir()
    for name, (_, x) in zip(("42", "7", "1_a"), three.found):
        np.savez(att / f"{name}.npz", feat=x)
    assert "no boxes" in three.error("--npz", att)
    box.mkdir()
    for name, (boxes, _) in zip(("42", "7", "1_a"), three.found):
        np.save(box / f"{name}.npy", boxes)
        Image.new("RGB", (60, 50)).save(three.photos / f"{name}.png")
    *_, sizes = three.extract("--npz", att)
    assert "without a size" in capsys.readouterr().out
    assert np.array_equal(sizes, [np.ceil(boxes[:, 2:].max(0)) for boxes, _ in three.found])
    three.check(three.extract("--npz", att, "--images", three.photos))
    (box / "7.npy").unlink()
    assert "1 of 3 images" in (said := three.error("--npz", att)) and "7.npy" in said


def test_no_boxes_in_a_file(three, capsys):
    first, _, third = three.rows()
    features, boxes, _ = three.extract("--tsv", three.tsv(first, line(7, *regions(0, 0)), third))
    assert boxes[1].tolist() == [[0, 0, 60, 50]] * 3 and not features[1].any()
    assert "line 2: 0)" in capsys.readouterr().out


def test_damaged_lines_are_passed_over_where_another_copy_follows(three, capsys):
    """Cut off, glued together, not base64, NaN, blank, and damage in the line of an image that nobody wants."""
    good = three.rows()
    bad = [
        good[0][:9] + "\n",
        good[0].rstrip("\n") + good[1],
        good[2][:-3] + "!\n",
        line(42, three.found[0][0], np.full((3, 5), np.nan)),
        "99\t60\t50\tno number\t\t\n",
        "\n",
    ]
    path = three.tsv(*bad, *good, "\n")
    three.check(three.extract("--tsv", path))
    assert f"damaged parts of files passed over: 4 (first: {path}, line 1: " in capsys.readouterr().out
    said = three.error("--tsv", three.tsv(*bad, *good[1:]))
    assert "1 of 3 images" in said and f"4 damaged parts, the first: {path}, line 1: " in said
    assert "damaged parts of files passed over: 4" in capsys.readouterr().out  # the notes come with an error too


@pytest.mark.parametrize("conf", [None, (1, 1)])
def test_tsv_cut_in_the_middle(three, conf):
    """The last line ends at one of ten places."""
    last = line("1_a", *three.found[2], conf)
    for end in range(1, len(last) - 1, len(last) // 10):
        path = three.tsv(*three.rows()[:2], last[:end])
        said = three.error("--tsv", path, "--shard", "1")
        assert f"{path}, line 3: " in said and "again" in said
    assert not (three.folder / "dev_ims.npy").exists()


ONE = f"1\t{encoded([0, 0, 45, 59])}\t"


@pytest.mark.parametrize(
    "text, said",
    [
        ("a\tb\n", "line 1: 2 columns"),
        ("42\tx\t5\t0\t\t\n", "cannot be read"),
        ("42\t5\t5\t0\t\t\n", "how wide features are"),
        (f"42\t5\t5\t{ONE}{encoded([np.nan])}\n", "NaN or infinity"),
        (f"42\t0\t5\t{ONE}{encoded([1])}\n", "image of 0 x 5 pixels"),
        (f"42\t60\t50\t{ONE}{encoded([1])}\n", "exchanged width and height"),
        (f"42\t60\t60\t{ONE}{encoded([1e6])}\n", "try --dtype float32"),
        ("", "3 of 3 images of dev are not there"),
    ],
)
def test_bad_tsv(three, text, said, capsys):
    message = three.error("--tsv", three.tsv(text), "--dtype", "float16")
    assert said in message + capsys.readouterr().out


def as_float64(array):
    return encoded(array, "<f8")


def as_printed(array):
    """As Python 3 prints bytes."""
    return repr(encoded(array).encode())


@pytest.mark.parametrize("how", [{"code": as_float64}, {"code": as_printed}, {"more": "\tAAAA"}])
def test_other_kinds_of_numbers_and_more_columns(three, how, capsys):
    """A line that lacks its end is passed over."""
    rows = three.rows(**how)
    three.check(three.extract("--tsv", three.tsv(rows[0].rstrip("\n") + "\t", rows[1], *rows)))
    said = capsys.readouterr().out
    assert ("ignored" in said) == ("more" in how) and "damaged parts of files passed over: 1" in said
