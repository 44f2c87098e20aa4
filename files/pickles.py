"""Reads files of torch.save and other pickles without running anything in them (docs/method.md, section 5).

A pickle is a program.  torch.load(weights_only=True) runs a few harmless parts of that language only, and
`restricted_load` allows the few names of its caller.  Neither bounds how long a pickle goes on: `look_through` does.
"""

import argparse
import codecs
import functools
import io
import itertools
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np

from files.errors import InputError
from files.opening import open_regular

# Every name that the pickle of a checkpoint may use.  NumPy's, pathlib's and torch.device become plain values.
ALLOWED = re.compile(
    r"argparse\.Namespace|collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch(\.cuda)?\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage|torch\.device"
    r"|numpy\._?core\.multiarray\.scalar|numpy\.dtype|_codecs\.encode"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
)
OPERATIONS = 2_000_000  # the most of a checkpoint's pickle; our largest need about 30,000
BYTES_EACH = 32  # the most bytes of a pickle for each operation allowed, so 64 MB; weights are not part of it
SHARED_TUPLES = 16  # the most uses of tuples made before; a key of 40 pairs, each twice the one before, takes hours
LARGE_NUMBERS = 1000  # the most whole numbers beyond 2^60: such can share a hash, and a million such keys take hours
DEEPEST = 50_000  # tuples that no call takes; hashing 150,000 within one another breaks Python's stack
TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"}
TAKERS = {"REDUCE", "NEWOBJ", "BINPERSID"}  # operations that take the tuple before them
UNUSUAL = {"DUP", "POP", "POP_MARK", "BYTEARRAY8"}  # would hide a tuple or take memory; only odd objects need them

# First bytes of files that are often taken for a checkpoint by mistake; files/opening.py knows failed downloads
STRANGERS = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x93NUMPY": "a NumPy array, not a checkpoint; give a .pth.tar file",
    b"{": "JSON, not a checkpoint; give a .pth.tar file",
    b"<": "a web page was saved in place of the file; download it again",
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

    is_zip = is_zip_file(path)
    with open_checkpoint(path) as file:
        (inspect_zip if is_zip else inspect_pickles)(file, path, sums=not lazily)
    load = functools.partial(torch.load, str(path), "cpu", weights_only=True, mmap=is_zip and lazily)
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *stand_ins()]):
        warnings.simplefilter("ignore")  # torch remarks on its own old formats
        try:
            try:
                return load()
            except UnicodeDecodeError:
                return load(encoding="latin1")  # Python 2's strings are bytes, of any encoding
        except Exception as error:  # torch raises a dozen kinds on damaged files
            raise InputError(f"{path}: {DAMAGED}") from error


def open_checkpoint(path):
    """As open_regular; where there is no such file, the message names the checkpoints of its folder."""
    names = [] if os.path.exists(path) else checkpoint_names(os.path.dirname(path) or ".")
    others = f"its folder holds {', '.join(names[:4])}" if names else "check the path"
    return open_regular(path, f"no such checkpoint; {others}")


def with_checkpoints(opt):
    """Flags whose --model_path and --rerank name something that is there, before torch is loaded; else InputError."""
    for given in (getattr(opt, "model_path", None), getattr(opt, "rerank", None)):
        for path in [given] if isinstance(given, str) else given or []:
            if not os.path.exists(path):
                open_checkpoint(path)
    return opt


def checkpoint_names(folder):
    """Names of the *.pth.tar in a folder, without files of ranks, checkpoint_9 before checkpoint_10."""
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".pth.tar") and not name.startswith("ranks")]
    except (OSError, ValueError):  # no such folder; a zero byte in the name
        return []
    return sorted(names, key=lambda name: (len(name), name))


def is_zip_file(path):
    """Whether a file of torch.save is a zip file; the older format has no checksums.  InputError for other files."""
    with open_checkpoint(path) as file:
        head = file.read(512)
    start = head[:64].removeprefix(codecs.BOM_UTF8).lstrip()
    found = [what for mark, what in STRANGERS.items() if start.startswith(mark)]
    if head[257:262] == b"ustar":
        found = ["a tar archive; unpack it (tar xf) and give the checkpoint in it"]
    if found or not start:
        raise InputError(f"{path}: {found[0] if found else 'empty, not a checkpoint; copy or download it again'}")
    return head.startswith(b"PK")


# ---- the look at a file before it is loaded


def inspect_zip(file, path, sums):
    """InputError unless the archive is whole (torch.load ignores checksums) and its pickles are harmless."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickled = [record for record in archive.infolist() if record.filename.endswith(".pkl")]
            for record in archive.infolist():  # by record, since a name can stand in the archive twice
                if record.compress_type != zipfile.ZIP_STORED or record.file_size > record.compress_size:
                    refuse(path, f"{record.filename} is compressed, which torch.save never does")
            for record in pickled:
                look_through(archive.open(record), path, ALLOWED)
            if not pickled:
                raise InputError(f"{path}: a zip archive without a checkpoint in it; unpack it first")
            if sums and (broken := archive.testzip()):
                raise InputError(f"{path}: damaged, {broken} differs from its checksum; copy or download it again")
    except InputError:
        raise
    except Exception as error:  # a damaged archive fails in many ways, also by seeking to nowhere
        raise InputError(f"{path}: {DAMAGED}") from error


def inspect_pickles(file, path, sums):
    """The same for the older format: five pickles (the fourth is the content), then raw numbers without checksums."""
    for number in range(5):
        try:
            look_through(file, path, ALLOWED)
        except InputError:
            raise
        except Exception as error:
            if number == 0:
                raise InputError(f"{path}: not a checkpoint; give a .pth.tar file") from error
            return  # incomplete, or no checkpoint after all: torch.load notices


def look_through(file, path, allowed=None, most=None):
    """Go through the next pickle of an open file; runs nothing.

    InputError where it has more operations than `most` (default: OPERATIONS), can take for ever, or asks for a name
    that the pattern `allowed` does not match.
    """
    most = most or OPERATIONS
    memo, is_tuple, shared, kept, large = {}, False, 0, 0, 0  # memo: number of a stored object -> whether it is a tuple
    for step, (opcode, value, at) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if step >= most or (at or 0) > BYTES_EACH * most:
            refuse(path, f"a pickle in it has more than {most:,} operations or {BYTES_EACH * most:,} bytes")
        if allowed and name == "GLOBAL" and not allowed.fullmatch(value.replace(" ", ".", 1)):
            refuse(path, f"it asks for {value.replace(' ', '.', 1)}")
        large += type(value) is int and abs(value) >> 60 > 0
        if name in UNUSUAL or large > LARGE_NUMBERS:
            refuse(path, f"a pickle in it uses {name}" if name in UNUSUAL else "it holds too many large numbers")
        if name == "MEMOIZE" or "PUT" in name:
            memo[len(memo) if value is None else value] = is_tuple
            continue
        kept += (name in TUPLES) - (is_tuple and name in TAKERS)
        is_tuple = memo.get(value, False) if "GET" in name else name in TUPLES
        shared += is_tuple and "GET" in name
        if shared > SHARED_TUPLES or kept > DEEPEST:  # Python goes through all of a tuple that is a key
            refuse(path, "a pickle in it has too many tuples, or uses the same ones too often")


def refuse(path, what):
    raise InputError(
        f"{path}: refused, nothing in it was run: {what}, which no such file needs; get it from a source you trust"
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


def stand_ins():
    """[(stand-in, the full name it takes the place of)] for torch.load."""
    pairs = [(number_of_numpy, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    pairs.append((Dtype, "numpy.dtype"))
    for module, pure, kind in itertools.product(("pathlib", "pathlib._local"), ("", "Pure"), ("", "Posix", "Windows")):
        path = PureWindowsPath if kind == "Windows" else PurePosixPath
        pairs.append((lambda *parts, path=path: str(path(*parts)), f"{module}.{pure}{kind}Path"))
    return pairs


# ---- other pickles

ANY_MODULE = "*"  # a class of this name, wherever it was defined


class RestrictedUnpickler(pickle._Unpickler):
    """The unpickler written in Python: unlike the one in C it takes memory only for what the file holds."""

    def find_class(self, module, name):
        found = self.allowed.get((module, name)) or self.allowed.get((ANY_MODULE, name))
        return found or refuse(self.what, f"it asks for {module}.{name}")


def restricted_load(file, allowed, encoding="latin1", what="pickle"):
    """Unpickle with exactly the names in `allowed`: {(module or ANY_MODULE, name): what to take for it}.

    file: open for bytes.  encoding: for Python 2's byte strings.  what: the name for error messages.
    A pickle can call whatever it can name, so `allowed` should hold inert stand-ins, made anew for each call.
    Raises InputError naming the first other name, and for any damaged pickle.
    """
    content = file.read()
    try:
        look_through(io.BytesIO(content), what, most=len(content))
        unpickler = RestrictedUnpickler(io.BytesIO(content), encoding=encoding)
        unpickler.allowed, unpickler.what = allowed, what
        return unpickler.load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{what}: damaged pickle ({type(error).__name__}: {error})") from None
