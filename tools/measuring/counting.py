"""Counts the work of a GPU without one: kernels started, bytes they touch, waits of the host.

    with Counter() as counter:
        step()
    print(counter.launches, counter.bytes, counter.waits, counter.most(5))

Every ATen operator that computes counts as one kernel; views and empty tensors count as none.  The bytes of an
operator are those of the distinct elements of its tensor arguments and results, read or written once, as if nothing
stayed in a cache.  Both are estimates: some operators start two kernels, and a GRU is one operator here whatever cuDNN
makes of it.
"""

from collections import Counter as Tally

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LAUNCH_SECONDS = 4.5e-6  # host time to start a kernel, assumed
BYTES_PER_SECOND = 2.5e12  # of an H100's 3.35 TB/s, assumed

# no kernel, though their schema does not call them views
FREE = {"aten::_unsafe_view", "aten::_reshape_alias", "aten::lift_fresh", "aten::set_", "aten::resize_"}
FREE |= {f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")}
# the host needs their value before it can go on
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2"}


class Counter(TorchDispatchMode):
    """Counts operators, forward and backward, while it is active."""

    def __init__(self):
        super().__init__()
        self.launches = self.bytes = self.waits = 0
        self.launches_of, self.bytes_of = Tally(), Tally()  # by operator

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        self.waits += name in WAITS
        if name not in FREE and not function.is_view and name.startswith(("aten::", "prims::")):
            size = sum(touched(x) for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
            self.launches += 1
            self.bytes += size
            self.launches_of[name] += 1
            self.bytes_of[name] += size
        return result

    def seconds(self):
        """Time on a GPU by a simple model: starting the kernels or moving the bytes, whichever takes longer."""
        return max(self.launches * LAUNCH_SECONDS, self.bytes / BYTES_PER_SECOND)

    def most(self, count=10):
        """The operators that touch most bytes: (name, launches, bytes)."""
        return [(name, self.launches_of[name], size) for name, size in self.bytes_of.most_common(count)]


def touched(x):
    """Bytes of the distinct elements of a strided tensor; an expanded dimension counts once."""
    if x.layout != torch.strided:
        return 0
    elements = 1
    for size, stride in zip(x.shape, x.stride()):
        elements *= size if stride or not size else 1
    return elements * x.element_size()
