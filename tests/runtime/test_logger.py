"""What a training records: figures of its steps, log.jsonl and config.json, also beside damaged ones."""

import json
import math

import pytest
import torch
from tiny import all_points, run, validations

from modules.losses import observed
from reporting.run_page import read_log
from training.logger import RunLog

STEP = {"Eit": 1, "epoch": 0, "step": 0, "lr": 0.1, "pairs_per_second": 5.0, "data_time": 0.0}


def test_mean_scores_of_pairs_and_hardest_negatives():
    scores = torch.tensor([[0.9, 0.1, -0.4], [0.3, 0.5, 0.2], [-0.8, 0.6, 0.1]])
    hardest = [0.1, 0.3, 0.6, 0.3, 0.6, 0.2]  # of the rows, then of the columns
    spread = scores.std(correction=0).item()
    figures = {"positive": 0.5, "hardest_negative": sum(hardest) / 6, "score_spread": spread}
    assert observed(scores.requires_grad_()) == pytest.approx(figures)
    alone = observed(torch.tensor([[0.25]]))
    assert alone.pop("hardest_negative").isnan() and alone == {"positive": 0.25, "score_spread": 0}


def test_steps_are_recorded(tiny_data, tmp_path):
    """Every step in TensorBoard's file, each logged one in log.jsonl, with the same loss."""
    run(tiny_data, tmp_path, "--log_step", 3, epochs=1)
    found = {}
    for tag, _, value in all_points(tmp_path / "log"):
        found.setdefault(tag, []).append(value)
    for tag in ("positive", "hardest_negative", "score_spread", "grad_norm", "pairs_per_second"):
        assert len(found[tag]) == len(found["Le"]) == 7 and all(map(math.isfinite, found[tag]))
    assert min(found["grad_norm"]) > 0 and min(found["pairs_per_second"]) > 1e-3
    assert 0 <= min(found["data_time"]) <= max(found["data_time"]) < 1e3
    steps, validated = read_log(tmp_path / "log" / "log.jsonl")
    assert [(row["Eiters"], row["epoch"], row["step"], row["lr"]) for row in steps] == [
        (3, 0, 2, 0.01),
        (6, 0, 5, 0.01),
    ]
    assert [row["losses"]["Le"] for row in steps] == pytest.approx([found["Le"][2], found["Le"][5]], rel=1e-5)
    assert steps[0]["losses"].keys() == {"loss", "Le"} and steps[0]["pairs_per_second"] > 0
    assert validated == validations(tmp_path / "log") and [row["Eiters"] for row in validated] == [7]


def test_a_line_never_joins_one_that_was_cut_off(tmp_path):
    log = RunLog(tmp_path)
    log.step(STEP, {"Le": 1.0})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"Eiters": 2, "los')
    log.validation({"rsum": 3.0}, 3, 0)
    steps, validated = read_log(tmp_path / "log.jsonl")
    assert [row["Eiters"] for row in steps + validated] == [1, 3]


@pytest.mark.parametrize("damage", ['{"Eiters": "x"}', "no JSON", "[" * 10**5])
def test_a_damaged_log_is_set_aside(tmp_path, caplog, damage):
    log = RunLog(tmp_path)
    log.step(STEP, {"Le": 1.0})
    whole = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(f"{damage}\n{whole}{whole.replace('1,', '9,')}")
    RunLog(tmp_path, resume_at=5)
    assert (tmp_path / "log.jsonl").read_text() == whole
    assert damage in (tmp_path / "log.jsonl.damaged").read_text() and "log.jsonl" in caplog.text


@pytest.mark.parametrize("damage", ['{"opt": {}, "resumed": 5}', "[]", "\xff"])
def test_a_damaged_config_is_set_aside(tmp_path, caplog, damage):
    (tmp_path / "config.json").write_text(damage, encoding="latin-1")
    log = RunLog(tmp_path, resume_at=5)
    log.config(type("Opt", (), {})(), {"torch": "2"}, [])
    assert json.loads((tmp_path / "config.json").read_text())["versions"] == {"torch": "2"}
    assert (tmp_path / "config.json.damaged").read_text(encoding="latin-1") == damage and "config.json" in caplog.text
