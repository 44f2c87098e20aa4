"""Convert checkpoints and features; run once.

python tools/convert.py checkpoint model_best.pth.tar gsmn.safetensors   (writes gsmn.json beside it)
python tools/convert.py checkpoint gsmn.safetensors model_best.pth.tar
python tools/convert.py features --data_path ./data/ --data_name f30k_precomp --split train
"""

import argparse
import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import torch

from checkpoints import checkpoint
from files import pickles
from files.arrays import open_array
from files.errors import InputError, optional_package
from files.text import read_bytes, read_json
from files.writing import atomic_write
from runtime.commandline import Parser

# Names of the state dicts in `model`, by their number; others are called model.0, model.1 ...
PARTS = {4: ["img_enc", "txt_enc", "i2t_match_G", "t2i_match_G"], 2: ["img_enc", "txt_enc"]}


# ---- checkpoints: tensors go into safetensors, all else into JSON


def to_safetensors(source, target):
    """Write a checkpoint (ours, or a released one of GSMN, VSRN or the SCAN family) as safetensors + JSON.

    Nothing is lost: from_safetensors gives back values, types, names and order (docs/method.md, section 5).
    """
    content, tensors = pickles.read_torch_file(source), {}
    try:
        outline = take(content, [], tensors)
    except TypeError as error:
        raise InputError(f"{source}: {error}") from None
    data = safetensors().save(tensors)
    atomic_write(target, lambda file: file.write(data))
    text = json.dumps(outline, indent=1) + "\n"
    atomic_write(target.with_suffix(".json"), lambda file: file.write(text.encode()))


def from_safetensors(source, target):
    """Write the checkpoint that to_safetensors was given."""
    outline = read_json(source.with_suffix(".json"))
    load, data = safetensors().load, read_bytes(source)
    try:
        tensors = load(data)
    except Exception as error:
        raise InputError(f"{source}: damaged or no safetensors file; copy or download it again") from error
    try:
        content = give(outline, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source.with_suffix('.json')}: does not belong to {source} ({error})") from None
    checkpoint.write_checkpoint(content, target)


def safetensors():
    optional_package("safetensors", "this")
    return optional_package("safetensors.torch", "this", "safetensors")


def take(value, at, tensors):
    """A part of a checkpoint as JSON; its tensors go into `tensors`, under names made from the place `at`.

    What JSON does not have becomes a table with a key that begins with '$'.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if np.isfinite(value) else {"$float": str(value)}
    if torch.is_tensor(value):
        return {"$tensor": take_tensor(value, ".".join(map(str, at)), tensors)}
    if isinstance(value, argparse.Namespace):
        return {"$namespace": take(vars(value), at, tensors)}
    if isinstance(value, dict):
        return take_dict(value, at, tensors)
    if type(value) in (list, tuple):
        names = PARTS.get(len(value)) if at == ["model"] else None
        places = [[name] for name in names] if names else [[*at, i] for i in range(len(value))]
        items = [take(item, place, tensors) for item, place in zip(value, places)]
        return items if type(value) is list else {"$tuple": items}
    raise TypeError(f"{'.'.join(map(str, at))} is a {type(value).__name__}, which cannot be converted")


def take_tensor(tensor, name, tensors):
    if name in tensors:
        name = f"{name}#{len(tensors)}"
    tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return name


def take_dict(value, at, tensors):
    for key in value:
        if type(key) not in (str, int):
            raise TypeError(f"{'.'.join(map(str, at))} has a key that is neither text nor number")
    items = {key: take(item, [*at, key], tensors) for key, item in value.items()}
    if not all(isinstance(key, str) and not key.startswith("$") for key in items):
        items = {"$items": [[key, item] for key, item in items.items()]}
    if type(value) is dict:
        return items
    metadata = take(getattr(value, "_metadata", None), [*at, "_metadata"], tensors)
    return {"$ordered": items, "$metadata": metadata}


def give(value, tensors):
    """The inverse of take(): a part of a checkpoint from its JSON."""
    if isinstance(value, list):
        return [give(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$namespace" in value:
        return argparse.Namespace(**give(value["$namespace"], tensors))
    if "$tuple" in value:
        return tuple(give(value["$tuple"], tensors))
    if "$items" in value:
        return {key: give(item, tensors) for key, item in value["$items"]}
    if "$ordered" in value:
        ordered = OrderedDict(give(value["$ordered"], tensors))
        if value["$metadata"] is not None:
            ordered._metadata = give(value["$metadata"], tensors)
        return ordered
    return {key: give(item, tensors) for key, item in value.items()}


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
    header = {"descr": "<f2", "fortran_order": False, "shape": features.shape}

    def write(file):
        nonlocal worst
        np.lib.format.write_array_header_1_0(file, header)
        for start in tqdm(range(0, len(features), rows), desc=str(path), unit=f" x {rows} images"):
            chunk = np.asarray(features[start : start + rows])
            halves = checked_half(chunk, path, start)
            normal = np.abs(chunk) >= np.finfo(np.float16).tiny
            worst = max(worst, np.abs(halves[normal] / chunk[normal] - 1).max(initial=0))
            file.write(halves.tobytes())

    atomic_write(target, write)
    return worst


def checked_half(chunk, path, start):
    with np.errstate(over="ignore"):
        halves = chunk.astype(np.float16)
    bad = ~np.isfinite(halves).reshape(len(chunk), -1).all(1)
    if bad.any():
        value = chunk[bad][0][~np.isfinite(halves[bad][0])][0]
        image = start + bad.argmax()
        raise InputError(f"{path}, image {image}: {value:g} does not fit into float16; keep float32")
    return halves


# ---- command line


def parser():
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("checkpoint", help=".pth.tar to .safetensors and .json, or back")
    one.add_argument("source", type=Path, help="file to read")
    one.add_argument("target", type=Path, help="file to write")
    two = commands.add_parser("features", help="{split}_ims.npy from float32 to float16: half the size")
    two.add_argument("--data_path", default="./data/", help="folder of the data sets")
    two.add_argument("--data_name", required=True, help="data set: a folder in data_path")
    two.add_argument("--split", required=True, help="train, dev, test or testall")
    two.add_argument("--output", type=Path, help="file to write (default: {split}_ims_float16.npy beside the original)")
    for command in (one, two):
        command.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser


def refuse_existing(paths, overwrite):
    """InputError naming the first file that exists, unless `overwrite`."""
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists; give another name, or --overwrite to replace it")


def convert_features(opt):
    path = Path(opt.data_path) / opt.data_name / f"{opt.split}_ims.npy"
    target = opt.output or path.with_name(f"{opt.split}_ims_float16.npy")
    refuse_existing([target], opt.overwrite)
    worst = halve(path, target)
    print(f"{target}: float16, largest relative rounding error {worst:.1e}")
    if opt.output is None:
        print(f"to use it, put it in the place of {path}; or convert in place: --output {path} --overwrite")


def convert_checkpoint(opt):
    if ".safetensors" not in (opt.source.suffix, opt.target.suffix):
        raise InputError(f"{opt.target}: one of the two files must end in .safetensors")
    back = opt.source.suffix == ".safetensors"
    refuse_existing([opt.target] if back else [opt.target, opt.target.with_suffix(".json")], opt.overwrite)
    (from_safetensors if back else to_safetensors)(opt.source, opt.target)
    print(f"{opt.target}: written")


def main(arguments=None):
    opt = parser().parse_args(arguments)
    convert_features(opt) if opt.command == "features" else convert_checkpoint(opt)


if __name__ == "__main__":
    run(main)
