"""A real browser for tests: Debian's Chromium without a window, spoken to by its DevTools protocol through a pipe."""

import base64
import fcntl
import io
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
             "--no-first-run", "--disable-extensions", "--disable-background-networking",
             "--remote-debugging-pipe"]  # fmt: skip
ANSWER_WITHIN_S = 60.0
FIRST_FREE = 10
"""Of the pipes' ends on our side, since 3 and 4 are the browser's."""


class Tab:
    """One page that is open, `width_px` wide."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to_browser, self._from_browser, self._bytes, self._last = to_browser, from_browser, b"", 0
        self._session: dict[str, str] = {}
        self.complaints: list[str] = []
        """What the console said of errors, and what the page asked the network for."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def open(self, page: Path, width_px: int, height_px: int = 800, **media: str) -> None:
        """Opens a file; `media` are features as of CSS with `_` for `-`: `prefers_color_scheme="dark"`."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        size = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": width_px < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression of JavaScript; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key goes down and up: its name, its number and the character it types."""
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def screenshot(self, *, whole: bool = False) -> NDArray[np.uint8]:
        """What is seen, `h w 3`; or the page to its end."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One method of the protocol and its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters, **self._session}
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._last:
            pass
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while b"\0" not in self._bytes:
            ready, _, _ = select.select([self._from_browser], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"the browser has been silent for {ANSWER_WITHIN_S:.0f} s"
            block = os.read(self._from_browser, 1 << 20)
            assert block, "the browser has ended"
            self._bytes += block
        line, _, self._bytes = self._bytes.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(event["exceptionDetails"]["text"])
        elif method == "Log.entryAdded":
            self.complaints.append(f"{event['entry']['level']}: {event['entry']['text']}")
        elif method == "Network.requestWillBeSent" and not event["request"]["url"].startswith(("file:", "data:")):
            self.complaints.append(f"asked for {event['request']['url']}")


@contextmanager
def open_browser(program: str, profile: Path) -> Iterator[Tab]:
    """A browser of its own with an empty profile; it ends with the block."""
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, FIRST_FREE) for pair in (os.pipe(), os.pipe()) for end in pair]
    read_by_browser, to_browser, from_browser, written_by_browser = ends
    command = [program, *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"]
    shell = f'exec "$@" 3<&{read_by_browser} 4>&{written_by_browser}'
    inherited = (read_by_browser, written_by_browser)
    process = subprocess.Popen(
        ["bash", "-c", shell, "browser", *command],
        pass_fds=inherited,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in inherited:
        os.close(end)
    try:
        tab = Tab(to_browser, from_browser)
        yield tab
        tab.call("Browser.close")
    finally:
        os.close(to_browser)
        os.close(from_browser)
        process.terminate()
        process.wait()
