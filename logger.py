"""Where a run writes what happened: TensorBoard's event file, log.jsonl and config.json."""

import json
import os
import shlex
import struct
import sys
import time
import warnings
from pathlib import Path

from files import atomic_write


def tensorboard():
    """The module behind the package tensorboard_logger.

    Its generated protobuf code predates current protobuf, which refuses it unless protobuf's own Python
    implementation is chosen before the first import.
    """
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the age of that generated code
        from tensorboard_logger import tensorboard_logger
    return tensorboard_logger


class RunLog:
    """Scalars to TensorBoard and a JSON line for each validation, under the run's --logger_name.

    resume_at: the step a resumed run goes on from; what an interrupted run wrote after it is removed, so
    that no point stands twice.
    """

    def __init__(self, folder, resume_at=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if resume_at is not None:
            self.forget_after(resume_at)
        self.board = tensorboard().Logger(str(self.folder), flush_secs=5)

    def scalars(self, values, step):
        """{tag: number} to TensorBoard."""
        for tag, value in values.items():
            self.board.log_value(tag, value, step)

    def validation(self, metrics, step, epoch):
        """One validation: every metric to TensorBoard under its released tag, all of them to log.jsonl."""
        self.scalars(metrics, step)
        line = json.dumps({"time": time.time(), "epoch": epoch, "Eiters": step, **metrics})
        with open(self.folder / "log.jsonl", "a") as f:
            f.write(line + "\n")

    def config(self, opt, versions, datasets):
        """config.json: every flag, the command line, versions (commit included), data files and their bytes."""
        data_files = [path for d in datasets for path in d.files]
        content = {
            "opt": vars(opt),
            "command": shlex.join([sys.executable, *sys.argv]),
            "versions": versions,
            "data": {str(f): os.path.getsize(f) for f in data_files},
        }
        text = json.dumps(content, indent=1, default=str)
        atomic_write(self.folder / "config.json", lambda f: f.write(text.encode()))

    def forget_after(self, step):
        log = self.folder / "log.jsonl"
        if log.exists():
            kept = [line for line in log.read_text().splitlines(True) if json.loads(line)["Eiters"] <= step]
            atomic_write(log, lambda f: f.write("".join(kept).encode()))
        event = tensorboard().event_pb2.Event
        for path in self.folder.glob("events.out.tfevents.*"):
            kept = [record for record in event_records(path) if event.FromString(record[12:-4]).step <= step]
            atomic_write(path, lambda f, kept=kept: f.write(b"".join(kept)))


def event_records(path):
    """The whole records of an event file: 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    content, start = Path(path).read_bytes(), 0
    while start + 12 <= len(content):
        end = start + 12 + struct.unpack_from("<Q", content, start)[0] + 4
        if end > len(content):
            return  # cut off while it was written
        yield content[start:end]
        start = end
