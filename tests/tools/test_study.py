"""tools/study.py: tables, the order of runs, stopping and resuming, and the arithmetic of its results."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import message

import evaluation
import test_stack
from files.writing import lock_folder
from graph import VisualGraph
from tools import study

ROOT = Path(__file__).resolve().parents[2]
TABLE = """
[flags]
common = --num_epochs 2 --workers 0
[rows]
a = ${flags:common}
b = ${flags:common} --propagation neighbors
"""
# Both stand-ins note which run called them, with how many threads, and what it resumes.
HEAD = """
import os, signal, sys, time, zlib
from pathlib import Path
import numpy as np
flags, here = dict(zip(sys.argv[1::2], sys.argv[2::2])), Path(__file__).parent
run = Path(flags.get("--save_sims") or flags["--logger_name"]).parent
with open(here / "calls", "a") as calls:
    print(Path(__file__).stem, run.name, os.environ["OMP_NUM_THREADS"], flags.get("--resume", ""), file=calls)
"""
# Stands for train.py: an epoch is a checkpoint; the second one waits while there is a file `wait`.
TRAIN = f"""{HEAD}
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
models = Path(flags["--model_name"])
models.mkdir(exist_ok=True)
if (here / "fail").exists() and "neighbors" in sys.argv:
    print("warming up"), sys.exit("error: no such data")
for epoch in range(len(list(models.glob("*"))), 2):
    while (here / "wait").exists() and epoch == 1:
        time.sleep(0.01)
    (models / f"checkpoint_{{epoch}}.pth.tar").touch()
"""
# Stands for test.py: a matrix of similarities that depends on the run's name alone.
TEST = f"""{HEAD}
rng = np.random.default_rng(zlib.crc32(run.name.encode()))
np.save(flags["--save_sims"], (rng.normal(size=(4, 20)) + np.kron(np.eye(4), np.ones(5))).astype(np.float32))
Path(flags["--json"]).write_text("[]")
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Stand-ins for train.py and test.py, and a table; returns their folder."""
    for name, text in (("train.py", TRAIN), ("test.py", TEST), ("table.ini", TABLE)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(folder):
    """[program, run, threads, folder that it resumes] of each start of a stand-in."""
    return [line.split() for line in (folder / "calls").read_text().splitlines()]


def test_a_table_is_read(scripts):
    """Without sections of their own there is an ensemble and a difference of each two rows."""
    path = Path("table.ini")
    found = study.read_table(path)
    assert found.rows["b"] == "--num_epochs 2 --workers 0 --propagation neighbors".split()
    assert found.ensembles == {"a + b": ["a", "b"]} and found.differences == {"b − a": [["b"], ["a"]]}
    path.write_text(f"{TABLE}c =\n[study]\ntest = --split dev\n[differences]\nOf all = a c - b\n[ensembles]\n")
    found = study.read_table(path)
    assert (found.test, found.twins, found.ensembles) == (["--split", "dev"], None, {})
    assert found.differences == {"Of all": [["a", "c"], ["b"]]}


@pytest.mark.parametrize(
    "text,says",
    [
        ("[study]\ntest =\n", "no row"),
        ("[rows]\na = --logger_name=here\n", "--logger_name"),
        ('[rows]\na = --data_name "x\n', "quotation"),
        ("[rows]\na/b =\n", "a/b"),
        ("[rows]\na = ${flags:x}\n", "flags"),
        ("[row]\na =\n", "row is unknown"),
        ("[study]\nrows = 3\n", "rows is unknown"),
        ("a = 1\n", "header"),
        ("[rows]\na =\n[ensembles]\ne = a z\n", "a z"),
        ("[rows]\na =\n[differences]\nd = a\n", "minus"),
        ("[rows]\na =\n[differences]\nd = a - q\n", "a - q"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path, text, says):
    path = tmp_path / "table.ini"
    path.write_text(text)
    found = message(study.read_table, path)
    assert str(path) in found and says in found


def test_wrong_flags_stop_before_the_first_run(scripts):
    assert "--rows c" in message(study.main, ["table.ini", "--rows", "c"])
    assert "no finished run" in message(study.main, ["table.ini", "--summary"])
    assert "none.ini" in message(study.main, ["none.ini"])
    Path("twins.ini").write_text(f"{TABLE}[study]\ntwins = scenes.json\n")
    assert "scenes.json" in message(study.main, ["twins.ini"])
    assert not (scripts / "calls").exists()


def test_runs_go_seed_by_seed_and_only_once(scripts):
    flags = ["table.ini", "--jobs", "1", "--threads", "3", "--out", "out"]
    assert study.main([*flags, "--seeds", "0", "1"]) == 0
    order = ["a.seed0", "b.seed0", "a.seed1", "b.seed1"]
    assert calls(scripts) == [[program, name, "3"] for name in order for program in ("train", "test")]
    assert study.main([*flags, "--seeds", "1", "2", "--rows", "a"]) == 0  # one of them is finished
    assert calls(scripts)[8:] == [["train", "a.seed2", "3"], ["test", "a.seed2", "3"]]
    (scripts / "out/a.seed1/test.json").unlink()  # tested anew, not trained
    assert study.main([*flags, "--seeds", "1"]) == 0 and calls(scripts)[10:] == [["test", "a.seed1", "3"]]
    (scripts / "table.ini").write_text(TABLE.replace("--workers 0", "--workers 1"))
    assert "out/a.seed0/run.json" in message(study.main, flags)


def test_a_stopped_study_goes_on_where_it_was(scripts):
    (scripts / "wait").touch()
    start = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path; from tools import study; from runtime.start import run
study.ROOT = Path({str(scripts)!r}); run(lambda: study.main(["table.ini", "--out", "out", "--seeds", "0"]))"""
    process = subprocess.Popen(
        [sys.executable, "-c", start], cwd=scripts, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    firsts = [scripts / f"out/{name}.seed0/checkpoint/checkpoint_0.pth.tar" for name in "ab"]
    while not all(path.exists() for path in firsts):  # then both runs wait in their second epoch
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert "Stopping" in process.communicate(timeout=60)[1] and process.returncode == 130
    assert not list(scripts.rglob("test.json"))
    (scripts / "wait").unlink()
    assert study.main(["table.ini", "--out", "out", "--seeds", "0"]) == 0
    again = sorted(call[1:] for call in calls(scripts)[2:] if call[0] == "train")  # side by side, in either order
    assert again == [[f"{name}.seed0", "1", f"out/{name}.seed0/checkpoint"] for name in "ab"]


def test_a_failed_run_is_named_and_the_others_go_on(scripts, capsys):
    (scripts / "fail").touch()
    flags = ["table.ini", "--out", "out", "--seeds", "0", "1"]
    assert study.main(flags) == 1
    said = capsys.readouterr()
    assert "b.seed0: train.py" in said.err and "no such data" in said.err and "out/b.seed0/train.txt" in said.err
    assert "b.seed0, b.seed1" in said.out
    (scripts / "fail").unlink()
    assert study.main(flags) == 0 and "b.seed1" not in (scripts / "out" / "results.md").read_text()


def test_a_run_of_another_process_is_left_to_it(scripts):
    (scripts / "out/a.seed0").mkdir(parents=True)
    with lock_folder(scripts / "out/a.seed0"):
        assert study.main(["table.ini", "--out", "out", "--seeds", "0"]) == 0
    assert {call[1] for call in calls(scripts)} == {"b.seed0"}


def test_results_add_up(scripts):
    """Every figure of results.json follows from the runs' similarities."""
    telling = [[True, False, True, True, False], [True] * 5, [False] * 5, [False] * 5]
    scenes = [{"twin": twin, "telling": true} for twin, true in zip((1, 0, None, None), telling)]
    Path("scenes.json").write_text(json.dumps(scenes))
    Path("twins.ini").write_text(f"{TABLE}[study]\ntwins = scenes.json\n")
    assert study.main(["twins.ini", "--out", "out", "--jobs", "4"]) == 0
    found = json.loads(Path("out/results.json").read_text())
    sims = {f"{row}{seed}": np.load(f"out/{row}.seed{seed}/sims.npy") for row in "ab" for seed in range(3)}

    def rsum(*members):
        return evaluation.metrics(sum(sims[member] for member in members) / len(members))["rsum"]

    def twins(member):
        own, other = (sims[member][np.arange(20) // 5 ^ swap, np.arange(20)] for swap in (0, 1))
        return 100 * np.mean((own > other)[np.ravel(telling)])

    near = partial(pytest.approx, abs=1e-3)
    assert found["rows"]["b"]["2"]["rsum"] == near(rsum("b2"))
    assert found["differences"]["b − a"]["1"]["twins"] == near(twins("b1") - twins("a1"))
    changes = {seed: near(rsum(f"b{seed}") - rsum(f"a{seed}")) for seed in "012"}
    assert {seed: x["rsum"] for seed, x in found["differences"]["b − a"].items()} == changes
    alike, mixed = found["ensembles"]["a, two seeds"], found["ensembles"]["a + b"]
    assert set(alike) == {"0,1", "0,2", "1,2"} and set(mixed) == {*alike, "1,0", "2,0", "2,1"}
    for key, figures in mixed.items():
        a, b = f"a{key[0]}", f"b{key[2]}"
        assert figures["rsum"] == near(rsum(a, b))
        assert figures["gain"] == near(rsum(a, b) - (rsum(a) + rsum(b)) / 2)
    four = rsum("a0", "b2") + rsum("b0", "a2") - rsum("a0", "a2") - rsum("b0", "b2")
    assert mixed["0,2"]["mixing"] == near(four / 2)
    assert f" {study.spread([rsum(f'a{seed}') for seed in range(3)])} " in Path("out/results.md").read_text()
    Path("scenes.json").write_text(json.dumps(scenes[:2]))
    assert "scenes.json" in message(study.main, ["twins.ini", "--out", "out", "--summary"])


def test_mean_deviation_and_interval():
    assert study.spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0" and study.spread([4.2]) == "4.2"
    assert study.interval([1.0, 2.0, 3.0]) == "-0.5 to +4.5" and study.interval([5.0]) == ""  # 2 -+ 4.303 / 3 ** 0.5


def test_real_runs_and_their_ensemble(tiny_data, tmp_path, monkeypatch):
    """The figures are those of test.py and test_stack.py for the same checkpoints."""
    monkeypatch.chdir(tmp_path)
    small = "--embed_size 16 --word_dim 8 --batch_size 64 --num_epochs 1 --device cpu --keep 1"
    Path("real.ini").write_text(f"[rows]\ntiny = {' '.join(tiny_data.args)} {small}\n[study]\ntest = --split dev\n")
    assert study.main(["real.ini", "--seeds", "3", "5"]) == 0
    found = json.loads(Path("runs/study/real/results.json").read_text())
    paths = [f"runs/study/real/tiny.seed{seed}/checkpoint/model_best.pth.tar" for seed in (3, 5)]
    test_stack.main(["--model_path", *paths, *"--split dev --json stack.json --device cpu --ranks=".split()])
    *single, stacked = [result["full"] for result in json.loads(Path("stack.json").read_text())]
    ours = [*found["rows"]["tiny"].values(), found["ensembles"]["tiny, two seeds"]["3,5"]]
    for key in ("r1", "r10i", "rsum"):
        assert [run[key] for run in ours] == pytest.approx([one[key] for one in (*single, stacked)], abs=1e-3)


@pytest.mark.parametrize("propagation", ["self", "neighbors"])
def test_boxes_let_either_propagation_see_an_exchange(propagation):
    """The example of docs/study.md: things A and B match with +1 and -1, four kernels look left and four right."""
    graph = VisualGraph(1, 8, 1, propagation)
    kernels, side = graph.convolution(), torch.tensor([[1.0]] * 4 + [[-1.0]] * 4)
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


def test_the_tables_of_the_page_can_be_read():
    for path in (ROOT / "docs/study").glob("*.ini"):
        assert len(study.read_table(path).rows) > 5
