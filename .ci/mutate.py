"""Puts faults into the code, one at a time, and lists those that no test notices.

    python .ci/mutate.py                              # 200 of the 1,400 faults: half an hour of one core
    python .ci/mutate.py --share 1 train.py           # all of one file
    python .ci/mutate.py --line margin --whole        # those whose line says margin, by all tests of the file

Works on a copy of the repository.  A fault is another operator, number or truth value, a condition turned round, or a
call or an assignment to an attribute that is left out.  The first run notes which test executes which line (--map); a
fault is then tried by the tests that execute its line, quickest first.  One that survives needs a test, or a reason.
"""

import argparse
import ast
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401  before all forks, since it takes seconds
import torchvision  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
TESTS = {  # file: its tests under tests/, those first that are fast or see most
    "train.py": "test_recipe.py runtime/test_logger.py test_train.py runtime/test_reliability.py",
    "model.py": "test_recipe.py test_gsmn.py test_scan_vsepp.py test_vsrn.py test_vsrn_golden.py test_systems.py",
    "graph.py": "test_gsmn.py modules/test_similarity.py test_recipe.py test_scan_vsepp.py",
    "data.py": "test_data.py test_pictures.py test_recipe.py test_train.py test_bad_input.py",
    "evaluation.py": "test_evaluation.py modules/test_similarity.py test_scan_vsepp.py test_bad_input.py",
    "reporting/ranks.py": "modules/test_ranks.py test_evaluation.py",
    "systems/gsmn.py": "test_gsmn.py test_recipe.py tools/test_explain.py",
    "systems/scan.py": "test_recipe.py test_scan_vsepp.py modules/test_memory.py tools/test_explain.py",
    "systems/vsepp.py": "test_recipe.py test_scan_vsepp.py test_vsrn.py",
    "systems/vsrn.py": "test_vsrn.py test_recipe.py test_vsrn_golden.py test_pictures.py",
    "systems/table.py": "runtime/test_options.py test_recipe.py test_scan_vsepp.py runtime/test_checkpoint.py",
    "systems/options.py": "runtime/test_options.py test_recipe.py test_train.py runtime/test_checkpoint.py",
    "modules/losses.py": "test_recipe.py runtime/test_logger.py test_train.py",
}
ENOUGH = 10  # seconds of the tests that a fault is tried by
PAIRS = "Lt LtE, Gt GtE, Eq NotEq, In NotIn, Is IsNot, And Or, Add Sub, Mult Div, FloorDiv Mult, Mod Mult, Pow Mult"
SWAPS = {getattr(ast, a): getattr(ast, b) for a, b in map(str.split, PAIRS.split(","))}
SWAPS = {**{b: a for a, b in SWAPS.items()}, **SWAPS}
VALUES = {bool: lambda value: not value, int: lambda value: value + 1, float: lambda value: 2 * value + 0.1}
MESSAGES = ("logging.", "print(", "warn(", "if __name__")


def that_matter(node, first=0, last=0):
    """(node, first and last line + 1 of its statement) of all below, without messages and annotations."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Raise, ast.arg)) or ast.unparse(child).startswith(MESSAGES):
            continue
        if isinstance(child, ast.stmt):
            body = getattr(child, "body", None)
            first, last = child.lineno, body[0].lineno - 1 if body else child.end_lineno
        yield child, (first, max(first, last) + 1)
        yield from that_matter(child, first, last)


def faults(tree):
    """(dict or list, key, what to put there, lines) of every fault."""
    for node, lines in [(tree, None), *that_matter(tree)]:
        if isinstance(node, ast.Constant) and type(node.value) in VALUES:
            yield vars(node), "value", VALUES[type(node.value)](node.value), lines
        elif isinstance(node, ast.Compare):
            yield node.ops, 0, SWAPS[type(node.ops[0])](), lines
        elif type(getattr(node, "op", None)) in SWAPS:
            yield vars(node), "op", SWAPS[type(node.op)](), lines
        elif isinstance(node, (ast.If, ast.IfExp)):
            yield vars(node), "test", ast.UnaryOp(ast.Not(), node.test), lines
        statements = node.body if isinstance(getattr(node, "body", None), list) else []
        for number, statement in enumerate(statements):
            target = getattr(statement, "targets", [None])[0]
            call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            call = call and not ast.unparse(statement).startswith(MESSAGES)
            if call or isinstance(statement, ast.AugAssign) or isinstance(target, (ast.Attribute, ast.Subscript)):
                yield statements, number, ast.Pass(), (statement.lineno, statement.end_lineno + 1)


def mutants(file):
    """[(the line before and after, the changed source, first and last line + 1)] of every fault."""
    tree = ast.parse((ROOT / file).read_text())
    before, found = ast.unparse(tree).splitlines(), []
    for place, key, new, lines in list(faults(tree)):
        old, place[key] = place[key], new
        after = ast.unparse(tree)
        changed = next((a, b) for a, b in zip(before, after.splitlines()) if a != b)
        found.append(("  ->  ".join(line.strip() for line in changed), after, lines))
        place[key] = old
    return found


# ---- tests, in a fork, which has torch loaded


class Watcher:
    """Writes the name of the first test that fails to `path`."""

    def __init__(self, path):
        self.path = path

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.path.write_text(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport


class Mapper:
    """Writes {test: [its seconds, {file: lines that it executes}]} of all tests that pass to `path`."""

    def __init__(self, path):
        self.path, self.tests, self.failed = path, {}, set()
        self.files = {str(Path(file).resolve()): file for file in TESTS}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        start, self.lines = sum(os.times()[:4]), defaultdict(set)
        sys.settrace(self.trace)
        yield
        sys.settrace(None)
        lines = {file: sorted(numbers) for file, numbers in self.lines.items()}
        self.tests[item.nodeid] = [sum(os.times()[:4]) - start, lines]

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)

    def trace(self, frame, event, argument):
        file = self.files.get(frame.f_code.co_filename)
        if file is None:
            return None
        note = self.lines[file].add

        def line(frame, event, argument):
            note(frame.f_lineno)
            return line

        return line(frame, event, argument)

    def pytest_sessionfinish(self):
        self.path.write_text(json.dumps({name: one for name, one in self.tests.items() if name not in self.failed}))


def in_fork(arguments, plugin, limit):
    """Whether pytest passes within `limit` seconds."""
    pid = os.fork()
    if not pid:
        os.setsid()
        signal.alarm(limit)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        os._exit(pytest.main(["-p", "no:cacheprovider", *arguments], [plugin] if plugin else []))
    passes = os.waitpid(pid, 0)[1] == 0
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it has started
    return passes


def quickest(tests, file, lines):
    """Tests of the map that execute one of the lines, for ENOUGH seconds: each test's quickest case, then others.

    A line that runs when the file is imported belongs to all tests of the file.
    """
    at_line = [name for name, (_, executed) in tests.items() if set(executed.get(file, ())) & set(range(*lines))]
    at_line = at_line or [name for name in tests if name.startswith(tuple(of_file(file)))]
    cases, order = Counter(), []
    for seconds, name in sorted((tests[name][0], name) for name in at_line):
        test = name.partition("[")[0]
        order.append((cases[test], seconds, name))
        cases[test] += 1
    order.sort()
    total = itertools.accumulate(seconds for _, seconds, _ in order)
    return [name for (_, _, name), so_far in zip(order, total) if so_far <= ENOUGH or name == order[0][2]]


def of_file(file):
    return [f"tests/{name}" for name in TESTS[file].split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(TESTS), metavar="FILE")
    parser.add_argument("--share", type=float, default=0.14, help="of each file's faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses them")
    parser.add_argument("--line", default="", help="only faults whose line, before and after, contains this")
    parser.add_argument("--map", type=Path, default=Path(tempfile.gettempdir(), "gsmn-tests-of-lines.json"))
    parser.add_argument("--whole", action="store_true", help="try each fault by all tests of its file, without the map")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults that are tried at the same time")
    args = parser.parse_args()
    os.environ.setdefault("GSMN_SHARED", str(ROOT.parent / "shared"))
    chance, chosen = random.Random(args.seed), []
    for file in args.files:
        every = [(file, *one) for one in mutants(file) if args.line in one[0]]
        chosen += chance.sample(every, math.ceil(args.share * len(every)))
    chance.shuffle(chosen)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        copy.mkdir()
        subprocess.run(f"git ls-files -z | xargs -0 cp --parents -t {copy}", shell=True, check=True, cwd=ROOT)
        os.chdir(copy)
        whole = dict.fromkeys(test for file in TESTS for test in of_file(file))
        if args.whole or args.map.exists():
            in_fork(["--collect-only", *whole], None, 600)  # compiles all files
        else:
            in_fork(whole, Mapper(args.map), 7200)
        sys.dont_write_bytecode = True  # two faults of one second and size would have one compiled file
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        tests = {} if args.whole else json.loads(args.map.read_text())
        for job in range(args.jobs):
            shutil.copytree(copy, Path(folder, str(job)))
            if not os.fork():
                os.chdir(Path(folder, str(job)))
                for fault in chosen[job :: args.jobs]:
                    print(tried(tests, *fault), flush=True)
                os._exit(0)
        for _ in range(args.jobs):
            os.wait()


def tried(tests, file, line, changed, lines):
    """What becomes of one fault, as text."""
    source, start, catcher = Path(file).read_text(), time.time(), Path("catcher").resolve()
    Path(file).write_text(changed)
    catcher.write_text("time")
    passes = in_fork(["-x", *(quickest(tests, file, lines) if tests else of_file(file))], Watcher(catcher), 900)
    Path(file).write_text(source)
    by = "SURVIVED" if passes else catcher.read_text()
    return f"{file}:{lines[0]}: {line}\n    {by}  {time.time() - start:.0f} s"


if __name__ == "__main__":
    main()
