"""Puts faults into the code, one at a time, and lists those that no test notices.

    python .ci/mutate.py                                 # five of each file; some minutes each
    python .ci/mutate.py --sample 20 --seed 1 train.py   # others of one file

Works on a copy of the repository.  A fault is another operator, number or truth value, a condition turned round, or a
call or an assignment to an attribute that is left out.  One that survives needs a test, or a reason.
"""

import argparse
import ast
import os
import random
import signal
import subprocess
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
    "systems/scan.py": "test_recipe.py test_scan_vsepp.py",
    "systems/vsepp.py": "test_recipe.py test_scan_vsepp.py test_vsrn.py",
    "systems/vsrn.py": "test_vsrn.py test_recipe.py test_vsrn_golden.py test_pictures.py",
    "systems/table.py": "runtime/test_options.py test_recipe.py test_scan_vsepp.py runtime/test_checkpoint.py",
    "systems/options.py": "runtime/test_options.py test_recipe.py test_train.py runtime/test_checkpoint.py",
    "modules/losses.py": "test_recipe.py runtime/test_logger.py test_train.py",
}
PAIRS = "Lt LtE, Gt GtE, Eq NotEq, In NotIn, Is IsNot, And Or, Add Sub, Mult Div, FloorDiv Mult, Mod Mult, Pow Mult"
SWAPS = {getattr(ast, a): getattr(ast, b) for a, b in map(str.split, PAIRS.split(","))}
SWAPS = {**{b: a for a, b in SWAPS.items()}, **SWAPS}
VALUES = {bool: lambda value: not value, int: lambda value: value + 1, float: lambda value: 2 * value + 0.1}


def faults(tree):
    """(dict or list, key, what to put there) of every fault."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) in VALUES:
            yield vars(node), "value", VALUES[type(node.value)](node.value)
        elif isinstance(node, ast.Compare):
            yield node.ops, 0, SWAPS[type(node.ops[0])]()
        elif type(getattr(node, "op", None)) in SWAPS:
            yield vars(node), "op", SWAPS[type(node.op)]()
        elif isinstance(node, (ast.If, ast.IfExp)):
            yield vars(node), "test", ast.UnaryOp(ast.Not(), node.test)
        statements = node.body if isinstance(getattr(node, "body", None), list) else []
        for number, statement in enumerate(statements):
            target = getattr(statement, "targets", [None])[0]
            call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if call or isinstance(statement, ast.AugAssign) or isinstance(target, (ast.Attribute, ast.Subscript)):
                yield statements, number, ast.Pass()


def mutants(source):
    """[(the line before and after, the changed source)] of every fault."""
    tree = ast.parse(source)
    before, found = ast.unparse(tree).splitlines(), []
    for place, key, new in list(faults(tree)):
        old, place[key] = place[key], new
        after = ast.unparse(tree)
        lines = next((a, b) for a, b in zip(before, after.splitlines()) if a != b)
        found.append(("  ->  ".join(line.strip() for line in lines), after))
        place[key] = old
    return found


def notice(tests, limit=900):
    """Whether a test fails, or takes more than `limit` seconds.  In a fork, which has torch loaded."""
    pid = os.fork()
    if not pid:
        signal.alarm(limit)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        os._exit(pytest.main(["-x", "-p", "no:cacheprovider", *tests]))
    return os.waitpid(pid, 0)[1] != 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(TESTS), metavar="FILE")
    parser.add_argument("--sample", type=int, default=5, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("GSMN_SHARED", str(ROOT.parent / "shared"))
    with tempfile.TemporaryDirectory() as copy:
        subprocess.run(f"git ls-files -z | xargs -0 cp --parents -t {copy}", shell=True, check=True, cwd=ROOT)
        os.chdir(copy)
        for file in args.files:
            source, tests = Path(file).read_text(), [f"tests/{name}" for name in TESTS[file].split()]
            every = mutants(source)
            for line, changed in random.Random(args.seed).sample(every, min(args.sample, len(every))):
                Path(file).write_text(changed)
                print(f"{'caught' if notice(tests) else 'SURVIVED'}  {file}: {line}", flush=True)
            Path(file).write_text(source)


if __name__ == "__main__":
    main()
