"""Convert a checkpoint or features; the endings of the two files say how.

python tools/convert.py model_best.pth.tar gsmn.safetensors   (writes gsmn.json beside it)
python tools/convert.py gsmn.safetensors model_best.pth.tar
python tools/convert.py train_ims.npy train_ims_float16.npy   (float32 to float16: half the size)
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import torch

from checkpoints import checkpoint
from files import pickles
from files.arrays import open_array
from files.errors import InputError, optional_package
from files.text import read_bytes
from files.writing import atomic_write
from runtime.commandline import Parser

KINDS = ".npy", ".safetensors"
WAYS = ["", ".safetensors"], [".safetensors", ""], [".npy", ".npy"]
# Names of the state dicts in `model`, by their number; others are called model.0, model.1 ...
PARTS = {4: ["img_enc", "txt_enc", "i2t_match_G", "t2i_match_G"], 2: ["img_enc", "txt_enc"]}


# ---- checkpoints: tensors go into safetensors, all else into JSON


def to_safetensors(source, target):
    """Write a checkpoint (ours, or a released one of GSMN, VSRN or the SCAN family) as safetensors + JSON.

    from_safetensors gives back values, names and order (docs/method.md, section 5), and plain dicts for OrderedDicts.
    """
    tensors = {}
    try:
        text = json.dumps(outline(pickles.read_torch_file(source), "", tensors), indent=1) + "\n"
    except (RecursionError, TypeError) as error:
        raise InputError(f"{source}: cannot be converted ({error})") from None
    data = safetensors().save(tensors)
    atomic_write(target, lambda file: file.write(data))
    atomic_write(target.with_suffix(".json"), lambda file: file.write(text.encode()))


def from_safetensors(source, target):
    """Write the checkpoint that to_safetensors was given."""
    load, data, text = safetensors().load, read_bytes(source), read_bytes(source.with_suffix(".json"))
    try:
        tensors = load(data)
    except Exception as error:
        raise InputError(f"{source}: damaged or no safetensors file; copy or download it again") from error
    try:
        content = json.loads(text, object_hook=functools.partial(original, tensors))
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{source.with_suffix('.json')}: does not belong to {source} ({error})") from None
    checkpoint.write_checkpoint(content, target)


def safetensors():
    optional_package("safetensors", "this")
    return optional_package("safetensors.torch", "this", "safetensors")


def outline(value, name, tensors):
    """A part of a checkpoint as JSON; its tensors go into `tensors`, by names that begin with `name`.

    What JSON does not have becomes a table with a key that begins with '$'.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if torch.is_tensor(value):
        name = f"{name}#{len(tensors)}" if name in tensors else name
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"$tensor": name}
    if isinstance(value, argparse.Namespace):
        return {"$namespace": outline(vars(value), name, tensors)}
    if type(value) in (list, tuple):
        parts = PARTS.get(len(value)) if name == "model" else None
        items = [outline(x, at, tensors) for x, at in zip(value, parts or [f"{name}.{i}" for i in range(len(value))])]
        return items if type(value) is list else {"$tuple": items}
    if not isinstance(value, dict) or not all(type(key) in (str, int) for key in value):
        raise TypeError(f"{name} is a {type(value).__name__}, or has keys that are neither text nor numbers")
    items = {key: outline(item, f"{name}.{key}".lstrip("."), tensors) for key, item in value.items()}
    if any(type(key) is int or key.startswith("$") for key in items):
        items = {"$items": list(items.items())}
    return items


def original(tensors, table):
    """What a table of the JSON stands for; the tables inside it are already what they stand for."""
    if "$tensor" in table:
        return tensors[table["$tensor"]]
    if "$namespace" in table:
        return argparse.Namespace(**table["$namespace"])
    if "$tuple" in table:
        return tuple(table["$tuple"])
    if "$items" in table:
        return dict(table["$items"])
    return table


# ---- features


def halve(path, target, rows=256):
    """Write float32 features as float16 into the file `target`, `rows` images at a time.

    `target` may be `path`: a file is replaced only when the new one is complete.  Returns the largest relative
    rounding error of the numbers that float16 holds normally (from 6e-5 on; smaller ones lose up to 3e-8).  Raises
    InputError, with nothing written, where a number is not finite or beyond float16's 65504.
    """
    features, worst = open_array(path), 0.0
    if features.dtype != np.float32:
        raise InputError(f"{path}: {features.dtype}, only float32 can be halved; nothing to do for float16")

    def write(file):
        nonlocal worst
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": features.shape})
        for start in range(0, len(features), rows):
            chunk = np.asarray(features[start : start + rows])
            with np.errstate(over="ignore"):
                halves = chunk.astype(np.float16)
            if not np.isfinite(halves).all():
                image, *_ = np.argwhere(~np.isfinite(halves))[0]
                value = chunk[image][~np.isfinite(halves[image])][0]
                raise InputError(f"{path}, image {start + image}: {value:g} does not fit into float16; keep float32")
            normal = np.abs(chunk) >= np.finfo(np.float16).tiny
            worst = max(worst, np.abs(halves[normal] / chunk[normal] - 1).max(initial=0))
            file.write(halves.tobytes())

    atomic_write(target, write)
    return worst


# ---- command line


def main(arguments=None):
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, help="file to read: .pth.tar, .safetensors or .npy")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    opt = parser.parse_args(arguments)
    source, target = opt.source, opt.target
    if [path.suffix if path.suffix in KINDS else "" for path in (source, target)] not in WAYS:
        raise InputError(f"{target}: one of the two files must end in .safetensors, or both in .npy")
    for path in [target, target.with_suffix(".json")] if target.suffix == ".safetensors" else [target]:
        if path.exists() and not opt.overwrite:
            raise InputError(f"{path}: exists; give another name, or --overwrite to replace it")
    if source.suffix == ".npy":
        print(f"largest relative rounding error {halve(source, target):.1e}")
    else:
        (from_safetensors if source.suffix == ".safetensors" else to_safetensors)(source, target)
    print(f"{target}: written")


if __name__ == "__main__":
    run(main)
