"""Headless Chromium, driven through the DevTools protocol over a pipe: no driver and no socket."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

Message = dict[str, Any]


class Tab:
    """A tab of the browser, and what its page did."""

    def __init__(self, to: int, back: int) -> None:
        """to, back: file descriptors of the pipes to and from the browser."""
        self.to, self.back, self.session, self.rest, self.count = to, back, {}, b"", 0
        self.requested: list[str] = []  # addresses
        self.refused: list[str] = []  # why a request failed
        self.console: list[Message] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Message:
        """Call a method of the protocol and return its result."""
        self.count += 1
        request = {"id": self.count, "method": method, "params": parameters, **self.session}
        os.write(self.to, json.dumps(request).encode() + b"\0")
        return dict(self.wait(lambda message: message.get("id") == self.count)["result"])

    def wait(self, wanted: Callable[[Message], bool]) -> Message:
        """Return the next wanted message. Requests, failures and console lines that come before it are kept."""
        while True:
            while b"\0" not in self.rest:
                chunk = os.read(self.back, 1 << 20)
                assert chunk, "the browser has ended"
                self.rest += chunk
            line, _, self.rest = self.rest.partition(b"\0")
            message: Message = json.loads(line)
            assert "error" not in message, message
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            if message.get("method") == "Network.loadingFailed":
                self.refused.append(message["params"].get("blockedReason", message["params"]["errorText"]))
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.console.append(message["params"])
            if wanted(message):
                return message

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Load a page at a width in pixels, as a phone below 600, in the colour scheme `light` or `dark`."""
        mobile = width < 600
        shape = {"width": width, "height": 800, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile}
        self.send("Emulation.setDeviceMetricsOverride", **shape)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=page.as_uri())
        self.wait(lambda message: message.get("method") == "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def save_screenshot(self, file: Path) -> None:
        """Save a picture of the whole page as PNG."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def open_browser(profile: Path) -> Iterator[Tab]:
    """Start a browser with its own profile. It ends with the block."""
    assert CHROMIUM is not None
    (theirs, to), (back, ours) = os.pipe(), os.pipe()

    def connect() -> None:
        """Make the pipes file descriptors 3 and 4, which Chromium uses; the numbers may be taken."""
        high = [fcntl(end, F_DUPFD, 10) for end in (theirs, ours)]
        for end, number in zip(high, (3, 4)):
            os.dup2(end, number)

    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, preexec_fn=connect, pass_fds=(3, 4), stdin=quiet, stdout=quiet, stderr=quiet
    )  # --no-sandbox: root in a container cannot have one, and only our own page is opened
    os.close(theirs)
    os.close(ours)
    try:
        yield Tab(to, back)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(to)
        os.close(back)
