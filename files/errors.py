"""Errors of the user's input, warnings, exit codes."""

import errno
import functools
import importlib
import os
import select
import stat
import sys


class InputError(Exception):
    """An input that cannot be used. One line: the file, the fault, what to do."""

    def __init__(self, message):
        # a DataLoader raises a worker's exception anew, with the worker's whole traceback as its message
        own = str(message).rpartition(f"{__name__}.InputError: ")[2]
        # text from a file may hold line breaks and terminal escapes, which must not reach the terminal
        super().__init__("".join(c if c.isprintable() else " " for c in own).strip())


def reason(error):
    """Why a system call failed, in a few words; also for an OSError that was made from a text."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@functools.cache
def warn(message):
    """Print a warning, the same text once in a process; the program continues."""
    print(f"warning: {message}", file=sys.stderr)


def optional_package(module, what, install=None):
    """The imported module of an optional package; InputError that says how to install it where it is missing.

    what: what needs it, the subject of the message. install: names for pip, where they are not the module's.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} needs the package {module}: pip install {install or module}") from None


def ending(error):
    """(exit code, last line) of a program that this error ends; code 1 means a traceback instead."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, getattr(sys.modules.get("torch"), "OutOfMemoryError", ())):
        return 2, (
            "error: the GPU's memory is full; give a smaller --sim_memory (GSMN), a larger --accumulate (training) or "
            "a smaller --batch_size, or end other programs on this GPU (nvidia-smi lists them)"
        )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return 2, f"error: {str(InputError(error.filename))[:80]}...: {reason(error)}; give a shorter name"
    if is_lost_output(error):
        return 2, f"error: standard output: {reason(error)}"
    return 2 if isinstance(error, InputError) else 1, f"error: {error}"


def is_lost_output(error):
    """Whether printing failed: the reader has gone (`| head`), or the disk under the output is full.

    A worker's broken pipe and another file that fills the disk are none of the output's.
    """
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    if error.errno == errno.EPIPE:
        output = select.poll()
        output.register(1, 0)  # tells of errors only
        return bool(output.poll(0))
    return error.errno == errno.ENOSPC and not os.isatty(1) and not stat.S_ISFIFO(os.fstat(1).st_mode)
