"""A headless Chromium for the tests of pages, spoken to in its DevTools protocol over a pipe."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars "
    "--remote-debugging-pipe about:blank"
).split()


def find_browser():
    """The browser's path; the test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    return path


@contextlib.contextmanager
def open_browser():
    """A Browser with an empty profile, closed with all its processes at the end."""
    path = find_browser()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser([path, f"--user-data-dir={profile}", *FLAGS])
        try:
            yield browser
        finally:
            browser.close()


class Browser:
    """One page of a browser. errors: what the page wrote to the console as an error, or threw."""

    def __init__(self, command):
        (theirs_in, self.out), (self.inp, theirs_out) = pipe(), pipe()
        self.process = subprocess.Popen(
            command,
            close_fds=False,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: (os.dup2(theirs_in, 3), os.dup2(theirs_out, 4)),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.last, self.session, self.errors, self.events = b"", 0, None, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(Exception):
            self.session = None
            self.call("Browser.close", timeout=5)
            self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.out)
        os.close(self.inp)

    def call(self, method, timeout=60, **params):
        """A command of the protocol -> its result; RuntimeError when the browser refuses."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        answer = self.read(lambda m: m.get("id") == self.last, timeout)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def read(self, wanted, timeout):
        """The next message that is wanted; events before it are noted."""
        end = time.monotonic() + timeout
        while True:
            while b"\0" not in self.buffer:
                if not select.select([self.inp], [], [], max(0, end - time.monotonic()))[0]:
                    raise TimeoutError("the browser does not answer")
                part = os.read(self.inp, 1 << 20)
                if not part:
                    raise RuntimeError("the browser is gone")
                self.buffer += part
            line, _, self.buffer = self.buffer.partition(b"\0")
            message = json.loads(line)
            self.note(message)
            if wanted(message):
                return message

    def note(self, message):
        params, method = message.get("params", {}), message.get("method")
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            self.errors.append(" ".join(str(arg.get("value")) for arg in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))

    def open(self, url, ready="true", timeout=60):
        """Load a page (a path or an address) and wait until the expression ready is true."""
        url = Path(url).resolve().as_uri() if "://" not in str(url) else url
        self.call("Page.navigate", url="about:blank")  # else a new #fragment would not load the page again
        self.wait("location.href == 'about:blank'", timeout)
        self.call("Page.navigate", url=url)
        self.wait(f"location.href != 'about:blank' && document.readyState == 'complete' && ({ready})", timeout)

    def run(self, expression):
        """The value of a JavaScript expression; promises are awaited, what is thrown is a RuntimeError."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", "thrown"))
        return result["result"].get("value")

    def wait(self, expression, timeout=60):
        end = time.monotonic() + timeout
        while not self.try_run(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {expression}; errors: {self.errors}")
            time.sleep(0.02)

    def try_run(self, expression):
        with contextlib.suppress(RuntimeError):  # the page may just be changing
            return self.run(expression)

    def point(self, x, y):
        """Move the mouse to a place of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screen(self, width=1280, height=900, phone=False):
        """Choose the window's size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)


def pipe():
    """A pipe whose ends are neither 3 nor 4, inherited by a child."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD, 10))
        os.close(end)
    for end in ends:
        os.set_inheritable(end, True)
    return ends
