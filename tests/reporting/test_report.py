"""The retrieval report: its numbers are those printed, its lists those of the similarities, and errors are early."""

import html
import json
import re
from unittest.mock import Mock
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tiny import dataset_of, make_tiny, message, random_sims, run, write_model, write_report

import evaluation
from checkpoints.evaluation_options import eval_parser
from files.errors import InputError
from reporting import pages, summary
from reporting.metrics import columns


def rows_of(page):
    """The rows of a page's tables, as lists of texts."""
    rows = re.findall(r"<tr\b.*?</tr>", page.read_text(encoding="utf-8"), re.DOTALL)
    cells = [re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in cells]


def read_data(folder, name):
    text = (folder / "data" / f"{name}.js").read_text(encoding="ascii")
    return json.loads(re.fullmatch(rf'report\.put\("{name}", (.*)\);\n', text, re.DOTALL)[1])


# ---- the candidates of a query ----


@pytest.mark.parametrize("ties", ["worst", "released"])
@pytest.mark.parametrize("levels", [None, 3, 1])  # different scores, many ties, one score for all
@pytest.mark.parametrize("n, per", [(30, 5), (3, 5), (1, 5), (13, 1)])
def test_lists_are_the_sorted_scores_and_places_the_ranks(levels, n, per, ties):
    sims = random_sims(n, per=per)
    sims = sims if levels is None else np.round(sims).clip(0, levels - 1)
    ranks = evaluation.metrics(sims, ties)["ranks"]
    found = pages.both_ways([sims], ties)
    for kind, rows, (asked, _) in zip(found, (sims, sims.T), ranks):
        for query, row in enumerate(rows):
            own = {query * per + k for k in range(per)} if kind == "images" else {query // per}
            order = sorted(range(len(row)), key=lambda c: (-row[c], c in own, c))  # rivals first among equals
            if ties == "released":
                order = np.argsort(row, kind="stable")[::-1].tolist()
            one = [values[query] for values in found[kind]]
            assert one[0].tolist() == order[:10] and one[1].tolist() == row[order[:10]].tolist()
            assert one[2].tolist() == [order.index(c) + 1 for c in sorted(own)]
            assert one[3].tolist() == row[sorted(own)].tolist()
            assert found[kind].ranks[query] == asked[query] + 1


def test_folds_are_numbered_through_the_split():
    sims = random_sims(20)
    blocks = evaluation.five_folds(sims)
    found = pages.both_ways(blocks)
    assert found["images"].ids.shape == (20, 10) and found["captions"].ids.shape == (100, 4)
    for q, ids in enumerate(found["images"].ids):
        assert set(ids // 20) == {q // 4}  # captions of the query's own fold
    for q, (ids, scores) in enumerate(zip(found["captions"].ids, found["captions"].scores)):
        assert set(ids // 4) == {q // 20} and scores.tolist() == sims[ids, q].tolist()


def test_names_of_models_are_the_parts_that_differ():
    names = summary.short_names
    assert names(["runs/dense/checkpoint/m.pth.tar", "runs/sparse/checkpoint/m.pth.tar"]) == ["dense", "sparse"]
    assert names(["a/model_best.pth.tar"]) == ["model_best"]
    assert names(["m/x.pth.tar", "m/y.pth.tar", "z.pth.tar"]) == ["m/x", "m/y", "z"]
    assert names(["m/x.pth.tar", "m/x.pth.tar"]) == ["x (1)", "x (2)"]
    assert names(["runs/a", "runs/a/b"]) == ["a", "a/b"]


# ---- the site ----


def test_page_and_json_have_the_figures_and_say_what_they_are_of(tmp_path, capsys):
    """Two models and their ensemble, whole and in folds; the epoch is that of the training's log and file names."""
    tiny, site = make_tiny(tmp_path, splits={"train": 5, "dev": 5, "testall": 10}), tmp_path / "site"
    run(tiny, tmp_path / "x", epochs=1)
    epoch = json.loads((tmp_path / "x" / "log" / "log.jsonl").read_text().splitlines()[-1])["epoch"]
    assert (tmp_path / "x" / "ck" / f"checkpoint_{epoch}.pth.tar").exists()
    (tmp_path / "y" / "ck").mkdir(parents=True)
    write_model(tiny, tmp_path / "y" / "ck" / "model_best.pth.tar")
    checkpoints = [str(tmp_path / name / "ck" / "model_best.pth.tar") for name in "xy"]
    capsys.readouterr()
    flags = ["--fold5", "--ranks", "", "--report", str(site), "--json", str(tmp_path / "m.json"), "--device", "cpu"]
    opt = eval_parser("", split="testall", stack=True).parse_args(["--model_path", *checkpoints, *flags])
    evaluation.main(opt, full=True)
    assert f"{site}/index.html" in capsys.readouterr().out
    results, table = json.loads((tmp_path / "m.json").read_text()), rows_of(site / "index.html")
    whole, means, folds = zip(*((one["full"], one["fold5"], one["fold5"]["folds"]) for one in results))
    endings = ["", "", *(f", fold {k}" for k in range(1, 6))]
    keys = [metric.key for metrics in columns().values() for metric in metrics]
    expected = [
        [name + ending, *(f"{figures[key]:.1f}" for key in keys)]
        for ending, models in zip(endings, (whole, means, *zip(*folds)))
        for name, figures in zip(("x", "y", "ensemble"), models)
    ]
    assert [row for row in table if len(row) == 1 + len(keys) and "." in row[1]] == expected
    curves = {row[0]: row[1:] for row in table if row[0].startswith("Image to text,")}
    assert [curves["Image to text, x"][k] for k in (0, 2, 3)] == [f"{whole[0][f'r{k}']:.1f}" for k in (1, 5, 10)]

    about = {row[0]: row[1:] for row in table if len(row) == 4}
    assert about["x"][1] == str(epoch) and "--hid_dim 8" in about["x"][2] and checkpoints[0] in about["x"][2]
    assert results[0]["checkpoint"]["epoch"] == epoch and results[0]["checkpoint"]["path"] == checkpoints[0]
    for result in results:
        made = result["provenance"]
        assert (made["split"], made["images"], made["captions"]) == ("testall", 10, 50)
        assert made["data"] == str(tiny.folder) and {"python", "torch"} <= made["versions"].keys()
        assert made["command"] and made["date"]
    assert str(tiny.folder) in (site / "index.html").read_text()


def test_data_of_the_pages_are_the_similarities(tmp_path, tiny_data):
    sims = write_report(tiny_data, tmp_path / "site", n_models=2)
    site = read_data(tmp_path / "site", "site")
    assert site["models"] == ["a", "b", "ensemble"] and site["per"] == 5
    assert site["texts"] == (tiny_data.folder / "test_caps.txt").read_text().splitlines()
    for way, kind in enumerate(("images", "captions")):
        found = read_data(tmp_path / "site", kind)
        for m, one in enumerate(sims):
            rows, ranks = (one, one.T)[way], evaluation.metrics(one)["ranks"][way][0] + 1
            ids, scores, places, _ = found[m]
            assert [q[0] for q in ids] == rows.argmax(1).tolist()
            assert site["ranks"][kind][m] == [min(q) for q in places] == ranks.tolist()
            assert [q[0] for q in scores] == pytest.approx(rows.max(1).tolist(), abs=5e-5)


def test_regions_are_drawn_in_the_scene(tmp_path, tiny_data):
    """With the words of the image's first caption over them, which are text."""
    lines = (tiny_data.folder / "test_caps.txt").read_text().splitlines()
    (tiny_data.folder / "test_caps.txt").write_text("\n".join([*lines[:10], "<b>a \x1b dog & </p>", *lines[11:], ""]))
    write_report(tiny_data, tmp_path / "site")
    drawing = ElementTree.parse(tmp_path / "site" / "thumbs" / "2.svg").getroot()
    width, height = (int(drawing.get(name)) for name in ("width", "height"))
    assert (width, height) == (320, round(320 * 102 / 202))  # the scene is 202 x 102
    path = drawing.find("{http://www.w3.org/2000/svg}path").get("d")
    corners = np.array(re.findall(r"M(\d+) (\d+)H(\d+)V(\d+)", path), int)
    np.testing.assert_allclose(corners, dataset_of(tiny_data).boxes[2] * (width, height, width, height), atol=0.5)
    assert "<b>a  dog & </p>" in "".join(drawing.itertext())


# ---- images and their names ----


def test_thumbnails_of_what_is_there(tmp_path, tiny_data, capsys):
    """The last two pictures are missing, and one is broken."""
    site, photographs = tmp_path / "site", tmp_path / "images"
    photographs.mkdir()
    for i in range(8):
        Image.new("RGB", (640, 480), (25 * i, 100, 50)).save(photographs / f"photo {i}.png")
    (photographs / "photo 3.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tiny_data.folder / "test_imagename.txt").write_text("".join(f"photo {i}.png\n" for i in range(10)))
    write_report(tiny_data, site, images=photographs)
    said = capsys.readouterr().err
    assert "2 of 10" in said and "photo 8.png" in said and "photo 3.png" in said
    assert "proportions" in said
    thumbs = read_data(site, "site")["thumbs"]
    assert [g for g, thumb in enumerate(thumbs) if thumb.endswith(".svg")] == [3, 8, 9] and len(set(thumbs)) == 10
    with Image.open(site / "thumbs" / thumbs[7]) as thumb:
        assert thumb.size == (320, 240) and thumb.getpixel((5, 5)) == pytest.approx((175, 100, 50), abs=4)


def test_names_of_ids_through_karpathys_file(tmp_path, tiny_data):
    dataset = dataset_of(tiny_data, "dev")
    images = [
        {"imgid": i, "cocoid": 1000 - i, "split": split, "filename": f"{i}.jpg", "filepath": "val2014"}
        for split, numbers in (("test", range(20)), ("val", range(20, 40)))
        for i in numbers
    ]
    (tiny_data.folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    ids = tiny_data.folder / "dev_ids.txt"
    ids.write_text("".join(f"{i}\n" for i in range(20, 30)))
    assert dataset.names() == [f"val2014/{i}.jpg" for i in range(20, 30)]
    ids.write_text("".join(f"{1000 - i}\n" for i in range(20, 30) for _ in range(5)))  # one for each caption
    assert dataset.names() == [f"val2014/{i}.jpg" for i in range(20, 30)]
    ids.write_text("".join(f"{i}\n" for i in range(90, 100)))
    said = message(dataset.names)
    assert "'90' is not in" in said and "dataset_coco.json" in said
    ids.write_text("1\n2\n")
    assert "2 lines; need one for each of 10 images" in message(dataset.names)


# ---- what goes wrong ----


def test_what_is_no_report_stays(tmp_path, tiny_data):
    site, other = tmp_path / "site", tmp_path / "other"
    site.mkdir()
    write_report(tiny_data, site)  # an empty folder is taken
    write_report(tiny_data, site)  # and an earlier report
    (site / "notes.txt").write_text("mine")
    (tmp_path / "file").touch()
    other.mkdir()
    (other / "index.html").write_text("<h1>My home page</h1>")
    for folder, word in ((site, "notes.txt"), (tmp_path / "file", "file"), (other, "index.html")):
        assert word in message(pages.Report, folder)


def test_an_unfinished_report_leaves_the_earlier_one(tmp_path, tiny_data, monkeypatch):
    site = tmp_path / "site"
    write_report(tiny_data, site)
    before = {path: path.read_bytes() for path in site.rglob("*.*") if path.is_file()}
    for error in (KeyboardInterrupt, OSError(28, "No space left on device")):
        monkeypatch.setattr(pages.Report, "write_pages", Mock(side_effect=error))
        with pytest.raises((KeyboardInterrupt, InputError)):
            write_report(tiny_data, site)
        assert {path: path.read_bytes() for path in site.rglob("*.*") if path.is_file()} == before
        assert sorted(path.name for path in tmp_path.glob("*site*")) == ["site"]


def test_outputs_that_cannot_be_are_told_before_the_evaluation(tmp_path, tiny_data, capsys):
    write_model(tiny_data, tmp_path / "m.pth.tar")

    def told(*flags):
        flags = ["--model_path", tmp_path / "m.pth.tar", "--device", "cpu", "--ranks=", *flags]
        said = message(evaluation.main, eval_parser("").parse_args(list(map(str, flags))), True)
        assert "Computing results" not in capsys.readouterr().out
        return said

    report = ["--report", tmp_path / "site"]
    assert "--report" in told("--images", tmp_path) and "--report" in told("--explain", 1)
    assert "nowhere" in told(*report, "--images", tmp_path / "nowhere")
    assert "/dev/null" in told("--save_sims", "/dev/null")
    (tiny_data.folder / "test_imagename.txt").write_text("one.jpg\n" * 9)
    assert "test_imagename.txt" in told(*report) and not (tmp_path / "site").exists()


def test_a_link_for_the_similarities_stays_one(tmp_path, tiny_data):
    write_model(tiny_data, tmp_path / "m.pth.tar")
    (tmp_path / "link.npy").symlink_to(tmp_path / "sims.npy")
    flags = ["--model_path", str(tmp_path / "m.pth.tar"), "--device", "cpu", "--ranks="]
    evaluation.main(eval_parser("").parse_args([*flags, "--save_sims", str(tmp_path / "link.npy")]), full=True)
    assert (tmp_path / "link.npy").is_symlink() and np.load(tmp_path / "sims.npy").shape == (10, 50)
