"""The type of each checkpoint field: one table, checked once when a file is read.

A checkpoint file may be damaged or malicious.  After `check_fields` every field
has the type that the programs rely on; `check_shapes` and `check_optimizer` compare sizes with the file's own tensors
before memory is taken for them.
"""

import argparse
import math

import torch

from files.errors import InputError
from systems.table import titles
from vocab import SPECIAL

DEPTH = 20  # containers inside one another; ours need 5
LARGEST = 2**53  # counters beyond it are no counters
SPARE = 1 << 28  # numbers that a model may have beyond twice those of its file: 1 GB


def is_count(value):
    return type(value) is int and 0 <= value < LARGEST


def is_number(value):
    return (type(value) is int and abs(value) < LARGEST) or (type(value) is float and math.isfinite(value))


def is_table(value):
    return isinstance(value, dict)


def is_state_dict(value):
    return is_table(value) and all(type(name) is str and torch.is_tensor(item) for name, item in value.items())


def is_model(value):
    return isinstance(value, list) and all(map(is_state_dict, value))


def is_further(value):
    return is_table(value) and all(type(name) is str and is_state_dict(state) for name, state in value.items())


def is_vocabulary(value):
    if type(value) is not list or not all(type(word) is str for word in value):
        return False
    return tuple(value[: len(SPECIAL)]) == SPECIAL and len(set(value)) == len(value)


def is_optimizer(value):
    return is_table(value) and is_table(value.get("state")) and isinstance(value.get("param_groups"), list)


def is_options(value):
    return isinstance(value, argparse.Namespace) and all(type(name) is str for name in vars(value))


def none_or(check):
    return lambda value: value is None or check(value)


WORDS = f"a list of different words that begins with {' '.join(SPECIAL)}"
# field: check, and what the field must be
FIELDS = {
    "opt": (is_options, "the flags of a run"),
    "model": (is_model, "a list of state dicts, names to tensors"),
    "further": (is_further, "a table of state dicts"),
    "caption_model": (none_or(is_state_dict), "a state dict, names to tensors"),
    "epoch": (is_count, "a whole number from 0 on"),
    "step": (is_count, "a whole number from 0 on"),
    "Eiters": (is_count, "a whole number from 0 on"),
    "best_rsum": (is_number, "a finite number"),
    "best_epoch": (lambda value: value == -1 or is_count(value), "a whole number from -1 on"),
    "validate_due": (lambda value: type(value) is bool, "true or false"),
    "format": (is_count, "a whole number from 0 on"),
    "saved": (is_number, "a finite number"),
    "versions": (is_table, "a table"),
    "vocab": (none_or(is_vocabulary), WORDS),
    "data": (is_table, "a table of what identifies the training data"),
    "optimizer": (is_optimizer, "an optimiser's state and param_groups"),
    "rng": (is_table, "a table of random states"),
}
NEEDED = ("opt", "model")


def check_fields(checkpoint, path):
    """InputError unless `checkpoint` is a dict whose fields are what FIELDS says; paths and devices become text."""
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}; not a checkpoint of {titles()}")
    check_nesting(checkpoint, path)
    for field, (check, wanted) in FIELDS.items():
        if field not in checkpoint and field in NEEDED:
            raise InputError(f"{path}: holds no '{field}' ({wanted}); not a checkpoint of {titles()}")
        if field in checkpoint and not check(checkpoint[field]):
            raise InputError(f"{path}: '{field}' is not {wanted}; not a checkpoint of {titles()}, or a damaged one")
    for name, value in vars(checkpoint["opt"]).items():
        if isinstance(value, torch.device):
            setattr(checkpoint["opt"], name, str(value))
        elif not is_plain(value):
            raise InputError(f"{path}: its opt holds a {type(value).__name__} for {name}; flags are text or numbers")


def is_plain(value):
    """Whether this is the value of a flag: text, a number, true or false, nothing, or a short list of these."""
    if type(value) in (list, tuple):
        return len(value) <= 1000 and all(type(item) in (bool, int, float, str) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def check_nesting(value, path):
    """InputError where containers lie more than DEPTH deep in one another, as they do where one holds itself."""
    level, seen = [value], set()
    for _ in range(DEPTH):
        inside = []
        for item in level:
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, dict):
                inside += item.values()
            elif isinstance(item, (list, tuple)):
                inside += item
            elif isinstance(item, argparse.Namespace):
                inside += vars(item).values()
        level = [item for item in inside if isinstance(item, (dict, list, tuple, argparse.Namespace))]
        if not level:
            return
    raise InputError(f"{path}: tables lie more than {DEPTH} deep in one another; no checkpoint does this")


# ---- sizes, before memory is taken for them


def check_shapes(build, opt, saved, path):
    """InputError where the model that `opt` describes has other tensors than a checkpoint holds.

    build(opt) makes the model, here without memory for its weights (torch's meta device).
    saved: a checkpoint, of which `model` and `further` are compared.
    """
    states = saved["model"]
    present = sum(len(state) for state in states)
    if opt.num_layers > present:  # a model of a million layers takes minutes even without memory
        raise InputError(f"{path}: its opt says --num_layers {opt.num_layers}, but it holds {present} tensors")
    try:
        with torch.device("meta"):
            model = build(opt)
    except (InputError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its opt describes no {opt.model} model ({first_line(error)})") from None
    if len(model.parts) != len(states):
        raise InputError(f"{path}: {len(states)} state dicts, but a {opt.model} model has {len(model.parts)}")
    for part, state in zip(model.parts, states):
        check_state(getattr(model, part).state_dict(), state, f"{path}: {part}")
    further = model.further_parts()
    for name, state in saved["further"].items():
        if name not in further:
            raise InputError(f"{path}: holds a {name}, but the model of its opt has none; get the file again")
        check_state(further[name].state_dict(), state, f"{path}: {name}")
    wanted, held = (sum(x.numel() for x in tensors) for tensors in (model.parameters(), tensors_of(states)))
    if wanted > 2 * held + SPARE:  # a released file lacks the caption model: its widths are only in opt
        raise InputError(f"{path}: its opt describes {wanted:,} numbers, but it holds {held:,}; get the file again")


def tensors_of(states):
    return [tensor for state in states for tensor in state.values()]


def check_state(wanted, state, where):
    """InputError naming the first tensor that is missing, not known, of another shape, or whole where it is real."""
    for name in [*wanted, *state]:
        if name not in state and name.endswith("num_batches_tracked"):
            continue  # BatchNorm counts since torch 0.4.1 only
        if name not in state:
            raise InputError(f"{where}.{name} is missing; its opt describes another model than it holds")
        if name not in wanted:
            raise InputError(f"{where}.{name} is in the file, but the model of its opt has no such tensor")
        if wanted[name].shape != state[name].shape:
            ours, theirs = (" x ".join(map(str, t.shape)) or "a number" for t in (wanted[name], state[name]))
            raise InputError(f"{where}.{name} is {theirs}, but by its opt {ours}; get the file again")
        if wanted[name].is_floating_point() != state[name].is_floating_point():
            raise InputError(f"{where}.{name} holds {state[name].dtype}, not {wanted[name].dtype}; get the file again")


def check_optimizer(state, parameters, path):
    """InputError where an optimiser's state does not fit these parameters: entries, shapes, settings."""
    shapes = [tuple(parameter.shape) for parameter in parameters]

    def refuse(what):
        raise InputError(f"{path}: the optimiser's state is broken ({what}); resume from another checkpoint")

    groups = state["param_groups"]
    if len(groups) != 1 or not isinstance(groups[0], dict) or groups[0].get("params") != list(range(len(shapes))):
        refuse(f"its parameters are not the {len(shapes)} of this model")
    for name in ("lr", "eps", "weight_decay"):
        if not is_number(groups[0].get(name)) or groups[0][name] < 0:
            refuse(f"{name} is {groups[0].get(name)!r}")
    betas = groups[0].get("betas")
    if not isinstance(betas, (list, tuple)) or len(betas) != 2 or not all(is_number(b) and 0 <= b < 1 for b in betas):
        refuse(f"betas are {betas!r}")
    for number, entry in state["state"].items():
        if type(number) is not int or not 0 <= number < len(shapes) or not isinstance(entry, dict):
            refuse(f"an entry for parameter {number!r}")
        for name in ("exp_avg", "exp_avg_sq"):
            moment = entry.get(name)
            if not torch.is_tensor(moment) or tuple(moment.shape) != shapes[number] or not is_moment(moment, name):
                refuse(f"{name} of parameter {number}")
        step = entry.get("step")
        step = step.item() if torch.is_tensor(step) and step.numel() == 1 else step
        if not is_number(step) or step < 0:
            refuse(f"step of parameter {number}")


def is_moment(moment, name):
    """Whether all numbers of a tensor are finite reals and, of exp_avg_sq, not below 0."""
    right = moment.is_floating_point() and bool(torch.isfinite(moment).all())
    return right and (name != "exp_avg_sq" or not bool((moment < 0).any()))


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
