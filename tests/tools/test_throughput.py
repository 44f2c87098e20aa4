"""tools/throughput.py takes the same steps with one process and with two."""

import json

import pytest

from files.errors import InputError
from tools import throughput

# 16 numbers in each of the 16 blocks: the cosine of one number is its sign, which rounding may turn over
SMALL = "--batch_size 5 --regions 3 --embed_size 256 --steps 2".split()


def alone(capsys, *flags):
    throughput.main([*SMALL, "--worker", *flags])
    return json.loads(capsys.readouterr().out)


def test_two_processes_have_the_loss_of_one(capsys):
    one = alone(capsys)
    two = throughput.started(throughput.options(SMALL), 2)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["seconds"] > 0


def test_vsrn(capsys):
    found = alone(capsys, "--model", "vsrn")
    assert found["loss"] > 0 and found["seconds"] > 0


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(throughput, "started", lambda opt, processes: {"seconds": 6 / processes, "loss": 1.5})
    assert throughput.compare(throughput.options(["--processes", "3"])) == [6, 2]
    assert "3 processes      2.000      0.50    3.00      1.5000" in capsys.readouterr().out


def test_failure_is_told(monkeypatch):
    monkeypatch.setattr(throughput.sys, "executable", "false")
    with pytest.raises(InputError, match="--processes 2: training failed, as said above"):
        throughput.started(throughput.options(SMALL), 2)
