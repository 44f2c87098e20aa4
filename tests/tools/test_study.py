"""tools/study.py: tables, the order of runs, stopping and resuming, and the arithmetic of its results."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import message

import evaluation
import test_stack
from graph import VisualGraph
from tools import study
from tools.studying import results, runs
from tools.studying.table import read_table

ROOT = Path(__file__).resolve().parents[2]
TABLE = """
[study]
title = Small
[flags]
common = --num_epochs 2 --workers 0
[row a]
title = Row A
train = ${flags:common}
[row b]
train = ${flags:common} --propagation neighbors
[ensemble a+b]
members = a b
[difference b-a]
of = b
minus = a
"""
# Stands for train.py: an epoch a line of log.jsonl; waits in the epoch that the file `wait` names.
TRAIN = """
import json, os, signal, sys, time
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
log, models = Path(flags["--logger_name"]), Path(flags["--model_name"])
log.mkdir(parents=True, exist_ok=True), models.mkdir(parents=True, exist_ok=True)
here = Path(__file__).parent
with open(here / "calls", "a") as calls:
    calls.write(json.dumps(["train", *sys.argv[1:], os.environ["OMP_NUM_THREADS"]]) + "\\n")
if (here / "fail").exists() and "neighbors" in sys.argv:
    print("warming up"), sys.exit("error: no such data")
first = len(list(models.glob("checkpoint_*")))
for epoch in range(first, 2):
    while (here / "wait").exists() and epoch == 1:
        time.sleep(0.01)
    (models / f"checkpoint_{epoch}.pth.tar").touch()
    with open(log / "log.jsonl", "a") as file:
        file.write("{}\\n")
"""
# Stands for test.py: a matrix of similarities that depends on the run's name alone.
TEST = """
import json, sys, zlib
from pathlib import Path
import numpy as np
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
sims = Path(flags["--save_sims"])
with open(Path(__file__).parent / "calls", "a") as calls:
    calls.write(json.dumps(["test", *sys.argv[1:]]) + "\\n")
rng = np.random.default_rng(zlib.crc32(sims.parent.name.encode()))
np.save(sims, (rng.normal(size=(4, 20)) + np.kron(np.eye(4), np.ones(5))).astype(np.float32))
full = {k: rng.uniform(0, 100) for k in "r1 r5 r10 r1i r5i r10i medr medri rsum".split()}
Path(flags["--json"]).write_text(json.dumps([{"full": full}]))
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Stand-ins for train.py and test.py, and a table; returns their folder."""
    for name, text in (("train.py", TRAIN), ("test.py", TEST), ("table.ini", TABLE)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(folder):
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def names_of(called):
    """(program, run) of calls."""
    return [(call[0], re.search(r"(\w+)\.seed(\d)", " ".join(call)).group()) for call in called]


def test_a_table_is_read(tmp_path):
    (tmp_path / "table.ini").write_text(TABLE)
    found = read_table(tmp_path / "table.ini")
    assert found.title == "Small" and found.test == [] and found.twins is None
    assert {name: (row.title, row.num_epochs) for name, row in found.rows.items()} == {"a": ("Row A", 2), "b": ("b", 2)}
    assert found.rows["b"].train == "--num_epochs 2 --workers 0 --propagation neighbors".split()
    assert found.ensembles["a+b"].members == ("a", "b")
    assert (found.differences["b-a"].of, found.differences["b-a"].minus) == (("b",), ("a",))


@pytest.mark.parametrize(
    "text,says",
    [
        ("[study]\ntitle = x\n", "no row; add a section"),
        ("[row a]\ntrain = --no_such_flag 1\n", "section [row a]: train: unrecognized arguments: --no_such_flag"),
        ("[row a]\ntrain = --num_epochs two\n", "section [row a]: train: --num_epochs: two is not a whole number"),
        ("[row a]\ntrain = --seed 3\n", "train has --seed, which the study sets itself"),
        ("[row a]\ntrain = --logger_name=here\n", "train has --logger_name, which"),
        ('[row a]\ntrain = --data_name "x\n', "section [row a]: train: No closing quotation"),
        ("[row a]\ncommand = x\n", "section [row a] has command; known are title, train"),
        ("[study]\nrows = 3\n", "section [study] has rows; known are test, title, twins"),
        ("[rows]\ntrain =\n", "section [rows]; known are [study], [flags], [row NAME]"),
        ("[row a/b]\ntrain =\n", "section [row a/b]: a name has letters"),
        ("[row a]\ntrain =\n[row a]\ntrain =\n", "section 'row a' already exists"),
        ("[row a]\ntrain = ${flags:x}\n", "flags"),
        ("train = 1\n", "no section headers"),
        ("[row a]\ntrain =\n[ensemble e]\nmembers = a\n", "[ensemble e] has one member"),
        ("[row a]\ntrain =\n[ensemble e]\nmembers = a z\n", "[ensemble e] names the row z; there are a"),
        ("[row a]\ntrain =\n[difference d]\nof = a\n", "[difference d]: minus is missing"),
        ("[row a]\ntrain =\n[difference d]\nof = a\nminus = q\n", "[difference d] names the row q; there are a"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path, text, says):
    path = tmp_path / "table.ini"
    path.write_text(text)
    found = message(read_table, path)
    assert str(path) in found and says in found


def test_wrong_flags_are_explained(scripts):
    assert "TABLE: give either" in message(study.main, [])
    assert "TABLE: give either" in message(study.main, ["table.ini", "--results", "x.json"])
    assert "--rows c: not in table.ini, which has a, b" in message(study.main, ["table.ini", "--rows", "c"])
    assert "no finished run" in message(study.main, ["table.ini", "--summary"])
    assert "none.ini: no such file" in message(study.main, ["none.ini"])
    Path("results.json").write_text('{"seeds": [0]}')
    assert "results.json: no results.json that" in message(study.main, ["--results", "results.json"])
    Path("twins.ini").write_text(TABLE.replace("title = Small", "twins = scenes.json"))
    assert "scenes.json: no such file" in message(study.main, ["twins.ini"])
    assert not calls(scripts)


def test_runs_go_seed_by_seed_and_only_once(scripts, capsys):
    flags = ["table.ini", "--jobs", "1", "--threads", "3", "--out", "out"]
    assert study.main([*flags, "--seeds", "0", "1"]) == 0
    order = ["a.seed0", "b.seed0", "a.seed1", "b.seed1"]
    assert names_of(calls(scripts)) == [(program, name) for name in order for program in ("train", "test")]
    assert {call[-1] for call in calls(scripts) if call[0] == "train"} == {"3"}
    assert study.main([*flags, "--seeds", "1", "2", "--rows", "a"]) == 0  # one of them is finished
    assert names_of(calls(scripts)[8:]) == [("train", "a.seed2"), ("test", "a.seed2")]
    capsys.readouterr()
    assert study.main([*flags, "--seeds", "0", "3", "--plan"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["a.seed0", "3"], ["b.seed0", "3"], ["a.seed3", "0"], ["b.seed3", "0"],
    ]  # fmt: skip


def test_a_stopped_study_goes_on_where_it_was(scripts):
    (scripts / "wait").touch()
    start = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path; from tools import study; from tools.studying import runs; from runtime.start import run
runs.ROOT = Path({str(scripts)!r}); run(lambda: study.main(["table.ini", "--out", "out", "--seeds", "0"]))"""
    process = subprocess.Popen([sys.executable, "-c", start], cwd=scripts, stderr=subprocess.PIPE, text=True)
    logs = [scripts / "out" / f"{name}.seed0" / "log" / "log.jsonl" for name in "ab"]
    while not all(path.exists() and path.read_text() for path in logs):  # both runs wait in their second epoch
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert "Stopping" in process.communicate(timeout=60)[1] and process.returncode == 130
    assert not list(scripts.rglob("test.json"))
    (scripts / "wait").unlink()
    assert study.main(["table.ini", "--out", "out", "--seeds", "0"]) == 0
    again = [call for call in calls(scripts)[2:] if call[0] == "train"]  # side by side, in either order
    resumed = sorted(call[call.index("--resume") + 1] for call in again)
    assert resumed == ["out/a.seed0/checkpoint", "out/b.seed0/checkpoint"]
    assert [path.read_text().count("\n") for path in logs] == [2, 2]


def test_a_failed_run_is_named_and_the_others_go_on(scripts, capsys):
    (scripts / "fail").touch()
    assert study.main(["table.ini", "--out", "out", "--seeds", "0", "1"]) == 1
    said = capsys.readouterr()
    assert "b.seed0: train.py ended with exit code 1: error: no such data; all of it is in out/b.seed0/train.txt" in (
        said.err
    )
    assert "Not run yet: b with seeds 0, 1." in said.out
    (scripts / "fail").unlink()
    assert study.main(["table.ini", "--out", "out", "--seeds", "0", "1"]) == 0
    assert "Not run yet" not in (scripts / "out" / "results.md").read_text()


def test_other_flags_in_the_table_are_refused(scripts):
    flags = ["table.ini", "--out", "out", "--seeds", "0", "--rows", "a"]
    assert study.main(flags) == 0
    (scripts / "table.ini").write_text(TABLE.replace("--workers 0", "--workers 1"))
    found = message(study.main, flags)
    assert "out/a.seed0/run.json: begun with other flags of train.py (--num_epochs 2 --workers 0)" in found
    (scripts / "out" / "a.seed0" / "run.json").write_text("[]")
    assert "out/a.seed0/run.json: not as the study wrote it" in message(study.main, flags)


def test_epochs_are_counted_by_checkpoints(scripts):
    table = read_table("table.ini")
    run = runs.Run("out", "a", table.rows["a"], 0, table.test)
    run.checkpoints.mkdir(parents=True)
    found = []
    for name in ("model_best", "checkpoint_0_7", "checkpoint_0", "checkpoint_1_30", "checkpoint_1"):
        (run.checkpoints / f"{name}.pth.tar").touch()
        found.append(run.done())
    assert found == [0, 0, 1, 1, 2]


def test_a_run_of_another_process_is_left_to_it(scripts, capsys):
    flags = ["table.ini", "--out", "out", "--seeds", "0"]
    table = read_table("table.ini")
    held = runs.Run("out", "a", table.rows["a"], 0, table.test).lock()
    assert study.main(flags) == 0
    assert "a.seed0: another process works on it" in capsys.readouterr().out
    assert {name for _, name in names_of(calls(scripts))} == {"b.seed0"}
    held.close()
    late = [runs.Run("out", name, table.rows[name], 0, table.test) for name in "ab"]
    assert study.main(flags) == 0
    assert {name for _, name in names_of(calls(scripts)[2:])} == {"a.seed0"}
    (late[0].result).unlink()
    assert runs.work(late, 1, 1) == []  # what others have trained meanwhile is not trained again
    assert names_of(calls(scripts)[4:]) == [("test", "a.seed0")]


def test_results_add_up(scripts, capsys):
    """Every figure of results.json follows from the runs' own files."""
    assert study.main(["table.ini", "--out", "out", "--jobs", "4"]) == 0
    out = scripts / "out"
    found = json.loads((out / "results.json").read_text())
    sims = {(r, s): np.load(out / f"{r}.seed{s}" / "sims.npy") for r in "ab" for s in range(3)}
    full = {key: json.loads((out / f"{key[0]}.seed{key[1]}" / "test.json").read_text())[0]["full"] for key in sims}
    assert found["missing"] == [] and found["seeds"] == [0, 1, 2]
    assert found["rows"]["b"]["runs"]["2"]["r10i"] == pytest.approx(full["b", 2]["r10i"], abs=1e-3)
    changes = [full["b", s]["rsum"] - full["a", s]["rsum"] for s in range(3)]
    assert [x["rsum"] for x in found["differences"]["b-a"]["runs"].values()] == pytest.approx(changes, abs=1e-3)
    assert set(found["ensembles"]["a x2"]["runs"]) == {"0,1", "0,2", "1,2"}
    mixed = found["ensembles"]["a+b"]["runs"]
    assert set(mixed) == {"0,1", "1,0", "0,2", "2,0", "1,2", "2,1"}
    for key, figures in mixed.items():
        s, t = map(int, key.split(","))
        expected = evaluation.metrics((sims["a", s] + sims["b", t]) / 2)["rsum"]
        assert figures["rsum"] == pytest.approx(expected, abs=1e-3)
        single = (full["a", s]["rsum"] + full["b", t]["rsum"]) / 2
        assert figures["gain"] == pytest.approx(expected - single, abs=1e-3)
    alike = {name: found["ensembles"][f"{name} x2"]["runs"] for name in "ab"}
    gains = [
        (mixed[f"{s},{t}"]["rsum"] + mixed[f"{t},{s}"]["rsum"] - sum(alike[name][f"{s},{t}"]["rsum"] for name in "ab"))
        / 2 for s, t in ((0, 1), (0, 2), (1, 2))
    ]  # fmt: skip
    assert results.mixing_gains(found, "a+b") == pytest.approx(gains)
    assert results.mixing_gains(found, "a x2") == []


def test_a_results_file_gives_the_same_tables(scripts, capsys):
    assert study.main(["table.ini", "--out", "out", "--seeds", "0", "1"]) == 0
    assert study.main(["--results", "out/results.json", "--out", "again"]) == 0
    for name in ("results.json", "results.md"):
        assert (scripts / "out" / name).read_bytes() == (scripts / "again" / name).read_bytes()
    pytest.importorskip("matplotlib")
    assert all((scripts / "again" / name).read_text().endswith("</svg>\n") for name in ("recalls.svg", "ensembles.svg"))


def test_mean_deviation_and_interval():
    assert results.spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0" and results.spread([4.25], 2) == "4.25"
    assert results.interval([5.0]) is None
    assert results.interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    assert results.interval([0.0, 2.0]) == pytest.approx(12.706)


def test_twins_of_the_demo_scenes(scripts):
    """A table of demo scenes reports twins for rows, differences and ensembles."""
    scenes = [{"twin": i ^ 1, "telling": [True] * 5, "facts": [[["right", 0, 1]]] * 5} for i in range(4)]
    Path("scenes.json").write_text(json.dumps(scenes))
    Path("twins.ini").write_text(TABLE.replace("title = Small", "twins = scenes.json"))
    assert study.main(["twins.ini", "--out", "out", "--seeds", "0", "1"]) == 0
    found = json.loads(Path("out/results.json").read_text())
    share = {r: found["rows"][r]["runs"]["1"]["twins"] for r in "ab"}
    sims = np.load("out/a.seed1/sims.npy")
    assert share["a"] == 100 * np.mean([sims[c // 5, c] > sims[c // 5 ^ 1, c] for c in range(20)])
    assert found["differences"]["b-a"]["runs"]["1"]["twins"] == pytest.approx(share["b"] - share["a"])
    assert "| Row A | " in Path("out/results.md").read_text().split("twins told apart, by claim")[1]


def test_real_runs_and_their_ensemble(tiny_data, tmp_path, monkeypatch):
    """The figures are those of test.py and test_stack.py for the same checkpoints."""
    monkeypatch.chdir(tmp_path)
    small = "--embed_size 16 --word_dim 8 --batch_size 64 --num_epochs 1 --device cpu --keep 1"
    Path("real.ini").write_text(
        f"[row tiny]\ntrain = {' '.join(tiny_data.args)} {small}\n[study]\ntest = --split dev\n"
    )
    assert study.main(["real.ini", "--seeds", "3", "5"]) == 0
    found = json.loads(Path("runs/study/real/results.json").read_text())
    paths = [f"runs/study/real/tiny.seed{seed}/checkpoint/model_best.pth.tar" for seed in (3, 5)]
    test_stack.main(
        ["--model_path", *paths, "--split", "dev", "--ranks", "", "--json", "stack.json", "--device", "cpu"]
    )
    *single, stacked = [result["full"] for result in json.loads(Path("stack.json").read_text())]
    for key in results.KEPT:
        assert found["ensembles"]["tiny x2"]["runs"]["3,5"][key] == pytest.approx(stacked[key], abs=1e-3)
        assert [run[key] for run in found["rows"]["tiny"]["runs"].values()] == pytest.approx(
            [one[key] for one in single], abs=1e-3
        )


@pytest.mark.parametrize("propagation", ["self", "neighbors"])
def test_boxes_let_either_propagation_see_an_exchange(propagation):
    """The example of docs/study.md: things A and B match with +1 and -1, four kernels look left and four right."""
    graph = VisualGraph(1, 8, 1, propagation)
    kernels, side = graph.kernels(), torch.tensor([[1.0]] * 4 + [[-1.0]] * 4)
    with torch.no_grad():
        kernels.mean_theta.copy_(-side * math.pi / 2)  # i left of j: the angle is -pi/2
        kernels.mean_rho.fill_(0.0), kernels.precision_rho.fill_(10.0), kernels.precision_theta.fill_(1.0)
        for linear, sign in zip(kernels.conv_weights, side):
            linear.weight.fill_(sign.item())
        for layer in (graph.out_1, graph.out_2):  # the sum of all kernels, through one hidden unit
            layer.weight_v.fill_(1.0), layer.bias.zero_(), layer.weight_g.zero_()
            layer.weight_g[0] = 1.0
    left, middle, right = ([x, 0.4, x + 0.1, 0.5] for x in (0.1, 0.4, 0.8))
    places = torch.tensor([[left, middle, right], [right, middle, left], [[0.0] * 4] * 3])  # A, a third thing, B
    match = torch.tensor([1.0, 0.0, -1.0]).view(1, 1, 3, 1).expand(3, 1, 3, 1)
    with torch.no_grad():
        scene, twin, nowhere = graph(match, graph.edges(places)).flatten().tolist()
    assert abs(scene) > 0.01 and twin == pytest.approx(-scene, rel=1e-4)
    assert nowhere == pytest.approx(0, abs=1e-6)  # without boxes the places say nothing


@pytest.mark.parametrize("name", ["flickr8k", "scenes"])
def test_the_page_shows_what_the_results_files_say(name):
    """docs/study.md has the tables of the committed results, and its tables of rows can be read."""
    folder = ROOT / "docs" / "study"
    found = study.read_results(folder / name / "results.json")
    assert results.markdown(found).strip() in (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert found["rows"].keys() <= read_table(folder / f"{name}.ini").rows.keys()


def test_the_table_for_flickr30k_has_the_published_recipes():
    table = read_table(ROOT / "docs" / "study" / "f30k.ini")
    assert {row.num_epochs for row in table.rows.values()} == {30} and len(table.rows) == 7
    assert all("f30k_precomp" in row.train for row in table.rows.values())
