"""A real browser for tests: headless Chromium, controlled through its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/ documents the methods. WebGL is rendered in software.
"""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-port=0",
)
Seen = TypeVar("Seen")

# A busy machine may stand still for many seconds: a test that passes does not wait for these.
_WAIT_SECONDS = 60.0
_ANSWER_SECONDS = 120.0
_CLICK_SECONDS = 2.0
# Key name: code, and Windows virtual-key code.
_KEYS = {
    "Tab": ("Tab", 9),
    "Enter": ("Enter", 13),
    "Escape": ("Escape", 27),
    " ": ("Space", 32),
    "PageUp": ("PageUp", 33),
    "ArrowLeft": ("ArrowLeft", 37),
    "ArrowUp": ("ArrowUp", 38),
    "ArrowRight": ("ArrowRight", 39),
    "ArrowDown": ("ArrowDown", 40),
}


class Page:
    """One tab. `requests` lists the URL of every request. `problems` lists errors as text."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setLocaleOverride", locale="en-GB")  # sets the date format

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result. Fails if Chromium returns an error."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=_ANSWER_SECONDS))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            if "method" in message:  # skip late responses to abandoned calls
                self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif event["method"] == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.problems.append(str([each.get("description", each.get("value")) for each in parameters["args"]]))
        elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def js(self, expression: str) -> Any:
        """Return the value of an expression. Awaits a promise. Fails if it throws."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, (expression, result["exceptionDetails"])
        return result["result"].get("value")

    def wait_for(self, expression: str, *, seconds: float = _WAIT_SECONDS) -> None:
        """Wait until the expression is true. Fails with the text of the page after the timeout.

        An error counts as not true: an element may be missing while one page replaces another.
        """
        deadline = time.monotonic() + seconds
        error = None
        while time.monotonic() < deadline:
            try:
                if self.js(f"(async () => Boolean(await ({expression})))()"):
                    return
                error = None
            except AssertionError as failed:
                error = failed
            time.sleep(0.05)
        raise AssertionError(f"{expression} did not come true:\n{self.text()}\n{self.problems}") from error

    def wait_until_equal(self, look: Callable[[], Seen], expected: Seen, *, seconds: float = _WAIT_SECONDS) -> None:
        """Call `look` until it returns what is expected. Fails with its last result after the timeout."""
        deadline = time.monotonic() + seconds
        while (seen := look()) != expected and time.monotonic() < deadline:
            time.sleep(0.05)
        assert seen == expected

    def wait_for_change(self, before: str, selector: str, *, seconds: float = _WAIT_SECONDS) -> str:
        """Wait until an element has another text, and not an empty one. Return this text."""
        text = self._text_of(selector)
        self.wait_for(f"![{json.dumps(before)}, ''].includes({text})", seconds=seconds)
        return self.text(selector)

    def goto(self, url: str) -> None:
        """Load another page, and wait until it has replaced this one."""
        loader = self.call("Page.navigate", url=url)["loaderId"]
        self.wait_until_equal(lambda: self.call("Page.getFrameTree")["frameTree"]["frame"]["loaderId"], loader)
        self.wait_for("document.readyState === 'complete'")

    def reload(self) -> None:
        """Load the page again, by way of an empty one: nothing of the old one can be taken for the new one."""
        address = self.js("location.href")
        self.goto("about:blank")
        self.goto(address)

    def listen(self) -> None:
        """Record what the page announces from now on: it removes a message after some seconds."""
        self.js(
            "window.heard = ''; new MutationObserver(([{ target }]) => (heard += target.textContent))"
            ".observe(document.querySelector('#live'), { childList: true })"
        )

    def wait_to_hear(self, text: str, *, seconds: float = _WAIT_SECONDS) -> None:
        """Wait until a message with this text was announced since `listen`."""
        self.wait_for(f"heard.includes({json.dumps(text)})", seconds=seconds)

    def text(self, selector: str = "body") -> str:
        """Return the visible text of an element, or '' if it is hidden or absent; with ordinary spaces only."""
        return str(self.js(self._text_of(selector)))

    @staticmethod
    def _text_of(selector: str) -> str:
        return f"(document.querySelector({json.dumps(selector)})?.innerText ?? '').replaceAll('\\u00a0', ' ')"

    def wait_for_text(self, text: str, selector: str = "body", *, seconds: float = _WAIT_SECONDS) -> None:
        self.wait_for(
            f"{self._text_of(selector)}.includes({json.dumps(text)})",
            seconds=seconds,
        )

    def sized(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def middle(self, selector: str) -> tuple[float, float]:
        """Scroll an element into view and return its centre; of a link in several lines, that of its first line."""
        where = self.js(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getClientRects()[0];"
            f" return [r.x + r.width / 2, r.y + r.height / 2] }})(document.querySelector({json.dumps(selector)}))"
        )
        return float(where[0]), float(where[1])

    def click(self, selector: str) -> None:
        """Click an element; once more if it moved away from under the mouse because the page was still changing."""
        self.js(
            "if (!('missed' in window)) addEventListener('click', ({ target }) => target.closest(wanted) &&"
            f" (missed = false), {{ capture: true }}); window.wanted = {json.dumps(selector)}; window.missed = true"
        )
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            x, y = self.middle(selector)
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            try:  # a page that the click has loaded does not know the name
                return self.wait_for("window.missed !== true", seconds=_CLICK_SECONDS)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def wheel(self, selector: str, pixels: float) -> None:
        """Turn the mouse wheel over an element; a positive number scrolls down."""
        x, y = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=pixels)

    def drag_right_button(self, selector: str, across: float, down: float) -> None:
        """Move the mouse from the centre of an element while the right button is held."""
        x, y = self.middle(selector)
        held = {"button": "right", "buttons": 2}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, clickCount=1, **held)
        for share in (0.5, 1.0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + share * across, y=y + share * down, **held)
        self.call(
            "Input.dispatchMouseEvent", type="mouseReleased", x=x + across, y=y + down, button="right", clickCount=1
        )

    def key(self, name: str, *, shift: bool = False) -> None:
        """Press and release a key: a character or a named key."""
        code, number = _KEYS.get(name, ("", ord(name[0].upper())))
        typed = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        common = {"key": name, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", text=typed, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        """Insert text into the focused element."""
        self.call("Input.insertText", text=text)

    def drop(self, paths: list[Path], selector: str) -> None:
        """Drop files or folders from the desktop onto an element."""
        x, y = self.middle(selector)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def png(self, selector: str | None = None) -> bytes:
        """Take a screenshot of the window or of one element."""
        clip: dict[str, Any] = {}
        if selector:
            self.middle(selector)
            box = self.js(
                f"(r => [r.x, r.y, r.width, r.height])"
                f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
            )
            clip = {"clip": {**dict(zip(("x", "y", "width", "height"), box, strict=True)), "scale": 1}}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **clip)["data"])

    def sees(self, look: Callable[[bytes], Seen], selector: str, *, seconds: float = _WAIT_SECONDS) -> Seen:
        """Take screenshots of an element until `look` returns something true. Return its last result.

        WebGL in software renders late on a busy machine.
        """
        deadline = time.monotonic() + seconds
        while not (seen := look(self.png(selector))) and time.monotonic() < deadline:
            time.sleep(0.1)
        return seen

    def pdf(self) -> bytes:
        """Return the page as PDF, with the paper size of its style sheet."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    """Open one tab in a new browser, ended by its process id. Skips the test if Chromium is not installed."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    process = subprocess.Popen(
        [program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = _address_of_tab(process, profile)
        with connect(address, max_size=None, open_timeout=_WAIT_SECONDS, ping_interval=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(timeout=_WAIT_SECONDS)


def _address_of_tab(process: "subprocess.Popen[bytes]", profile: Path) -> str:
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            port = int((profile / "DevToolsActivePort").read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                return next(str(tab["webSocketDebuggerUrl"]) for tab in json.load(answer) if tab["type"] == "page")
        time.sleep(0.1)
    raise AssertionError("Chromium did not start")
