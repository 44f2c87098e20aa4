"""What `make demo` prints: chance is chance, twins are counted right, and its commands are ones the scripts take."""

import itertools
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from states import message

from checkpoints import evaluation_options
from systems import options
from tools import demo, make_demo
from tools.demo_data.twins import told_apart


@pytest.mark.parametrize("n,per", [(2, 5), (3, 2), (1, 5)])
def test_chance_counts_all_orders(n, per):
    """Every set of places that an image's captions can take, every place that a caption's image can take."""
    places = list(itertools.combinations(range(n * per), per))
    luck = demo.chance(n, per)
    for k in demo.KS:
        found = sum(min(own) < k for own in places) / len(places)
        assert luck[f"r{k}"] == pytest.approx(100 * found)
        assert luck[f"r{k}i"] == pytest.approx(100 * sum(place < k for place in range(n)) / n)


def test_twins_told_apart():
    """Scenes 0 and 1 are twins; captions 1, 5 and 6 tell them apart, of which only 5 is a mistake."""
    facts = [[], [["left", 0, 1]], [], [], []], [[["between", 0, 1, 2]], [["left", 0, 1], ["above", 2, 1]], [], [], []]
    scenes = [
        {"twin": 1, "telling": [False, True, False, False, False], "facts": facts[0]},
        {"twin": 0, "telling": [True, True, False, False, False], "facts": facts[1]},
        {"twin": None, "telling": [False] * 5, "facts": [[]] * 5},
    ]
    sims = np.zeros((3, 15), np.float32)
    sims[0, 1], sims[0, 5], sims[1, 6] = 1, 1, 1
    assert told_apart(sims, scenes) == pytest.approx(
        {"twins": 66.6667, "twins: left, right": 100, "twins: between": 0, "twins: several facts": 100}
    )
    assert "3 images and 15 captions, but 2 scenes; give the scenes.json of" in message(told_apart, sims, scenes[:2])


def test_table_lines_up():
    row = dict.fromkeys(demo.SIX_RECALLS, 100.0)
    lines = demo.demo_table({"short": {**row, "twins": 50.0}, "a longer title of a model": {**row, "twins": 100.0}})
    _, heads, first, second = lines.splitlines()
    assert len(heads) == len(first) == len(second) and "600.0" in first
    ends = [i for i, letter in enumerate(heads) if letter != " " and heads[i + 1 : i + 2] in (" ", "")]
    assert all(first[end].isdigit() for end in ends)


def test_the_scripts_take_its_commands(monkeypatch, capsys, tmp_path):
    """Every printed command parses, trains the width that the data has, and reads what was written before."""
    commands = []
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(
        demo.subprocess, "run", lambda command, cwd: commands.append(command[1:]) or SimpleNamespace(returncode=0)
    )
    demo.run_all()
    printed = [line[len("$ python ") :] for line in capsys.readouterr().out.splitlines() if line.startswith("$")]
    assert [shlex.split(line) for line in printed] == commands
    data, trained = make_demo.parser().parse_args(commands[0][1:]), []
    for script, *flags in commands[1:]:
        if script == "train.py":
            opt, _ = options.train_options(flags)
            assert opt.img_dim == data.img_dim and opt.data_path.startswith(data.out)
            trained.append(f"{opt.model_name}/model_best.pth.tar")
        else:
            opt = evaluation_options.eval_parser("", stack=script == "test_stack.py").parse_args(flags)
            paths = [opt.model_path] if isinstance(opt.model_path, str) else opt.model_path
            assert set(paths) <= set(trained) and opt.json and opt.save_sims
    assert len(trained) == 3 and [c[0] for c in commands[-2:]] == ["testall.py", "test_stack.py"]
    assert opt.report and opt.images.startswith(data.out)


def test_a_failing_step_stops_the_demo(monkeypatch):
    monkeypatch.setattr(demo.subprocess, "run", lambda command, cwd: SimpleNamespace(returncode=2))
    with pytest.raises(SystemExit) as stop:
        demo.run_step("train", "train.py", {})
    assert stop.value.code == 2
