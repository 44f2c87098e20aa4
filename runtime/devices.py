"""Where to compute: the value of --device, checked on this machine."""

import torch

from files.errors import InputError, warn
from runtime import distributed


def default_device():
    """cuda where this process can use it, else cpu; a warning where there is a card that it cannot use."""
    if not torch.cuda.is_available():
        return "cpu"
    if usable("cuda"):
        return "cuda"
    warn("there is a GPU, but torch cannot use it (--device cuda says the same): computing on the CPU")
    return "cpu"


def usable(name):
    """Whether this process can allocate a tensor on the device of this name."""
    try:
        return torch.zeros(1, device=distributed.local_device(name)).item() == 0
    except (RuntimeError, AssertionError, NotImplementedError):  # each backend has its own way to be missing
        return False


def choose(name=None):
    """--device -> the device to use: `name`, or the default for None.  InputError where it cannot be used here."""
    name = name or default_device()
    if not usable(name):
        raise InputError(
            f"--device: {name} cannot be used here, {default_device()} can; devices are cpu, cuda, cuda:1, ..."
        )
    return str(torch.device(name))
