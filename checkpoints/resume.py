"""Saves and restores the state of a training run (docs/method.md, section 5)."""

import argparse
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoints import checkpoint
from checkpoints.loading import load_weights
from files.errors import InputError
from runtime import devices
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
    names = sorted(path.name for path in Path(folder).glob("*.pth.tar"))
    names = [name for name in names if name == checkpoint.BEST or name.startswith("checkpoint_")]
    if names:
        raise InputError(
            f"{folder}: holds {len(names)} checkpoints of an earlier run ({names[-1]}), which a new run would "
            f"overwrite; go on with that run (--resume {folder}), or give the new one a folder of its own "
            "(--logger_name, --model_name)"
        )


def load_resumed(path):
    """A file, or a folder whose newest complete checkpoint is taken -> (the file's path, its content)."""
    path = checkpoint.find_checkpoint(path, resume=True, say=logging.warning)
    saved = checkpoint.load_checkpoint(path)
    if "optimizer" not in saved:
        logging.warning("%s: a released checkpoint, without the optimiser's state: Adam starts anew", path)
    logging.info("=> resuming %s (epoch %d, step %d)", path, saved["epoch"], saved.get("step", 0))
    return path, saved


def resume_options(opt, given, saved, path, say):
    """Flags of a resumed run: those saved in the checkpoint `path`, overridden by those of the command line.

    InputError for another flag that determines the weights; `say` gets a message for every other contradiction.
    """
    if "model" in given and opt.model != saved.model:
        raise InputError(f"{path}: holds {saved.model}, but --model is {opt.model}; give --model {saved.model}")
    strange = sorted(f"--{name}" for name in given - set(vars(saved)))
    if strange:
        raise InputError(f"{path}: holds {saved.model}, which has no {', '.join(strange)}; give --model {saved.model}")
    fixed = of_weights(saved.model)
    merged = argparse.Namespace(**{**vars(saved), "resume": opt.resume})
    if "device" not in given and not devices.usable(merged.device):
        say(f"--device: {merged.device} in the checkpoint, which this machine lacks; {opt.device} is used")
        merged.device = opt.device
    for name in sorted(given & set(vars(saved)) - {"resume"}):
        old, new = getattr(saved, name), getattr(opt, name)
        if old == new:
            continue
        if name in fixed:
            raise InputError(f"{path}: was made with --{name} {old}, but --{name} is {new}; leave it out")
        say(f"--{name}: {old} in the checkpoint, {new} on the command line; the command line's is used")
        setattr(merged, name, new)
    return merged


def restore(saved, model, optimizer, path="--resume"):
    """Restore model, optimiser and random states from a checkpoint -> its Progress."""
    load_weights(model, saved)
    if "optimizer" in saved:
        checkpoint.restore_training(saved, model, optimizer, path)
    return Progress(**{name: saved[name] for name in vars(Progress()) if name in saved})


def training_state(model, optimizer, opt, vocab, progress):
    """All that a run needs to go on, as checkpoint.save_checkpoint takes it."""
    return {
        **asdict(progress),
        "model": model.state_list(),
        "opt": opt,
        "optimizer": optimizer.state_dict(),
        "further": {name: part.state_dict() for name, part in model.further_parts().items()},
        "vocab": checkpoint.words(vocab),
        "rng": checkpoint.capture_rng(),
    }
