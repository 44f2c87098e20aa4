"""The logs of a run: TensorBoard's event file, log.jsonl and config.json."""

import contextlib
import itertools
import json
import logging
import os
import shlex
import sys
import time
import warnings
from pathlib import Path

from files.errors import InputError, reason
from files.writing import atomic_write, make_folder
from reporting.run_page import CONFIG, LOG, read_config, row_of


def tensorboard():
    """The module behind the package tensorboard_logger; None, after a warning, where it cannot be used.

    Current protobuf refuses its old generated code unless the Python implementation is chosen before the first import.
    """
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the age of that generated code
            from tensorboard_logger import tensorboard_logger
    except Exception as error:  # missing, or refused by protobuf, whose implementations raise different errors
        why = [*str(error).splitlines(), type(error).__name__][0]
        logging.warning("No TensorBoard curves, only log.jsonl: tensorboard_logger fails (%s); install it, or set "
                        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python before Python starts", why)  # fmt: skip
        return None
    return tensorboard_logger


class RunLog:
    """Scalars to TensorBoard, a JSON line for each logged step and each validation, under the run's --logger_name.

    resume_at: the step a resumed run goes on from; what log.jsonl says of later steps is removed.  A new run moves the
    files of an earlier one to a folder before-N.  Without a working tensorboard_logger there are no curves.
    InputError where the folder cannot be used at the start.  Later a failed write is logged, and training goes on.
    """

    def __init__(self, folder, resume_at=None):
        self.folder, self.resume_at, self.board, self.has_gap = Path(folder), resume_at, None, False
        make_folder(self.folder)
        self.tensorboard = tensorboard()
        try:
            if resume_at is None:
                self.set_aside()
                self.open_board()
            else:
                self.forget_after(resume_at)
                self.open_board(first=resume_at + 1)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({reason(error)})") from None

    def set_aside(self):
        """Move an earlier run's files to before-1, before-2, …, so that the curves of two runs do not mix."""
        files = (LOG, CONFIG, "summary.html", "events.out.tfevents.*")
        earlier = [path for name in files for path in self.folder.glob(name)]
        if earlier:
            aside = next(path for n in itertools.count(1) if not (path := self.folder / f"before-{n}").exists())
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
            logging.warning("%s: holds the log of an earlier run, which is now in %s", self.folder, aside)

    def forget_after(self, step):
        """Remove the lines of later steps from log.jsonl; a damaged log is set aside, and its whole lines stay."""
        log = self.folder / LOG
        if not log.exists():
            return
        lines = log.read_bytes().splitlines(True)
        rows = [row_of(line) for line in lines]
        if any(row is None and line.endswith(b"\n") for row, line in zip(rows, lines)):  # else it was cut off
            set_damaged_aside(log)
        kept = [line for line, row in zip(lines, rows) if row and row["Eiters"] <= step]
        atomic_write(log, lambda f: f.write(b"".join(kept)))

    def open_board(self, first=None):
        """A new event file; its name holds the second, and none may be written over.

        first: TensorBoard hides the points of earlier files from this step on.
        """
        if not self.tensorboard:
            return
        while any(self.folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(0.1)
        self.board = self.tensorboard.Logger(str(self.folder))
        if first is not None:
            event = self.tensorboard.event_pb2.Event
            start = event(wall_time=time.time(), step=first, session_log={"status": "START"})
            self.board._write_event(start)

    @contextlib.contextmanager
    def goes_on(self):
        """A full disk or a folder that vanished does not end the training: an error is logged, the log has a gap."""
        try:
            yield
        except (OSError, InputError) as error:
            logging.error("%s: cannot be written (%s); training goes on, its log has a gap", self.folder, error)
            if self.board:
                with contextlib.suppress(OSError):
                    self.board._writer.close()  # or the destructor would complain
            self.board = None  # its file may end in half a record: the next validation begins another
            self.has_gap = True

    def scalars(self, values, step):
        """{tag: number} to TensorBoard."""
        if self.board:
            with self.goes_on():
                for tag, value in values.items():
                    self.board.log_value(tag, value, step)

    def step(self, facts, losses):
        """A line of log.jsonl for a training step: {name: number} of what the host knows, and of its losses."""
        if not self.has_gap:  # a full disk is tried again at the next validation
            kept = {name: facts[name] for name in ("epoch", "step", "lr", "pairs_per_second")}
            self.line({"Eiters": facts["Eit"], **kept, "losses": losses})

    def validation(self, metrics, step, epoch):
        """One validation: every metric to TensorBoard under its released tag, all of them to log.jsonl."""
        self.has_gap = False
        self.line({"epoch": epoch, "Eiters": step, **metrics})
        with self.goes_on():
            if not self.board or not os.path.exists(self.board._writer.name):
                self.open_board()
        self.scalars(metrics, step)

    def line(self, row):
        """Append a line to log.jsonl, in a folder that may have vanished; never to a line that was cut off."""
        line = json.dumps({"time": time.time(), **row}).encode() + b"\n"
        with self.goes_on():
            make_folder(self.folder)
            with open(self.folder / LOG, "ab+") as log:
                if log.tell():
                    log.seek(-1, os.SEEK_END)
                    line = line if log.read() == b"\n" else b"\n" + line
                log.write(line)

    def config(self, opt, versions, datasets):
        """config.json: every flag, the command line, versions (commit included), data files and their bytes.

        A resumed run adds its own under 'resumed' and leaves the first one's as they were.
        """
        path = self.folder / CONFIG
        content = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "opt": vars(opt),
            "command": shlex.join([sys.executable, *sys.argv]),
            "versions": versions,
            "data": {str(file): os.path.getsize(file) for dataset in datasets for file in dataset.files},
        }
        if self.resume_at is not None and path.exists():
            first = read_config(path)
            if first is None:
                set_damaged_aside(path)
            else:
                content = {**first, "resumed": [*first.get("resumed", []), {"Eiters": self.resume_at, **content}]}
        text = json.dumps(content, indent=1, default=str)
        atomic_write(path, lambda f: f.write(text.encode()))


def set_damaged_aside(path):
    aside = path.with_name(f"{path.name}.damaged")
    path.rename(aside)
    logging.warning("%s: damaged; it is now %s, and the run goes on without it", path, aside.name)
