"""Every command sets OpenMP's threads before it loads torch, and ends in one line at a Ctrl-C while it loads it, or
where there is no torch.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import start

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*ROOT.glob("t*.py"), *ROOT.glob("tools/[a-z]*.py")]

# each script in a process of its own, in which Ctrl-C is pressed where torch is first imported
LOAD = """if True:
    import os, runpy, signal, sys
    import numpy
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "torch":
                print(os.path.basename(script), os.environ.get("GOMP_SPINCOUNT"), flush=True)
                signal.raise_signal(signal.SIGINT)
    sys.meta_path.insert(0, Finder)
    for script in sys.argv[1:]:
        if not os.fork():
            runpy.run_path(script, run_name="loaded")
            print(os.path.basename(script), "no torch", flush=True)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.wait()[1])
        print(os.path.basename(script), code, flush=True)
"""


@pytest.mark.parametrize(
    "chosen, spins, scripts", [({}, start.SPINS, SCRIPTS), ({"OMP_WAIT_POLICY": "ACTIVE"}, None, [ROOT / "train.py"])]
)
def test_commands_begin_before_torch(chosen, spins, scripts):
    clean = {name: value for name, value in os.environ.items() if name not in start.CHOICES}
    command = [sys.executable, "-c", LOAD, *map(str, scripts)]
    done = subprocess.run(command, cwd=ROOT, env={**clean, **chosen}, capture_output=True, text=True, check=True)
    said = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    loading = {script for script, what in said if what == str(spins)}
    some = {"train.py", "search.py"}
    assert some & {script.name for script in scripts} <= loading
    for script, what in said:
        assert what in ([str(spins), "130"] if script in loading else ["no torch", "0"]), (script, what)
    assert len(done.stderr.splitlines()) == len(loading), done.stderr


def test_a_python_without_torch_is_named():
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['']; runpy.run_path('train.py', {}, '__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "torch" in line and sys.executable in line and "requirements.txt" in line


def test_a_reader_that_has_gone_and_a_full_disk_under_the_output():
    """`| head` and `> FILE`: one line of error."""
    script = [sys.executable, "-c", "from runtime.start import run\nrun(lambda: print(1))"]
    read, gone = os.pipe()
    os.close(read)
    for output in (gone, os.open("/dev/full", os.O_WRONLY)):
        done = subprocess.run(script, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "output" in done.stderr, done


@pytest.mark.parametrize("name", ["EPIPE", "ENOSPC"])
def test_a_broken_pipe_and_a_full_disk_elsewhere(name):
    """Of a worker or another file: the traceback stays, and what is printed is read."""
    code = (
        "import errno\nfrom runtime.start import run\ndef main():\n    raise OSError(errno.{}, 'elsewhere')\nrun(main)"
    )
    done = subprocess.run([sys.executable, "-c", code.format(name)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "output" not in done.stderr
