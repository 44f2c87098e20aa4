"""Files of torch.save, read so that nothing in them can run (docs/method.md, section 5).

A pickle is a program.  torch.load(weights_only=True) runs only a few harmless parts of the language; on top
of that the file is looked through beforehand, so that what it asks for is refused by name, in every format.
"""

import argparse
import codecs
import functools
import io
import pickle
import pickletools
import re
import warnings
import zipfile

import torch

from files.errors import InputError

# All that the pickle of a checkpoint may ask for; released files of Python 2 and 3 need no more.
ALLOWED = re.compile(
    r"argparse\.Namespace|collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch(\.cuda)?\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)

# First bytes of what is taken for a checkpoint by mistake.
STRANGERS = {
    b"<": "a web page was saved in place of the file; download it again",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with 'git lfs pull'",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x93NUMPY": "a NumPy array, not a checkpoint; give a .pth.tar file",
    b"{": "JSON, not a checkpoint; give a .pth.tar file",
}
DAMAGED = "incomplete or damaged; copy or download it again"


def read(path, lazily=False):
    """What a file of torch.save holds, on the CPU: tensors, plain values and argparse.Namespace only.

    Zip files and the older format, Python 2 and 3.  lazily: tensors stay in the file until they are used,
    and their checksums are left alone (zip only).  InputError, one line, for a file that is missing, empty,
    damaged, of another kind, or that asks for anything else; then nothing in it was run.
    """
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")  # remarks of torch on its own old formats
        is_zip = inspect(path, sums=not lazily)
        try:
            return load(path, mmap=is_zip and lazily)
        except Exception as error:  # torch raises a dozen kinds on damaged files
            raise InputError(f"{path}: {DAMAGED}") from error


def load(path, mmap):
    call = functools.partial(torch.load, str(path), "cpu", weights_only=True, mmap=mmap)
    try:
        return call()
    except UnicodeDecodeError:
        return call(encoding="latin1")  # Python 2's strings are bytes, of any encoding


def inspect(path, sums):
    """True for a zip file, False for the older format; InputError for others, and for what asks for code."""
    try:
        with open(path, "rb") as file:
            refuse_strangers(file, path)
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            if is_zip:
                inspect_zip(file, path, sums)
            else:
                inspect_pickles(file, path)
            return is_zip
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def refuse_strangers(file, path):
    start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    if not start:
        raise InputError(f"{path}: empty, not a checkpoint; copy or download it again")
    for mark, what in STRANGERS.items():
        if start.startswith(mark):
            raise InputError(f"{path}: {what}")


def inspect_zip(file, path, sums):
    """InputError unless the archive is whole (torch.load ignores checksums) and its pickles are harmless."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [record for record in archive.infolist() if record.filename.endswith(".pkl")]
            for record in pickles:  # by record, since a name can stand in the archive twice
                refuse_code(archive.open(record), path)
            broken = archive.testzip() if sums else None
    except InputError:
        raise
    except Exception as error:  # a damaged archive fails in many ways, also by seeking to nowhere
        raise InputError(f"{path}: {DAMAGED}") from error
    if not pickles:
        raise InputError(f"{path}: a zip archive without a checkpoint in it; unpack it first")
    if broken:
        raise InputError(f"{path}: damaged, {broken} differs from its checksum; copy or download it again")


def inspect_pickles(file, path):
    """The same for the older format: five pickles (the fourth is the content), then raw numbers."""
    for number in range(5):
        try:
            refuse_code(file, path)
        except (InputError, OSError):
            raise
        except Exception as error:
            if number == 0:
                raise InputError(f"{path}: not a checkpoint; give a .pth.tar file") from error
            return  # incomplete, or no checkpoint after all: torch.load notices


def refuse_code(file, path):
    """InputError when the next pickle of an open file asks for anything that is not ALLOWED; runs nothing."""
    for name in wanted(file):
        if not ALLOWED.fullmatch(name):
            raise InputError(
                f"{path}: refused, nothing in it was run: it asks for {name}, which no checkpoint needs; "
                "get the file from a source you trust"
            )


def wanted(file):
    """The full names of the classes and functions that the next pickle of an open file asks for."""
    strings, memo = ["?", "?"], {}
    for opcode, value, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            yield value.replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL":  # module and name stand on the stack
            yield ".".join(strings[-2:])
        elif opcode.name == "MEMOIZE" or "PUT" in opcode.name:
            memo[len(memo) if value is None else value] = strings[-1]
        elif "GET" in opcode.name:
            strings.append(memo.get(value, "?"))
        elif isinstance(value, str):
            strings.append(value)


class _Restricted(pickle._Unpickler):
    """The unpickler written in Python: unlike the one in C it takes memory only for what the file holds."""

    def __init__(self, file, allowed, encoding, what):
        super().__init__(file, encoding=encoding)
        self.dispatch = {code: do for code, do in self.dispatch.items() if code != pickle.BYTEARRAY8[0]}
        self.allowed, self.what = allowed, what

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise InputError(
                f"{self.what}: refused, because its pickle wants {module}.{name}; get the file from a source you trust"
            )
        return self.allowed[module, name]


def restricted_load(file, allowed, encoding="latin1", what="pickle"):
    """Unpickle, with exactly the names in allowed: {(module, name): what to take for it}.

    file: open for bytes. encoding: for Python 2's byte strings. what: the name for error messages.
    A pickle can call whatever it can name, so allowed should hold inert stand-ins, made anew for each call.
    Raises InputError naming the first thing wanted beyond that, and for any damaged pickle.
    """
    try:
        return _Restricted(io.BytesIO(file.read()), allowed, encoding, what).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{what}: damaged pickle ({type(error).__name__}: {error})") from None
