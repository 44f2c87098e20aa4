"""What was measured, with what and when: one record for JSON files and pages."""

import shlex
import sys
import time

from checkpoints.checkpoint import versions


def provenance(dataset, checkpoint=None, command=None):
    """The record: data folder, split and its counts, command, date, versions (git's commit among them).

    dataset: the split; checkpoint: facts about a model, as checkpoints.loading.describe_checkpoint gives them; command:
    default the command line.
    """
    record = {
        "data": str(dataset.folder.resolve()),
        "split": dataset.split,
        "images": dataset.n_images,
        "captions": len(dataset),
        "command": command or shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": versions(),
    }
    return record if checkpoint is None else {**record, "checkpoint": checkpoint}
