"""Convert a checkpoint or features; the endings of the two files say how.

python tools/convert.py model_best.pth.tar gsmn.safetensors   (writes gsmn.json beside it)
python tools/convert.py gsmn.safetensors model_best.pth.tar
python tools/convert.py train_ims.npy train_ims_float16.npy   (float32 to float16: half the size)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import argparse
import functools
import json

import numpy as np

from files.arrays import open_array
from files.errors import InputError, optional_package
from files.pickles import one_line, read_torch_file
from files.text import read_bytes
from files.writing import atomic_write
from runtime.commandline import Parser

# Names of the state dicts in `model`, by their number; others are called model.0, model.1 ...
PARTS = {4: ["img_enc", "txt_enc", "i2t_match_G", "t2i_match_G"], 2: ["img_enc", "txt_enc"]}
ROWS = 256  # images that are halved at once


def to_safetensors(source, target):
    """Write a checkpoint, ours or a released one, as safetensors, and all but its tensors as JSON beside them.

    from_safetensors gives back values, names and order (docs/method.md, section 5), and plain dicts for OrderedDicts.
    """
    save, tensors = optional_package("safetensors.torch", "this", "safetensors").save, {}
    with one_line(source, "cannot be converted"):  # a value that JSON lacks, or nested too deep
        text = json.dumps(outline(read_torch_file(source), "", tensors), indent=1) + "\n"
    atomic_write(target, lambda file: file.write(save(tensors)))
    atomic_write(target.with_suffix(".json"), lambda file: file.write(text.encode()))


def from_safetensors(source, target):
    """Write the checkpoint that to_safetensors was given."""
    import torch

    load, beside = optional_package("safetensors.torch", "this", "safetensors").load, source.with_suffix(".json")
    with one_line(source, "damaged or no safetensors file; copy or download it again"):
        tensors = load(read_bytes(source))
    with one_line(beside, f"does not belong to {source}"):
        content = json.loads(read_bytes(beside), object_hook=functools.partial(original, tensors))
    atomic_write(target, lambda file: torch.save(content, file))


def outline(value, name, tensors):
    """A part of a checkpoint as JSON; its tensors go into `tensors`, by names that begin with `name`.

    What JSON does not have becomes a table with a key that begins with '$'.  TypeError for what no table stands for.
    """
    import torch  # which --help does not need

    if torch.is_tensor(value):
        name = f"{name}#{len(tensors)}" if name in tensors else name
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"$tensor": name}
    if isinstance(value, argparse.Namespace):
        return {"$namespace": outline(vars(value), name, tensors)}
    if type(value) is tuple:
        return {"$tuple": outline(list(value), name, tensors)}
    if type(value) is list:
        parts = (PARTS.get(len(value)) if name == "model" else None) or [f"{name}.{k}" for k in range(len(value))]
        return [outline(item, part, tensors) for item, part in zip(value, parts)]
    if not isinstance(value, dict):
        return value  # json refuses what it does not have
    items = [[key, outline(item, f"{name}.{key}".lstrip("."), tensors)] for key, item in value.items()]
    plain = all(type(key) is str and not key.startswith("$") for key in value)
    return dict(items) if plain else {"$items": items}


def original(tensors, table):
    """What a table of the JSON stands for; the tables inside it are already what they stand for."""
    if "$tensor" in table:
        return tensors[table["$tensor"]]
    if "$namespace" in table:
        return argparse.Namespace(**table["$namespace"])
    if "$tuple" in table:
        return tuple(table["$tuple"])
    return dict(table["$items"]) if "$items" in table else table


def halve(path, target):
    """Write float32 features as float16 into `target`, which may be `path`: it is replaced when it is complete.

    InputError, with nothing written, for a number that is not finite or beyond float16's 65504.
    """
    features = open_array(path)
    if features.dtype != np.float32:
        raise InputError(f"{path}: {features.dtype}, only float32 can be halved; nothing to do for float16")

    def write(file):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": features.shape})
        for start in range(0, len(features), ROWS):
            with np.errstate(over="ignore"):
                halves = np.asarray(features[start : start + ROWS]).astype(np.float16)
            if not np.isfinite(halves).all():
                image = start + int(np.argwhere(~np.isfinite(halves))[0][0])
                raise InputError(f"{path}, image {image}: a number does not fit into float16; keep float32")
            file.write(halves.tobytes())

    atomic_write(target, write)


WAYS = {("", ".safetensors"): to_safetensors, (".safetensors", ""): from_safetensors, (".npy", ".npy"): halve}


def main(arguments=None):
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, help="file to read: .pth.tar, .safetensors or .npy")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    opt = parser.parse_args(arguments)
    source, target = opt.source, opt.target
    way = WAYS.get(tuple(path.suffix if path.suffix in (".npy", ".safetensors") else "" for path in (source, target)))
    if not way:
        raise InputError(f"{target}: one of the two files must end in .safetensors, or both in .npy")
    for path in [target, target.with_suffix(".json")] if target.suffix == ".safetensors" else [target]:
        if path.exists() and not opt.overwrite:
            raise InputError(f"{path}: exists; give another name, or --overwrite to replace it")
    way(source, target)
    print(f"{target}: written")


if __name__ == "__main__":
    run(main)
