"""tools/benchmark.py: every part gives its row; the counter counts."""

import pytest
import torch
from tiny import message

from files.errors import InputError
from tools import benchmark
from tools.measuring.work import Counter, touched

SMALL = "--images 3 --batch_size 3 --regions 4 --embed_size 32 --repeat 1".split()
SMALL += ["--flags=--img_dim 16 --word_dim 8 --embed_size 32"]


def rows(part, *more):
    return list(benchmark.measure(benchmark.options([*SMALL, "--parts", part, *more])))


@pytest.mark.parametrize("part", [part for part in benchmark.PARTS if part not in ("processes", "whole step")])
def test_a_part_on_a_cpu(part):
    found = rows(part, "--workers", "0")
    assert found and not any({"error", "skipped"} & row.keys() for row in found), found
    assert all(value > 0 for row in found for value in row.values() if isinstance(value, (int, float)))
    if part == "agreement":
        assert all(row["scores"] < 1e-4 for row in found)
    if part == "counted":
        assert all(300 < row["kernels"] < 550 for row in found)
    if part == "systems":
        assert [row["difference"] < 1e-5 for row in found if "difference" in row] == [True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("part", ["agreement", "step", "whole step", "similarity"])
def test_a_part_on_a_gpu(part):
    found = rows(part, "--device", "cuda")
    assert found and not any("error" in row for row in found), found


def test_kernels_do_not_grow_with_the_batch():
    opt = benchmark.options([*SMALL, "--flags=--is_sparse --img_dim 16"])
    few, many = (benchmark.counted(opt, batch, ["--propagation", "neighbors"])["kernels"] for batch in (24, 48))
    assert few <= 550 and abs(few - many) <= 10


def test_the_time_limit_and_failures_are_rows():
    found = list(benchmark.measure(benchmark.options(["--parts", "agreement", "step", "--minutes", "1e-9"])))
    assert len(found) == 6 and {row["skipped"] for row in found} == {"time limit"}
    assert "ZeroDivisionError" in benchmark.figures_of(benchmark.options([]), lambda opt: 1 / 0)["error"]


def test_two_processes_have_the_loss_of_one():
    # 16 numbers in each block: the cosine of one number is its sign, which rounding may turn over
    small = "--flags=--img_dim 16 --word_dim 8 --embed_size 64 --num_block 4 --feat_dim 4 --hid_dim 8"
    one, two = rows("processes", "--batch_size", "320", small)
    assert two["first loss"] == pytest.approx(one["first loss"], rel=1e-5) and two["pairs/s"] > 0


@pytest.mark.parametrize("flags", ["--device gpu", "--minutes 0", "--parts none"])
def test_bad_flags(flags):
    with pytest.raises(InputError, match=flags.split()[0]):
        benchmark.main(flags.split())


def test_views_start_no_kernel_and_backward_counts():
    x = torch.randn(4, 6, requires_grad=True)
    with Counter() as counter:
        y = x.t().reshape(2, 12)[:, :5].expand(3, 2, 5)
        assert (counter.launches, counter.bytes) == (1, 2 * 4 * 24)  # the reshape of a transposed matrix copies
        (y * 2).sum().backward()
        assert counter.launches > 5 and counter.waits == 0
        assert float(x.detach().sum()) == x.sum().item()
    assert counter.waits == 2


def test_bytes_are_those_of_distinct_elements():
    assert touched(torch.zeros(3, 1, 5).expand(3, 7, 5)) == 4 * 15
    assert touched(torch.zeros(0, 5)) == 0


def test_lengths_of_real_captions(tmp_path):
    file = tmp_path / "train_precaps_stan.txt"
    file.write_text("1,4,2\n1,4,5,2\n")
    assert set(benchmark.caption_lengths(50, file)) == {3, 4}
    assert "none.txt" in message(benchmark.caption_lengths, 3, tmp_path / "none.txt")
