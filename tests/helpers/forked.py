"""Processes for tests, forked from one that has imported torch and all that a training imports.

In a fresh interpreter these imports are nearly all the time of a small training, about five seconds.  A test that is
about the start of a program starts it with subprocess.
"""

from runtime.start import run

import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "train", "tiny", "nltk", "torch._dynamo"])


class Forked:
    """function(*arguments) in a process of its own, which ends as a script does; what it prints goes to `output`.

    function: a function of a module, not of a test.  environment: variables to change; None removes one.
    """

    def __init__(self, output, environment, function, *arguments):
        self.output = Path(output)
        self.process = CONTEXT.Process(target=call, args=(self.output, environment, function, arguments))
        with pytest.MonkeyPatch.context() as patch:  # for the first process, which starts the server
            patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests/helpers")]))
            patch.setenv("OMP_NUM_THREADS", "1")
            self.process.start()

    @property
    def said(self):
        return self.output.read_text() if self.output.exists() else ""

    def ended(self, timeout=600):
        """(exit code, what was printed); the code is None for a process that was ended after `timeout` seconds."""
        self.process.join(timeout)
        code = self.process.exitcode
        self.process.kill()
        return code, self.said


def call(output, environment, function, arguments):
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdin = open(os.devnull)  # noqa: SIM115, open to the end
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    run(lambda: function(*arguments))


def all_ended(processes, timeout=600):
    """[(exit code, what was printed)] of Forked processes that work together; none is left over."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.process.kill)
        return [process.ended(timeout) for process in processes]
