"""Chromium without a window, told what to do through the DevTools protocol over a pipe: no driver, no socket."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """One page; `asked`: every address that it wanted, `refused`: why it got one not, `said`: what the console has."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back, self.session, self.rest, self.count = to, back, {}, b"", 0
        self.asked: list[str] = []
        self.refused: list[str] = []
        self.said: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        request = {"id": self.count, "method": method, "params": parameters, **self.session}
        os.write(self.to, json.dumps(request).encode() + b"\0")
        return dict(self.wait(lambda message: message.get("id") == self.count)["result"])

    def wait(self, wanted: Any) -> dict[str, Any]:
        """The next message that is wanted. What else comes is kept, where it is of interest."""
        while True:
            while b"\0" not in self.rest:
                chunk = os.read(self.back, 1 << 20)
                assert chunk, "the browser is gone"
                self.rest += chunk
            line, _, self.rest = self.rest.partition(b"\0")
            message: dict[str, Any] = json.loads(line)
            assert "error" not in message, message
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            if message.get("method") == "Network.loadingFailed":
                self.refused.append(message["params"].get("blockedReason", message["params"]["errorText"]))
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.said.append(message["params"])
            if wanted(message):
                return message

    def open(self, page: Path, width: int, scheme: str) -> None:
        """At this width, as a phone where it is narrow, in the colour scheme `light` or `dark`."""
        mobile = width < 600
        shape = {"width": width, "height": 800, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile}
        self.send("Emulation.setDeviceMetricsOverride", **shape)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=page.as_uri())
        self.wait(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, script: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def photograph(self, file: Path) -> None:
        """The whole page, however long."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """Its own process with its own profile; it ends with the block."""
    assert CHROMIUM is not None
    (theirs, to), (back, ours) = os.pipe(), os.pipe()

    def place() -> None:
        """Chromium reads 3 and writes 4, which may be taken by what is to be there."""
        high = [fcntl(end, F_DUPFD, 10) for end in (theirs, ours)]
        for end, number in zip(high, (3, 4)):
            os.dup2(end, number)

    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, preexec_fn=place, pass_fds=(3, 4), stdin=quiet, stdout=quiet, stderr=quiet
    )  # --no-sandbox: for root in a container; it opens our own page alone
    os.close(theirs)
    os.close(ours)
    try:
        yield Tab(to, back)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(to)
        os.close(back)
