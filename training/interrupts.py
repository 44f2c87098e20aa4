"""Ctrl-C and SIGTERM during training: a checkpoint is written, then the run ends."""

import contextlib
import logging
import os
import signal

from runtime import distributed
from runtime.transfer import ToHost

LAG = {"cuda": 2}  # steps after which the host looks at a number of the device without holding it up; else 0


class Interrupted(BaseException):
    """A signal arrived during work that may be dropped at once, because nothing is lost.

    Not a subclass of Exception, so that code that handles errors does not catch it.
    """


class Stop:
    """Handles Ctrl-C and SIGTERM: the first signal waits until the step is done, the second leaves at once.

    With several processes all of them leave after the same step, and a running validation is finished first.
    """

    def __init__(self):
        self.signal, self.immediate, self.coming = None, False, []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        if self.signal:
            os._exit(128 + number)
        self.signal = distributed.flag.raised = number
        logging.warning("Stopping after a checkpoint is written; press Ctrl-C again to leave at once")
        if self.immediate:
            raise Interrupted

    def requested(self):
        """The signal that arrived in any process, the same answer in all; None for none.  Waits for the others."""
        self.coming.clear()
        self.signal = distributed.largest(self.signal)
        return self.signal

    def requested_in_step(self):
        """The same, called once after each step: with several processes the step's own exchange has carried it.

        On a GPU the answer is that of two steps ago, so that the host does not wait for the device.
        """
        if distributed.size() == 1:
            return self.signal
        self.coming.append(ToHost(distributed.flag.seen))
        if len(self.coming) <= LAG.get(distributed.flag.seen.device.type, 0):
            return None
        return int(self.coming.pop(0).number()) or None

    @contextlib.contextmanager
    def at_once(self):
        """Inside, the first signal raises Interrupted (with one process)."""
        self.immediate = distributed.size() == 1
        try:
            yield
        finally:
            self.immediate = False

    def batches(self, loader):
        """Yields the loader's batches; a signal during the wait for the next batch ends them (with one process)."""
        iterator = iter(loader)
        while True:
            try:
                with self.at_once():
                    batch = next(iterator, None)
            except Interrupted:
                return
            if batch is None:
                return
            yield batch
