"""Pickles as Python 2 wrote them, and pickles that attack: for the tests of everything that reads one."""

import io
import pickle
import struct
from collections import OrderedDict
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import torch


class Raw:
    """Opcodes that stand in a pickle in place of an object."""

    def __init__(self, code):
        self.code = code


class RawPickler(pickle._Pickler):
    """Python's pickler (the one written in Python), which writes Raw objects as they are."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Raw):
            self.write(obj.code)
        else:
            super().save(obj, save_persistent_id)


class Python2Pickler(RawPickler):
    """The opcodes of torch.save under Python 2: byte strings, OrderedDicts made from pairs, long sizes."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, obj):
        data = obj.encode("latin1")
        self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        self.memoize(obj)

    dispatch[str] = save_text

    def save_pers(self, pid):
        size = pickle.encode_long(pid[4])
        super().save_pers((*pid[:4], Raw(pickle.LONG1 + bytes([len(size)]) + size), *pid[5:]))

    def reducer_override(self, obj):
        if type(obj) is OrderedDict:
            return OrderedDict, ([[key, value] for key, value in obj.items()],)
        return NotImplemented


def torch_save(state, path, legacy=False, pickler=RawPickler, protocol=2):
    """torch.save in either format with one of the picklers above."""
    module = SimpleNamespace(
        __name__="pickle", Pickler=pickler, dump=lambda obj, file, protocol: pickler(file, protocol).dump(obj)
    )
    torch.save(state, path, pickle_module=module, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)


# ---- sizes of images


def header(descr, shape):
    """The beginning of a .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


# what Python 2's numpy wrote: protocol 2, byte strings, numpy.core
DTYPE = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R(K\x03U\x01%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
ARRAY = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x02\x85" + DTYPE % (b"O8", b"|") + b"\x89](%setb."
)


def item(w, h):
    return b"}(U\x07image_w%sU\x07image_h%su" % (w, h)


def int16(x):
    return b"M" + struct.pack("<H", x)


def numpy_int64(x):
    dtype = DTYPE % (b"i8", b"<")
    return b"cnumpy.core.multiarray\nscalar\n" + dtype + b"U\x08" + struct.pack("<q", x) + b"\x86R"


def python2_sizes(items):
    return header("|O", (len(items),)) + ARRAY % b"".join(items)


# ---- attacks: each makes a pickle whose loading creates the file `marker`


def text(string):
    data = string.encode()
    return pickle.BINUNICODE + len(data).to_bytes(4, "little") + data


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


def call(module, attribute, *arguments):
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def torch_in_torch(marker):
    inner = pickle.PROTO + b"\x02" + system(marker) + b"."
    content = call("_codecs", "encode", text(inner.decode("latin1")), text("latin1"))
    return call("torch.storage", "_load_from_bytes", content)


def stack_global(marker):
    return text("os") + pickle.MEMOIZE + text("system") + b"\x93" + b"(" + text(f"touch {marker}") + b"tR"


def borrowed_strings(marker):
    """STACK_GLOBAL again, its two names stored beforehand and other text last."""
    store = text("os") + pickle.BINPUT + b"\xf0" + b"0" + text("system") + pickle.BINPUT + b"\xf1" + b"0"
    names = text("argparse") + b"0" + pickle.BINGET + b"\xf0" + pickle.BINGET + b"\xf1" + b"\x93"
    return store + names + b"(" + text(f"touch {marker}") + b"tR"


def system(marker):
    return call("os", "system", text(f"touch {marker}"))


def method(marker):
    path = call("pathlib", "Path", text(str(marker)))
    return b"\x80\x04" + text("pathlib") + text("Path.touch") + b"\x93(" + path + b"tR"


def allowed_by_torch(marker):
    """weights_only would let this one in, though not what it is to call."""
    arguments = [name("os", "system"), name("builtins", "int"), b"(" + text(f"touch {marker}") + b"t", b"}"]
    return call("torch._tensor", "_rebuild_from_type_v2", *arguments)


# title: (the name it must be refused under, its opcodes)
ATTACKS = {
    "os.system": ("os.system", system),
    "Python 2 eval": ("__builtin__.eval", lambda m: call("__builtin__", "eval", text(f"open({str(m)!r}, 'w')"))),
    "method of a class": ("pathlib.Path.touch", method),
    "torch.load inside": ("torch.storage._load_from_bytes", torch_in_torch),
    "stack_global": ("os.system", stack_global),
    "stack_global from the memo": ("os.system", borrowed_strings),
    "inst": ("os.system", lambda m: b"(" + text(f"touch {m}") + b"ios\nsystem\n"),
    "obj": ("os.system", lambda m: b"(" + name("os", "system") + text(f"touch {m}") + b"o"),
    "helper of torch": ("torch._tensor._rebuild_from_type_v2", allowed_by_torch),
}
