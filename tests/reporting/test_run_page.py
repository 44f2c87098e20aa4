"""summary.html of a finished training."""

import json
import re

import pytest

from files.errors import InputError
from reporting.run_page import chart, write_run_page

METRICS = ("r1", "r5", "r10", "medr", "meanr")


def validation(step, rsum):
    ways = {f"{name}{end}": rsum / 6 for name in METRICS for end in ("", "i")}
    return {"Eiters": step, "epoch": step // 10, "time": 0.0, "rsum": rsum, "r1r5": rsum / 2, **ways}


@pytest.fixture
def log(tmp_path):
    rows = [validation(10, 120.0), validation(20, 240.0), validation(30, 180.0)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opt = {"data_name": "a<b", "data_path": "my data", "vocab_path": "v", "margin": 0.3, "seed": 0}
    config = {
        "opt": opt,
        "command": "python train.py --first",
        "resumed": [{"command": "python train.py --second"}],
        "versions": {"torch": "2"},
        "data": {"train_ims.npy": 1234},
        "time": "2020-01-01",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def page(folder):
    path = write_run_page(folder, "GSMN, dense", "runs/best.pth.tar", "rsum", {"margin": 0.2, "seed": 0})
    assert path == folder / "summary.html"
    return path.read_text()


def test_the_page_says_what_was_trained_and_how_well(log):
    text = page(log)
    assert "<title>Training: GSMN, dense, a&lt;b</title>" in text
    assert re.search(r"rsum 240\.0, .* 120\.0,\nat step 20 in epoch 2 ", text)
    assert "python test.py --model_path runs/best.pth.tar --data_path &#39;my data&#39; --vocab_path v" in text
    assert text.index("--first") < text.index("--second") and "<code>--margin 0.3</code>." in text
    assert text.count('class="best"') == 12 and "1,234 bytes" in text  # epoch, ten figures, rsum
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # nothing beside the page is needed


def test_the_points_of_a_curve():
    rows = [validation(10, 120.0), validation(20, 240.0)]
    drawn = chart("sum", {"rsum": "rsum"}, rows)
    assert [value for value, _ in drawn["ticks"]] == [0, 75, 150, 225, 300]
    assert drawn["lines"] == [("rsum", "209.0,128.0 374.0,52.0", "240.0")]
    assert chart("recalls", {"r1": "R@1", "r5": "R@5"}, rows)["ticks"][-1] == (100, "14.0")


def test_a_log_that_cannot_be_read(log):
    (log / "log.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"log.jsonl: a line is not JSON"):
        page(log)
    (log / "log.jsonl").write_text("")
    with pytest.raises(InputError, match=r"log.jsonl: no validation"):
        page(log)
