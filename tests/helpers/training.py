"""Small runs of train.py and what they leave, for tests."""

import json
import signal
from pathlib import Path

import torch
from states import same

import train
from runtime.checkpoint import load_checkpoint
from runtime.logger import event_records, tensorboard

SMALL = "--embed_size 16 --word_dim 8 --batch_size 32 --learning_rate 0.01 --workers 0 --log_step 5 --device cpu"
GSMN = "--num_block 4 --feat_dim 4 --hid_dim 8 --lambda_softmax 9 --bi_gru"
VSRN = "--dim_hidden 8 --dim_word 8 --max_len 10"


def flags(tiny, folder, *more, epochs=2):
    """The command line of a small run."""
    own = VSRN if "vsrn" in more else GSMN
    return [
        *tiny.args,
        *SMALL.split(),
        *own.split(),
        "--num_epochs",
        str(epochs),
        "--logger_name",
        f"{folder}/log",
        "--model_name",
        f"{folder}/ck",
        *map(str, more),
    ]


def run(tiny, folder, *more, epochs=2):
    train.main(flags(tiny, folder, *more, epochs=epochs))
    return Path(folder) / "ck"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same_weights(a, b):
    a, b = (load_checkpoint(path)["model"] for path in (a, b))
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b) for name in x)


def same_state(a, b):
    """Two checkpoints agree bit for bit in all that a run depends on."""
    a, b = load_checkpoint(a), load_checkpoint(b)
    for key in ("model", "caption_model", "optimizer", "rng", "epoch", "step", "Eiters", "best_rsum", "vocab"):
        same(a[key], b[key])


def stop_after(monkeypatch, steps):
    """SIGTERM arrives during the given step."""
    step = train.train_step

    def counted(model, optimizer, batch, grad_clip, Eiters):
        if Eiters == steps - 1:
            signal.raise_signal(signal.SIGTERM)
        return step(model, optimizer, batch, grad_clip, Eiters)

    monkeypatch.setattr(train, "train_step", counted)


def points(folder):
    """(tag, step) of all points of a run's event files, and their values but for times."""
    event = tensorboard().event_pb2.Event
    found = []
    for path in sorted(Path(folder).glob("events*")):
        for record in event_records(path):
            one = event.FromString(record[12:-4])
            found += [
                (v.tag, one.step, v.simple_value)
                for v in one.summary.value
                if "time" not in v.tag and v.tag != "pairs_per_second"
            ]
    return sorted(found)


def validations(folder):
    """The lines of log.jsonl that are validations."""
    return [row for row in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "rsum" in row]
