"""Puts faults into the code, one at a time, and lists those that no test notices.

    python .ci/mutate.py                                 # five of each file; some minutes each
    python .ci/mutate.py --sample 20 --seed 1 train.py   # others of one file

Works on a copy of the repository.  A fault is another operator, number or truth value, a condition turned round, or a
call or an assignment that is left out.  Those that survive need a test, or a reason.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401  before all forks, since it takes seconds
import torchvision  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
TESTS = {  # file: its tests under tests/, those first that are fast or see most
    "train.py": "test_recipe.py runtime/test_logger.py test_train.py runtime/test_reliability.py",
    "model.py": "test_recipe.py test_gsmn.py test_scan_vsepp.py test_vsrn.py test_vsrn_golden.py test_systems.py",
    "graph.py": "test_gsmn.py modules/test_padded.py modules/test_similarity.py test_recipe.py test_scan_vsepp.py",
    "data.py": "test_data.py test_pictures.py test_recipe.py test_train.py test_bad_input.py",
    "evaluation.py": "test_evaluation.py modules/test_similarity.py test_scan_vsepp.py runtime/test_distributed.py",
    "reporting/ranks.py": "modules/test_ranks.py test_evaluation.py",
    "systems/gsmn.py": "test_gsmn.py test_recipe.py",
    "systems/scan.py": "test_scan_vsepp.py test_recipe.py",
    "systems/vsepp.py": "test_scan_vsepp.py test_recipe.py test_pictures.py",
    "systems/vsrn.py": "test_vsrn.py test_recipe.py test_vsrn_golden.py test_pictures.py",
    "systems/table.py": "runtime/test_options.py test_recipe.py test_scan_vsepp.py runtime/test_checkpoint.py",
    "systems/options.py": "runtime/test_options.py test_recipe.py test_train.py runtime/test_checkpoint.py",
    "modules/losses.py": "test_recipe.py runtime/test_logger.py test_train.py",
}
SWAPS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr},
}
NUMBERS = {bool: lambda value: not value, int: lambda value: value + 1, float: lambda value: 2 * value + 0.1}


def faults(tree):
    """(dict or list, key, what to put there) of every fault."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) in NUMBERS:
            yield vars(node), "value", NUMBERS[type(node.value)](node.value)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node.ops, 0, SWAPS[type(node.ops[0])]()
        elif type(getattr(node, "op", None)) in SWAPS:
            yield vars(node), "op", SWAPS[type(node.op)]()
        elif isinstance(node, (ast.If, ast.IfExp)):
            yield vars(node), "test", ast.UnaryOp(ast.Not(), node.test)
        for number, statement in enumerate(node.body if isinstance(getattr(node, "body", None), list) else ()):
            kept = isinstance(statement, ast.Assign) and isinstance(statement.targets[0], (ast.Name, ast.Tuple))
            called = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if called or (isinstance(statement, (ast.Assign, ast.AugAssign)) and not kept):
                yield node.body, number, ast.Pass()


def mutants(source):
    """[(the changed line, the changed source)] of every fault."""
    tree = ast.parse(source)
    before, found = ast.unparse(tree), []
    for place, key, new in list(faults(tree)):
        old, place[key] = place[key], new
        after = ast.unparse(tree)
        line = next(b for a, b in zip(before.splitlines(), after.splitlines()) if a != b)
        found.append((line.strip(), after))
        place[key] = old
    return found


def notice(tests, limit=900):
    """Whether a test fails, or takes more than `limit` seconds.  In a fork, which has torch loaded."""
    pid = os.fork()
    if not pid:
        signal.alarm(limit)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(pytest.main(["-x", "-p", "no:cacheprovider", *tests]))
    return os.waitpid(pid, 0)[1] != 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", choices=[[], *TESTS], metavar="FILE")
    parser.add_argument("--sample", type=int, default=5, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("GSMN_SHARED", str(ROOT.parent / "shared"))

    with tempfile.TemporaryDirectory() as copy:
        listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
        for name in listed.splitlines():
            (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(copy) / name)
        os.chdir(copy)
        for file in args.files or TESTS:
            try_file(file, args.sample, args.seed)


def try_file(file, sample, seed):
    source = Path(file).read_text()
    tests = [f"tests/{name}" for name in TESTS[file].split()]
    if notice(tests):
        sys.exit(f"{file}: its tests fail without a fault")
    every = mutants(source)
    chosen, survived = random.Random(seed).sample(every, min(sample, len(every))), 0
    for line, changed in chosen:
        Path(file).write_text(changed)
        caught = notice(tests)
        survived += not caught
        print(f"{file}: {'caught' if caught else 'SURVIVED'}: {line}", flush=True)
    Path(file).write_text(source)
    print(f"{file}: {len(chosen)} of {len(every)} faults tried, {survived} survived", flush=True)


if __name__ == "__main__":
    main()
