"""What `make demo` runs: make the demo data, train small models, evaluate them, show what they learnt.

    python tools/demo.py

Every step is a command as a user would type it, and is printed. What it leaves lies in demo/ and runs/demo; an
earlier runs/demo is replaced. Exit code 1 when a model is not far above chance.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.start import run

from reporting.metrics import SIX_RECALLS
from runtime.commandline import Parser
from tools.demo_data.twins import told_apart

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "runs/demo"
SMALL = (
    "--data_path demo/data --vocab_path demo/vocab --data_name demo_precomp --img_dim 64 --workers 0 "
    "--embed_size 64 --word_dim 32 --log_step 50"
)
# the last epochs have a tenth of the rate, so that seeds and processors end close to each other
GSMN = (
    f"{SMALL} --bi_gru --max_violation --warmup_sum 1 --batch_size 16 --num_epochs 4 --learning_rate .002 --lr_update 3"
)
VSRN = (
    f"{SMALL} --model vsrn --dim_hidden 64 --dim_word 32 --max_len 26 --batch_size 64 "
    "--num_epochs 10 --learning_rate .003 --lr_update 8"
)
RUNS = {  # name: (title, flags of train.py)
    "dense": ("GSMN dense", GSMN),
    "sparse": ("GSMN sparse", f"{GSMN} --is_sparse --propagation neighbors"),
    "vsrn": ("VSRN", VSRN),
}
FAR = 8  # percent that every R@1 must reach; chance is 2 with 50 images


def commands() -> list[tuple[str, str]]:
    """All steps: (title, what follows `python`)."""

    def outputs(name: str) -> str:
        return f"--json {FOLDER}/{name}.json --save_sims {FOLDER}/{name}.npy --ranks {FOLDER}/{name}_ranks.pth.tar"

    steps = [("Make the data", "tools/make_demo.py")]
    for name, (title, flags) in RUNS.items():
        folders = f"--logger_name {FOLDER}/{name}/log --model_name {FOLDER}/{name}/checkpoint"
        steps.append((f"Train {title}", f"train.py {flags} {folders}"))
    best = {name: f"{FOLDER}/{name}/checkpoint/model_best.pth.tar" for name in RUNS}
    for name, path in best.items():
        steps.append((f"Test {RUNS[name][0]}", f"test.py --model_path {path} {outputs(name)}"))
    all_folds = f"testall.py --model_path {best['dense']} {outputs('testall')}"
    steps.append(("GSMN dense on the five folds of testall, and on all of it at once", all_folds))
    together = f"test_stack.py --model_path {' '.join(best.values())} {outputs('stack')}"
    report = f"--report {FOLDER}/report --images demo/images --explain 1"
    steps.append(("Ensemble, with a report and explanations to look at", f"{together} {report}"))
    return steps


def run_step(title: str, command: str) -> float:
    """Print a command and run it in the repository's folder; SystemExit if it fails. Returns seconds."""
    print(f"\n=== {title}\n$ python {command}", flush=True)
    start = time.time()
    code = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT).returncode
    if code:
        raise SystemExit(code if code > 0 else 128 - code)
    return time.time() - start


def demo_table(rows: dict[str, dict[str, float]]) -> str:
    """Rows of recalls, and of twin accuracy if it was measured."""
    lines = [
        f"{'':30}{'image to text':^21}{'text to image':^21}",
        f"{'':30}" + "".join(f"{name:>7}" for name in ("R@1", "R@5", "R@10") * 2) + f"{'rsum':>9}{'twins':>8}",
    ]
    for title, row in rows.items():
        recalls = [row[name] for name in SIX_RECALLS]
        twins = f"{row['twins']:8.1f}" if "twins" in row else ""
        lines.append(f"{title:30}" + "".join(f"{recall:7.1f}" for recall in recalls) + f"{sum(recalls):9.1f}{twins}")
    return "\n".join(lines)


def measured() -> dict[str, dict[str, float]]:
    """What the steps measured: {title: recalls in percent, and 'twins'}."""
    results, rows = ROOT / FOLDER, {}
    scenes = json.loads((ROOT / "demo/data/demo_precomp/test_scenes.json").read_text())
    for name, title in {**{name: title for name, (title, _) in RUNS.items()}, "stack": "ensemble of all"}.items():
        twins = told_apart(np.load(results / f"{name}.npy"), scenes)["twins"]
        rows[title] = {**json.loads((results / f"{name}.json").read_text())[-1]["full"], "twins": twins}
    whole = json.loads((results / "testall.json").read_text())[0]
    return {**rows, "GSMN dense, mean of 5 folds": whole["fold5"], "GSMN dense, 250 images": whole["full"]}


def main() -> int:
    Parser(description=__doc__).parse_args()
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    seconds = {title: run_step(title, command) for title, command in commands()}
    rows = measured()
    print(
        f"\n=== Summary: recalls in percent, of 50 images\n\n{demo_table(rows)}\n"
        "\nBy chance R@1 is 2, R@5 10, R@10 20. The column twins: two scenes are twins where only two things are"
        "\nexchanged. The number is how often a caption that is true of one twin only scores higher with that twin;"
        "\nchance is 50.\n"
    )
    print("  ".join(f"{title.split(',')[0]} {count:.0f} s." for title, count in seconds.items()))
    print(f"All in {sum(seconds.values()):.0f} s. Models and figures: {FOLDER}. Open {FOLDER}/report/index.html.")
    low = [title for title, row in rows.items() if min(row["r1"], row["r1i"]) < FAR]
    if low:
        print(f"error: an R@1 of {low[0]} is below {FAR} %: the model has not learnt", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    run(main)
