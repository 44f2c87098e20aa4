"""What training records of a batch, and tools/curves.py, which draws the validations of runs."""

import json
import math
import sys

import pytest
import torch
from tiny import message

import train
from files.errors import InputError
from modules.losses import observed
from tools import curves
from training.logger import event_records, tensorboard

SMALL = "--embed_size 16 --word_dim 8 --batch_size 32 --workers 0 --num_epochs 1 --device cpu".split()


def write_log(folder, values):
    folder.mkdir(parents=True)
    rows = [
        {"time": 100.0 + 1800 * k, "epoch": k, "Eiters": 10 * (k + 1), "rsum": v, "medr": 300 - v}
        for k, v in enumerate(values)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_mean_scores_of_pairs_and_hardest_negatives():
    scores = torch.tensor([[0.9, 0.1, -0.4], [0.3, 0.5, 0.2], [-0.8, 0.6, 0.1]])
    hardest = [0.1, 0.3, 0.6, 0.3, 0.6, 0.2]  # of the rows, then of the columns
    spread = scores.std(correction=0).item()
    figures = {"positive": 0.5, "hardest_negative": sum(hardest) / 6, "score_spread": spread}
    assert observed(scores.requires_grad_()) == pytest.approx(figures)
    alone = observed(torch.tensor([[0.25]]))
    assert alone.pop("hardest_negative").isnan() and alone == {"positive": 0.25, "score_spread": 0}


def test_training_records_scores_gradient_and_throughput(tiny_data, tmp_path):
    train.main(
        [*tiny_data.args, *SMALL, "--logger_name", str(tmp_path / "log"), "--model_name", str(tmp_path / "checkpoint")]
    )
    read = tensorboard().event_pb2.Event.FromString
    found = {}
    for path in (tmp_path / "log").glob("events*"):
        for record in event_records(path):
            for value in read(record[12:-4]).summary.value:
                found.setdefault(value.tag, []).append(value.simple_value)
    for tag in ("positive", "hardest_negative", "score_spread", "grad_norm", "pairs_per_second"):
        assert len(found[tag]) == len(found["Le"]) == 7 and all(map(math.isfinite, found[tag]))
    assert min(found["grad_norm"]) > 0 and min(found["pairs_per_second"]) > 0


def test_a_run_is_found_and_read(tmp_path):
    folder = write_log(tmp_path / "a" / "log", [100, 200, 150])
    (folder / "log.jsonl").open("a").write('{"time": 1, "epo')  # killed while it wrote
    for path in (tmp_path / "a", folder, folder / "log.jsonl"):
        rows = curves.read_log(curves.log_of(path))
        assert curves.series(rows, "rsum", "Eiters") == ([10, 20, 30], [100, 200, 150])
    assert curves.series(rows, "rsum", "time")[0] == [0, 0.5, 1]
    assert curves.series(rows, "rsum", "epoch")[0] == [0, 1, 2]
    assert curves.best(rows) == "200.0"


def test_runs_are_named_by_what_differs(tmp_path):
    paths = [tmp_path / "runs" / name / "log" / "log.jsonl" for name in ("dense", "sparse")]
    assert curves.run_names(paths) == ["dense", "sparse"]
    assert curves.run_names(paths[:1]) == ["dense"]
    assert curves.run_names([tmp_path / "a/x/log.jsonl", tmp_path / "b/x/log.jsonl"]) == ["a/x", "b/x"]


def test_complaints(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert "no log.jsonl here" in message(curves.main, [str(tmp_path / "empty")])
    (tmp_path / "empty" / "log.jsonl").write_text("")
    assert "no validation yet" in message(curves.main, [str(tmp_path / "empty"), "--out", str(tmp_path / "x.png")])
    write_log(tmp_path / "a", [1])
    (tmp_path / "a" / "log.jsonl").write_text('{"epoch": 1}\n{"time"\n')
    assert "line 1: not a validation" in message(curves.main, [str(tmp_path / "a"), "--out", str(tmp_path / "x.png")])
    good = [str(write_log(tmp_path / "b", [1])), "--out", str(tmp_path / "x.png")]
    assert "--metrics rsun: in none of these logs" in message(curves.main, [*good, "--metrics", "rsun"])

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in message(curves.main, [*good, "--metrics", "rsum"])


def test_picture(tmp_path):
    """A line for each run in each panel, at the log's values; ranks run downwards."""
    pytest.importorskip("matplotlib")
    runs = [write_log(tmp_path / name / "log", values) for name, values in (("a", [100, 200]), ("b", [150, 120, 170]))]
    logs = {name: curves.read_log(curves.log_of(folder)) for name, folder in zip("ab", runs)}
    figure = curves.draw_curves(logs, ["rsum", "medr"])
    lines = [[line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes]
    assert lines[0] == [[[10, 100], [20, 200]], [[10, 150], [20, 120], [30, 170]]]
    assert [axes.yaxis_inverted() for axes in figure.axes] == [False, True]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    out = tmp_path / "curves.png"
    curves.main([str(tmp_path / "a"), str(tmp_path / "b"), "--metrics", "rsum", "medr", "--out", str(out)])
    from PIL import Image

    with Image.open(out) as picture:
        assert picture.size[0] > 600 and len(picture.convert("RGB").getcolors(1 << 20)) > 50
    with pytest.raises(InputError, match="a figure can be"):
        curves.main([str(tmp_path / "a"), "--metrics", "rsum", "--out", str(tmp_path / "curves.bmpx")])
