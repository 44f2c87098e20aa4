"""A folder that one program at a time works in."""

import fcntl
from pathlib import Path

from files.errors import warn

NAME = ".lock"  # the file stays: one that is removed and made again could be locked twice


def lock_folder(folder):
    """An open file in `folder` that one process holds, with those that inherit it; None while another one holds it.

    The system gives the lock back as soon as the file is closed or its processes have ended, in whatever way.
    OSError where the file cannot be opened.  A file system without locks gives a warning and no protection.
    """
    file = open(Path(folder) / NAME, "a")  # noqa: SIM115 - open as long as the lock is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        warn(f"{folder}: no locks on this file system; do not start two programs in this folder")
    return file
