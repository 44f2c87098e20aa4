"""The type of each checkpoint field: one table, checked once when a file is read.

A checkpoint file may be damaged or malicious.  After `check_fields` every field has the type that the programs rely on;
`check_shapes` compares sizes with the file's own tensors before memory is taken for them.
"""

import argparse

import torch
from torch.overrides import TorchFunctionMode

from files.errors import InputError
from systems.table import titles
from vocab import SPECIAL

LARGEST = 2**53  # counters beyond it are no counters
SPARE = 1 << 28  # numbers that a model may have beyond twice those of its file: 1 GB


def is_number(value, least=-LARGEST):
    """Whether this is a finite number from `least` on, and no truth value."""
    return type(value) in (int, float) and least <= value < LARGEST


def is_count(value, least=0):
    return type(value) is int and is_number(value, least)


def is_table(value, check=lambda item: True):
    """Whether this is a dict whose values pass `check`."""
    return isinstance(value, dict) and all(map(check, value.values()))


def is_state_dict(value):
    return is_table(value, torch.is_tensor) and all(type(name) is str for name in value)


def is_vocabulary(value):
    words = type(value) is list and all(type(word) is str for word in value)
    return words and tuple(value[: len(SPECIAL)]) == SPECIAL and len(set(value)) == len(value)


def is_flag(value):
    """Whether this is the value of a flag: text, a number, true or false, nothing, or a short list of these."""
    if type(value) in (list, tuple):
        return len(value) <= 1000 and all(type(item) in (bool, int, float, str) for item in value)
    return value is None or type(value) in (bool, int, float, str, torch.device)


FIELDS = {
    "opt": lambda value: isinstance(value, argparse.Namespace),
    "model": lambda value: isinstance(value, list) and all(map(is_state_dict, value)),
    "further": lambda value: is_table(value, is_state_dict) and all(type(name) is str for name in value),
    "caption_model": lambda value: value is None or is_state_dict(value),
    **dict.fromkeys(("epoch", "step", "Eiters", "format"), is_count),
    "best_epoch": lambda value: is_count(value, -1),
    **dict.fromkeys(("best_rsum", "saved"), is_number),
    "validate_due": lambda value: type(value) is bool,
    **dict.fromkeys(("versions", "rng", "data"), is_table),
    "vocab": lambda value: value is None or is_vocabulary(value),
    "optimizer": lambda v: is_table(v) and is_table(v.get("state")) and isinstance(v.get("param_groups"), list),
}
NEEDED = ("opt", "model")


def check_fields(checkpoint, path):
    """InputError unless `checkpoint` is a dict whose fields are what FIELDS says; a device in opt becomes text."""
    if not is_table(checkpoint):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}; not a checkpoint of {titles()}")
    for field, check in FIELDS.items():
        if not check(checkpoint[field]) if field in checkpoint else field in NEEDED:
            raise InputError(f"{path}: '{field}' is not that of a checkpoint of {titles()}; get the file again")
    flags = vars(checkpoint["opt"])
    for name, value in flags.items():
        if type(name) is not str or not is_flag(value):
            raise InputError(f"{path}: its opt holds a {type(value).__name__} for {name}; flags are text or numbers")
    flags.update({name: str(value) for name, value in flags.items() if isinstance(value, torch.device)})


# ---- sizes, before memory is taken for them


class NoInitialValues(TorchFunctionMode):
    """Inside, modules are made without initial values: on the meta device torch would load its compiler for them."""

    NAMES = ("normal_", "uniform_", "xavier_normal_", "kaiming_uniform_")

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in self.NAMES:
            return args[0] if args else kwargs["tensor"]
        if function is torch.rand:
            function = torch.empty
        return function(*args, **kwargs)


def check_shapes(build, opt, saved, path):
    """InputError where the model that `opt` describes has other tensors than a checkpoint holds.

    build(opt) makes the model, here without memory for its weights (torch's meta device).
    saved: a checkpoint, of which `model` and `further` are compared.
    """
    states, further = saved["model"], saved["further"]
    present = sum(map(len, states))
    if opt.num_layers > present:  # a model of a million layers takes minutes even without memory
        raise InputError(f"{path}: its opt says --num_layers {opt.num_layers}, but it holds {present} tensors")
    try:
        with torch.device("meta"), NoInitialValues():
            model = build(opt)
    except (InputError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its opt describes no {opt.model} model ({error})") from None
    if len(model.parts) != len(states):
        raise InputError(f"{path}: {len(states)} state dicts, but a {opt.model} model has {len(model.parts)}")
    known = {*model.parts, *model.further_parts()}
    for name, state in [*zip(model.parts, states), *further.items()]:
        wanted = getattr(model, name).state_dict() if name in known else {}
        for key in {**wanted, **state}:
            ours, theirs = described(wanted.get(key)), described(state.get(key))
            # BatchNorm counts batches since torch 0.4.1 only
            if ours != theirs and not (key not in state and key.endswith("num_batches_tracked")):
                raise InputError(f"{path}: {name}.{key} is {theirs}, but by its opt {ours}; get the file again")
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(tensor.numel() for state in states for tensor in state.values())
    if wanted > 2 * held + SPARE:  # a released file lacks the caption model: its widths are only in opt
        raise InputError(f"{path}: its opt describes {wanted:,} numbers, but it holds {held:,}; get the file again")


def described(tensor):
    if tensor is None:
        return "missing"
    shape = " x ".join(map(str, tensor.shape)) or "a number"
    return shape if tensor.is_floating_point() else f"{shape} (whole)"
