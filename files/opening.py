"""Opens files for reading: regular files only, so that a pipe or a device never makes a program wait."""

import os
import stat

from files.errors import InputError, reason


def open_regular(path, missing="no such file"):
    """A regular file, or a link to one, open for reading bytes.

    missing: what the message says where there is none.  Raises InputError where the file is missing, is no regular
    file (a folder, a pipe, a device) or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise InputError(f"{path}: {missing}") from None
    except OSError as error:
        raise InputError(f"{shortened(path)}: cannot be read ({reason(error)})") from None
    except ValueError as error:  # a zero byte in the name
        raise InputError(f"{shortened(path)}: cannot be read ({error})") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: cannot be read (Is a directory)")
        raise InputError(f"{path}: a pipe or a device, not a regular file; give a file")
    return open(descriptor, "rb")


def shortened(path):
    """A path for a message; a very long one without its middle."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:80]}...{text[-40:]}"
