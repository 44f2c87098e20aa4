"""The retrieval report: its numbers are those printed, its lists those of the similarities, and errors are early."""

import functools
import json
import os
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from tiny import dataset_of, make_tiny, random_sims, write_model, write_report

import evaluation
import train
from checkpoints.evaluation_options import eval_parser
from files.errors import InputError
from files.names import find_pictures, image_names
from reporting import candidates, pages, summary


def rows_of(page):
    """The rows of a page's tables, as lists of texts."""
    rows = []

    class Rows(HTMLParser):
        def handle_endtag(self, tag):
            if tag == "table":
                rows.append([])  # what follows belongs to no row

        def handle_starttag(self, tag, attributes):
            if tag == "tr":
                rows.append([])
            elif rows and tag in ("td", "th"):
                rows[-1].append("")

        def handle_data(self, text):
            if rows and rows[-1]:
                rows[-1][-1] += text.strip()

    Rows().feed(page.read_text(encoding="utf-8"))
    return [row for row in rows if row]


def read_data(folder, name):
    text = (folder / "data" / f"{name}.js").read_text(encoding="ascii")
    return json.loads(re.fullmatch(rf'report\.put\("{name}", (.*)\);\n', text, re.DOTALL)[1])


def printed_figures(out):
    """The blocks that evaluation printed, in the order of the page's columns."""
    pattern = (
        r"rsum: (.*)\nAverage i2t Recall: (.*)\nImage to text: (.*)\nAverage t2i Recall: (.*)\n"
        r"Text to image: (.*)\n"
    )
    return [" ".join(block).split() for block in re.findall(pattern, out)]


# ---- the candidates of a query ----


@pytest.mark.parametrize("ties", ["worst", "released"])
@pytest.mark.parametrize("levels", [None, 3, 1])  # different scores, many ties, one score for all
@pytest.mark.parametrize("n, per", [(30, 5), (3, 5), (1, 5), (13, 1)])
def test_lists_are_the_sorted_scores_and_places_the_ranks(levels, n, per, ties):
    sims = random_sims(n, per=per)
    sims = sims if levels is None else np.round(sims).clip(0, levels - 1)
    ranks = evaluation.metrics(sims, ties)["ranks"]
    found = candidates.both_ways([sims], [ranks], ties)
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
            assert one[4] == asked[query] + 1 == min(one[2])


def test_folds_are_numbered_through_the_split():
    sims = random_sims(20)
    blocks = evaluation.five_folds(sims)
    found = candidates.both_ways(blocks, [evaluation.metrics(block)["ranks"] for block in blocks])
    assert found["images"].ids.shape == (20, 10) and found["captions"].ids.shape == (100, 4)
    for q, ids in enumerate(found["images"].ids):
        assert set(ids // 20) == {q // 4}  # captions of the query's own fold
    for q, (ids, scores) in enumerate(zip(found["captions"].ids, found["captions"].scores)):
        assert set(ids // 4) == {q // 20} and scores.tolist() == sims[ids, q].tolist()


def test_names_of_models_are_the_parts_that_differ():
    names = summary.short_names
    assert names(["runs/dense/checkpoint/m.pth.tar", "runs/sparse/checkpoint/m.pth.tar", "ensemble"]) == [
        "dense",
        "sparse",
        "ensemble",
    ]
    assert names(["a/model_best.pth.tar"]) == ["model_best"]
    assert names(["m/x.pth.tar", "m/y.pth.tar", "z.pth.tar", "ensemble"]) == ["m/x", "m/y", "z", "ensemble"]
    assert names(["m/x.pth.tar", "m/x.pth.tar", "ensemble"]) == ["x (1)", "x (2)", "ensemble"]
    assert names(["runs/a", "runs/a/b"]) == ["a", "a/b"]


def test_bins_of_ranks_end_where_the_data_end():
    assert summary.rank_bins(7, 50) == [(1, 1), (2, 5), (6, 10)]
    assert summary.rank_bins(12, 50) == [(1, 1), (2, 5), (6, 10), (11, 50)]
    assert summary.rank_bins(3, 4) == [(1, 1), (2, 4)]
    assert summary.rank_bins(501, 5000)[-2:] == [(101, 500), (501, 5000)]
    assert summary.rank_bins(1, 1) == [(1, 1)]


# ---- the site ----


def test_page_has_the_printed_numbers_of_every_model(tmp_path, capsys):
    tiny = make_tiny(tmp_path, splits={"train": 5, "dev": 5, "testall": 10})
    checkpoints = [train_tiny(tiny, tmp_path / name, seed) for name, seed in (("x", "1"), ("y", "2"))]
    parser = functools.partial(eval_parser, "", split="testall", stack=True)
    site = tmp_path / "site"
    opt = parser().parse_args(["--model_path", *checkpoints, "--fold5", "--ranks", "", "--report", str(site)])
    capsys.readouterr()
    evaluation.main(opt, fold5=True, full=True)
    out = capsys.readouterr().out
    assert f"Report: {site}/index.html" in out
    figures = printed_figures(out)
    assert len(figures) == 6  # whole split and mean of folds, for two models and their ensemble
    rows = [row for row in rows_of(site / "index.html") if len(row) == 14 and "." in row[1]]
    assert [row[0] for row in rows[:6]] == ["x", "y", "ensemble"] * 2
    assert [row[1:] for row in rows[:3]] == figures[::2] and [row[1:] for row in rows[3:6]] == figures[1::2]
    folds = re.findall(r"Image to text: (.*)\nText to image: (.*)\nrsum: (\S+) ar: (\S+) ari: (\S+)", out)
    folds = [[rsum, ar, *r.split(", "), ari, *ri.split(", ")] for r, ri, rsum, ar, ari in folds]
    assert len(folds) == 15 and [row[1:] for row in rows[6:]] == folds
    about = {row[0]: row[1:] for row in rows_of(site / "index.html") if len(row) == 4}
    assert about["x"][:2] == ["GSMN, dense", "1"] and about["ensemble"][0] == "mean of the similarities"
    assert "--hid_dim 8" in about["x"][2] and "--data_path" not in about["x"][2]
    assert about["x"][2].endswith(checkpoints[0])
    values = {row[0]: row[1:] for row in rows_of(site / "index.html") if row[0].startswith("Image to text,")}
    assert [values["Image to text, x"][k] for k in (0, 2, 3)] == figures[0][2:5]  # K = 1, 5, 10


def train_tiny(tiny, folder, seed):
    train.main(
        [
            *tiny.args,
            "--num_epochs",
            "1",
            "--batch_size",
            "20",
            "--embed_size",
            "16",
            "--word_dim",
            "8",
            "--feat_dim",
            "2",
            "--num_block",
            "2",
            "--hid_dim",
            "8",
            "--workers",
            "0",
            "--seed",
            seed,
            "--device",
            "cpu",
            "--model_name",
            str(folder),
            "--logger_name",
            str(folder / "log"),
        ]
    )
    return str(folder / "model_best.pth.tar")


def test_data_of_the_pages_are_the_similarities(tmp_path, tiny_data):
    sims = write_report(tiny_data, tmp_path / "site", n_models=2)
    site, texts = read_data(tmp_path / "site", "site"), read_data(tmp_path / "site", "texts")
    assert site["models"] == ["a", "b", "ensemble"] and site["per"] == 5 and site["thumbs"] == [None] * 10
    assert texts == (tiny_data.folder / "test_caps.txt").read_text().splitlines()
    ranks = read_data(tmp_path / "site", "ranks")
    for m, one in enumerate(sims):
        (rt, _), (rti, _) = evaluation.metrics(one)["ranks"]
        assert ranks["images"][m] == (rt + 1).tolist() and ranks["captions"][m] == (rti + 1).tolist()
        ids, scores, places, _ = read_data(tmp_path / "site", "images-0")[m]
        assert ids[3][0] == one[3].argmax() and scores[3][0] == pytest.approx(one[3].max(), abs=5e-5)
        assert min(places[3]) == ranks["images"][m][3]


def test_regions_are_drawn_in_the_scene(tmp_path, tiny_data):
    write_report(tiny_data, tmp_path / "site")
    dataset = dataset_of(tiny_data)
    width, height, path = read_data(tmp_path / "site", "regions-0")[2]
    assert (width, height) == (320, round(320 * 102 / 202))  # the scene is 202 x 102
    corners = np.array(re.findall(r"M(\d+) (\d+)H(\d+)V(\d+)", path), int)
    np.testing.assert_allclose(corners, dataset.boxes[2] * (width, height, width, height), atol=0.5)


def test_chunks_hold_every_query_once(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(pages, "CHUNK", 7)
    (sims,) = write_report(tiny_data, tmp_path / "site")
    ids = [q for k in range(8) for q in read_data(tmp_path / "site", f"captions-{k}")[0][0]]
    assert [q[0] for q in ids] == sims.argmax(0).tolist()
    assert not (tmp_path / "site" / "data" / "captions-8.js").exists()


def test_captions_are_made_of_ids_where_there_is_no_text(tmp_path, tiny_data):
    (tiny_data.folder / "test_caps.txt").unlink()
    write_report(tiny_data, tmp_path / "site")
    assert re.fullmatch(r"a \w+ \w+ \.", read_data(tmp_path / "site", "texts")[0])


# ---- images and their names ----


@pytest.fixture
def photographs(tmp_path, tiny_data):
    """Image files for the tiny test split, but for the last two; the names say so."""
    from PIL import Image

    names = [f"photo {i}.png" for i in range(10)]
    (tmp_path / "images").mkdir()
    for i, name in enumerate(names[:8]):
        Image.new("RGB", (640, 480), (25 * i, 100, 50)).save(tmp_path / "images" / name)
    (tiny_data.folder / "test_imagename.txt").write_text("".join(name + "\n" for name in names))
    return tmp_path / "images"


def test_thumbnails_are_made_once(tmp_path, tiny_data, photographs, capsys):
    from PIL import Image

    site = tmp_path / "site"
    write_report(tiny_data, site, images=photographs)
    missing, sizes = capsys.readouterr().err.splitlines()
    assert missing == (
        f"warning: {photographs}: 2 of 10 images are not there (first: photo 8.png); their regions are drawn instead"
    )
    assert sizes.startswith("warning: 8 of 10 pictures have other proportions than the sizes in the data set")
    thumbs = read_data(site, "site")["thumbs"]
    assert thumbs[8:] == [None, None] and len(set(thumbs[:8])) == 8
    with Image.open(site / "thumbs" / thumbs[7]) as thumb:
        assert thumb.size == (320, 240) and thumb.getpixel((5, 5)) == pytest.approx((175, 100, 50), abs=4)
    (site / "thumbs" / thumbs[0]).write_bytes(b"still the same")
    Image.new("RGB", (64, 480), "red").save(photographs / "photo 1.png")
    write_report(tiny_data, site, images=photographs)
    again = read_data(site, "site")["thumbs"]
    assert again[0] == thumbs[0] and (site / "thumbs" / again[0]).read_bytes() == b"still the same"
    assert again[1] != thumbs[1] and not (site / "thumbs" / thumbs[1]).exists()
    assert Image.open(site / "thumbs" / again[1]).height == 320


def test_a_broken_image_is_counted_and_drawn(tmp_path, tiny_data, photographs, capsys):
    (photographs / "photo 3.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    write_report(tiny_data, tmp_path / "site", images=photographs)
    assert "1 images cannot be read (first: " in capsys.readouterr().err
    assert read_data(tmp_path / "site", "site")["thumbs"][3] is None


def test_names_never_lead_out_of_the_folder(tmp_path, photographs):
    (tmp_path / "secret.png").write_bytes((photographs / "photo 1.png").read_bytes())
    names = ["../secret.png", str(tmp_path / "secret.png"), "val2014/photo 1.png"]
    assert find_pictures(photographs, names) == [None, None, photographs / "photo 1.png"]


def test_names_of_ids_through_karpathys_file(tmp_path, tiny_data):
    dataset = dataset_of(tiny_data, "dev")
    images = [
        {
            "imgid": i,
            "cocoid": 1000 - i,
            "split": "val" if i >= 20 else "test",
            "filename": f"{i}.jpg",
            "filepath": "val2014",
        }
        for i in range(40)
    ]
    (tiny_data.folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    ids = tiny_data.folder / "dev_ids.txt"
    ids.write_text("".join(f"{i}\n" for i in range(20, 30)))
    assert image_names(dataset) == [f"val2014/{i}.jpg" for i in range(20, 30)]
    ids.write_text("".join(f"{1000 - i}\n" for i in range(20, 30) for _ in range(5)))  # one for each caption
    assert image_names(dataset) == [f"val2014/{i}.jpg" for i in range(20, 30)]
    ids.write_text("".join(f"{i}\n" for i in range(90, 100)))
    with pytest.raises(InputError, match=r"'90' is not in .*dataset_coco\.json"):
        image_names(dataset)
    ids.write_text("1\n2\n")
    with pytest.raises(InputError, match="2 lines; need one for each of 10 images"):
        image_names(dataset)


# ---- what goes wrong ----


def test_what_is_no_report_stays(tmp_path, tiny_data):
    site = tmp_path / "site"
    site.mkdir()
    write_report(tiny_data, site)  # an empty folder is taken
    write_report(tiny_data, site)  # and an earlier report
    (site / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt, which is no part of a report"):
        pages.Report(site)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        pages.Report(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("<h1>My home page</h1>")
    with pytest.raises(InputError, match=r"holds index\.html"):
        pages.Report(tmp_path / "other")


def test_an_unfinished_report_leaves_the_earlier_one(tmp_path, tiny_data, monkeypatch):
    site = tmp_path / "site"
    write_report(tiny_data, site)
    before = {path: path.read_bytes() for path in site.rglob("*.*") if path.is_file()}
    for error in (KeyboardInterrupt, OSError(28, "No space left on device")):

        def fail(*args, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(pages.Report, "write_pages", fail)
            with pytest.raises((KeyboardInterrupt, InputError)):
                write_report(tiny_data, site)
        assert {path: path.read_bytes() for path in site.rglob("*.*") if path.is_file()} == before
        assert sorted(path.name for path in tmp_path.glob("*site*")) == ["site"]


def test_an_earlier_report_is_recovered_after_a_kill(tmp_path, tiny_data):
    site = tmp_path / "site"
    write_report(tiny_data, site)
    os.rename(site, tmp_path / ".site.old")  # killed between the two renames
    (tmp_path / ".site.tmp").mkdir()
    write_report(tiny_data, site)
    assert sorted(path.name for path in tmp_path.glob("*site*")) == ["site"]


@pytest.mark.parametrize("module, package", [("jinja2", "jinja2"), ("PIL", "pillow")])
def test_missing_packages_are_named_before_the_evaluation(tmp_path, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"--report needs the package .*: pip install {package}"):
        pages.Report(tmp_path / "site", images=tmp_path)
    if module == "PIL":
        pages.Report(tmp_path / "site")  # drawings need no Pillow


def test_missing_folder_of_images(tmp_path):
    with pytest.raises(InputError, match=r"--images .*nowhere: no such folder"):
        pages.Report(tmp_path / "site", images=tmp_path / "nowhere")


def test_images_without_names(tmp_path, tiny_data, capsys):
    write_report(tiny_data, tmp_path / "site", images=tmp_path)
    assert re.fullmatch(
        r"warning: --images: no file has the images' names; .*test_imagename\.txt.*\n", capsys.readouterr().err
    )


def test_names_that_do_not_fit_are_found_before_the_evaluation(tmp_path, tiny_data, capsys):
    write_model(tiny_data, tmp_path / "m.pth.tar")
    (tiny_data.folder / "test_imagename.txt").write_text("one.jpg\n" * 9)
    opt = eval_parser("").parse_args(["--model_path", str(tmp_path / "m.pth.tar"), "--report", str(tmp_path / "site")])
    with pytest.raises(InputError, match=r"test_imagename\.txt: 9 lines; need one for each of 10 images"):
        evaluation.main(opt)
    assert "Computing results" not in capsys.readouterr().out and not (tmp_path / "site").exists()


def test_images_are_for_a_report(tmp_path):
    opt = eval_parser("").parse_args(["--images", str(tmp_path)])
    with pytest.raises(InputError, match="--images is for --report"):
        evaluation.main(opt)
