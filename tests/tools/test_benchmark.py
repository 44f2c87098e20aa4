"""tools/benchmark.py: the report of a GPU, on the CPU at tiny sizes; the CPU's own table; its flags."""

import json

import pytest
from cuda_stand_in import StandIn

import model
from files.errors import InputError
from tools import benchmark
from tools.measuring import gpu, training

GSMN = "--img_dim 16 --word_dim 8 --num_block 4 --feat_dim 4 --hid_dim 8".split()
VSRN = "--img_dim 16 --word_dim 8 --dim_hidden 8 --dim_word 8 --max_len 31".split()
TINY = gpu.Sizes(
    batches=(3,), vsrn_batch=3, embed_size=32, vsrn_embed_size=16, regions=4, small=3, splits=(4, 6), scored=4,
    stored=6, workers=(0, 1), steps=1, gsmn_flags=GSMN, vsrn_flags=VSRN,
)  # fmt: skip


@pytest.fixture(scope="module")
def report():
    compile_parts = model.GSMN.compile_parts
    with pytest.MonkeyPatch.context() as patch:  # torch's own backend compiles for half a minute and more
        patch.setattr(model.GSMN, "compile_parts", lambda net: compile_parts(net, backend="eager"))
        patch.setattr(gpu, "PRECISIONS", {name: gpu.PRECISIONS[name] for name in ("float32", "bf16")})
        patch.setattr(training, "in_processes", lambda opt, processes: {"seconds": 2.0, "loss": 1.0})
        return gpu.measure("cpu", 10, TINY)


def test_the_report_of_a_gpu_is_whole(report):
    failed = [row for row in report.rows if "error" in row and "triton" not in row["case"]]
    assert not failed and not any("skipped" in row for row in report.rows)
    assert {row["part"] for row in report.rows} == {
        "launches of a step", "agreement with float64", "training step", "evaluation", "data loading", "processes",
    }  # fmt: skip
    exact = {row["case"]: row for row in report.rows if row["part"] == "agreement with float64"}
    for name in ("GSMN, torch, float32", "GSMN, compiled, float32"):
        assert exact[name]["scores"] < 1e-5 and exact[name]["gradient"] < 1e-4
    for row in report.rows:
        if row["part"] == "launches of a step":
            assert row["launches"] > 100 and row["GB"] > 0


def test_every_row_measures_what_it_names(report):
    """`torch` is not the C kernel or a trial's choice, and Triton, which has no gradients, is in no training step."""
    cases = [(row["part"], row["case"].split(", ")) for row in report.rows]
    assert {part for part, names in cases if "triton" in names} == {"agreement with float64", "evaluation"}
    for kernel, flag in (("torch", "torch"), ("compiled", "torch"), ("triton", "triton")):
        assert gpu.prepared(gpu.Report("cpu", 1, TINY), "gsmn", 3, kernel)[0].kernel == flag


def test_no_row_mixes_devices():
    with StandIn() as card:
        report = gpu.Report("cuda", 10, TINY)
        report.add("agreement with float64", "", gpu.agreement, report, "torch", "float32")
        report.add("training step", "", gpu.step, report, "gsmn", 3)
        report.add("evaluation", "", gpu.evaluate, report, 4, "torch", "float32")
        assert "card stand-in" in report.markdown()
    assert not card.mixes and not any("error" in row for row in report.rows)


def test_the_report_becomes_json_and_tables(report):
    content = json.loads(json.dumps(report.content()))
    assert content["rows"] == json.loads(json.dumps(report.rows)) and content["machine"]["device"] == "cpu"
    tables = report.markdown()
    assert "| training step | ms | pairs/s | peak MB |" in tables
    assert sum(line.startswith("| ") for line in tables.splitlines()) == len(report.rows) + 6


def test_the_time_limit_leaves_a_whole_report(report):
    short = gpu.measure("cpu", 0, TINY)
    assert {row["case"] for row in short.rows} > {row["case"] for row in report.rows}
    assert all(row["skipped"] == "time limit" for row in short.rows)


def test_a_failure_is_a_row():
    report = gpu.Report("cpu", 1, TINY)
    report.add("training step", "broken", lambda: 1 / 0)
    assert report.rows == [{"part": "training step", "case": "broken", "error": "ZeroDivisionError: division by zero"}]


def test_the_table_of_a_cpu(capsys):
    sizes = "--images 3 --captions 8 --batch_size 3 --regions 4 --embed_size 32 --num_block 4 --rank_images 20"
    opt = benchmark.options([*sizes.split(), "--repeat", "1"])
    benchmark.similarity(opt)
    benchmark.training_step(opt, opt.batch_size)
    benchmark.ranking(opt)
    lines = capsys.readouterr().out.splitlines()
    for name in ("bare product", "self", "neighbors, hardest negatives", "text to image"):
        (line,) = (line for line in lines if line[:44].strip() == name) if name != "bare product" else [lines[3]]
        assert float(line[44:54]) >= 0


@pytest.mark.parametrize(
    "flags, message",
    [("--device gpu", "--device: gpu cannot be used here"), ("--minutes 0", "--minutes: 0 is too small")],
)
def test_bad_flags(flags, message):
    with pytest.raises(InputError, match=message):
        benchmark.main(flags.split())
