"""The tests on other processors, thread counts, compilers, versions and in other orders: one cell after another.

    make matrix                                   # every cell; about three minutes each on two quiet cores
    make matrix CELLS="aten-default clang"        # these cells
    python3 .ci/matrix.py --list

A cell is the whole suite under one setting. Cells with versions of their own get an environment in .matrix/, which is
kept. A cell whose Python or compiler is missing is skipped, saying so. The output of each cell goes to
.matrix/CELL.txt, the table to .matrix/table.md. A suite that writes nothing for half an hour is ended and red, and
its output ends with the stacks of its threads. Exit code 1 when a cell fails.
"""

import argparse
import collections
import contextlib
import dataclasses
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".matrix"
OLDEST = ("torch==2.6.*", "torchvision==0.21.*", "numpy==1.24.*", "nltk==3.10.2")  # requirements.txt's lower bounds
NO_TESTS = 5  # pytest's exit code when no test ran, as for a file whose tests are all left out
HUNG = 124  # exit code of a suite that wrote nothing for SILENCE seconds
SILENCE = 1800  # inductor of torch 2.6 compiles for ten minutes on a busy machine


@dataclasses.dataclass
class Cell:
    what: str  # one line for the table
    variables: dict = dataclasses.field(default_factory=dict)  # added to the environment
    python: str = ""  # version; '' is the Python that runs this script, with its packages
    packages: tuple = ()  # installed on top of requirements-dev.txt
    flags: tuple = ()  # of pytest
    compiler: str = ""  # that has to be on the PATH
    alone: bool = False  # each test file in a process of its own


CELLS = {
    "plain": Cell("as `make test`, and the slow tests"),
    "aten-default": Cell("torch without vector instructions", {"ATEN_CPU_CAPABILITY": "default"}),
    "aten-avx2": Cell("torch for AVX2", {"ATEN_CPU_CAPABILITY": "avx2"}),
    "mkl-avx2": Cell("MKL for AVX2", {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "mkl-compatible": Cell("MKL's reproducible mode", {"MKL_CBWR": "COMPATIBLE"}),
    "threads-1": Cell("one thread", {"OMP_NUM_THREADS": "1"}),
    "threads-2": Cell("two threads", {"OMP_NUM_THREADS": "2"}),
    "threads-4": Cell("four threads", {"OMP_NUM_THREADS": "4"}),
    "no-kernel": Cell("without the compiled kernel", {"GSMN_NATIVE": "0"}),
    "no-compiler": Cell("no C compiler", {"CC": "no-such-compiler", "GSMN_CACHE": f"{WORK}/no-compiler-cache"}),
    "clang": Cell("clang as CC", {"CC": "clang", "GSMN_CACHE": f"{WORK}/clang-cache"}, compiler="clang"),
    "oldest": Cell("oldest versions admitted, Python 3.10", python="3.10", packages=OLDEST),
    "python3.10": Cell("newest versions, Python 3.10", python="3.10"),
    "python3.12": Cell("newest versions, Python 3.12", python="3.12"),
    "python3.13": Cell("newest versions, Python 3.13", python="3.13"),
    "random-order": Cell("tests in random order", packages=("pytest-randomly",)),
    "alone": Cell("each test file in a process of its own", alone=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help="cells to run (default: all)")
    parser.add_argument("--list", action="store_true", help="print the cells and leave")
    parser.add_argument("--install", action="store_true", help="make the cells' environments and leave")
    parser.add_argument("--tests", default="", help="flags and files for pytest (default: the whole suite)")
    opt = parser.parse_args()
    if unknown := set(opt.cells) - set(CELLS):
        parser.error(f"no cell {sorted(unknown)[0]}; --list shows them")
    if opt.list:
        print("\n".join(f"{name:16}{cell.what}" for name, cell in CELLS.items()))
        return 0
    WORK.mkdir(exist_ok=True)
    rows = {}
    for name in opt.cells or CELLS:
        print(f"{name}: {CELLS[name].what} ...", flush=True)
        start = time.time()
        colour, result = run_cell(name, CELLS[name], opt)
        rows[name] = f"| {name} | {CELLS[name].what} | {colour} | {result} | {time.time() - start:.0f} s |"
        print(rows[name], flush=True)
    if not opt.install:
        table = ["| cell | what | | result | time |", "|---|---|---|---|---|", *rows.values()]
        (WORK / "table.md").write_text("\n".join(table) + "\n")
    return int(any("| red |" in row for row in rows.values()))


def run_cell(name, cell, opt):
    """-> ('green', 'red' or 'skipped', pytest's last line or the reason)."""
    if cell.compiler and not shutil.which(cell.compiler):
        return "skipped", f"no {cell.compiler} on the PATH"
    python, variables, reason = environment(name, cell)
    if not python:
        return "skipped" if "no Python" in reason else "red", reason
    if opt.install:
        return "green", str(python)
    stacks = f"faulthandler_timeout={SILENCE - 60}"  # seconds of one test
    command = [python, "-m", "pytest", "-m", "slow or not slow", "-o", stacks, *cell.flags, *opt.tests.split()]
    with open(WORK / f"{name}.txt", "w") as log:
        runs = [[*command, path] for path in test_files()] if cell.alone else [command]
        codes = [run_suite(run, variables, log) for run in runs]
    failed = sum(code != 0 and not (cell.alone and code == NO_TESTS) for code in codes)
    result = counted((WORK / f"{name}.txt").read_text(errors="replace"))
    if cell.alone:
        result += f"; {failed} of {len(runs)} files fail"
    return "red" if failed else "green", f"hung; {result}" if HUNG in codes else result


def run_suite(command, variables, log):
    """-> pytest's exit code, or HUNG. Ends what the suite leaves behind."""
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True) as suite:
        try:
            while True:
                size = os.fstat(log.fileno()).st_size
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return suite.wait(SILENCE)
                if os.fstat(log.fileno()).st_size == size:
                    return HUNG
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(suite.pid, signal.SIGKILL)


def test_files():
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))


def counted(text):
    """The outcomes of pytest's last line, summed over its processes: '1868 passed, 48 skipped'."""
    outcomes = collections.Counter()
    for summary in re.findall(r"^((?:\d+ \w+, )*\d+ \w+) in [\d.]+s", text, re.MULTILINE):
        for number, outcome in re.findall(r"(\d+) (\w+)", summary):
            outcomes[outcome] += int(number)
    return ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()) or "pytest ended without a summary"


def environment(name, cell):
    """-> (the cell's Python, the environment's variables, ''), or (None, {}, the reason)."""
    # inductor finds a program of another instruction set in its cache, where ATEN_CPU_CAPABILITY was another
    variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{WORK}/{name}-inductor", **cell.variables}
    if not cell.python and not cell.packages:
        return sys.executable, variables, ""
    base = interpreter(cell.python) if cell.python else sys.executable
    if not base:
        return None, {}, f"no Python {cell.python} on this machine"
    folder = WORK / name
    wanted = "\n".join(["-r", (ROOT / "requirements-dev.txt").read_text(), *cell.packages])
    if cell.python:
        python = folder / "bin" / "python"
        install = ["-r", ROOT / "requirements-dev.txt", *cell.packages]
    else:
        python = base
        install = ["--no-deps", "--target", folder, *cell.packages]
        variables["PYTHONPATH"] = str(folder)
    if not (folder / "installed").exists() or (folder / "installed").read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        if cell.python:
            subprocess.run([base, "-m", "venv", folder], check=True)
        with open(WORK / f"{name}.txt", "w") as log:
            if subprocess.run([python, "-m", "pip", "install", "-q", *install], stdout=log, stderr=log).returncode:
                return None, {}, f"pip install fails, see .matrix/{name}.txt"
        (folder / "installed").write_text(wanted)
    return python, variables, ""


def interpreter(version):
    """The path of a Python of this version, of pyenv or of PATH; None where there is none."""
    pyenv = glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python"))
    for path in [*sorted(pyenv, reverse=True), shutil.which(f"python{version}")]:
        if path and not subprocess.run([path, "-c", ""], capture_output=True).returncode:
            return path
    return None


if __name__ == "__main__":
    sys.exit(main())
