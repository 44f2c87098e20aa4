"""Puts faults into a file, one at a time, and says which test notices each, or that none does.

    python .ci/mutate.py systems/vsepp.py tests/test_recipe.py tests/test_scan_vsepp.py
    python .ci/mutate.py modules/losses.py tests/test_recipe.py --line margin    # those whose line says margin
    python .ci/mutate.py train.py --share 0.1                                    # a tenth of them, by all tests

Works on a copy of the repository.  A fault is another operator, number or truth value, a condition turned round, or a
call or an assignment to an attribute that is left out.  The tests run in the order given until one fails, so put quick
ones first.  A fault that survives needs a test, or a reason.
"""

import argparse
import ast
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900  # seconds that the tests of a fault may take
PAIRS = "Lt LtE, Gt GtE, Eq NotEq, In NotIn, Is IsNot, And Or, Add Sub, Mult Div, FloorDiv Mult, Mod Mult, Pow Mult"
SWAPS = {getattr(ast, a): getattr(ast, b) for a, b in map(str.split, PAIRS.split(","))}
SWAPS = {**{b: a for a, b in SWAPS.items()}, **SWAPS}
VALUES = {bool: lambda value: not value, int: lambda value: value + 1, float: lambda value: 2 * value + 0.1}
MESSAGES = ("logging.", "print(", "warn(", "if __name__")


def that_matter(node):
    """A node and all below it, without messages and annotations."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.Raise, ast.arg)) and not ast.unparse(child).startswith(MESSAGES):
            yield from that_matter(child)


def faults(tree):
    """(number of the line, dict or list, key, what to put there) of every fault."""
    for node in that_matter(tree):
        if isinstance(node, ast.Constant) and type(node.value) in VALUES:
            yield node.lineno, vars(node), "value", VALUES[type(node.value)](node.value)
        elif isinstance(node, ast.Compare):
            yield node.lineno, node.ops, 0, SWAPS[type(node.ops[0])]()
        elif type(getattr(node, "op", None)) in SWAPS:
            yield node.lineno, vars(node), "op", SWAPS[type(node.op)]()
        elif isinstance(node, (ast.If, ast.IfExp)):
            yield node.lineno, vars(node), "test", ast.UnaryOp(ast.Not(), node.test)
        statements = node.body if isinstance(getattr(node, "body", None), list) else []
        for number, statement in enumerate(statements):
            target = getattr(statement, "targets", [None])[0]
            call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            call = call and not ast.unparse(statement).startswith(MESSAGES)
            if call or isinstance(statement, ast.AugAssign) or isinstance(target, (ast.Attribute, ast.Subscript)):
                yield statement.lineno, statements, number, ast.Pass()


def mutants(source):
    """(number of the line, the line before and after, the changed source) of every fault."""
    tree = ast.parse(source)
    before = ast.unparse(tree).splitlines()
    for number, place, key, new in list(faults(tree)):
        old, place[key] = place[key], new
        after = ast.unparse(tree)
        changed = next((a, b) for a, b in zip(before, after.splitlines()) if a != b)
        yield number, "  ->  ".join(line.strip() for line in changed), after
        place[key] = old


def notices(tests, folder):
    """The first test that fails in a copy of the repository, or 'SURVIVED'."""
    command = ["timeout", str(LIMIT), sys.executable, "-m", "pytest", "-xrfE", *tests]  # ends what the tests start, too
    settings = {"GSMN_SHARED": str(ROOT.parent / "shared"), **os.environ}
    settings["PYTHONDONTWRITEBYTECODE"] = "1"  # two faults of one second and size would have one compiled file
    done = subprocess.run(command, cwd=folder, env=settings, stdout=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return "SURVIVED"
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)( - |$)", done.stdout, re.M)
    return failed[1] if failed else f"exit code {done.returncode} (124: takes too long)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", help="Python file, from the repository's root")
    parser.add_argument("tests", nargs="*", default=["tests"], metavar="TESTS", help="files of tests (default: all)")
    parser.add_argument("--line", default="", help="only faults whose line, before and after, contains this")
    parser.add_argument("--share", type=float, default=1, help="of the faults (default: all)")
    args = parser.parse_args()
    source = (ROOT / args.file).read_text()
    chosen = [mutant for mutant in mutants(source) if args.line in mutant[1]]
    chosen = random.Random(0).sample(chosen, round(args.share * len(chosen)))
    with tempfile.TemporaryDirectory() as copy:
        subprocess.run(f"git ls-files -z | xargs -0 cp --parents -t {copy}", shell=True, check=True, cwd=ROOT)
        for number, line, changed in chosen:
            start = time.time()
            (Path(copy) / args.file).write_text(changed)
            noticed = notices(args.tests, copy)
            print(f"{args.file}:{number}: {line}\n    {noticed}  {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
