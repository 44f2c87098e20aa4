"""summary.html of a training, and the page of several by tools/curves.py."""

import json
import re

import pytest
from tiny import message

from reporting.metrics import METRICS
from reporting.rendering import round_above
from reporting.run_page import curves, read_log, write_run_page
from tools import curves as tool


def validation(step, rsum):
    figures = {metric.key: rsum / 6 for metric in METRICS}
    return {"Eiters": step, "epoch": step // 10, "time": 0.0, **figures, "rsum": rsum, "r1r5": rsum / 2}


def step(number, loss):
    losses = {"Le": loss, "Lc": loss / 2}
    return {"Eiters": number, "epoch": 0, "step": number, "lr": 0.1, "pairs_per_second": 8.0, "losses": losses}


def write_log(folder, rsums):
    folder.mkdir(parents=True)
    rows = [step(1, 4.0), step(9, 2.0), *(validation(10 * k, rsum) for k, rsum in enumerate(rsums, start=1))]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def log(tmp_path):
    folder = write_log(tmp_path / "log", [120.0, 240.0, 180.0])
    opt = {"data_name": "a<b", "data_path": "my data", "vocab_path": "v", "margin": 0.3, "seed": 0, "bi_gru": True}
    config = {
        "opt": opt,
        "command": "python train.py --first",
        "resumed": [{"command": "python train.py --second"}],
        "versions": {"torch": "2", "git": "0123-dirty"},
        "data": {"train_ims.npy": 1234},
        "time": "2020-01-02T03:04:05+0000",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def page(folder):
    usual = {"margin": 0.2, "seed": 0, "bi_gru": False, "cnn": ""}
    return write_run_page(folder, "GSMN", "runs/best.pth.tar", "rsum", usual).read_text()


def test_the_page_says_what_was_trained_and_how_well(log):
    text = page(log)
    assert "GSMN, a&lt;b</title>" in text
    assert re.search(r"rsum 240\.0.*step 20 in epoch 2", text, re.S) and text.count('best">') == len(METRICS)
    assert "python test.py --model_path runs/best.pth.tar --data_path &#39;my data&#39; --vocab_path v" in text
    assert text.index("--first") < text.index("--second") and ">--bi_gru --margin 0.3<" in text
    assert "2020-01-02 03:04" in text and "git 0123-dirty" in text and "1,234 bytes" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # nothing beside the page is needed


def test_the_curves_of_a_run(log):
    drawn = curves(*read_log(log / "log.jsonl"))
    assert drawn["Loss"] == {"Le": [(1, 4.0), (9, 2.0)], "Lc": [(1, 2.0), (9, 1.0)]}
    assert drawn["Learning rate"] == {"learning rate": [(1, 0.1), (9, 0.1)]}
    assert drawn["Pairs a second"] == {"pairs a second": [(1, 8.0), (9, 8.0)]}
    assert drawn["Both directions, sum"]["rsum"] == [(10, 120.0), (20, 240.0), (30, 180.0)]
    assert list(drawn["Image to text, percent"]) == ["Average", "R@1", "R@5", "R@10"]
    assert list(curves([{**step(1, 1.0), "losses": {"loss": 1.0, "Le": 1.0}}], [])["Loss"]) == ["loss"]  # equal
    many = curves([step(n, float(n)) for n in range(1, 1001)], [])["Loss"]["Le"]
    assert len(many) == 250 and many[0] == (2.5, 2.5)  # means of four
    assert "Loss" not in curves([], [validation(1, 1.0)])


@pytest.mark.parametrize("highest, top", [(550.4, 600), (1.46, 2), (0.002, 0.002), (98.7, 100), (1000, 1000), (0, 1)])
def test_a_chart_ends_at_a_round_number(highest, top):
    assert round_above(highest) == pytest.approx(top, rel=1e-12)


def test_damaged_lines_are_left_out(log):
    rows = (log / "log.jsonl").read_text().splitlines()
    bad = ['{"Eiters": 5, "rsum": "x"}', '{"Eiters": 5, "losses": 3}', '{"Eiters": "x"}', "[]", '{"Eit']
    (log / "log.jsonl").write_text("\n".join([rows[0], *bad[:3], *rows[1:], *bad[3:]]))
    assert page(log).count("<polyline") == 2 + 1 + 1 + len(METRICS)
    (log / "log.jsonl").write_text("{")
    assert "log.jsonl" in message(page, log)
    (log / "config.json").write_text("[]")
    assert "config.json" in message(page, log)


def test_several_runs_on_one_page(tmp_path, monkeypatch, capsys):
    write_log(tmp_path / "a" / "log", [100, 200, 150])
    write_log(tmp_path / "b<i>" / "log", [150, 170])
    monkeypatch.chdir(tmp_path)
    tool.main(["a", "b<i>/log", "a/log/log.jsonl"])  # one of them twice
    text = (tmp_path / "curves.html").read_text()
    assert "a, b<i>" in capsys.readouterr().out
    assert text.count("<figure") == 4 + len(METRICS) and text.count("<polyline") == 2 * (4 + len(METRICS))
    assert re.findall(r'row">(.+?)</th><td>(\d+)<', text) == [("a", "20"), ("b&lt;i&gt;", "20")]  # the best of each
    tool.main(["a", "--out", "a.html"])  # one run alone, before it has finished
    assert (tmp_path / "a.html").read_text().count("<polyline") == 2 + 1 + 1 + len(METRICS)
    (tmp_path / "empty").mkdir()
    assert "empty" in message(tool.main, ["empty"])
