"""Reads files of torch.save and other pickles without running anything in them (docs/method.md, section 5).

A pickle is a program.  torch.load(weights_only=True) runs a few harmless parts of that language only, and
`restricted_load` allows the few names of its caller.  Neither bounds how long a pickle goes on: `look_through` does.
"""

import argparse
import contextlib
import functools
import io
import itertools
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
UNUSUAL = {"DUP", "POP", "POP_MARK"}  # would hide a tuple; only odd objects need them


@contextlib.contextmanager
def one_line(path, fault="incomplete, damaged, or no checkpoint; copy or download it again"):
    """Inside, whatever a damaged file leads to becomes an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # torch, zipfile and pickle raise a dozen kinds
        detail = str(error).strip().partition("\n")[0]
        raise InputError(f"{path}: {fault} ({type(error).__name__}: {detail})") from error


def read_torch_file(path, lazily=False):
    """The content of a file of torch.save, of either format, on the CPU: tensors, plain values, argparse.Namespace.

    NumPy's numbers become Python's, paths become text.  InputError for a file that is missing, damaged, of another
    kind, larger inside than a checkpoint can be, or that asks for any other class; nothing in it has run then.
    lazily: tensors stay in the file until they are used, and their checksums are not compared (zip only).
    """
    import torch  # the commands that read no checkpoint start without it
    from torch.serialization import safe_globals

    is_zip = is_zip_file(path)
    load = functools.partial(torch.load, str(path), "cpu", weights_only=True, mmap=is_zip and lazily)
    known = [argparse.Namespace, *((stand_in, name) for name, stand_in in stand_ins().items())]
    with one_line(path), open_regular(path) as file, safe_globals(known), warnings.catch_warnings():
        if is_zip:
            inspect_zip(file, path, sums=not lazily)
        else:
            for _ in range(5):  # pickles, of which the fourth is the content; then raw numbers without checksums
                look_through(file, path, ALLOWED)
        warnings.simplefilter("ignore")  # torch remarks on its own old formats
        try:
            return load()
        except UnicodeDecodeError:
            return load(encoding="latin1")  # Python 2's strings are bytes, of any encoding


def is_zip_file(path):
    """Whether a file of torch.save is a zip file; the older format has no checksums.  InputError for other files."""
    with open_regular(path, "no such checkpoint; check the path") as file:
        head = file.read(512)
    if head[257:262] == b"ustar" or not head.startswith((b"PK", b"\x80")):  # a tar archive may begin in any way
        found = f"begins with {head[:12]!r}" if head else "is empty"
        raise InputError(f"{path}: not a checkpoint, {found}; unpack an archive, or copy or download the file again")
    return head.startswith(b"PK")


def inspect_zip(file, path, sums):
    """InputError unless the archive is whole (torch.load ignores checksums) and its pickles are harmless."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()  # a name can stand in the archive twice
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.file_size > record.compress_size:
                refuse(path, f"{record.filename} is compressed, which torch.save never does")
        pickled = [record for record in records if record.filename.endswith(".pkl")]
        if not pickled:
            raise InputError(f"{path}: a zip archive without a checkpoint in it; unpack it first")
        for record in pickled:
            look_through(archive.open(record), path, ALLOWED)
        if sums and (broken := archive.testzip()):
            raise InputError(f"{path}: damaged, {broken} differs from its checksum; copy or download it again")


def look_through(file, path, allowed=None, most=None):
    """Go through the next pickle of an open file; runs nothing.

    InputError where it asks for a name that the pattern `allowed` does not match, has more operations than `most`
    (default: OPERATIONS), or can take for ever, since Python goes through all of a tuple that is a key.
    """
    most = most or OPERATIONS
    memo, is_tuple, shared, kept, large = {}, False, 0, 0, 0  # memo: number of a stored object -> whether it is a tuple
    for step, (opcode, value, at) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if allowed and name == "GLOBAL" and not allowed.fullmatch(value.replace(" ", ".", 1)):
            refuse(path, f"it asks for {value.replace(' ', '.', 1)}")
        if name == "MEMOIZE" or "PUT" in name:
            memo[len(memo) if value is None else value] = is_tuple
        else:
            large += type(value) is int and abs(value) >> 60 > 0
            kept += (name in TUPLES) - (is_tuple and name in TAKERS)
            is_tuple = memo.get(value, False) if "GET" in name else name in TUPLES
            shared += is_tuple and "GET" in name
        long = step >= most or (at or 0) > BYTES_EACH * most or large > LARGE_NUMBERS
        if long or name in UNUSUAL or shared > SHARED_TUPLES or kept > DEEPEST:
            refuse(path, "a pickle in it is too long, or has keys that take for ever")


def refuse(path, what):
    raise InputError(
        f"{path}: refused, nothing in it was run: {what}, which no such file needs; get it from a source you trust"
    )


class Dtype:
    """Takes numpy.dtype's place in a pickle: numbers, truth values and objects."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"[biufO]\d{0,2}", code):
            raise TypeError(f"NumPy's type {code!r}")
        self.code = code

    def __setstate__(self, state):
        if state[1] == ">":
            self.code = f">{self.code}"


def number_of_numpy(dtype, data):
    """A NumPy scalar of a pickle as Python's number; ValueError for one that is an object."""
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.code)[0].item()


def stand_ins():
    """{full name: what takes its place}."""
    found = {f"numpy.{core}.multiarray.scalar": number_of_numpy for core in ("core", "_core")}
    found["numpy.dtype"] = Dtype
    for module, pure, kind in itertools.product(("pathlib", "pathlib._local"), ("", "Pure"), ("", "Posix", "Windows")):
        path = PureWindowsPath if kind == "Windows" else PurePosixPath
        found[f"{module}.{pure}{kind}Path"] = lambda *parts, path=path: str(path(*parts))
    return found


def restricted_load(file, allowed, path, encoding="latin1"):
    """Unpickle the rest of an open file; InputError for a damaged pickle, and for a name that is not in `allowed`.

    allowed: {full name, or one of any module: what takes its place}.  A pickle can call what it can name, and change
    a class: those without __setstate__ are made anew for each call.  encoding: of Python 2's byte strings.
    """

    class Unpickler(pickle._Unpickler):  # in Python: unlike the one in C it takes memory only for what the file holds
        def find_class(self, module, name):
            found = allowed.get(f"{module}.{name}") or allowed.get(name)
            return found or refuse(path, f"it asks for {module}.{name}")

    with one_line(path, "damaged pickle; copy or download it again"):
        content = file.read()
        look_through(io.BytesIO(content), path, most=len(content))
        return Unpickler(io.BytesIO(content), encoding=encoding).load()
