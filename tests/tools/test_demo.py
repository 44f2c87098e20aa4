"""What `make demo` runs: twins are counted right, and its commands are ones the scripts take."""

import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import message

from checkpoints.evaluation_options import eval_parser
from systems.options import train_options
from tools import demo, make_demo
from tools.demo_data.twins import told_apart


def test_twins_told_apart():
    """Scenes 0 and 1 are twins; captions 1, 5 and 6 tell them apart, of which only 5 is a mistake."""
    scenes = [
        {"twin": 1, "telling": [False, True, False, False, False]},
        {"twin": 0, "telling": [True, True, False, False, False]},
        {"twin": None, "telling": [False] * 5},
    ]
    sims = np.zeros((3, 15), np.float32)
    sims[0, 1], sims[0, 5], sims[1, 6] = 1, 1, 1
    assert told_apart(sims, scenes) == pytest.approx(100 * 2 / 3)
    assert "scenes.json" in message(told_apart, sims, scenes[:2])


def test_the_scripts_take_its_commands():
    """Every command parses, trains the width that the data has, and reads what was written before."""
    (make, *made), *training, (test, *tested) = [shlex.split(command) for _, command in demo.commands()]
    data, trained = make_demo.parser().parse_args(made), []
    assert make == "tools/make_demo.py" and test == "test_stack.py" and len(training) == len(demo.RUNS) == 5
    for script, *flags in training:
        opt, _ = train_options(flags)
        assert script == "train.py" and opt.img_dim == data.img_dim and opt.data_path.startswith(str(data.out))
        trained.append(f"{opt.model_name}/model_best.pth.tar")
    opt = eval_parser("", stack=True).parse_args(tested)
    assert opt.model_path == trained and opt.json and opt.report and opt.images.startswith(str(data.out))


def test_a_failing_step_stops_the_demo(monkeypatch):
    monkeypatch.setattr(demo.subprocess, "run", lambda command, cwd: SimpleNamespace(returncode=2))
    with pytest.raises(SystemExit) as stop:
        demo.run_step("1 of 1", "train", "train.py")
    assert stop.value.code == 2
