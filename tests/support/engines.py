"""One page in Chromium, Firefox or WebKit, driven in the same few words.

Playwright drives Debian's Chromium, but neither its Firefox ESR nor its WebKitGTK. Firefox has WebDriver BiDi built in,
and WebKitGTK comes with a driver for classic WebDriver. All three prefer dark colours and the locale en-US.
"""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser
from websockets.sync.client import ClientConnection, connect

from tests.support.redis_servers import free_port, wait_until

SECONDS = 20  # for a condition; a loaded machine is slow
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "ArrowRight": "\ue014"}  # as WebDriver writes them
LOADED = "![...document.querySelectorAll('[aria-busy=true]')].some((element) => element.checkVisibility())"
FIND = "[...document.querySelectorAll({})].find((element) => element.checkVisibility())"
# The middle of an element, once nothing lies over it and it does not move.
MIDDLE = """(async () => {{
  const element = {};
  element?.scrollIntoView({{ block: "center", behavior: "instant" }});
  const box = element?.getBoundingClientRect();
  await new Promise(requestAnimationFrame);
  const [x, y] = [box?.x + box?.width / 2, box?.y + box?.height / 2].map(Math.round);
  const still = JSON.stringify(box) === JSON.stringify(element?.getBoundingClientRect());
  return still && element?.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
}})()"""

PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))"

# WebKit's driver does not send errors, so the page records those that happen after it has loaded.
RECORD_ERRORS = """void (() => {
  window.errors = [];
  for (const name of ["error", "unhandledrejection", "securitypolicyviolation"])
    addEventListener(name, (event) => errors.push(String(event.message ?? event.reason ?? event.violatedDirective)));
  for (const level of ["error", "warn"]) console[level] = (...values) => { errors.push(values.join(" ")); };
})()"""


class Engine(ABC):
    """A browser with one page. A selector means its first visible element."""

    def __init__(self) -> None:
        self.name = type(self).__name__.lower()
        self.errors: list[str] = []

    @abstractmethod
    def evaluate(self, expression: str) -> object:
        """Return the value of a JavaScript expression, which may be a promise."""

    @abstractmethod
    def resize(self, width: int, height: int) -> None: ...

    @abstractmethod
    def _png(self) -> bytes:
        """Return a picture of the visible part of the page."""

    @abstractmethod
    def _navigate(self, url: str) -> None: ...

    @abstractmethod
    def _click_at(self, x: int, y: int) -> None: ...

    @abstractmethod
    def _press(self, key: str) -> None: ...

    def open(self, url: str, width: int = 1200, height: int = 900) -> None:
        """Load a page, also one whose address differs from the present one only in its hash."""
        self._navigate("about:blank")
        self.resize(width, height)
        self._navigate(url)

    def click(self, selector: str) -> None:
        middle = MIDDLE.format(FIND.format(json.dumps(selector)))
        x, y = self.wait(middle, f"nothing to click at {selector}")
        self._click_at(x, y)

    def recorded_errors(self) -> list[str]:
        """Return the uncaught errors, and the errors and warnings in the console. A correct page has none."""
        return self.errors

    def press(self, *keys: str) -> None:
        for key in keys:
            self._press(key)

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"{FIND.format(json.dumps(selector))}?.textContent ?? ''"))

    def expect(self, selector: str, text: str) -> None:
        """Wait until the element contains this text."""
        wait_until(lambda: text in self.text(selector), lambda: f"{selector} has {self.text(selector)!r}", SECONDS)

    def wait(self, expression: str, problem: str = "") -> object:
        """Wait until an expression is true, and return its value."""
        values = [self.evaluate(expression)]
        wait_until(
            lambda: bool(values[-1]) or bool(values.append(self.evaluate(expression))),
            lambda: f"{problem or expression}: {values[-1]}",
            SECONDS,
        )
        return values[-1]

    def screenshot(self) -> Image.Image:
        self.evaluate(PAINTED)
        return Image.open(io.BytesIO(self._png())).convert("RGB")

    def expect_status(self, name: str) -> None:
        self.wait(f"document.querySelector('#status').dataset.state === '{name}'")


class Chromium(Engine):
    def __init__(self, browser: Browser) -> None:
        super().__init__()
        self._page = browser.new_context(color_scheme="dark", locale="en-US").new_page()
        self._page.on("console", lambda message: self.errors.append(message.text))
        self._page.on("pageerror", lambda error: self.errors.append(str(error)))

    def evaluate(self, expression: str) -> object:
        return self._page.evaluate(expression)

    def resize(self, width: int, height: int) -> None:
        self._page.set_viewport_size({"width": width, "height": height})

    def _png(self) -> bytes:
        return self._page.screenshot()

    def _navigate(self, url: str) -> None:
        self._page.goto(url)

    def _click_at(self, x: int, y: int) -> None:
        self._page.mouse.click(x, y)

    def _press(self, key: str) -> None:
        self._page.keyboard.press(key)

    @contextlib.contextmanager
    def forced_colors(self) -> Iterator[None]:
        self._page.emulate_media(forced_colors="active")
        try:
            yield
        finally:
            self._page.emulate_media(forced_colors="null")


class Firefox(Engine):
    """Firefox over WebDriver BiDi: https://www.w3.org/TR/webdriver-bidi/."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__()
        self._connection = connection
        self._id = 0
        self._send("session.new", capabilities={})
        self._send("session.subscribe", events=["log.entryAdded"])
        self._context = self._send("browsingContext.getTree")["contexts"][0]["context"]

    def _send(self, method: str, **parameters: object) -> dict:
        self._id += 1
        self._connection.send(json.dumps({"id": self._id, "method": method, "params": parameters}))
        while (message := json.loads(self._connection.recv())).get("id") != self._id:
            if message.get("method") == "log.entryAdded" and message["params"]["level"] in {"warn", "error"}:
                self.errors.append(message["params"]["text"])
        assert message["type"] == "success", message
        return message["result"]

    def evaluate(self, expression: str) -> object:
        script = f"(async () => JSON.stringify(await ({expression}) ?? null))()"
        target = {"context": self._context}
        answer = self._send("script.evaluate", expression=script, target=target, awaitPromise=True)
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def resize(self, width: int, height: int) -> None:
        viewport = {"width": width, "height": height}
        self._send("browsingContext.setViewport", context=self._context, viewport=viewport)

    def _png(self) -> bytes:
        return base64.b64decode(self._send("browsingContext.captureScreenshot", context=self._context)["data"])

    def _navigate(self, url: str) -> None:
        self._send("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def _click_at(self, x: int, y: int) -> None:
        self._send("input.performActions", context=self._context, actions=click_actions(x, y))

    def _press(self, key: str) -> None:
        self._send("input.performActions", context=self._context, actions=key_actions(key))

    @contextlib.contextmanager
    def forced_colors(self) -> Iterator[None]:
        self._set_preference("browser.display.document_color_use", 2)
        try:
            yield
        finally:
            self._set_preference("browser.display.document_color_use", 0)

    def _set_preference(self, name: str, value: int) -> None:
        window = self._send("browsingContext.getTree", **{"moz:scope": "chrome"})["contexts"][0]["context"]
        script = f"Services.prefs.setIntPref('{name}', {value})"
        self._send("script.evaluate", expression=script, target={"context": window}, awaitPromise=False)


class WebKit(Engine):
    """WebKitGTK's MiniBrowser over WebDriver: https://www.w3.org/TR/webdriver2/."""

    def __init__(self, http: httpx.Client, zoom: int) -> None:
        super().__init__()
        self._http, self._zoom = http, zoom
        # In a full screen, MiniBrowser has no toolbar. Without a window manager, the window can still be small.
        (binary,) = Path("/usr/lib").glob("*/webkit2gtk-4.1/MiniBrowser")
        options = {"binary": str(binary), "args": ["--automation", "--full-screen"]}
        session = self._send("POST", "/session", capabilities={"alwaysMatch": {"webkitgtk:browserOptions": options}})
        self._session = f"/session/{session['sessionId']}"

    def _send(self, method: str, path: str, **body: object) -> object:
        path = getattr(self, "_session", "") + path
        response = self._http.request(method, path, json=body if method == "POST" else None)
        assert response.is_success, response.text
        return response.json()["value"]

    def evaluate(self, expression: str) -> object:
        script = f"return (async () => JSON.stringify(await ({expression}) ?? null))()"
        return json.loads(self._send("POST", "/execute/sync", script=script, args=[]))

    def resize(self, width: int, height: int) -> None:
        self._send("POST", "/window/rect", width=width * self._zoom, height=height * self._zoom)
        self.wait(f"innerWidth === {width}", "the window has another width")

    def _png(self) -> bytes:
        return base64.b64decode(self._send("GET", "/screenshot"))

    def close(self) -> None:
        self._send("DELETE", "")

    def _navigate(self, url: str) -> None:
        self.recorded_errors()
        self._send("POST", "/url", url=url)
        self.evaluate(RECORD_ERRORS)

    def recorded_errors(self) -> list[str]:
        self.errors += self.evaluate("window.errors?.splice(0) ?? []")
        return self.errors

    def _click_at(self, x: int, y: int) -> None:
        self._send("POST", "/actions", actions=click_actions(x, y))

    def _press(self, key: str) -> None:
        self._send("POST", "/actions", actions=key_actions(key))


def click_actions(x: int, y: int) -> list[dict]:
    steps = [{"type": "pointerMove", "x": x, "y": y}, *({"type": t, "button": 0} for t in ("pointerDown", "pointerUp"))]
    return [{"type": "pointer", "id": "mouse", "actions": steps}]


def key_actions(key: str) -> list[dict]:
    steps = [{"type": type_, "value": KEYS.get(key, key)} for type_ in ("keyDown", "keyUp")]
    return [{"type": "key", "id": "keyboard", "actions": steps}]


@contextlib.contextmanager
def firefox(directory: Path) -> Iterator[Firefox]:
    binary, log = installed("firefox-esr", "firefox-esr"), directory / "firefox.log"
    (directory / "user.js").write_text('user_pref("layout.css.prefers-color-scheme.content-override", 0);')  # dark
    command = [binary, "--headless", "--no-remote", "--profile", str(directory), "--remote-debugging-port", "0"]
    command.append("--remote-allow-system-access")  # to set preferences while it runs
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(command, log, HOME=str(directory), LANG="en_US.UTF-8"))
        url = f"{printed(log, 'ws://[0-9.:]+')}/session"
        yield Firefox(stack.enter_context(connect(url, max_size=None, proxy=None)))


@contextlib.contextmanager
def webkit(directory: Path, zoom: int = 1) -> Iterator[WebKit]:
    driver, display = installed("WebKitWebDriver", "webkit2gtk-driver"), installed("Xvfb", "xvfb")
    port, screen = free_port(), ["-screen", "0", "2560x1440x24", "-nolisten", "tcp"]
    environment = {"HOME": str(directory), "XDG_RUNTIME_DIR": str(directory), "LANG": "en_US.UTF-8"}
    environment |= {"GTK_THEME": "Adwaita:dark", "GSETTINGS_BACKEND": "memory", "NO_AT_BRIDGE": "1"}
    environment["GDK_DPI_SCALE"] = str(zoom)  # WebKitGTK zooms each page by it
    # Otherwise the hidden toolbar keeps the window wider than a phone.
    (directory / ".config/gtk-3.0").mkdir(parents=True)
    (directory / ".config/gtk-3.0/gtk.css").write_text("window * { min-width: 0; margin: 0; padding: 0; }")
    log, display_log = directory / "webkit.log", directory / "display.log"
    with contextlib.ExitStack() as stack:
        stack.enter_context(running([display, "-displayfd", "1", *screen], display_log))
        environment["DISPLAY"] = f":{printed(display_log, '[0-9]+')}"
        stack.enter_context(running([driver, f"--port={port}"], log, **environment))
        wait_until(lambda: listens(port), log.read_text)
        page = WebKit(stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)), zoom)
        stack.callback(page.close)
        yield page


def installed(program: str, package: str) -> str:
    """Return the path of a program. Without it, skip the test; `.ci/run` counts that as a failure."""
    return shutil.which(program) or pytest.skip(f"{program} is not installed: apt-get install {package}")


@contextlib.contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def printed(log: Path, pattern: str) -> str:
    """Wait until a program has printed a line that begins with this pattern, and return the match."""
    wait_until(lambda: re.search(f"{pattern}\n", log.read_text()) is not None, log.read_text)
    return re.search(f"{pattern}\n", log.read_text())[0].strip()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
