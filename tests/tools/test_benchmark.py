"""tools/benchmark.py: every part gives its row; the counter counts."""

import pytest
import torch
from tiny import message

from tools import benchmark

SMALL = "--images 3 --batch_size 3 --regions 4 --repeat 1".split()
SMALL += ["--flags=--img_dim 16 --word_dim 8 --embed_size 32"]


def rows(part, *more):
    return list(benchmark.measure(benchmark.options([*SMALL, "--parts", part, *more])))


@pytest.mark.parametrize("part", ["similarity", "step", "counted", "systems"])
def test_a_part_on_a_cpu(part):
    found = rows(part)
    assert found and not any({"error", "skipped"} & row.keys() for row in found), found
    assert all(value > 0 for row in found for name, value in row.items() if name not in ("part", "difference")), found
    if part == "counted":
        assert all(300 < row["kernels"] < 550 for row in found)
    if part == "systems":
        assert [row["difference"] < 1e-5 for row in found if "difference" in row] == [True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("part", ["step", "whole step", "similarity"])
def test_a_part_on_a_gpu(part):
    found = rows(part, "--device", "cuda")
    assert found and not any("error" in row for row in found), found


def test_kernels_do_not_grow_with_the_batch():
    found = rows("counted", "--batch_size", "24", "48", "--flags=--is_sparse --img_dim 16 --embed_size 32")
    few, many = (row["kernels"] for row in found[1::2])  # of neighbors
    assert few <= 550 and abs(few - many) <= 10


def test_the_time_limit_and_failures_are_rows(monkeypatch):
    assert {"skipped"} == {*rows("similarity", "--minutes", "1e-9")[0]} - {"part"}
    monkeypatch.setattr(benchmark, "similarity", lambda opt, flags: 1 / 0)
    assert "ZeroDivisionError" in rows("similarity")[0]["error"]


def test_two_processes_have_the_loss_of_one():
    # 16 numbers in each block: the cosine of one number is its sign, which rounding may turn over
    small = "--flags=--img_dim 16 --word_dim 8 --embed_size 64 --num_block 4 --feat_dim 4 --hid_dim 8"
    one, two = rows("processes", "--batch_size", "320", small)
    assert two["first loss"] == pytest.approx(one["first loss"], rel=1e-5) and two["pairs/s"] > 0


@pytest.mark.parametrize("flags", ["--device gpu", "--minutes 0", "--parts none"])
def test_bad_flags(flags):
    assert flags.split()[0] in message(benchmark.main, flags.split())


def test_views_start_no_kernel_and_backward_counts():
    x = torch.randn(4, 6, requires_grad=True)
    with benchmark.Counter() as counter:
        y = x.t().reshape(2, 12)[:, :5].expand(3, 2, 5)
        assert (counter.kernels, counter.bytes) == (1, 2 * 4 * 24)  # the reshape of a transposed matrix copies
        (y * 2).sum().backward()
        assert counter.kernels > 5
    assert benchmark.touched(torch.zeros(3, 1, 5).expand(3, 7, 5)) == 4 * 15
    assert benchmark.touched(torch.zeros(0, 5)) == 0


def test_lengths_of_real_captions(tmp_path):
    file = tmp_path / "train_precaps_stan.txt"
    file.write_text("1,4,2\n1,4,5,2\n")
    assert set(benchmark.caption_lengths(50, file)) == {3, 4}
    assert "none.txt" in message(benchmark.caption_lengths, 3, tmp_path / "none.txt")
