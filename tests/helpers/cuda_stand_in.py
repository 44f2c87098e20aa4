"""A stand-in for a GPU: tensors that compute on the CPU and carry the label cuda:0, with a record of what happens.

    with StandIn() as gpu:
        model.to("cuda:0"); step()
    gpu.launches, gpu.waits, gpu.copies, gpu.mixes

A label belongs to a storage, so views share it.  Python code sees it as `tensor.device`; every operator passes it on to
its results.  What is recorded, with the line of this repository that caused it:

launches  operators that would start kernels (a GRU over a sequence is one, as cuDNN's call is; views are none)
waits     places where the host needs a number from the device before it can go on
copies    copies from the host that block it, because their memory is not pinned or non_blocking is missing
sent      copies from pinned memory that do not block
mixes     operators whose arguments are on different devices; CUDA would raise an error there
halves    GRUs that autocast would run in float16, as it does with all of cuDNN's recurrent layers

It cannot see: kernels inside of cuDNN and of other libraries, memory, streams (a use of data before it has arrived),
dtypes and sizes that only CUDA's kernels refuse, and code chosen in C++ by the real device.
"""

import contextlib
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.utils.checkpoint
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tools.measuring.work import FREE, WAITS

ROOT = str(Path(__file__).resolve().parents[2])
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MORE_WAITS = WAITS | {"aten::equal", "aten::is_nonzero", "aten::argwhere", "aten::bincount", "aten::unique_consecutive"}
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
HOST_ARGUMENTS = {"aten::_pack_padded_sequence", "aten::_pack_padded_sequence_backward"}  # lengths stay on the host


class Labels:
    """A set of storages; one that is freed leaves it."""

    def __init__(self):
        self.known = {}

    def add(self, x):
        reference = StorageWeakRef(x.untyped_storage())
        self.known[reference.cdata] = reference

    def discard(self, x):
        self.known.pop(x.untyped_storage()._cdata, None)

    def __contains__(self, x):
        return isinstance(x, torch.Tensor) and x.layout == torch.strided and x.untyped_storage()._cdata in self.known


class StandIn:
    """What a with statement gives: the records, see above."""

    def __init__(self):
        self.cuda, self.pinned = Labels(), Labels()
        self.quiet = False  # inside of what counts as one operator
        self.inside = False  # inside of a call with a tensor on the device
        self.clear()

    def clear(self):
        self.operators, self.waits, self.copies, self.sent, self.mixes, self.halves = Counter(), [], [], [], [], []

    @property
    def launches(self):
        return sum(self.operators.values())

    def __enter__(self):
        self.stack, functions = contextlib.ExitStack(), Functions(self)
        for patch in patches(self, functions):
            self.stack.enter_context(patch)
        self.stack.enter_context(Operators(self))
        self.stack.enter_context(functions)
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def device(self, x):
        return CUDA if x in self.cuda else CPU

    def launch(self, name):
        if not self.quiet and name not in FREE and name not in WAITS:
            self.operators[name.removeprefix("aten::")] += 1

    def wait(self, name):
        if not self.quiet:
            self.waits.append(f"{name} {place()}")

    def sends(self, source, non_blocking, name):
        """A copy from the host to the device."""
        free = non_blocking and source in self.pinned
        (self.sent if free else self.copies).append(f"{name} {tuple(source.shape)} {place()}")

    @contextlib.contextmanager
    def one_operator(self, name):
        """What happens inside counts as one operator."""
        self.launch(name)
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before


def place():
    """The innermost line of this repository, tests' helpers aside, that is being executed."""
    frame = sys._getframe(1)
    while frame:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and not any(part in name for part in ("/tests/helpers/", "/site-packages/")):
            return f"{name.removeprefix(ROOT + '/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class Operators(TorchDispatchMode):
    """Every ATen operator, forward and backward: passes labels on and records."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        gpu, kwargs, name = self.gpu, kwargs or {}, function._schema.name
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if not any(x in gpu.cuda for x in tensors):
            result = function(*args, **kwargs)
            if not tensors and gpu.inside and isinstance(result, torch.Tensor):  # made in C++
                gpu.launch(name)
                gpu.cuda.add(result)
            return result
        if name == "aten::copy_":
            self.copy(*args, **kwargs)
            return function(*args, **kwargs)
        if not gpu.quiet:
            self.check(function, name, args, tensors)
        if not function.is_view:
            gpu.launch(name)
        with gpu.one_operator("aten::empty"):
            result = function(*args, **kwargs)
        on_device = result[:1] if name == "aten::_pack_padded_sequence" else result  # sizes of batches stay on the host
        for x in tree_leaves(on_device):
            if isinstance(x, torch.Tensor):
                gpu.cuda.add(x)
        return result

    def copy(self, target, source, non_blocking=False):
        gpu = self.gpu
        if target in gpu.cuda and source in gpu.cuda:
            gpu.launch("aten::copy_")
        elif target in gpu.cuda:
            gpu.sends(source, non_blocking, "copy_")
        elif not (non_blocking and target in gpu.pinned):
            gpu.wait("copy_ to the host")

    def check(self, function, name, args, tensors):
        gpu = self.gpu
        if name in MORE_WAITS or (name == "aten::repeat_interleave" and len(tensors) == 1 and len(args) < 2):
            gpu.wait(name)
        if name in INDEXING:
            indices = [x for x in args[1] if x is not None]
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                gpu.wait(f"{name} by a mask")
            for x in indices:
                if x not in gpu.cuda:
                    gpu.sends(x, False, f"{name} by an index on the host")
            tensors = [x for x in tensors if not any(x is y for y in indices)]
        scalars_too = name.startswith(("aten::_foreach", "aten::_fused")) or torch.Tag.pointwise in function.tags
        hosts = [x for x in tensors if x not in gpu.cuda and (x.dim() or not scalars_too)]
        if hosts and name not in HOST_ARGUMENTS and name not in INDEXING[1:4]:
            gpu.mixes.append(f"{name} {[tuple(x.shape) for x in hosts]} on the host, {place()}")


class Functions(TorchFunctionMode):
    """Calls of torch that name a device, ask for one, or that CUDA does in one kernel where the CPU takes several."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name == "__get__":
            if getattr(function, "__self__", None) is torch.Tensor.device:
                return self.gpu.device(args[0])
            return function(*args, **kwargs)
        special = getattr(self, f"call_{name}", None)
        if special:
            return special(function, *args, **kwargs)
        if kwargs.get("device") is not None or kwargs.get("pin_memory"):
            return self.make(function, name, args, kwargs)
        with self.inside(any(x in self.gpu.cuda for x in tree_leaves((args, kwargs)))):
            return function(*args, **kwargs)

    @contextlib.contextmanager
    def inside(self, is_so):
        before, self.gpu.inside = self.gpu.inside, is_so
        try:
            yield
        finally:
            self.gpu.inside = before

    def make(self, function, name, args, kwargs):
        """A new tensor on a device that is named."""
        device = torch.device(kwargs.pop("device", None) or "cpu")
        pinned = kwargs.pop("pin_memory", False)
        if name in ("as_tensor", "asarray") and isinstance(args[0], torch.Tensor):
            return self.move(args[0], device, kwargs.get("dtype"))
        with self.gpu.one_operator("aten::empty"), self.inside(False):
            x = function(*args, **kwargs)
        if device.type == "cuda":
            if name in ("tensor", "as_tensor", "asarray"):
                self.gpu.sends(x, False, name)
            self.gpu.launch(f"aten::{name}")
            self.gpu.cuda.add(x)
        else:
            self.gpu.cuda.discard(x)
        if pinned:
            self.gpu.pinned.add(x)
        return x

    def move(self, x, device, dtype=None, non_blocking=False, copy=False, **other):
        gpu, here = self.gpu, self.gpu.device(x)
        if device is None or device.type == here.type:
            return x.to(dtype=dtype or x.dtype, copy=copy, **other)
        with gpu.one_operator("aten::empty"):
            y = x.to(dtype=dtype or x.dtype, copy=True, **other)
        if device.type == "cuda":
            gpu.sends(x, non_blocking, "to")
            gpu.cuda.add(y)
        else:
            gpu.wait("copy to the host")
            gpu.cuda.discard(y)
        return y

    def call_to(self, function, x, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):  # like another tensor
            return self.move(x, self.gpu.device(args[0]), args[0].dtype, **kwargs)
        device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        for argument in args:
            if isinstance(argument, torch.dtype):
                dtype = argument
            elif isinstance(argument, bool):
                kwargs.setdefault("non_blocking", argument)
            elif argument is not None:
                device = argument
        return self.move(x, None if device is None else torch.device(device), dtype, **kwargs)

    def call_cpu(self, function, x):
        return self.move(x, CPU)

    def call_pin_memory(self, function, x, *device):
        if x in self.gpu.cuda:
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor'; only dense CPU tensors can be pinned")
        x = x.clone()
        self.gpu.pinned.add(x)
        return x

    def call_is_pinned(self, function, x, *device):
        return x in self.gpu.pinned

    def call_tolist(self, function, x):
        if x in self.gpu.cuda:
            self.gpu.wait("tolist")
        return function(x)

    def call_numpy(self, function, x, **how):
        if x in self.gpu.cuda:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return function(x, **how)

    call___array__ = call_numpy

    def call_dropout(self, function, x, p=0.5, training=True, inplace=False):
        if x not in self.gpu.cuda or not training or not 0 < p < 1:
            return function(x, p, training, inplace)
        return torch.native_dropout(x, p, True)[0]

    def call_gru(self, function, *args):
        if not any(x in self.gpu.cuda for x in tree_leaves(args)):
            return function(*args)
        if torch.is_autocast_enabled("cpu"):  # where the stand-in keeps CUDA's
            self.gpu.halves.append(place())
        flat = tree_leaves(args)
        return OneOperator.apply(self.gpu, function, args, *[x for x in flat if isinstance(x, torch.Tensor)])

    call_lstm = call_gru


class OneOperator(torch.autograd.Function):
    """A recurrent layer over a whole sequence: one operator forward, one backward."""

    @staticmethod
    def forward(ctx, gpu, function, args, *tensors):
        plain = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)  # not those of a checkpoint outside
        with gpu.one_operator("cudnn_rnn"), torch.enable_grad(), torch.autocast("cpu", enabled=False), plain:
            copies = [x.detach().requires_grad_(x.requires_grad) for x in tensors]
            fresh = iter(copies)
            outputs = function(*replace(args, fresh))
        ctx.gpu, ctx.inputs, ctx.outputs = gpu, copies, outputs
        return tuple(x.detach() for x in outputs)

    @staticmethod
    def backward(ctx, *grads):
        wanted = [x for x in ctx.inputs if x.requires_grad]
        with ctx.gpu.one_operator("cudnn_rnn_backward"):
            found = iter(torch.autograd.grad(ctx.outputs, wanted, grads, allow_unused=True))
        return (None, None, None, *(next(found) if x.requires_grad else None for x in ctx.inputs))


def replace(args, fresh):
    """args with every tensor replaced by the next of `fresh`."""
    if isinstance(args, torch.Tensor):
        return next(fresh)
    return type(args)(replace(x, fresh) for x in args) if isinstance(args, (tuple, list)) else args


class Idle:
    """A stream, or an event, on which everything has already happened."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def patches(gpu, functions):
    """What torch.cuda says on a machine with one GPU; nothing of it asks for a driver."""
    state = [torch.zeros(16, dtype=torch.uint8)]
    group = torch._C._group_tensors_by_device_and_dtype
    autocast, engine = torch.autocast, torch.autograd._engine_run_backward

    def grouped(lists, *more):
        found = group(lists, *more)
        return {(gpu.device(value[0][0][0]), key[1]): value for key, value in found.items()}

    def run_backward(*args, **kwargs):
        with functions, functions.inside(True):  # functions called on the way back are seen too
            return engine(*args, **kwargs)

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "is_initialized": lambda: True,
        "manual_seed_all": lambda seed: state[0].fill_(seed % 251),
        "get_rng_state_all": lambda: [state[0].clone()],
        "set_rng_state_all": lambda states: state.__setitem__(slice(0, len(states)), [x.clone() for x in states]),
        **dict.fromkeys(("Stream", "stream", "current_stream"), Idle),
        "is_current_stream_capturing": lambda: False,
        "mem_get_info": lambda *device: (70 << 30, 80 << 30),
        **dict.fromkeys(("memory_reserved", "memory_allocated", "max_memory_allocated"), lambda *device: 0),
        **dict.fromkeys(("synchronize", "reset_peak_memory_stats", "empty_cache"), lambda *device: None),
        "get_device_properties": lambda *device: SimpleNamespace(
            total_memory=80 << 30, name="stand-in", major=9, minor=0
        ),
    }
    for name, answer in answers.items():
        yield mock.patch.object(torch.cuda, name, answer)
    shapes = {"default": lambda x: {"shape": x.shape, "dtype": x.dtype}}  # hooks of C++ see the real device
    yield mock.patch.dict(torch.utils.checkpoint._allowed_determinism_checks_to_fns, shapes)
    yield mock.patch.object(torch.accelerator, "is_available", lambda *a: True)
    yield mock.patch.object(torch.accelerator, "current_accelerator", lambda *a, **k: CUDA)
    yield mock.patch.object(torch.accelerator, "current_stream", Idle)
    yield mock.patch.object(torch.Tensor, "record_stream", lambda x, stream: None)  # torch 2.6 refuses an Idle
    yield mock.patch.object(torch.autograd, "_engine_run_backward", run_backward)
    yield mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped)
    yield mock.patch.object(
        torch, "autocast", lambda device, *a, **k: autocast("cpu" if device == "cuda" else device, *a, **k)
    )
