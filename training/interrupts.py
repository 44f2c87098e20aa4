"""Signals during training (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1): a checkpoint is written, then the run ends."""

import logging
import os
import signal
import threading

from runtime import distributed
from runtime.workers import STOPPING


class Stop:
    """Handles the signals that end a training: the first one waits until the step is done, the second leaves at once.

    With several processes all of them leave after the same step, and a running validation is finished first.
    A SIGHUP that is ignored (nohup) stays so.  Outside of the main thread Python handles no signals.
    """

    def __init__(self):
        self.signal = 0
        self.immediate = False  # while it is True, the first signal raises KeyboardInterrupt: nothing is lost
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.handle)

    def handle(self, number, frame):
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        logging.warning("Stopping after a checkpoint is written; press Ctrl-C again to leave at once")
        if self.immediate:
            raise KeyboardInterrupt

    def requested(self):
        """The signal that arrived in any process, the same answer in all; 0 for none.  Waits for the others."""
        self.signal = distributed.largest(self.signal)
        return self.signal
