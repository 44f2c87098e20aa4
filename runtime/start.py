"""How a command begins and ends; imported before torch.

OpenMP's waiting threads spin, which beside other work makes steps many times longer: they get fewer rounds
(docs/performance.md).  OpenMP reads the number when torch is loaded; processes that this one starts inherit it.
"""

import sys


def hook(kind, error, traceback):
    """What Python calls for an error that nobody handled: a Ctrl-C while modules are loaded ends like one in `run`, and
    a Python without the required packages is named as the cause.
    """
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if issubclass(kind, ModuleNotFoundError) and error.name in REQUIRED:
        cure = "source .venv/bin/activate, where make demo or make test has made it, or pip install -r requirements.txt"
        print(f"error: {sys.executable} has no package {error.name}; {cure}", file=sys.stderr)
        sys.exit(2)
    sys.__excepthook__(kind, error, traceback)


sys.excepthook = hook  # before the other modules are loaded

import io
import os

from files.errors import ending, is_lost_output

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # a user's own choice stays
SPINS = "1000"  # rounds of an empty loop; 300,000 by default
REQUIRED = ("torch", "torchvision", "numpy", "nltk", "tqdm", "jinja2", "PIL")  # modules of requirements.txt

if not any(name in os.environ for name in CHOICES):
    os.environ["GOMP_SPINCOUNT"] = SPINS


def run(main):
    """Run a script's main() and end the program: InputError -> one line, exit code 2; Ctrl-C -> exit code 130."""
    sys.exit(guarded(main))


def guarded(function):
    """function(), which ends the program like `run` where it fails.

    Scripts read their flags this way before they import torch, so that --help and wrong flags answer at once.
    A character that the terminal's encoding lacks is printed as an escape, such as \\u2026.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        result = function()
        print(end="", flush=True)  # a full disk under the output is seen now, not while Python ends
        return result
    except (Exception, KeyboardInterrupt) as error:
        code, line = ending(error)
        if code == 1:
            raise
        if is_lost_output(error):  # else Python's end would try it again, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(line, file=sys.stderr)
        sys.exit(code)
