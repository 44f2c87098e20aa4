"""Writes files whole or not at all."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

from files.errors import InputError


def make_folder(path):
    """Make a folder, and those above it, where missing; InputError when the system refuses."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({error.strerror}); choose another folder") from error


def check_writable(path):
    """InputError where a file of this name cannot be written; called before the work starts."""
    folder = Path(path).parent
    if Path(path).is_dir():
        raise InputError(f"{path}: cannot be written, a folder has this name; give the name of a file")
    if not folder.is_dir():
        raise InputError(f"{path}: cannot be written, there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written, the folder {folder} is read-only; choose another")


def text_as_name(text, longest=60):
    """A sentence -> a part of a file's name; two different sentences have different ones."""
    name = re.sub(r"\W+", "-", text.lower()).strip("-")[:longest]
    if name == text.replace(" ", "-"):
        return name
    return f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}".lstrip("-")


def atomic_write(path, write):
    """Write a file completely, or leave what was there.

    path: the file; its folder must exist. write: called with a temporary file, open for bytes, in the same
    folder, which then takes the place of path.
    Raises InputError when the system refuses (full disk, read-only or missing folder).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(temporary)


def _remove(path):
    with contextlib.suppress(OSError):
        os.remove(path)
