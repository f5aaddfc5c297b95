"""Headless Chromium by its DevTools protocol: opens a page from disk, and keeps its console and its requests."""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
PATIENCE = 60.0  # seconds


class Browser:
    """A tab. `console`: what the page wrote there, and its errors; `requests`: every address that it asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: WebSocketClientConnection):
        self.loop, self.socket, self.numbers = loop, socket, itertools.count(1)
        self.console: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict:
        """The answer to a command of the protocol. Events that come before it are kept."""
        number = next(self.numbers)
        text = json.dumps({"id": number, "method": method, "params": params})
        self.loop.run_until_complete(_send(self.socket, text))
        while True:
            text = self.loop.run_until_complete(asyncio.wait_for(_message(self.socket), PATIENCE))
            message = json.loads(text)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._keep(message)

    def _keep(self, event: dict) -> None:
        name, params = event["method"], event["params"]
        if name == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(json.dumps(params))

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(script):
            assert time.monotonic() < end, f"{script} did not come true: {self.console}"
            time.sleep(0.05)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the tab in CSS pixels, and whether the user prefers dark pages."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=address)

    def go(self, place: str) -> None:
        """Go to a place of the page, the part of the address after `#`, and wait until it is drawn."""
        self.value(f"location.hash = {json.dumps(place)}")
        self.until(f"document.body.dataset.ready === {json.dumps('#' + place)}")

    def picture(self, path: Path) -> None:
        """Save what is visible as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


async def _send(socket: WebSocketClientConnection, text: str) -> None:
    await socket.write_message(text)


async def _message(socket: WebSocketClientConnection) -> str:
    text = await socket.read_message()
    assert isinstance(text, str), "the browser is gone"
    return text


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A tab of a headless Chromium with its own profile folder."""
    assert CHROMIUM is not None
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    command = [CHROMIUM, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    try:
        port = _port(profile / "DevToolsActivePort")
        socket = loop.run_until_complete(_tab(port))
        yield Browser(loop, socket)
        socket.close()
    finally:
        process.terminate()
        process.wait(PATIENCE)
        loop.close()


async def _tab(port: int) -> WebSocketClientConnection:
    """The connection to the first tab."""
    from tornado.httpclient import AsyncHTTPClient

    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json")
    tab = next(target for target in json.loads(answer.body) if target["type"] == "page")
    return await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=1 << 30)


def _port(path: Path) -> int:
    """The port that the browser chose, from the file that it writes."""
    end = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < end, "the browser did not start"
        time.sleep(0.05)
    return int(path.read_text().split()[0])
