"""Several processes, started by torchrun, that train or evaluate one model together.

With one process every function here returns at once.  Gradients follow one rule.  Every process holds the same loss.
A weight's .grad is the part of the gradient that comes from the process's own share of the batch, and the sum over the
processes is the whole gradient.  docs/scaling.md, "What is computed where".
"""

import atexit
import contextlib
import datetime
import logging
import os
import sys
import threading

import torch
import torch.distributed as dist

from files.errors import InputError, ending

JOIN_LIMIT = datetime.timedelta(minutes=5)  # for all processes to find one another
JOIN_NOTICE = 10.0  # seconds until a line says that this process waits for the others
EXCHANGE_LIMIT = datetime.timedelta(minutes=30)  # for one exchange; the other processes may be writing files meanwhile

RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")  # variables that hold a process's number among all
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")  # and on its machine

_gloo = []  # the gloo part of this process's groups, see start_group
atexit.register(_gloo.clear)


def size():
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def is_main():
    """Whether this process is the one that prints and writes files."""
    return rank() == 0


def on_main(make, *arguments):
    """make(*arguments) in the main process; in the others an object whose methods do nothing and return True."""
    return make(*arguments) if is_main() else Silent()


class Silent:
    def __getattr__(self, name):
        return lambda *arguments: True


def nth_part(n, k, count):
    """The slice of n items that part k of `count` has; sizes differ by one at most, and a part may be empty."""
    return slice(n * k // count, n * (k + 1) // count)


def local_slice(n, process=None):
    """The slice of n items that this process (or process number `process`) works on."""
    return nth_part(n, rank() if process is None else process, size())


# ---- the environment that torchrun, Slurm, Kubeflow or mpirun sets ----


def environment_number(*names):
    """The first of these environment variables that is set, as a whole number, or None; InputError for other text."""
    for name in names:
        if text := os.environ.get(name):
            if not text.isascii() or not text.isdigit():
                raise InputError(f"the environment variable {name} is '{text}', not a whole number; unset it")
            return int(text)
    return None


def check_environment(count):
    """Complete the variables by which the processes meet; InputError where they cannot."""
    number, port = environment_number(*RANKS), environment_number("MASTER_PORT") or 29500  # torchrun's default
    address = os.environ.get("MASTER_ADDR")
    if number is None or number >= count or not address or port > 65535:
        raise InputError(
            f"WORLD_SIZE is {count}, but RANK is {number}, MASTER_ADDR is {address}, MASTER_PORT is {port}; ranks go "
            f"from 0 to {count - 1}, ports to 65535; start with torchrun or srun, or unset WORLD_SIZE"
        )
    os.environ.update(RANK=str(number), MASTER_PORT=str(port))


def local_rank():
    """This process's number on its machine; without a variable that says it, the rank counted over the GPUs."""
    number = environment_number(*LOCAL_RANKS)
    return (environment_number(*RANKS) or 0) % max(1, torch.cuda.device_count()) if number is None else number


def local_device(device):
    """The device of this process for --device; a GPU becomes the current one, which torch's streams refer to.

    With several processes `cuda` is the GPU of the local rank.  Call it before any allocation, or all of them allocate
    on GPU 0.
    """
    if not device.startswith("cuda"):
        return device
    if (environment_number("WORLD_SIZE") or 1) > 1:
        device, gpus = f"cuda:{local_rank()}", torch.cuda.device_count()
        if 0 < gpus <= local_rank():
            raise InputError(f"{device} is missing, there are {gpus} GPUs; start a process for each")
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)
    return device


# ---- beginning and end ----


@contextlib.contextmanager
def process_group():
    """Inside, this process works together with the others of its run.

    NCCL for CUDA tensors, gloo for the others.  Only the main process prints.  When a process fails or dies, torchrun
    ends the others within 30 seconds; a process that notices earlier, in an exchange, ends with an InputError.
    """
    count = environment_number("WORLD_SIZE") or 1
    if count == 1:
        yield
        return
    check_environment(count)
    join(count)
    if not is_main():  # it prints errors only
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open to the end
        sys.stderr.isatty = lambda: False  # progress bars stay off
        logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
        leave()
    except SystemExit:  # all processes agreed on it
        leave()
        raise
    except (Exception, KeyboardInterrupt) as error:
        lost = isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error))
        atexit.register(end_at_once, 2 if lost else ending(error)[0])
        if not lost:
            raise
        raise InputError(
            f"process {rank()} of {size()} stops: lost the connection to another process, which failed or was killed"
        ) from error


def end_at_once(code):
    """The end of a process that did not leave its groups, so that gloo's threads still run.

    One that asks for the GIL while Python ends, to free a tensor, would abort the process (SIGABRT).
    """
    with contextlib.suppress(OSError, ValueError):  # a reader that is gone, a closed stream
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def join(count):
    """Meet the other processes; InputError where they do not come within JOIN_LIMIT."""
    others = "the others" if os.environ["RANK"] == "0" else "process 0"
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    line = f"process {os.environ['RANK']} of {count} waits for {others} at {where}"
    notice = threading.Timer(JOIN_NOTICE, print, [f"{line} ..."], {"file": sys.stderr, "flush": True})
    notice.daemon = True
    notice.start()
    try:
        start_group(*next(dist.rendezvous("env://", timeout=JOIN_LIMIT)))
        barrier()
    except (RuntimeError, ValueError) as error:  # torch.distributed's errors are RuntimeErrors
        raise InputError(
            f"{line}: not met within {JOIN_LIMIT.total_seconds():.0f} s; every process needs the same MASTER_ADDR, "
            f"MASTER_PORT and WORLD_SIZE, and a RANK of its own ({str(error).splitlines()[0]})"
        ) from error
    finally:
        notice.cancel()


def start_group(store, number, count):
    """The group of all processes, which `leave` ends.

    gloo's thread takes the GIL to free a tensor that Python has dropped.  In torch 2.6 a group's destructor keeps the
    GIL while it waits for this thread: a deadlock.  The destructor of the group's gloo part releases the GIL, so
    `_gloo` keeps this part until Python ends.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=EXCHANGE_LIMIT)
    _gloo.append(dist.group.WORLD._get_backend(torch.device("cpu")))


def leave():
    """Wait for the other processes, then end the group."""
    barrier()
    dist.destroy_process_group()


# ---- exchanges without gradients ----


def barrier():
    """Waits for all processes."""
    largest(0)


def largest(number):
    """The largest of the processes' numbers, on all of them."""
    if size() == 1:
        return number
    tensor = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return type(number)(tensor)


def exchange_slices(array, counts=None):
    """Completes an array or CPU tensor (rows, ...) of which every process has filled its slice; in place.

    counts: rows of each process, one process after the other, where they are not those of `local_slice`.
    """
    if size() > 1:
        whole = torch.as_tensor(array)
        counts = counts or [len(range(len(whole))[local_slice(len(whole), process)]) for process in range(size())]
        for process, rows in enumerate(whole.split(counts)):
            dist.broadcast(rows, process)
    return array


def add_gradients(parameters):
    """Every parameter's .grad becomes its sum over the processes, in one exchange; a missing one counts as 0."""
    if size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for p, grad, whole in zip(trained, grads, flat.split([p.numel() for p in trained])):
        p.grad = grad.copy_(whole.view_as(grad))  # which keeps the layout in memory that the optimiser expects


# ---- exchanges with gradients ----


def gather(rows, counts):
    """Rows (n, ...) of this process -> those of all (sum(counts), ...), one process after the other.

    counts: n of each process.  Only this process's rows have a gradient: that of its own use of the result.
    """
    if size() == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    parts = [part[:n] for part, n in zip(parts, counts)]
    parts[rank()] = rows
    return torch.cat(parts)


def gather_for_all(rows, counts):
    """The same, where each process uses all rows in its own way: a row's gradient is the sum over the processes."""
    every = gather(rows, counts)
    if size() > 1 and every.requires_grad:
        every.register_hook(sum_of_all)
    return every


def sum_of_all(x):
    """The sum of every process's x, without a gradient."""
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


def total(x):
    """The sum of every process's x; so is its gradient the sum of every process's gradient of the result."""
    return gather_for_all(x.unsqueeze(0), [1] * size()).sum(0) if size() > 1 else x


def total_loss(loss):
    """The sum of every process's loss.  All processes hold it, and the gradient of each is that of its own loss."""
    return total(loss.detach()) + (loss - loss.detach()) if size() > 1 else loss
