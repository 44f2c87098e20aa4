"""Writes files whole or not at all; folders that one program at a time works in."""

import contextlib
import fcntl
import functools
import hashlib
import io
import os
import re
import secrets
import shutil
import time
from pathlib import Path

from files.errors import InputError, reason, warn

# Temporary names.  The ending tells after how many seconds without a change a killed program must have left it.
UNFINISHED = re.compile(r"\.unfinished-[0-9a-f]{16}\.(tmp|work)")
AGES = {"tmp": 3600, "work": 86400}  # files being written; folders, and files changed through memory
LOCK = ".lock"  # the file stays: one that is removed and made again could be locked twice


def make_folder(path):
    """Make a folder, and those above it, where missing; InputError when the system refuses."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({reason(error)}); choose another folder") from error


def check_writable(path):
    """InputError where a file of this name cannot be written; called before the work starts."""
    fault = None
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)
        folder = os.path.dirname(os.path.realpath(path))
        if os.path.isdir(path):
            fault = "a folder has this name; give the name of a file"
        elif not is_stream(path) and not os.access(folder, os.W_OK | os.X_OK):
            fault = f"no folder {folder} that can be written to; make it, or choose another"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        fault = f"{reason(error)}; give another name"
    if fault:
        raise InputError(f"{path}: cannot be written, {fault}")


def is_stream(path):
    """Whether a path leads to a device, a pipe or an open file of this process: these are written into."""
    return str(path).startswith(("/dev/fd/", "/dev/std")) or (os.path.exists(path) and not os.path.isfile(path))


def text_as_name(text):
    """A sentence -> a part of a file's name; two different sentences have different ones."""
    name = re.sub(r"\W+", "-", text.lower()).strip("-")[:60]
    if name == text.replace(" ", "-"):
        return name
    return f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}".lstrip("-")


def atomic_write(path, write):
    """Write a file completely, or leave what was there.

    path: the file; its folder must exist.  A link is followed; a device or a pipe is written into.
    write: called with a file, open for writing bytes in order.
    Raises InputError when the system refuses (full disk, read-only or missing folder).
    """
    temporary = ""
    try:
        if is_stream(path):
            content = io.BytesIO()
            write(content)
            with open(path, "ab") as stream:
                stream.write(content.getbuffer())
            return
        target = os.path.realpath(path)
        temporary = temporary_name(os.path.dirname(target))
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch's zip writer hides it
        if not isinstance(cause, OSError):
            raise
        raise InputError(f"{path}: cannot be written ({reason(cause)})") from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def temporary_name(folder, ending="tmp"):
    """A path in a folder that nobody can guess; first removes what killed programs left there.

    Make it exclusively (open's mode "x", mkdir): then no link leads elsewhere and no other program writes to it.
    """
    remove_leftovers(folder, time.time() // AGES["tmp"])
    return os.path.join(folder, f".unfinished-{secrets.token_hex(8)}.{ending}")


@functools.lru_cache(16)  # once an hour
def remove_leftovers(folder, _hour):
    """Remove this user's old temporary files and folders; each file may be as large as a checkpoint."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (name := UNFINISHED.fullmatch(entry.name)):
                continue
            facts = entry.stat(follow_symlinks=False)
            if facts.st_uid == os.geteuid() and time.time() - facts.st_mtime > AGES[name[1]]:
                remove = shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.remove
                remove(entry.path)


def lock_folder(folder):
    """An open file in `folder` that one process holds, with those that inherit it; None while another one holds it.

    The folder is made where missing.  The system gives the lock back when the file is closed or its processes have
    ended, in whatever way.  A file system without locks gives a warning and no protection.
    """
    make_folder(folder)
    try:
        file = open(Path(folder) / LOCK, "a")  # noqa: SIM115 - open as long as the lock is held
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({reason(error)}); choose another folder") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        warn(f"{folder}: no locks on this file system; do not start two programs in this folder")
    return file
