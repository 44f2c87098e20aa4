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


def is_further(value):
    return is_table(value) and all(type(name) is str and is_state_dict(state) for name, state in value.items())


def is_vocabulary(value):
    words = type(value) is list and all(type(word) is str for word in value)
    return words and tuple(value[: len(SPECIAL)]) == SPECIAL and len(set(value)) == len(value)


def is_optimizer(value):
    return is_table(value) and is_table(value.get("state")) and isinstance(value.get("param_groups"), list)


def is_flag(value):
    """Whether this is the value of a flag: text, a number, true or false, nothing, or a short list of these."""
    if type(value) in (list, tuple):
        return len(value) <= 1000 and all(type(item) in (bool, int, float, str) for item in value)
    return value is None or type(value) in (bool, int, float, str, torch.device)


COUNT, NUMBER, TABLE = (is_count, "a whole number from 0 on"), (is_number, "a finite number"), (is_table, "a table")
# field: check, and what the field must be
FIELDS = {
    "opt": (lambda value: isinstance(value, argparse.Namespace), "the flags of a run"),
    "model": (lambda value: isinstance(value, list) and all(map(is_state_dict, value)), "a list of state dicts"),
    "further": (is_further, "a table of state dicts"),
    "caption_model": (lambda value: value is None or is_state_dict(value), "a state dict, names to tensors"),
    **dict.fromkeys(("epoch", "step", "Eiters", "format"), COUNT),
    "best_epoch": (lambda value: value == -1 or is_count(value), "a whole number from -1 on"),
    **dict.fromkeys(("best_rsum", "saved"), NUMBER),
    "validate_due": (lambda value: type(value) is bool, "true or false"),
    **dict.fromkeys(("versions", "rng", "data"), TABLE),
    "vocab": (lambda value: value is None or is_vocabulary(value), f"different words that begin with {SPECIAL}"),
    "optimizer": (is_optimizer, "an optimiser's state and param_groups"),
}
NEEDED = ("opt", "model")


def check_fields(checkpoint, path):
    """InputError unless `checkpoint` is a dict whose fields are what FIELDS says; a device in opt becomes text."""
    if not is_table(checkpoint):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}; not a checkpoint of {titles()}")
    for field, (check, wanted) in FIELDS.items():
        if field not in checkpoint and field in NEEDED:
            raise InputError(f"{path}: holds no '{field}' ({wanted}); not a checkpoint of {titles()}")
        if field in checkpoint and not check(checkpoint[field]):
            raise InputError(f"{path}: '{field}' is not {wanted}; not a checkpoint of {titles()}, or a damaged one")
    flags = vars(checkpoint["opt"])
    for name, value in flags.items():
        if type(name) is not str or not is_flag(value):
            raise InputError(f"{path}: its opt holds a {type(value).__name__} for {name}; flags are text or numbers")
    flags.update({name: str(value) for name, value in flags.items() if isinstance(value, torch.device)})


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
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(tensor.numel() for state in states for tensor in state.values())
    if wanted > 2 * held + SPARE:  # a released file lacks the caption model: its widths are only in opt
        raise InputError(f"{path}: its opt describes {wanted:,} numbers, but it holds {held:,}; get the file again")


def check_state(wanted, state, where):
    """InputError naming the first tensor that is missing, not known, of another shape, or whole where it is real."""
    for name in {**wanted, **state}:
        if name not in state and name.endswith("num_batches_tracked"):
            continue  # BatchNorm counts since torch 0.4.1 only
        ours, theirs = described(wanted.get(name)), described(state.get(name))
        if ours != theirs:
            raise InputError(f"{where}.{name} is {theirs}, but by its opt {ours}; get the file again")


def described(tensor):
    if tensor is None:
        return "missing"
    shape = " x ".join(map(str, tensor.shape)) or "a number"
    return shape if tensor.is_floating_point() else f"{shape} (whole)"


def check_optimizer(state, parameters, path):
    """InputError where an optimiser's state does not fit these parameters: entries, shapes, settings."""

    def need(right, what):
        if not right:
            raise InputError(f"{path}: the optimiser's state is broken ({what}); resume from another checkpoint")

    groups, count = state["param_groups"], len(parameters)
    need(
        len(groups) == 1 and is_table(groups[0]) and groups[0].get("params") == list(range(count)),
        f"its parameters are not the {count} of this model",
    )
    for name in ("lr", "eps", "weight_decay"):
        need(is_number(groups[0].get(name)) and groups[0][name] >= 0, name)
    betas = groups[0].get("betas")
    need(type(betas) in (list, tuple) and len(betas) == 2 and all(is_number(b) and 0 <= b < 1 for b in betas), "betas")
    for number, entry in state["state"].items():
        need(type(number) is int and 0 <= number < count and is_table(entry), "an entry of no parameter")
        for name in ("exp_avg", "exp_avg_sq"):
            need(is_moment(entry.get(name), name, parameters[number].shape), f"{name} of parameter {number}")
        step = entry.get("step")
        step = step.item() if torch.is_tensor(step) and step.numel() == 1 else step
        need(is_number(step) and step >= 0, f"step of parameter {number}")


def is_moment(moment, name, shape):
    """Whether this is a tensor of finite reals of a parameter's shape and, for exp_avg_sq, not below 0."""
    if not torch.is_tensor(moment) or moment.shape != shape or not moment.is_floating_point():
        return False
    return bool(torch.isfinite(moment).all()) and (name != "exp_avg_sq" or not bool((moment < 0).any()))


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
