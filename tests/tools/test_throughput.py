"""tools/throughput.py takes the same steps with one process and with two."""

import pytest

from files.errors import InputError
from tools import throughput
from tools.measuring import training

# 16 numbers in each of the 16 blocks: the cosine of one number is its sign, which rounding may turn over
SMALL = "--batch_size 5 --regions 3 --embed_size 256 --steps 2".split()


def test_two_processes_have_the_loss_of_one():
    one = training.take_steps(throughput.options(SMALL))
    two = training.in_processes(throughput.options(SMALL), 2)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["seconds"] > 0


def test_vsrn():
    found = training.take_steps(throughput.options([*SMALL, "--model", "vsrn"]))
    assert found["loss"] > 0 and found["seconds"] > 0


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(training, "in_processes", lambda opt, processes: {"seconds": 6 / processes, "loss": 1.5})
    assert training.compare(throughput.options(["--processes", "3"])) == [6, 2]
    assert "3 processes      2.000      0.50    3.00      1.5000" in capsys.readouterr().out


def test_failure_names_the_flag(monkeypatch):
    monkeypatch.setattr(training.sys, "executable", "false")
    with pytest.raises(InputError, match="--processes 2: training failed, see the messages above"):
        training.in_processes(throughput.options(SMALL), 2)
