"""A headless Chromium for the tests of pages, spoken to in its DevTools protocol over a pipe."""

import contextlib
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
    "--remote-debugging-pipe --window-size=1280,900 about:blank"
).split()


@contextlib.contextmanager
def open_browser():
    """A Browser with an empty profile, ended with all its processes; the test is skipped where none is installed."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser([path, f"--user-data-dir={profile}", *FLAGS])
        try:
            yield browser
        finally:
            os.killpg(browser.process.pid, signal.SIGKILL)
            browser.process.wait()
            os.close(browser.out)
            os.close(browser.inp)


class Browser:
    """One page of a browser. errors: what the page wrote to the console as an error, or threw."""

    def __init__(self, command):
        (theirs_in, self.out), (self.inp, theirs_out) = os.pipe(), os.pipe()
        self.process = subprocess.Popen(
            # the browser reads from its file 3 and writes to its file 4
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.last, self.session, self.errors = b"", 0, {}, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """A command of the protocol -> its result; RuntimeError when the browser refuses."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params, **self.session}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.last:
            self.note(answer.get("method"), answer.get("params", {}))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def read(self):
        """The next message."""
        while b"\0" not in self.buffer:
            part = os.read(self.inp, 1 << 20) if select.select([self.inp], [], [], 60)[0] else b""
            if not part:
                raise TimeoutError("the browser does not answer, or has ended")
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def note(self, method, params):
        """Keep an event that is an error or a warning."""
        kind = params.get("type") or params.get("entry", {}).get("level")
        if method == "Runtime.exceptionThrown" or kind in ("error", "assert", "warning"):
            self.errors.append(str(params))

    def open(self, path, ready="true", fragment=""):
        """Load a page and wait until the expression ready is true."""
        url = f"{Path(path).resolve().as_uri()}#{fragment}"
        self.call("Page.navigate", url="about:blank")  # else a new #fragment would not load the page again
        self.wait("location.href == 'about:blank'")
        self.call("Page.navigate", url=url)
        self.wait(f"location.href != 'about:blank' && document.readyState == 'complete' && ({ready})")

    def run(self, expression):
        """The value of a JavaScript expression; promises are awaited, what is thrown is a RuntimeError."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", "thrown"))
        return result["result"].get("value")

    def each(self, selector, value="e.textContent"):
        """A value of every element e that a selector finds."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {value})")

    def wait(self, expression):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # the page may just be changing
                if self.run(expression):
                    return
            time.sleep(0.02)
        raise TimeoutError(f"never true: {expression}; errors: {self.errors}")

    def fits(self, width):
        """Whether the page is no wider than a telephone of so many CSS pixels."""
        size = {"width": width, "height": 2 * width, "deviceScaleFactor": 2, "mobile": True}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        found = self.run("document.documentElement.scrollWidth <= innerWidth")
        self.call("Emulation.clearDeviceMetricsOverride")
        return found
