"""Saves and restores the state of a training run (docs/method.md, section 5)."""

import argparse
import contextlib
import logging
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoints import checkpoint
from checkpoints.checkpoint import is_number
from checkpoints.loading import load_weights
from files.errors import InputError
from files.identity import difference
from files.pickles import one_line
from files.writing import lock_folder
from runtime import devices, distributed
from systems.options import of_weights


@dataclass
class Progress:
    """Counters and best score of a run, named as in a checkpoint."""

    epoch: int = 0  # the epoch under way
    step: int = 0  # steps of this epoch that are done
    Eiters: int = 0  # steps of all epochs that are done
    best_rsum: float = 0.0  # the best validation so far, by --select
    best_epoch: int = -1  # the epoch of that validation; -1 where it is not known
    validate_due: bool = False  # a signal interrupted a validation, which the resumed run repeats


def refuse_used_folder(folder):
    """InputError where a folder holds checkpoints: a new run there would overwrite an earlier one's."""
    names = sorted(path.name for path in Path(folder).glob("*.pth.tar") if is_of_a_run(path))
    if names:
        raise InputError(
            f"{folder}: holds {len(names)} checkpoints of an earlier run ({names[-1]}), which a new run would "
            f"overwrite; go on with that run (--resume {folder}), or give the new one a folder of its own "
            "(--logger_name, --model_name)"
        )


def is_of_a_run(path):
    """Whether a checkpoint has a name that training gives it."""
    name = os.path.basename(path)
    return name == checkpoint.BEST or name.startswith("checkpoint_")


def settle_folders(opt, asked, given, saved, path):
    """Set the folders of a resumed run in `opt`; False where it leaves the one of `path` and begins anew elsewhere.

    asked, given: the command line's flags, and which of them were given.  Without them the run goes on in the folder
    of its checkpoint `path`, with the log that belongs to this folder.  It may have been copied or moved, so the paths
    in the checkpoint only say how the two folders lie to each other.  InputError where this does not tell them.
    """
    here, stored = os.path.dirname(path) or ".", saved["opt"]
    folder = here if is_of_a_run(path) and "optimizer" in saved else None
    if "model_name" in given:
        folder = asked.model_name
    elif "logger_name" in given and stored.model_name in ("", stored.logger_name):
        folder = asked.logger_name
    goes_on = folder is not None and os.path.isdir(folder) and os.path.samefile(folder, here)
    log = asked.logger_name if "logger_name" in given else folder and log_of(folder, stored, goes_on)
    if not folder or not log:
        raise InputError(f"{path}: where its run writes cannot be told from here; give --model_name and --logger_name")
    if not goes_on:
        refuse_used_folder(folder)
    opt.model_name, opt.logger_name = str(folder), log
    return goes_on


def log_of(folder, stored, exists):
    """The --logger_name that lies to `folder` as those in `stored` do, or None where `folder` has another name.

    exists: it must be there, since otherwise the checkpoints alone were moved; but for one within `folder`.
    """
    checkpoints, log = map(os.path.abspath, (stored.model_name or stored.logger_name, stored.logger_name))
    found = os.path.normpath(os.path.join(folder, os.path.relpath(log, checkpoints)))
    back = os.path.join(found, os.path.relpath(checkpoints, log))
    if os.path.abspath(back) != os.path.abspath(folder):
        return None
    within = os.path.commonpath([log, checkpoints]) == checkpoints
    missing = exists and distributed.is_main() and not within and not os.path.isdir(found)
    return None if missing else found


def written(folder):
    """The checkpoints of a folder, and when each was written."""
    return {(file.name, file.stat().st_mtime_ns) for file in Path(folder).glob("*.pth.tar")}


def lock_run(opt, before=None):
    """Keep other trainings out of this run's folders until .close(), or the end of this process.

    before: what `written` said of the folder that the run goes on in, when its checkpoint was read.  InputError where
    another training is at work in the folders, or has been since they were looked at.
    """
    with contextlib.ExitStack() as held:
        for folder in {os.path.realpath(name): name for name in (opt.model_name, opt.logger_name)}.values():
            lock = lock_folder(folder)
            if lock is None:
                raise InputError(
                    f"{folder}: another training is at work in this folder; wait for its end, or give this one "
                    "folders of its own (--model_name, --logger_name)"
                )
            held.enter_context(lock)
            os.register_at_fork(after_in_child=lock.close)  # a worker that outlives this process must not hold it
        if before is None:
            refuse_used_folder(opt.model_name)
        elif written(opt.model_name) != before:
            raise InputError(f"{opt.model_name}: another training wrote checkpoints meanwhile; start this one again")
        return held.pop_all()


def load_resumed(path):
    """A file, or a folder whose newest complete checkpoint is taken -> (its path, its content, what `written` says).

    A warning says which newer checkpoint lies beside it, since the run repeats what led there.
    """
    path = checkpoint.find_checkpoint(path, resume=True, say=logging.warning)
    folder = os.path.dirname(path) or "."
    before, saved = written(folder), checkpoint.load_checkpoint(path)
    beside = checkpoint.ordered(folder, ["checkpoint_*.pth.tar"])[:1]
    if beside and checkpoint.read_checkpoint(beside[0], lazily=True)["Eiters"] > saved["Eiters"]:
        logging.warning("%s: older than %s, which a run in this folder writes again", path, beside[0])
    if "optimizer" not in saved:
        logging.warning("%s: a released checkpoint, without the optimiser's state: Adam starts anew", path)
    logging.info("=> resuming %s (epoch %d, step %d)", path, saved["epoch"], saved.get("step", 0))
    return path, saved, before


def resume_options(opt, given, saved, path, say):
    """Flags of a resumed run: those saved in the checkpoint `path`, overridden by those of the command line.

    InputError for another flag that determines the weights; `say` gets a message for every other contradiction.
    """
    strange = sorted(f"--{name}" for name in given - set(vars(saved)))
    if strange:
        raise InputError(f"{path}: holds {saved.model}, which has no {', '.join(strange)}; give --model {saved.model}")
    fixed = of_weights(saved.model)
    merged = argparse.Namespace(**{**vars(saved), "resume": opt.resume})
    if "device" not in given and not devices.usable(merged.device):
        say(f"--device: {merged.device} in the checkpoint, which this machine lacks; {opt.device} is used")
        merged.device = opt.device
    for name in sorted(given & set(vars(saved)) - {"resume", "model_name", "logger_name"}):
        old, new = getattr(saved, name), getattr(opt, name)
        if old == new:
            continue
        if name in fixed:
            raise InputError(f"{path}: was made with --{name} {old}, but --{name} is {new}; leave it out")
        say(f"--{name}: {old} in the checkpoint, {new} on the command line; the command line's is used")
        setattr(merged, name, new)
    return merged


def check_data(saved, identity, path):
    """InputError where a run stopped within an epoch on other items than those of `identity`; else a warning."""
    known = {**identity, **saved.get("data", {})}
    if saved.get("step") and (what := difference(known, identity)):
        raise InputError(
            f"{path}: stopped within an epoch of other training data ({what}); give the data it was trained on"
        )
    if what := difference(known, identity, features=True):
        logging.warning("%s: trained on other data: %s", path, what)


def restore(saved, model, optimizer, path="--resume"):
    """Restore model, optimiser and random states from a checkpoint -> its Progress; InputError where one is broken."""
    load_weights(model, saved)
    if "optimizer" in saved:
        restore_optimizer(saved["optimizer"], model, optimizer, path)
        with one_line(path, "its random states are broken; resume from another checkpoint"):
            restore_rng(saved["rng"])
    return Progress(**{name: saved[name] for name in vars(Progress()) if name in saved})


@torch.no_grad()
def restore_optimizer(saved, model, optimizer, path):
    """Restore this run's Adam from the saved state of one; InputError where that does not fit the model.

    Of the settings only the numbers are taken: the others, as amsgrad, need entries that a state may lack.
    """
    parameters, state = list(model.parameters()), optimizer.state_dict()
    with one_line(path, "its optimiser's state is broken; resume from another checkpoint"):
        (group,) = saved["param_groups"]
        numbers = [group["lr"], group["eps"], group["weight_decay"], *group["betas"]]
        if len(numbers) != 5 or not all(is_number(x, 0) for x in numbers) or max(group["betas"]) >= 1:
            raise ValueError(f"the settings {numbers}")
        if group["params"] != list(range(len(parameters))):
            raise ValueError(f"{len(group['params'])} parameters, this model has {len(parameters)}")
        state["param_groups"][0].update({name: group[name] for name in ("lr", "betas", "eps", "weight_decay")})
        for number, entry in saved["state"].items():
            if number not in group["params"] or not is_number(float(entry["step"]), 0):
                raise ValueError(f"step {entry['step']} of parameter {number}")
            first = own_moment(entry["exp_avg"], parameters[number])
            second = own_moment(entry["exp_avg_sq"], parameters[number], least=0)
            state["state"][number] = {"step": entry["step"], "exp_avg": first, "exp_avg_sq": second}
    optimizer.load_state_dict(state)


def own_moment(moment, parameter, least=-torch.inf):
    """A moment laid out as its parameter: Adam's kernels write as if it were, whatever strides a file claims."""
    fits = moment.shape == parameter.shape and moment.dtype == parameter.dtype
    if not fits or not (moment.isfinite() & (moment >= least)).all():
        raise ValueError(f"a moment of {tuple(moment.shape)}, not finite numbers of {tuple(parameter.shape)}")
    return torch.empty_like(parameter).copy_(moment)


def capture_rng():
    """States of the random generators (Python, NumPy, torch, each CUDA device) as tensors and numbers."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_rng(state):
    """Restore the states of capture_rng; skips CUDA devices that this machine lacks."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    if not 0 <= rest[0] <= len(keys):  # NumPy would read beyond its keys
        raise ValueError(f"NumPy's position is {rest[0]}")
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def training_state(model, optimizer, opt, vocab, progress, identity):
    """All that a run needs to go on, as checkpoint.save_checkpoint takes it."""
    return {
        **asdict(progress),
        "model": model.state_list(),
        "opt": opt,
        "optimizer": optimizer.state_dict(),
        "further": {name: part.state_dict() for name, part in model.further_parts().items()},
        "vocab": list(vocab.word2idx),
        "data": identity,
        "rng": capture_rng(),
    }
