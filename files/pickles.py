"""Reads files of torch.save and other pickles without running anything in them (docs/method.md, section 5).

A pickle is a program.  torch.load(weights_only=True) runs a few harmless parts of that language only.  Before it
runs, this module looks through every pickle of the file: it refuses unknown names by name, in every format, and it
bounds how large a pickle may be.  Torch's own list of unsafe names reads zip files only, so it does not replace this.
"""

import argparse
import codecs
import functools
import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np

from files.errors import InputError, reason
from files.opening import open_regular

# Every name that the pickle of a checkpoint may use.  NumPy's, pathlib's and torch.device become plain values.
ALLOWED = re.compile(
    r"argparse\.Namespace|collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch(\.cuda)?\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage|torch\.device"
    r"|numpy\._?core\.multiarray\.scalar|numpy\.dtype|_codecs\.encode"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
)
PICKLE_BYTES = 64 << 20  # the largest pickle of a checkpoint; weights are not part of it
PICKLE_STEPS = 2_000_000  # the most operations of one; our largest checkpoints need about 30,000
SHARED_TUPLES = 16  # the most uses of tuples made before; a key of 40 pairs, each twice the one before, takes hours

# First bytes of files that are often taken for a checkpoint by mistake.
STRANGERS = {
    b"<": "a web page was saved in place of the file; download it again",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with 'git lfs pull'",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x93NUMPY": "a NumPy array, not a checkpoint; give a .pth.tar file",
    b"{": "JSON, not a checkpoint; give a .pth.tar file",
}
DAMAGED = "incomplete or damaged; copy or download it again"


def read_torch_file(path, lazily=False):
    """The content of a file of torch.save, on the CPU: tensors, plain values and argparse.Namespace only.

    Reads zip files and the older format, of Python 2 and 3.  NumPy's numbers become Python's, paths become text.
    lazily: tensors stay in the file until they are used, and their checksums are not compared (zip only).
    Raises InputError, one line, for a file that is missing, empty, damaged, of another kind, larger inside than a
    checkpoint can be, or that asks for any other class or function; nothing in it has run then.
    """
    import torch  # the commands that read no checkpoint start without it

    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *stand_ins()]):
        warnings.simplefilter("ignore")  # torch remarks on its own old formats
        is_zip = inspect(path, sums=not lazily)
        try:
            return torch_load(path, mmap=is_zip and lazily)
        except Exception as error:  # torch raises a dozen kinds on damaged files
            raise InputError(f"{path}: {DAMAGED}") from error


def torch_load(path, mmap):
    import torch

    call = functools.partial(torch.load, str(path), "cpu", weights_only=True, mmap=mmap)
    try:
        return call()
    except UnicodeDecodeError:
        return call(encoding="latin1")  # Python 2's strings are bytes, of any encoding


def open_checkpoint(path):
    """As open_regular; where there is no such file, the message names the checkpoints of its folder."""
    missing = "no such checkpoint; check the path"
    if not os.path.exists(path) and (names := checkpoint_names(os.path.dirname(path) or ".")):
        missing = f"no such checkpoint; its folder holds {', '.join(names[:4])}"
        missing += f" and {len(names) - 4} more" if len(names) > 4 else ""
    return open_regular(path, missing)


def checkpoint_names(folder):
    """Names of the *.pth.tar in a folder, checkpoint_9 before checkpoint_10; none where it cannot be read."""
    try:
        return sorted((name for name in os.listdir(folder) if name.endswith(".pth.tar")), key=lambda x: (len(x), x))
    except (OSError, ValueError):  # no such folder; a zero byte in the name
        return []


def is_zip_file(path):
    """Whether a file of torch.save is a zip file; the older format has no checksums."""
    with open_checkpoint(path) as file:
        return file.read(2) == b"PK"


# ---- the look at a file before it is loaded


def inspect(path, sums):
    """True for a zip file, False for the older format; InputError for other files and for unknown names."""
    with open_checkpoint(path) as file:
        refuse_strangers(file, path)
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        try:
            if is_zip:
                inspect_zip(file, path, sums)
            else:
                inspect_pickles(file, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from None
        return is_zip


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
            records = archive.infolist()
            refuse_bombs(records, path)
            pickles = [record for record in records if record.filename.endswith(".pkl")]
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


def refuse_bombs(records, path):
    """InputError where a record claims to unpack to more than it takes in the file; torch.save never compresses."""
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size > record.compress_size:
            raise InputError(
                f"{path}: refused, {record.filename} is compressed ({record.compress_size} to {record.file_size} "
                "bytes), which torch.save never does; save the checkpoint again with torch.save"
            )


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
    """InputError when the next pickle of an open file is too large or uses a name that is not ALLOWED; runs nothing."""
    for name in names_in_pickle(file, path):
        if not ALLOWED.fullmatch(name):
            raise InputError(
                f"{path}: refused, nothing in it was run: it asks for {name}, which no checkpoint needs; "
                "get the file from a source you trust"
            )


def names_in_pickle(file, path):
    """The full names of the classes and functions that the next pickle of an open file uses."""
    strings, memo, tuples, shared, before = ["?", "?"], {}, set(), 0, ""
    for step, (opcode, value, at) in enumerate(pickletools.genops(file)):
        if step >= PICKLE_STEPS or (at or 0) > PICKLE_BYTES:
            raise InputError(
                f"{path}: refused, a pickle in it has more than {PICKLE_STEPS:,} operations or "
                f"{PICKLE_BYTES >> 20} MB, which no checkpoint needs; get the file from a source you trust"
            )
        if opcode.name in ("GLOBAL", "INST"):
            yield value.replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL":  # module and name stand on the stack
            yield ".".join(strings[-2:])
        elif opcode.name == "MEMOIZE" or "PUT" in opcode.name:
            place = len(memo) if value is None else value
            memo[place] = strings[-1]
            if before.startswith("TUPLE") or "PUT" in before or "GET" in before:  # it may be a tuple
                tuples.add(place)
        elif "GET" in opcode.name:
            strings.append(memo.get(value, "?"))
            shared += value in tuples
            refuse_shared(shared, path)
        elif isinstance(value, str):
            strings.append(value)
        before = opcode.name


def refuse_shared(count, path):
    """InputError where a pickle uses tuples again too often: Python goes through all of a tuple that is a key."""
    if count > SHARED_TUPLES:
        raise InputError(
            f"{path}: refused, a pickle in it uses tuples again more than {SHARED_TUPLES} times, which can take "
            "for ever to read; get the file from a source you trust"
        )


# ---- inert stand-ins for classes of NumPy and pathlib


class Dtype:
    """Takes numpy.dtype's place in a pickle: numbers, truth values and objects."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"[biufO]\d{0,2}", code):
            raise TypeError(f"NumPy's type {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ("<", ">") else "|"


def number_of_numpy(dtype, data):
    """A NumPy scalar of a pickle as Python's number."""
    if dtype.code.startswith("O"):
        raise TypeError("a NumPy scalar that is an object")
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, np.dtype(dtype.order + dtype.code))[0].item()


def posix_path(*parts):
    return str(PurePosixPath(*parts))


def windows_path(*parts):
    return str(PureWindowsPath(*parts))


def stand_ins():
    """[(stand-in, the full name it takes the place of)] for torch.load."""
    pairs = [(number_of_numpy, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    pairs.append((Dtype, "numpy.dtype"))
    for module in ("pathlib", "pathlib._local"):
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath"):
            pairs.append((posix_path, f"{module}.{name}"))
        pairs += [(windows_path, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    return pairs


# ---- other pickles

ANY_MODULE = "*"  # a class of this name, wherever it was defined


class RestrictedUnpickler(pickle._Unpickler):
    """The unpickler written in Python: unlike the one in C it takes memory only for what the file holds."""

    def __init__(self, file, allowed, encoding, what):
        super().__init__(file, encoding=encoding)
        self.dispatch = {code: do for code, do in self.dispatch.items() if code != pickle.BYTEARRAY8[0]}
        self.allowed, self.what, self.shared = allowed, what, 0
        for code in (pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.DUP):
            self.dispatch[code[0]] = self.counted(self.dispatch[code[0]])

    @staticmethod
    def counted(operation):
        """An operation that pushes an object once more, counted where it is a tuple."""

        def push(unpickler):
            operation(unpickler)
            unpickler.shared += type(unpickler.stack[-1]) is tuple
            refuse_shared(unpickler.shared, unpickler.what)

        return push

    def find_class(self, module, name):
        for key in ((module, name), (ANY_MODULE, name)):
            if key in self.allowed:
                return self.allowed[key]
        raise InputError(
            f"{self.what}: refused, because its pickle wants {module}.{name}; get the file from a source you trust"
        )


def restricted_load(file, allowed, encoding="latin1", what="pickle"):
    """Unpickle with exactly the names in `allowed`: {(module or ANY_MODULE, name): what to take for it}.

    file: open for bytes.  encoding: for Python 2's byte strings.  what: the name for error messages.
    A pickle can call whatever it can name, so `allowed` should hold inert stand-ins, made anew for each call.
    Raises InputError naming the first other name, and for any damaged pickle.
    """
    try:
        return RestrictedUnpickler(io.BytesIO(file.read()), allowed, encoding, what).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{what}: damaged pickle ({type(error).__name__}: {error})") from None
