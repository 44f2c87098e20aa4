"""torch.compile, which a computer without a working compiler may have asked for."""

import functools

import torch

from files.errors import warn


def compiled(function, **how):
    """The function through torch.compile, one program for all sizes; how: more arguments of torch.compile.

    If the compiler fails, a warning says so once, and the function itself computes from then on.
    """
    fast, failed = torch.compile(function, dynamic=True, **how), False

    @functools.wraps(function)
    def call(*args, **kwargs):
        nonlocal failed
        if not failed:
            try:
                return fast(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                failed = True
                reason = str(error).strip().split("\n")[0]
                warn(f"--compile: {reason[:200]}; torch computes the same without, slower")
        return function(*args, **kwargs)

    return call
