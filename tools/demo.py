"""What `make demo` runs: make the demo data, train a small model of each system, test them, show what they learnt.

    python tools/demo.py

Every step is a command as a user would type it, and is printed. What it leaves lies in demo/ and runs/demo; an
earlier runs/demo is replaced. Exit code 1 when a model is not far above chance.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runtime.start import run

from reporting.metrics import SIX_RECALLS
from runtime.commandline import Parser

FOLDER = "runs/demo"
SMALL = (
    "--data_path demo/data --vocab_path demo/vocab --data_name demo_precomp --img_dim 64 --workers 0 "
    "--embed_size 64 --word_dim 32 --log_step 50"
)
# the last epochs have a tenth of the rate, so that seeds and processors end close to each other
GSMN = "--bi_gru --max_violation --warmup_sum 1 --batch_size 16 --num_epochs 3 --learning_rate .002 --lr_update 2"
SCAN = "--model scan --bi_gru --max_violation --agg_func Mean --cross_attn t2i --lambda_softmax 9 --warmup_sum 1"
VSEPP = "--model vsepp --max_violation --warmup_sum 2 --batch_size 32"
VSRN = "--model vsrn --dim_vid 64 --dim_hidden 64 --dim_word 32 --max_len 26 --chrono_init 24 --batch_size 64"
RUNS = {  # name: (title, flags of train.py beside SMALL)
    "dense": ("GSMN dense", GSMN),
    "sparse": ("GSMN sparse", f"{GSMN} --is_sparse --propagation neighbors"),
    "scan": ("SCAN t-i AVG", f"{SCAN} --batch_size 32 --num_epochs 3 --learning_rate .002 --lr_update 2"),
    "vsepp": ("VSE++", f"{VSEPP} --num_epochs 6 --learning_rate .003 --lr_update 5"),
    "vsrn": ("VSRN", f"{VSRN} --num_epochs 4 --learning_rate .003 --lr_update 3"),
}
FAR = 8  # percent that every R@1 must reach; chance is 2 with 50 images


def commands():
    """All steps: (title, what follows `python`)."""
    steps = [("Make the data", "tools/make_demo.py")]
    for name, (title, flags) in RUNS.items():
        folders = f"--logger_name {FOLDER}/{name}/log --model_name {FOLDER}/{name}/checkpoint"
        steps.append((f"Train {title}", f"train.py {SMALL} {flags} {folders}"))
    models = " ".join(f"{FOLDER}/{name}/checkpoint/model_best.pth.tar" for name in RUNS)
    outputs = f"--json {FOLDER}/test.json --ranks {FOLDER}/ranks.pth.tar --report {FOLDER}/report"
    test = f"test_stack.py --model_path {models} --normalize {outputs} --images demo/images --explain 1"
    return [*steps, ("Test each model and their ensemble, with a report and explanations to look at", test)]


def main():
    Parser(description=__doc__).parse_args()
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    start, steps = time.time(), commands()
    for number, (title, command) in enumerate(steps, 1):
        print(f"\n=== {number} of {len(steps)}: {title}\n$ python {command}", flush=True)
        code = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT).returncode
        if code:
            return code if code > 0 else 128 - code
    results = json.loads((ROOT / FOLDER / "test.json").read_text())
    print("\n=== Summary: recalls in percent, of 50 images; by chance R@1 is 2, R@5 10, R@10 20\n")
    print(f"{'':16}" + "".join(f"{name:>9}" for name in ("i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "rsum")))
    low = []
    for title, result in zip([*(title for title, _ in RUNS.values()), "ensemble of all"], results):
        row = [result["full"][key] for key in SIX_RECALLS]
        print(f"{title:16}" + "".join(f"{value:9.1f}" for value in [*row, sum(row)]))
        if min(row[0], row[3]) < FAR:
            low.append(title)
    print(f"\nAll in {time.time() - start:.0f} s. Models and figures: {FOLDER}. Open {FOLDER}/report/index.html.")
    if low:
        print(f"error: an R@1 of {low[0]} is below {FAR} %: the model has not learnt", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    run(main)
