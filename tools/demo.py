"""What `make demo` runs: make the demo data, train three small models, evaluate them, show what they learnt.

    python tools/demo.py

Every step is a command as a user would type it, and is printed. GSMN dense as released, GSMN sparse as in
the paper (--propagation neighbors) and VSRN, about two minutes on two CPU cores. An earlier
runs/demo is replaced. Exit code 1 when a model is not far above chance.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from files.errors import run
from reporting.ranks import SIX_RECALLS
from tools.demo_data.twins import told_apart

ROOT = Path(__file__).resolve().parents[1]
RUNS = "runs/demo"
DATA = "--data_path demo/data --vocab_path demo/vocab --data_name demo_precomp --img_dim 64 --workers 0"
SMALL = f"{DATA} --embed_size 64 --word_dim 32 --learning_rate .002 --log_step 50"
GSMN_FLAGS = f"{SMALL} --bi_gru --max_violation --warmup_sum 1 --batch_size 16 --num_epochs 3"
VSRN_FLAGS = (
    f"{SMALL} --model vsrn --dim_vid 64 --dim_hidden 64 --dim_word 32 --max_len 26 --batch_size 64 --num_epochs 8"
)
FLAGS_OF_RUNS = {  # name of the run: flags of train.py
    "dense": GSMN_FLAGS,
    "sparse": f"{GSMN_FLAGS} --is_sparse --propagation neighbors",
    "vsrn": VSRN_FLAGS,
}
TITLES = {"dense": "GSMN dense", "sparse": "GSMN sparse", "vsrn": "VSRN", "stack": "ensemble of the three"}
KS = (1, 5, 10)
FAR = 4  # every R@1 must be so many times chance


def run_step(title: str, command: str, times: dict[str, float]) -> None:
    """Print a command, run it in the repository's folder, stop when it fails."""
    print(f"\n=== {title}\n$ python {command}", flush=True)
    start = time.time()
    code = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT).returncode
    times[title] = time.time() - start
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


def checkpoints(name: str) -> str:
    return f"{RUNS}/{name}/checkpoint"


def outputs(name: str) -> str:
    return f"--json {RUNS}/{name}.json --save_sims {RUNS}/{name}.npy --ranks {RUNS}/{name}_ranks.pth.tar"


def run_all() -> dict[str, float]:
    """Data, training and every evaluation; what they measure goes to RUNS. Returns the seconds that each step took."""
    times: dict[str, float] = {}
    shutil.rmtree(ROOT / RUNS, ignore_errors=True)
    run_step("Make the data", "tools/make_demo.py", times)
    for name, flags in FLAGS_OF_RUNS.items():
        folders = f"--logger_name {RUNS}/{name}/log --model_name {checkpoints(name)}"
        run_step(f"Train {TITLES[name]}", f"train.py {flags} {folders}", times)
    best = {name: f"{checkpoints(name)}/model_best.pth.tar" for name in FLAGS_OF_RUNS}
    for name, path in best.items():
        run_step(f"Test {TITLES[name]}", f"test.py --model_path {path} {outputs(name)}", times)
    run_step(
        "GSMN dense on the five folds of testall, and on all of it at once",
        f"testall.py --model_path {best['dense']} {outputs('testall')}",
        times,
    )
    run_step(
        "Each model and their ensemble, with a report to look at",
        f"test_stack.py --model_path {' '.join(best.values())} {outputs('stack')} "
        f"--report {RUNS}/report --images demo/images",
        times,
    )
    return times


def chance(n_images: int, per_image: int = 5) -> dict[str, float]:
    """Recalls in percent of a random order, of n images and their captions.

    Text to image: k places of n. Image to text: not all of its captions are beyond the first k places.
    """
    n = n_images * per_image
    found = [1 - math.comb(n - per_image, min(k, n)) / math.comb(n, min(k, n)) for k in KS]
    return dict(zip(SIX_RECALLS, [100 * share for share in (*found, *(min(k / n_images, 1) for k in KS))]))


def result(name: str):
    path = ROOT / RUNS / name
    return np.load(path) if path.suffix == ".npy" else json.loads(path.read_text())


def demo_table(rows: dict[str, dict[str, float]]) -> str:
    """Rows of recalls, and of twin accuracy where it was measured."""
    lines = [
        f"{'':30}{'image to text':^21}   {'text to image':^21}",
        f"{'':30}" + "   ".join(["".join(f"{f'R@{k}':>7}" for k in KS)] * 2) + f"{'rsum':>9}{'twins':>8}",
    ]
    for title, row in rows.items():
        i2t, t2i = (f"{''.join(f'{row[name]:7.1f}' for name in part)}" for part in (SIX_RECALLS[:3], SIX_RECALLS[3:]))
        twins = f"{row['twins']:8.1f}" if "twins" in row else ""
        lines.append(f"{title:30}{i2t}   {t2i}{sum(row[name] for name in SIX_RECALLS):9.1f}{twins}")
    return "\n".join(lines)


def summarize() -> tuple[str, bool]:
    """The table of all that was measured, and whether every model is far above chance."""
    folder = ROOT / "demo" / "data" / "demo_precomp"
    scenes = json.loads((folder / "test_scenes.json").read_text())
    n_all = len(json.loads((folder / "testall_scenes.json").read_text()))
    test = {
        name: {**result(f"{name}.json")[-1]["full"], "twins": told_apart(result(f"{name}.npy"), scenes)["twins"]}
        for name in TITLES
    }
    luck, luck_all, whole = chance(len(scenes)), chance(n_all), result("testall.json")[0]
    rows = {f"chance, {len(scenes)} images": {**luck, "twins": 50.0}}
    rows.update({title: test[name] for name, title in TITLES.items()})
    rows["GSMN dense, mean of 5 folds"] = whole["fold5"]
    rows[f"chance, {n_all} images"] = luck_all
    rows[f"GSMN dense, {n_all} images"] = whole["full"]
    pairs = [*((row, luck) for row in (*test.values(), whole["fold5"])), (whole["full"], luck_all)]
    return demo_table(rows), all(row[name] >= FAR * base[name] for row, base in pairs for name in ("r1", "r1i"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    times = run_all()
    text, good = summarize()
    print("\n=== Summary: recalls in percent\n")
    print(text)
    print(
        "\nChance is a random order: of n images a caption finds its own in the first k with k/n, and an image one"
        "\nof its five captions in the first k of 5n with 1 - C(5n-5, k) / C(5n, k)."
        "\nThe column twins: two scenes are twins where only two things are exchanged. The number is how often a"
        "\ncaption that is true of one twin only scores higher with that twin; chance is 50."
        "\nAll figures differ by some points from processor to processor, since training amplifies rounding.\n"
    )
    print("  ".join(f"{title.split(',')[0]} {seconds:.0f} s." for title, seconds in times.items()))
    print(
        f"All in {sum(times.values()):.0f} s. Models and figures: {RUNS}. Open {RUNS}/report/index.html: the "
        "best answers for each picture and each caption."
    )
    if not good:
        print(f"error: a model's R@1 is less than {FAR} times chance", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    run(main)
