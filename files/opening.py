"""Opens files for reading: regular files only, and none that a failed download left in the place of another."""

import hashlib
import os
import re
import stat

from files.errors import InputError, reason

HEAD = 512  # bytes that tell a wrong file from a right one
WEB_PAGE = "a web page was saved in place of the file; download it again"
NO_FILE = "a server's message, not the file; download it again"
STRANGERS = {
    r"<(!doctype html|html|head|body|script|!--|\?xml|error>)": WEB_PAGE,
    r"version https://git-lfs\.": "a Git LFS pointer; fetch the file itself with 'git lfs pull'",
    r"([45]\d\d[: ]+)?(not found|forbidden|unauthorized|bad gateway|access denied)[^\n]{0,80}\s*\Z": NO_FILE,
    r"\{\s*\"(error|errors|message|detail)\"\s*:\s*[\"{\[][^\0]*\}\s*\Z": NO_FILE,
}
_STRANGERS = [(re.compile(rb"(\xef\xbb\xbf)?\s*" + x.encode(), re.IGNORECASE), what) for x, what in STRANGERS.items()]


def stranger(head):
    """What a failed download left in the place of a file, and the cure, or None. head: the file's first HEAD bytes."""
    return next((what for form, what in _STRANGERS if form.match(head)), None)


def open_regular(path, missing="no such file"):
    """A regular file, or a link to one, open for reading bytes.

    missing: what the message says where there is none. Raises InputError where the file is missing, is no regular
    file (a folder, a pipe, a device), cannot be read, or is a web page, a Git LFS pointer or a server's message.
    """
    try:
        file = open(path, "rb", opener=without_waiting)  # noqa: SIM115, the caller closes it
        what = "a pipe or a device, not a regular file; give a file"
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            what = stranger(file.peek(HEAD)[:HEAD])
    except FileNotFoundError:
        raise InputError(f"{path}: {missing}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{str(path)[:200]}: cannot be read ({reason(error)})") from None
    if what:
        file.close()
        raise InputError(f"{path}: {what}")
    return file


def without_waiting(path, flags):
    """Opens a pipe too that nobody writes into."""
    return os.open(path, flags | os.O_NONBLOCK)


def sha256(path):
    """The SHA-256 of a file's bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
