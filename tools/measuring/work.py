"""Work for the benchmark: random batches of real sizes, and a counter of what a GPU would do with them.

    with Counter() as counter:
        step()
    print(counter.launches, counter.bytes, counter.waits)

Every ATen operator that computes counts as one kernel; views and empty tensors count as none.  The bytes of an
operator are those of the distinct elements of its tensor arguments and results, read or written once, as if nothing
stayed in a cache.  Both are estimates: some operators start two kernels, and a GRU is one operator here whatever cuDNN
makes of it.
"""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from files.text import read_lines
from runtime.batches import Batch
from systems.table import inputs_of

VOCABULARY = 8481  # words, as of Flickr30K

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

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        self.waits += name in WAITS
        if name not in FREE and not function.is_view and name.startswith(("aten::", "prims::")):
            self.launches += 1
            self.bytes += sum(touched(x) for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
        return result


def touched(x):
    """Bytes of the distinct elements of a strided tensor; an expanded dimension counts once."""
    if x.layout != torch.strided:
        return 0
    elements = 1
    for size, stride in zip(x.shape, x.stride()):
        elements *= size if stride or not size else 1
    return elements * x.element_size()


def caption_lengths(count, file=None):
    """Words of so many captions: 5 to 30, 12.4 on average, or drawn from a file of word ids; always the same ones."""
    rng = np.random.default_rng(0)
    if file is None:
        return np.clip(np.round(4 + rng.gamma(4.5, 8.4 / 4.5, count)), 5, 30).astype(int).tolist()
    return rng.choice([line.count(",") + 1 for line in read_lines(file) if line], count).tolist()


def dependencies(lengths):
    """A tree for each caption: word k depends on word k / 2."""
    return [[[0, 0]] + [[word // 2, word] for word in range(1, n)] for n in lengths]


def random_batch(opt, lengths, regions=36):
    """A Batch of random features (B, R, img_dim) and captions of these lengths, for a model of these flags."""
    rng, pairs, lengths = np.random.default_rng(0), len(lengths), sorted(lengths, reverse=True)
    captions = torch.zeros(pairs, lengths[0], dtype=torch.int64)
    for row, n in zip(captions, lengths):
        row[:n] = torch.as_tensor(rng.integers(4, VOCABULARY, n))
    images = torch.as_tensor(rng.random((pairs, regions, opt.img_dim), np.float32))
    boxes = torch.as_tensor(rng.random((pairs, regions, 4), np.float32))
    labels = masks = None
    if inputs_of(opt).label_length:
        labels = torch.zeros(pairs, opt.max_len + 1, dtype=torch.int64)
        labels[:, : lengths[0]] = captions
        masks = (torch.arange(opt.max_len + 1) <= torch.tensor(lengths).unsqueeze(1)).float()
    return Batch(images, captions, lengths, list(range(pairs)), boxes, dependencies(lengths), labels, masks)
