"""The counter of kernels and bytes, and the command that counts a training step."""

import pytest
import torch

from files.errors import InputError
from tools import launches
from tools.measuring.counting import Counter, touched


def test_views_start_no_kernel_and_backward_counts():
    x = torch.randn(4, 6, requires_grad=True)
    with Counter() as counter:
        y = x.t().reshape(2, 12)[:, :5].expand(3, 2, 5)
        assert (counter.launches, counter.bytes) == (1, 2 * 4 * 24)  # the reshape of a transposed matrix copies
        (y * 2).sum().backward()
    assert counter.launches_of["aten::mul"] == 2  # forward and backward
    assert counter.waits == 0
    with Counter() as counter:
        assert float(x.detach().sum()) == x.sum().item()
    assert counter.waits == 2


def test_bytes_are_those_of_distinct_elements():
    assert touched(torch.zeros(3, 1, 5).expand(3, 7, 5)) == 4 * 15
    assert touched(torch.zeros(0, 5)) == 0
    with Counter() as counter:
        torch.ones(8, 1) + torch.ones(1, 8)
    assert counter.bytes_of["aten::add"] == 4 * (8 + 8 + 64)


def test_command_prints_a_line_for_each_propagation(capsys):
    launches.main("--batch_size 3 --regions 4 --embed_size 32 --is_sparse --top 1".split())
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if " sparse " in line]
    assert [row[:2] for row in rows] == [["3", "self"], ["3", "neighbors"]]
    assert all(int(row[3].replace(",", "")) > int(row[4].replace(",", "")) > 0 for row in rows)
    assert len(lines) == 1 + 2 * 3


def test_evaluation_counts_no_backward_pass(capsys):
    launches.main("--batch_size 2 --regions 4 --embed_size 32 --evaluation --buckets 1 --propagation self".split())
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:3] == ["2", "self", "dense"] and row[3] == row[4]


def test_lengths_of_real_captions(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train_precaps_stan.txt").write_text("1,4,2\n1,4,5,2\n")
    opt = launches.options(["--data_path", str(tmp_path), "--data_name", "x"])
    assert set(launches.caption_lengths(opt, 50)) == {3, 4}
    opt.split = "dev"
    with pytest.raises(InputError, match=r"dev_precaps_stan.txt: No such file .*; --data_path names"):
        launches.caption_lengths(opt, 3)
