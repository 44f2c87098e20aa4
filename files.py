"""Plain files, read with checks and written whole or not at all."""
import codecs
import contextlib
import io
import json
import os
import pickle
import re
import sys
import warnings
from pathlib import Path

import numpy as np


class InputError(Exception):
    """Something the user gave cannot be used. One line: the file, what was found, what to do."""

    def __init__(self, message):
        # a DataLoader raises a worker's exception anew, with the worker's whole traceback as its message
        own = str(message).rpartition(f'{__name__}.InputError: ')[2]
        # text from a file may hold anything: nothing that ends the line or steers the terminal gets through
        super().__init__(''.join(c if c.isprintable() else ' ' for c in own).strip())


def warn(message):
    """Tell the user something that does not stop the program."""
    print(f'warning: {message}', file=sys.stderr)


def run(main):
    """Run a script's main(): InputError -> one line, exit code 2; Ctrl-C -> exit code 130."""
    try:
        sys.exit(main())
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


# ---- folders ----

def data_folder(data_path, data_name):
    """The folder of a data set; InputError listing those there are."""
    folder = Path(data_path) / data_name
    if folder.is_dir():
        return folder
    there = sorted(p.name for p in Path(data_path).glob('*') if p.is_dir())
    raise InputError(f'{folder}: no such folder; {data_path} has: {", ".join(there) or "nothing"}; '
                     'check --data_path and --data_name')


def make_folder(path):
    """Make a folder, and those above it, where missing; InputError when the system refuses."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f'{path}: cannot be made ({error.strerror}); choose another folder') from error


def check_writable(path):
    """InputError where a file of this name cannot be written: said before the work instead of after it."""
    folder = Path(path).parent
    if Path(path).is_dir():
        raise InputError(f'{path}: cannot be written, a folder has this name; give the name of a file')
    if not folder.is_dir():
        raise InputError(f'{path}: cannot be written, there is no folder {folder}; make it first')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f'{path}: cannot be written, the folder {folder} is read-only; choose another')


# ---- text and JSON ----

def _read_bytes(path):
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f'{path}: no such file') from None
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from None


def _read_text(path):
    data = _read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError as error:
        line = data.count(b'\n', 0, error.start) + 1
        raise InputError(f'{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; '
                         'save the file as UTF-8') from None


def read_lines(path):
    """The lines of a UTF-8 file as a list of str, without their ends; BOM and CRLF are accepted.

    Lines end at '\\n' only, so that other Unicode separators inside a caption do not shift the numbering.
    """
    lines = _read_text(path).split('\n')
    if lines[-1] == '':
        lines.pop()
    return [line.removesuffix('\r') for line in lines]


def read_json(path):
    """The content of a JSON file; InputError names line and column of a mistake."""
    text = _read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f'{path}, line {error.lineno}, column {error.colno}'
        raise InputError(f'{where}: not valid JSON ({error.msg}); write or copy it again') from None
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: not usable JSON ({error})') from None


def atomic_write(path, write):
    """Write a file completely, or leave what was there.

    path: the file; its folder must exist. write: called with a temporary file, open for bytes, in the same
    folder, which then takes the place of path.
    Raises InputError when the system refuses (full disk, read-only or missing folder).
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror or error})') from error
    finally:
        _remove(temporary)


def _remove(path):
    with contextlib.suppress(OSError):
        os.remove(path)


def read_captions(path):
    """The captions of a {split}_caps.txt, a list of str; InputError for an empty one."""
    captions = read_lines(path)
    for number, caption in enumerate(captions, start=1):
        if not caption.strip():
            raise InputError(f'{path}, line {number}: empty caption; every line needs one')
    return captions


def read_ids(path, n_words):
    """The word ids of a {split}_precaps_stan.txt, one caption's list at a time, all in 0 ... n_words - 1."""
    for number, line in enumerate(read_lines(path), start=1):
        yield _ids_of_line(line, f'{path}, line {number}', n_words)


_NUMBERS = re.compile(r'\s*-?\d{1,18}\s*(,\s*-?\d{1,18}\s*)*', re.ASCII)


def _ids_of_line(line, where, n_words):
    if not line.strip():
        raise InputError(f'{where}: empty; every caption needs a line of word ids')
    if not _NUMBERS.fullmatch(line):
        raise InputError(f'{where}: {line[:40]!r} is not a list of numbers with commas between')
    ids = [int(x) for x in line.split(',')]
    for bad in (min(ids), max(ids)):
        if not 0 <= bad < n_words:
            raise InputError(f'{where}: word id {bad}, but the vocabulary has ids 0 to {n_words - 1}; '
                             'use the vocabulary the ids were made with')
    return ids


def read_pairs(path):
    """The dependencies of a {split}_caps.json as they stand: per caption a list of [governor, dependent]."""
    captions = read_json(path)
    if not isinstance(captions, list):
        raise InputError(f'{path}: need a list with the dependencies of every caption')
    for i, pairs in enumerate(captions):
        if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
            found = str(pairs)[:40]
            raise InputError(f'{path}, caption {i}: need a list of [governor, dependent] pairs, not {found}')
    return captions


def _is_pair(pair):
    return (isinstance(pair, list) and len(pair) == 2
            and all(type(index) is int and abs(index) < 2 ** 31 for index in pair))


# ---- arrays ----

def open_array(path):
    """A .npy file as a read-only memory map (nothing is read yet); object arrays are refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # numpy remarks on headers written by Python 2
            return np.lib.format.open_memmap(path, mode='r')
    except FileNotFoundError:
        raise InputError(f'{path}: no such file') from None
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from None
    except Exception as error:  # a damaged header can fail anywhere in numpy's parser
        raise InputError(f'{path}: truncated or not a plain .npy file ({error}); make or copy it again') from None


def read_sizes(path):
    """Image sizes, float32 (N, 2): width, height in pixels (docs/method.md, section 1).

    Accepts a structured array with the fields image_w and image_h, or an object array of dicts with these
    keys (as Python 2 wrote it). Raises InputError for anything else and for sizes that are not positive.
    """
    if _is_object_array(path):
        sizes = _sizes_of_dicts(path)
    else:
        sizes = _sizes_of_fields(path)
    bad = np.flatnonzero(~(np.isfinite(sizes) & (sizes > 0)).all(axis=1))
    if len(bad):
        w, h = sizes[bad[0]]
        raise InputError(f'{path}, row {bad[0]}: image size {w:g} x {h:g}; width and height must be positive')
    return sizes


def _sizes_of_fields(path):
    array = open_array(path)
    names = array.dtype.names or ()
    if array.ndim != 1 or 'image_w' not in names or 'image_h' not in names:
        raise InputError(f'{path}: shape {array.shape}, type {array.dtype}; '
                         'need one item per image with the fields image_w and image_h')
    if not all(array.dtype[name].kind in 'iuf' for name in ('image_w', 'image_h')):
        raise InputError(f'{path}: image_w and image_h must be numbers, not {array.dtype}')
    with np.errstate(over='ignore'):
        return np.stack([array['image_w'], array['image_h']], axis=1).astype(np.float32)


def _sizes_of_dicts(path):
    with open(path, 'rb') as file:
        _read_header(file)
        array = restricted_load(file, _array_stand_ins(), what=path)
    try:
        items = array.state[4]
        sizes = [(float(item['image_w']), float(item['image_h'])) for item in items]
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        raise InputError(f'{path}: not an array of dicts with the numbers image_w and image_h') from None
    with np.errstate(over='ignore'):
        return np.array(sizes, np.float32).reshape(-1, 2)


def _is_object_array(path):
    try:
        with open(path, 'rb') as file:
            return _read_header(file) == np.dtype(object)
    except Exception:  # missing or damaged: open_array says how
        return False


def _read_header(file):
    """Read a .npy header, leaving the file at the data; returns the dtype."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return read(file)[2]


# ---- pickles ----

class _Restricted(pickle._Unpickler):
    """The unpickler written in Python: unlike the one in C it takes memory only for what the file holds."""

    def __init__(self, file, allowed, encoding, what):
        super().__init__(file, encoding=encoding)
        self.dispatch = {code: do for code, do in self.dispatch.items() if code != pickle.BYTEARRAY8[0]}
        self.allowed, self.what = allowed, what

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise InputError(f'{self.what}: refused, because its pickle wants {module}.{name}; '
                             'get the file from a source you trust')
        return self.allowed[module, name]


def restricted_load(file, allowed, encoding='latin1', what='pickle'):
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
        raise InputError(f'{what}: damaged pickle ({type(error).__name__}: {error})') from None


def _array_stand_ins():
    """What the pickle inside an object array's .npy names, as classes that only keep what they are given."""
    class Array:
        def __setstate__(self, state):
            self.state = state  # version, shape, dtype, Fortran order, list of items

    class Dtype:
        def __init__(self, code, *_):
            self.code, self.order = code, '<'

        def __setstate__(self, state):
            self.order = state[1] if state[1] in ('<', '>') else '|'

    def scalar(dtype, data):
        data = data.encode('latin1') if isinstance(data, str) else data
        kind = np.dtype(dtype.order + dtype.code)
        if kind.kind not in 'iuf':
            raise TypeError(f'a scalar of type {kind}')
        return np.frombuffer(data, kind)[0].item()

    stand_ins = {('numpy', 'ndarray'): Array, ('numpy', 'dtype'): Dtype}
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        stand_ins[module, '_reconstruct'] = lambda *_: Array()
        stand_ins[module, 'scalar'] = scalar
    return stand_ins
