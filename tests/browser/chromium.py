"""A headless Chromium that tells what a page has done: messages on its console, dialogs, requests, colours, layout."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen
from bounds import HANG_BOUND_S
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = [
    "--headless",
    "--no-sandbox",  # which refuses to run as root, as in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing is loaded; what a page asks for is in `Page.requests`
]

PICTURES = os.environ.get("PICTURES")
"""A folder in which pictures of the displays are stored; nothing if they are not to be stored."""

LOGS = ("browser", "performance")
"""What Selenium calls the console, and the events of the protocol for developers' tools."""


@frozen
class Page:
    """A page in the browser.

    Attributes:
        driver: Selenium's.
        address: That of the page.
        messages: What stands on the console.
        requests: The addresses that were asked for, besides the page itself.
    """

    driver: Any
    address: str
    messages: list[str] = field(factory=list)
    requests: list[str] = field(factory=list)

    def run(self, script: str, *arguments: Any) -> Any:
        """Call a script in the page; return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def note(self) -> None:
        """Add what has happened since the last call to `messages` and `requests`."""
        self.messages.extend(entry["message"] for entry in self.driver.get_log("browser"))
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])
        self.requests[:] = [address for address in self.requests if address != self.address]

    def store_picture(self, name: str, selector: str, margin: int = 12) -> None:
        """Store a picture of an element, with what is around it, if pictures are to be stored."""
        box = self.run(
            "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [box.left + scrollX, box.top + scrollY, box.width, box.height]",
            selector,
        )
        left, top, width, height = box
        clip = {"x": max(0, left - margin), "y": max(0, top - margin), "scale": 1}
        clip |= {"width": width + 2 * margin, "height": height + 2 * margin}
        picture = base64.b64decode(
            self._command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        )
        assert picture.startswith(b"\x89PNG")
        if PICTURES:
            (Path(PICTURES) / name).write_bytes(picture)

    def prefer(self, scheme: str) -> None:
        """Tell pages that the user prefers the `"light"` or the `"dark"` scheme."""
        self._command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, width: int) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", **size)

    def _command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)


@frozen
class Browser:
    """A browser that opens one page at a time."""

    driver: Any

    def open(self, html: str, file: Path, *, width: int = 1000, scheme: str = "light") -> Page:
        """Open a document.

        Args:
            html: The document.
            file: Where it is written.
            width: That of the window, in pixels.
            scheme: What the user prefers, `"light"` or `"dark"`.
        """
        file.write_text(html, encoding="utf-8")
        self.driver.get("about:blank")
        for log in LOGS:
            self.driver.get_log(log)  # which empties it
        page = Page(self.driver, file.as_uri())
        page.resize(width)
        page.prefer(scheme)
        self.driver.get(page.address)
        page.note()
        return page


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Debian's Chromium with a profile of its own.

    Args:
        profile: An empty folder.

    Raises:
        FileNotFoundError: It is not installed.
    """
    options: Any = webdriver.ChromeOptions()
    options.binary_location = _installed("chromium")
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", dict.fromkeys(LOGS, "ALL"))
    driver: Any = webdriver.Chrome(options=options, service=Service(_installed("chromedriver")))
    try:
        driver.set_page_load_timeout(HANG_BOUND_S)
        driver.set_script_timeout(HANG_BOUND_S)
        yield Browser(driver)
    finally:
        driver.quit()


def _installed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"there is no {program}: install Debian's packages chromium and chromium-driver")
    return found
