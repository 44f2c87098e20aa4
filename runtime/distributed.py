"""Several processes that work as one, started by torchrun.  With one process everything here does nothing.

Gradients follow one rule: every process holds the same loss, and its .grad is what the loss owes to its own
share; the sum over the processes is the gradient.  See docs/scaling.md.
"""

import contextlib
import datetime
import logging
import os
import sys
import threading
import time
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from files.errors import InputError

BEAT, SILENCE = 2.0, 40.0  # seconds between two signs of life, and without any until the others give up
PATIENCE = datetime.timedelta(minutes=30)  # of one exchange, while all processes show signs of life
PIECE = 1 << 24  # numbers sent at once where an array is shared out: 64 MB

_group = None  # of the exchanges here; DistributedDataParallel has its own, so that their orders are free


def size():
    return dist.get_world_size() if _group else 1


def rank():
    return dist.get_rank() if _group else 0


def is_main():
    """Whether this process is the one that prints and writes files."""
    return rank() == 0


def machine():
    """Which machine this is: what torchrun counts its agents by."""
    return int(os.environ.get("GROUP_RANK", 0)) if _group else 0


def is_first_here():
    """Whether this is the first process of its machine."""
    return not _group or int(os.environ["LOCAL_RANK"]) == 0


def on_main(make, *arguments):
    """make(*arguments) in the main process; in the others something whose methods do nothing and return True."""
    return make(*arguments) if is_main() else Silent()


class Silent:
    def __getattr__(self, name):
        return lambda *arguments: True


def share(n, of=None):
    """The slice of n things that is this process's, or another's; the shares differ by one at most."""
    of = rank() if of is None else of
    return slice(n * of // size(), n * (of + 1) // size())


# ---- beginning and end ----


@contextlib.contextmanager
def joined():
    """Inside, this process is one of those that torchrun started.

    NCCL for CUDA tensors, gloo for the others.  Only the main process prints.  When one process fails or
    dies, all others end within a minute, saying so.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield
        return
    global _group
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    _group = dist.new_group(timeout=PATIENCE)
    if not is_main():
        silence()
    watch = Watch()
    try:
        yield
        leave(watch)
    except SystemExit:  # all processes agreed on it
        leave(watch)
        raise
    except BaseException as error:
        lost = watch.failed(error)
        if lost is None:
            raise
        raise lost from error


def leave(watch):
    global _group
    barrier()
    watch.over.set()
    barrier()
    dist.destroy_process_group()
    _group = None


def own_device(device):
    """--device -> where this process computes: cuda is the GPU of its place on its machine."""
    if not _group or not device.startswith("cuda"):
        return device
    place, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if place >= there:
        raise InputError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', place + 1)} processes on a machine with {there} GPUs; "
            "start one for each (torchrun --nproc_per_node)"
        )
    torch.cuda.set_device(place)
    return f"cuda:{place}"


def silence():
    """All but the main process: errors are said, nothing else."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open to the end
    sys.stderr = Plain(sys.stderr)
    logging.getLogger().setLevel(logging.ERROR)


class Plain:
    """A stream that is no terminal, so that progress bars stay off."""

    def __init__(self, stream):
        self.stream = stream

    def isatty(self):
        return False

    def __getattr__(self, name):
        return getattr(self.stream, name)


class Watch(threading.Thread):
    """Ends this process when another one fails or dies.

    Each process says through the store of torchrun that it lives, and listens to the next one.
    """

    def __init__(self):
        super().__init__(daemon=True)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.TCPStore(address, port, timeout=datetime.timedelta(seconds=SILENCE))
        self.names = f"gsmn/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self.next = (rank() + 1) % size()
        self.over = threading.Event()
        self.say_alive(0)
        barrier()
        self.start()

    def say_alive(self, beat):
        self.store.set(f"{self.names}/alive/{rank()}", str(beat))

    def run(self):
        beat, heard, when = 0, None, time.monotonic()
        while not self.over.wait(BEAT):
            beat += 1
            try:
                self.say_alive(beat)
                sign, reason = self.store.get(f"{self.names}/alive/{self.next}"), self.reason()
            except RuntimeError:
                sign, reason = None, "the connection to the first process is lost"
            if sign != heard:
                heard, when = sign, time.monotonic()
            elif time.monotonic() - when > SILENCE:
                reason = self.publish(f"process {self.next} gives no sign of life")
            if reason and not self.over.is_set():
                print(f"error: process {rank()} of {size()} stops: {reason}", file=sys.stderr, flush=True)
                os._exit(1)

    def publish(self, reason):
        self.store.set(f"{self.names}/ended", reason)
        return reason

    def reason(self):
        """Why all have to end, or None."""
        ended = f"{self.names}/ended"
        return self.store.get(ended).decode() if self.store.check([ended]) else None

    def failed(self, error):
        """Tells the others, and returns None; for a broken connection returns what is behind it, to be raised."""
        self.over.set()
        broken = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        reason = None
        with contextlib.suppress(RuntimeError):  # the store may be gone too
            if not broken:
                self.publish(f"process {rank()} failed: {type(error).__name__}: {error}")
            else:
                time.sleep(BEAT)  # who failed first may still be about to say so
                reason = self.reason()
        if not broken:
            return None
        return InputError(f"process {rank()} of {size()} stops: {reason or 'the connection to another one is lost'}")


def seed_step(seed, step):
    """With several processes random numbers follow from (seed, step, rank): a resumed run repeats its dropout."""
    if _group:
        torch.manual_seed(int(np.random.SeedSequence([seed % 2**64, step, rank()]).generate_state(1, np.uint64)[0]))


# ---- exchanges without gradients ----


def barrier():
    """Waits for all processes."""
    agree(0)


def agree(number):
    """The largest of the processes' numbers (None counts as 0), on all of them."""
    if not _group:
        return number
    tensor = torch.tensor(number or 0)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_group)
    return int(tensor)


def gather_objects(thing):
    """[the thing of every process], on all of them."""
    if not _group:
        return [thing]
    found = [None] * size()
    dist.all_gather_object(found, thing, group=_group)
    return found


def share_out(array, counts=None):
    """Completes an array or CPU tensor (rows, ...) of which every process has filled its share; in place.

    counts: rows of each process, one process after the other, where they are not those of `share`.
    """
    if not _group:
        return array
    whole = torch.as_tensor(array)
    whole = whole.view(len(whole), -1)
    counts = counts or [len(range(len(whole))[share(len(whole), of)]) for of in range(size())]
    for owner, rows in enumerate(whole.split(counts)):
        for piece in rows.split(max(1, PIECE // max(1, whole.shape[1]))):
            dist.broadcast(piece, owner, group=_group)
    return array


# ---- exchanges with gradients ----


class Gather(torch.autograd.Function):
    """The rows of all processes, one process after the other.

    own: what follows is computed alike on all processes, so each keeps the gradient of its own rows.
    Otherwise each process uses all rows in its own way, and their gradients are added.
    """

    @staticmethod
    def forward(ctx, rows, counts, own):
        ctx.counts, ctx.own = counts, own
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=_group)
        return torch.cat([part[:n] for part, n in zip(parts, counts)])

    @staticmethod
    def backward(ctx, grad):
        if not ctx.own:
            grad = grad.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(grad, group=_group)
        first = sum(ctx.counts[: rank()])
        return grad[first : first + ctx.counts[rank()]], None, None


class Sum(torch.autograd.Function):
    """The sum of the processes' tensors; own as in Gather."""

    @staticmethod
    def forward(ctx, x, own):
        ctx.own = own
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=_group)
        return total

    @staticmethod
    def backward(ctx, grad):
        if not ctx.own:
            grad = grad.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(grad, group=_group)
        return grad, None


def gather(rows, counts, own=False):
    """Rows (n, ...) of this process -> those of all (sum(counts), ...); see Gather."""
    return Gather.apply(rows, counts, own) if _group else rows


def total(x, own=False):
    """The sum of every process's x; see Gather for own."""
    return Sum.apply(x, own) if _group else x


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the rows of all processes, on any device; names and numbers as with one process."""

    synced = True

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        """(B, C) or (B, C, ...); a process may have no row."""
        if not self.training:
            return super().forward(x)
        given, x = x.dtype, x.to(self.running_mean.dtype)  # sums of bfloat16 would not even count rows
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        rows = x.new_tensor([x.numel() // x.shape[1]])
        count, mean = total(torch.cat([rows, x.sum(dims)])).split([1, x.shape[1]])
        count = count.detach()
        alone = count <= 1  # one value has no variance; running statistics stand in, as in graph.batch_norm
        mean = torch.where(alone, self.running_mean, mean / count)
        centred = x - mean.view(shape)
        variance = total(centred.square().sum(dims)) / count
        self.remember(mean.detach(), variance.detach(), count, alone)
        variance = torch.where(alone, self.running_var, variance)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(given)

    @torch.no_grad()
    def remember(self, mean, variance, count, alone):
        """Running statistics, of the unbiased variance, as torch keeps them."""
        momentum = self.momentum * (~alone).to(mean)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)
        self.num_batches_tracked += 1


def replicate(module, model):
    """`module`, whose forward gives losses of `model`, so that backward leaves the sum of all gradients."""
    if not _group:
        return module
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.__class__ = SyncedBatchNorm  # the same parameters, buffers and names
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of (8, 1): no cost
    replica = DistributedDataParallel(module)
    replica.broadcast_buffers = False  # statistics are alike on all processes: nothing to send round
    replica.register_comm_hook(None, add_gradients)
    return replica


def add_gradients(state, bucket):
    """Added, not averaged: they are parts of one sum."""
    done = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return done.then(lambda future: future.value()[0])
