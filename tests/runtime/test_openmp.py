"""Every script chooses how long OpenMP's threads spin before it loads torch, unless the user has chosen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import openmp

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*ROOT.glob("t*.py"), *ROOT.glob("tools/*.py")]

# each script in a process of its own, which ends where torch is first imported
LOAD = """if True:
    import numpy, os, runpy, sys
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "torch":
                print(os.path.basename(script), os.environ.get("GOMP_SPINCOUNT"), flush=True)
                os._exit(0)
    sys.meta_path.insert(0, Finder)
    for script in sys.argv[1:]:
        if not os.fork():
            runpy.run_path(script, run_name="loaded")
            os._exit(0)
        assert os.wait()[1] == 0, script
"""


@pytest.mark.parametrize("chosen, spins", [({}, openmp.SPINS), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_scripts_choose_before_torch(chosen, spins):
    clean = {name: value for name, value in os.environ.items() if name not in openmp.CHOICES}
    command = [sys.executable, "-c", LOAD, *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, env={**clean, **chosen}, capture_output=True, text=True, check=True)
    found = dict(line.split() for line in done.stdout.splitlines())
    assert {"train.py", "test.py", "testall.py", "test_stack.py", "benchmark.py", "search.py"} <= found.keys()
    assert [script for script, value in found.items() if value != str(spins)] == []
