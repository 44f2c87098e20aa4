"""Errors of the user's input, warnings, and how a script ends."""

import errno
import importlib
import io
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


warned = set()  # warnings of this process


def warn(message):
    """Print a warning, the same text once in a process; the program continues."""
    if message not in warned:
        warned.add(message)
        print(f"warning: {message}", file=sys.stderr)


def optional_package(module, what, install=None):
    """The imported module of an optional package; InputError that says how to install it where it is missing.

    what: what needs it, the subject of the message. install: names for pip, where they are not the module's.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} needs the package {module}: pip install {install or module}") from None


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
        return function()
    except (InputError, KeyboardInterrupt) as error:
        if isinstance(error, InputError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = InputError(error.filename)
        print(f"error: {str(name)[:80]}...: {reason(error)}; give a shorter name", file=sys.stderr)
        sys.exit(2)


def exit_code(error):
    """The exit code of a program that this error ends."""
    if isinstance(error, InputError):
        return 2
    return 130 if isinstance(error, KeyboardInterrupt) else 1
