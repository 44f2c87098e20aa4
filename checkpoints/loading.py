"""From checkpoint files to models and the data to evaluate them on, checked before the work begins."""

import argparse
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode

import data
from checkpoints import checkpoint
from checkpoints.evaluation_options import OVERRIDES
from files.errors import InputError
from files.identity import data_identity, difference
from model import build_model
from runtime import devices, distributed
from systems.options import defaults
from systems.table import system_of
from vocab import Vocabulary, load_vocab

# Flags about a run's folders and logs, not about what was trained
OF_THE_MACHINE = {"model", "data_path", "vocab_path", "logger_name", "model_name", "resume", "device", "workers"}
OF_THE_MACHINE |= {"log_step", "val_step", "save_every", "keep", "sim_memory"}
SPARE = 1 << 28  # numbers that a model may have beyond twice those of its file: 1 GB


def load_model(model_path, **overrides):
    """A checkpoint -> (model in evaluation mode on opt.device, opt, vocabulary).

    overrides replace options of the checkpoint; None leaves an option as it is.  InputError when the checkpoint
    does not fit the vocabulary or the model, TypeError for an override that is no option of a checkpoint.
    """
    loaded, opt, vocab = open_checkpoint(model_path, overrides)
    return trained_model(loaded, opt, model_path), opt, vocab


def open_checkpoint(model_path, overrides):
    """A checkpoint -> (its content, its options with the overrides, its vocabulary); errors as load_model."""
    loaded = checkpoint.load_checkpoint(model_path)
    opt = argparse.Namespace(**vars(loaded["opt"]))
    for name, value in overrides.items():
        if name not in OVERRIDES and not hasattr(opt, name):
            raise TypeError(f"{name} is no option of a checkpoint; those of evaluation are {', '.join(OVERRIDES)}")
        if value is not None:
            setattr(opt, name, value)
    opt.device = devices.choose(overrides.get("device"))  # not the checkpoint's: the training machine may be another
    opt.compile = bool(overrides.get("compile"))
    if loaded.get("vocab") is None:  # a released file: the vocabulary whose size is that of the embedding
        return loaded, opt, load_vocab(opt.vocab_path, opt.data_name, opt.vocab_size, loaded["opt"].data_name)
    if overrides.get("vocab_path") is not None:
        checkpoint.check_vocab(loaded, load_vocab(opt.vocab_path, opt.data_name), model_path)
    return loaded, opt, Vocabulary(loaded["vocab"])


def trained_model(loaded, opt, path):
    """The model of a checkpoint, in evaluation mode on opt.device."""
    check_shapes(build_model, opt, loaded, path)
    model = build_model(opt)
    load_weights(model, loaded)
    model = model.to(distributed.local_device(opt.device)).eval()
    if opt.compile:
        model.compile_parts()
    return model


def load_weights(model, loaded):
    """Every state dict of a checkpoint into its part of the model; check_shapes has compared them."""
    model.load_state_dict(loaded["model"])
    for name, part in model.further_parts().items():
        if name in loaded["further"]:  # a released file lacks the caption model
            part.load_state_dict(loaded["further"][name])


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
        own = getattr(model, name).state_dict() if name in known else {}
        for key in {**own, **state}:
            ours, theirs = described(own.get(key)), described(state.get(key))
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


class Member(NamedTuple):
    """A checkpoint to evaluate and its split, opened and checked."""

    path: str
    model: torch.nn.Module
    opt: argparse.Namespace
    loader: torch.utils.data.DataLoader
    about: dict  # path, kind, epoch and flags, for the report and the JSON file


def open_members(paths, split, fold5, overrides):
    """Open every checkpoint and its split before the first one is evaluated -> [Member].

    InputError for a checkpoint that is missing or damaged, or whose data differ from those of the first.
    """
    members = []
    for path in paths:
        loaded, opt, vocab = open_checkpoint(path, overrides)
        print("Loading dataset")
        loader = data.get_test_loader(split, opt.data_name, vocab, opt.batch_size, opt.workers, opt)
        n, m = loader.dataset.n_images, len(loader.dataset)
        if fold5 and (n % 5 or m % 5):
            raise InputError(
                f"{opt.data_name}/{split}: {n} images do not divide into five folds; "
                "test.py without --fold5 evaluates them all at once"
            )
        about = describe_checkpoint(path, loaded, opt)
        members.append(Member(str(path), trained_model(loaded, opt, path), opt, loader, about))
        if len(members) > 1:
            check_same_data(members[0], members[-1])
    return members


def describe_checkpoint(path, loaded, opt):
    """Facts about a checkpoint for reports: {path, kind, epoch, flags that are not train.py's defaults}.

    epoch: the number, from 0, of the epoch that made it, as in the training's log and the names of its files.
    """
    usual = defaults(opt.model)
    shown = usual.keys() - OF_THE_MACHINE
    flags = {name: value for name, value in vars(opt).items() if name in shown and value != usual[name]}
    ended = loaded.get("step", 0) == 0  # its `epoch` is that of the next step
    epoch = max(0, loaded["epoch"] - ended)
    return {"path": str(path), "kind": system_of(opt).kind(opt), "epoch": epoch, "flags": flags}


def check_same_data(first, member):
    """InputError unless two members have the same items in the same order, of a data set of one name."""
    names = member.opt.data_name, first.opt.data_name
    what = f"the name {names[0]}, not {names[1]}"
    if names[0] == names[1]:
        what = difference(*(data_identity(one.loader.dataset) for one in (member, first)))
    if what:
        raise InputError(
            f"{member.path}: its data have {what}; it cannot be evaluated together with {first.path}; "
            "give --data_path, --data_name"
        )
