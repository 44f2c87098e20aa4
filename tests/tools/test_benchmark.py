"""tools/benchmark.py: every part gives its row, on the CPU and on the stand-in for a GPU; the counter counts."""

import json

import pytest
import torch
from cuda_stand_in import StandIn

from files.errors import InputError
from tools import benchmark
from tools.measuring.work import Counter, touched

SMALL = "--images 3 --batch_size 3 --regions 4 --embed_size 32 --repeat 1".split()
SMALL += ["--flags=--img_dim 16 --word_dim 8 --embed_size 32"]


def rows(parts, *more):
    opt = benchmark.options([*SMALL, "--parts", *parts, *more])
    report = benchmark.Report(opt)
    benchmark.measure(opt, report)
    return report


@pytest.mark.parametrize(
    "part", [part for part in benchmark.PARTS if part not in ("ranking", "processes", "whole step")]
)
def test_a_part_on_a_cpu(part):
    report = rows([part], "--workers", "0")
    assert report.rows and not any({"error", "skipped"} & row.keys() for row in report.rows), report.rows
    assert all(value > 0 for row in report.rows for value in row.values() if isinstance(value, (int, float)))
    if part == "agreement":
        assert all(row["scores"] < 1e-4 for row in report.rows)
    if part == "counted":
        assert all(300 < row["kernels"] < 550 for row in report.rows)


def test_no_row_mixes_devices(monkeypatch):
    monkeypatch.setitem(benchmark.CUDA, "compiled, float32", [])
    monkeypatch.setitem(benchmark.CUDA, "compiled, TF32", [])
    opt = benchmark.options(SMALL)
    opt.device = "cuda"
    with StandIn() as card:
        report = benchmark.Report(opt)
        report.add("agreement", "", benchmark.agreement, [])
        report.add("step", "", benchmark.step, 3, ["--tf32"])
        report.add("whole step", "", benchmark.whole_step, benchmark.GSMN, 3, [])
        report.add("similarity", "", benchmark.similarity, [])
        assert "stand-in" in report.markdown()
    assert not card.mixes and not any("error" in row for row in report.rows), report.rows


def test_kernels_do_not_grow_with_the_batch():
    opt = benchmark.options([*SMALL, "--flags=--is_sparse --img_dim 16"])
    few, many = (benchmark.counted(opt, batch, ["--propagation", "neighbors"])["kernels"] for batch in (24, 48))
    assert few <= 550 and abs(few - many) <= 10


def test_the_report_becomes_json_and_tables_and_ends_in_time(tmp_path):
    files = [tmp_path / "card.json", tmp_path / "card.md"]
    more = [
        "--parts",
        "agreement",
        "ranking",
        "--minutes",
        "1e-9",
        "--json",
        str(files[0]),
        "--markdown",
        str(files[1]),
    ]
    benchmark.main([*SMALL, *more])
    content = json.loads(files[0].read_text())
    assert content["machine"]["device"] == "cpu" and {row["skipped"] for row in content["rows"]} == {"time limit"}
    assert sum(line.startswith("| ") for line in files[1].read_text().splitlines()) == len(content["rows"]) + 2


def test_a_failure_is_a_row():
    report = benchmark.Report(benchmark.options([]))
    report.add("step", "broken", lambda opt: 1 / 0)
    assert report.rows == [{"part": "step", "case": "broken", "error": "ZeroDivisionError: division by zero"}]


def test_two_processes_have_the_loss_of_one():
    # 16 numbers in each of the 16 blocks: the cosine of one number is its sign, which rounding may turn over
    report = rows(["processes"], "--batch_size", "5", "--flags=--img_dim 16 --word_dim 8 --embed_size 256")
    one, two = report.rows
    assert two["first loss"] == pytest.approx(one["first loss"], rel=1e-5) and two["s"] > 0


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
    assert counter.launches_of["aten::mul"] == 2 and counter.waits == 0  # forward and backward
    with Counter() as counter:
        assert float(x.detach().sum()) == x.sum().item()
    assert counter.waits == 2


def test_bytes_are_those_of_distinct_elements():
    assert touched(torch.zeros(3, 1, 5).expand(3, 7, 5)) == 4 * 15
    assert touched(torch.zeros(0, 5)) == 0


def test_lengths_of_real_captions(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/train_precaps_stan.txt").write_text("1,4,2\n1,4,5,2\n")
    found = benchmark.caption_lengths(50, benchmark.options(["--data_path", str(tmp_path), "--data_name", "x"]).lengths)
    assert set(found) == {3, 4}
    with pytest.raises(InputError, match="--data_path"):
        benchmark.caption_lengths(3, benchmark.options(["--data_path", str(tmp_path)]).lengths)
