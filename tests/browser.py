"""A real browser as the judge of our pages, spoken to over a pipe (Chrome DevTools Protocol): no driver, no port.

What it is asked runs outside of the page, so the page's own policy does not hold for the question.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

PROGRAM: Final = next((p for p in ("chromium-headless-shell", "chromium") if shutil.which(p)), None)
needs_browser: Final = pytest.mark.skipif(
    PROGRAM is None, reason="needs a browser: apt-get install chromium-headless-shell"
)
# Text on text, text outside of its box, a page that is wider than its window. `.wide` may be scrolled.
_CLUTTER: Final = r"""
(() => {
  const found = [], rects = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("title")) continue;
    if (parent.closest("details:not([open])") && !parent.closest("summary")) continue;  // has a place, and is not shown
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const r of range.getClientRects())
      if (r.width > 0.5)
        rects.push({ node, r, text: node.data.trim().slice(0, 40), inside: parent.closest(".wide, svg") });
  }
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push("the page is wider than its window");
  for (const { text, r, inside } of rects) {
    const room = inside && inside.matches("svg") ? inside.getBoundingClientRect() : { left: 0, right: width };
    if (inside && !inside.matches("svg")) continue;
    if (r.left < room.left - 0.5 || r.right > room.right + 0.5) found.push("outside: " + text);
  }
  for (let i = 0; i < rects.length; i++)
    for (let j = i + 1; j < rects.length; j++) {
      const a = rects[i], b = rects[j];
      if (a.node === b.node) continue;
      const wide = Math.min(a.r.right, b.r.right) - Math.max(a.r.left, b.r.left);
      const high = Math.min(a.r.bottom, b.r.bottom) - Math.max(a.r.top, b.r.top);
      if (wide > 1 && high > 2) found.push(`overlap: ${a.text} / ${b.text}`);
    }
  for (const box of document.querySelectorAll("svg rect.netns, pre, .finding, .verdict")) {
    const outer = box.getBoundingClientRect();
    for (const { text, r } of rects) {
      const middle = (r.top + r.bottom) / 2;
      if (middle > outer.top && middle < outer.bottom && r.left < outer.right && r.left >= outer.left
          && r.right > outer.right + 0.5) found.push("out of its box: " + text);
    }
  }
  return found;
})()
"""


class Browser:
    """One browser with one page."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._number = 0
        self._pending = b""
        self._session: str | None = None
        self.requests: list[str] = []  # URLs that the page wanted, its own among them
        self.complaints: list[str] = []  # what the browser has logged: violations of the policy, errors of scripts
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._ask(f"{domain}.enable")

    def show(self, page: Path, width: int = 1080, *, dark: bool = False) -> None:
        """Load a file in a window of that width."""
        self.requests, self.complaints = [], []
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._ask("Page.navigate", {"url": page.as_uri()}, until="Page.loadEventFired")

    def ask(self, question: str) -> Any:
        """The value of a JavaScript expression, from outside of the page's policy."""
        answer = self._ask("Runtime.evaluate", {"expression": question, "returnByValue": True})
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def clutter(self) -> list[str]:
        """Texts that overlap or stick out, in words."""
        return list(self.ask(_CLUTTER))

    def picture(self) -> bytes:
        """The whole page as PNG."""
        answer = self._ask("Page.captureScreenshot", {"captureBeyondViewport": True})
        return b64decode(answer["data"])

    def close(self) -> None:
        """Tell it to go."""
        self._session = None
        self._ask("Browser.close")

    def _ask(self, method: str, parameters: dict[str, Any] | None = None, until: str | None = None) -> dict[str, Any]:
        """The answer to a command; `until`: and an event that must have come."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters or {}}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer: dict[str, Any] | None = None
        happened = until is None
        while answer is None or not happened:
            heard = self._hear()
            if heard.get("id") == self._number:
                assert "error" not in heard, heard
                answer = heard["result"]
            happened = happened or heard.get("method") == until
        return answer

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            got = os.read(self._back, 1 << 20)
            assert got, "the browser has gone"
            self._pending += got
        line, _, self._pending = self._pending.partition(b"\0")
        heard: dict[str, Any] = json.loads(line)
        match heard.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(heard["params"]["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(heard["params"]["entry"]["text"])
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(heard["params"]))
        return heard


def _pipe() -> tuple[int, int]:
    low = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in low]
    for fd in low:
        os.close(fd)
    return high[0], high[1]


@contextmanager
def browser(home: Path) -> Iterator[Browser]:
    """A browser that knows nothing of the user's, and ends with the block."""
    assert PROGRAM is not None
    # It reads commands from its file descriptor 3 and answers on 4: ours are moved out of the way first.
    commands, to = _pipe()
    back, answers = _pipe()

    def arrange() -> None:
        os.dup2(commands, 3)
        os.dup2(answers, 4)

    process = subprocess.Popen(
        [PROGRAM, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={home}"],
        preexec_fn=arrange, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(commands)
    os.close(answers)
    try:
        shown = Browser(to, back)
        yield shown
        shown.close()
        process.wait(30)  # its children write to `home` until it is gone
    finally:
        process.kill()
        process.wait(30)
        os.close(to)
        os.close(back)
