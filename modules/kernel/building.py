"""Compiles the C kernel when it is first needed and keeps it in a cache folder (this folder's README.md says which).

A file that does not fit the digest of its content in its name, as one that a power failure cut short, is made again.
What lies in a folder that another user may write would run with this user's rights: it is not used.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import stat
import subprocess
import tempfile
from pathlib import Path

from files.errors import InputError
from files.writing import atomic_write

SOURCE = Path(__file__).resolve().parent / "csrc"
SOURCES = ("pairs.h", "edges.c", "structure.c", "forward.c", "backward.c")
COMPILER_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-w"]
SECONDS = 300  # that a compiler may take; it takes some


def cache_folder():
    """The folder for compiled files, made where it is missing; InputError if another user owns or may write it."""
    folder = os.environ.get("GSMN_CACHE")
    folder = Path(folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gsmn")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise InputError(
            f"{folder}: another user owns this folder or may write it; chmod go-w, or set GSMN_CACHE to one of your own"
        )
    return folder


def digest(*parts):
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:20]


def run(command):
    """What a command prints; it is ended after SECONDS."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=SECONDS)
    return done.stdout


def compiled(blocks, hidden):
    """Path of the shared library for these sizes, compiled now unless the cache has it whole."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    # the predefined macros name the compiler's version and what -march=native means on this machine
    target = run([*compiler, "-march=native", "-dM", "-E", "-xc", os.devnull])
    source = [SOURCE / name for name in SOURCES]
    command = [*compiler, *COMPILER_FLAGS, f"-DK={blocks}", f"-DH={hidden}"]
    made_from = digest(target, *(path.read_bytes() for path in source), shlex.join(command).encode())
    folder = cache_folder()
    for path in folder.glob(f"pairs-{made_from}-*.so"):
        if path.stem.endswith(digest(path.read_bytes())):
            return path
        path.unlink()
    with tempfile.TemporaryDirectory() as own:
        fresh = Path(own) / "pairs.so"
        run([*command, *map(str, source[1:]), "-o", str(fresh), "-lm"])
        content = fresh.read_bytes()
    path = folder / f"pairs-{made_from}-{digest(content)}.so"
    atomic_write(path, lambda file: file.write(content))
    return path


@functools.cache
def library(blocks, hidden):
    """The loaded library for these numbers of blocks and hidden units, or None where it cannot be compiled."""
    if os.environ.get("GSMN_NATIVE") == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(compiled(blocks, hidden)))
        loaded.constants  # noqa: B018, AttributeError where this is another library
        return loaded
    except (InputError, OSError, ValueError, subprocess.SubprocessError, AttributeError) as error:
        reason = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace").split("\n")[0]
        logging.warning("The similarity kernel cannot be compiled (%s); torch computes the same, slower", reason)
        return None
