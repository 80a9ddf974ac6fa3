"""Debian's browser, driven through its DevTools protocol."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, connect

needs_browser = pytest.mark.skipif(not shutil.which("chromium"), reason="no browser: apt-get install chromium")

TEXT = "[...Array(term.buffer.active.length).keys()].map(n => term.buffer.active.getLine(n).translateToString()).join('\\n')"


class Refused(Exception):
    """By the browser, as it just goes to another page."""


class Page:
    """A page, driven through the DevTools protocol.

    :ivar errors: what its console has shown in red
    """

    def __init__(self, devtools: ClientConnection) -> None:
        self._devtools = devtools
        self.errors: list[Any] = []

    async def tell(self, method: str, **params: Any) -> Any:
        await self._devtools.send(json.dumps({"id": 1, "method": method, "params": params}))
        while "id" not in (answer := json.loads(await self._devtools.recv())):
            event = answer["params"]
            bad = event.get("entry", {}).get("level") == "error" or event.get("type") == "error"
            if bad or answer["method"] == "Runtime.exceptionThrown":
                self.errors.append(event)
        if "error" in answer:
            raise Refused(answer)
        assert "exceptionDetails" not in answer["result"], answer
        return answer["result"]

    async def run(self, script: str) -> Any:
        result = await self.tell("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until that is true in the page."""
        poll = f"const t = setInterval(() => {{ if ({condition}) {{ clearInterval(t); ok() }} }}, 20)"
        with anyio.fail_after(20):
            while True:
                with contextlib.suppress(Refused):
                    await self.run(f"new Promise(ok => {{ {poll} }})")
                    return

    async def shows(self, text: str, selector: str = "body") -> None:
        await self.until(f"document.querySelector('{selector}')?.innerText.includes({json.dumps(text)})")

    async def prints(self, pattern: str) -> str:
        """Wait until the terminal shows that."""
        await self.until(f"globalThis.term && /{pattern}/.test({TEXT})")
        return str(await self.run(f"{TEXT}.match(/{pattern}/)[1]"))

    async def type(self, text: str) -> None:
        for each in text:
            await self.tell("Input.dispatchKeyEvent", type="char", text=each)

    async def press(self, key: str, code: int, modifiers: int = 0) -> None:
        for kind in "rawKeyDown", "keyUp":
            await self.tell(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers
            )

    async def click(self, label: str) -> None:
        """What can be seen and has that name, as it is read out."""
        names = f"[b.ariaLabel, b.innerText].includes({json.dumps(label)})"
        find = f"[...document.querySelectorAll('button, a')].find(b => b.checkVisibility() && {names})"
        await self.until(find)
        await self.run(f"{find}.click()")

    async def fill(self, selector: str, text: str) -> None:
        await self.until(f"document.querySelector('{selector}')?.checkVisibility()")
        await self.run(f"document.querySelector('{selector}').select()")
        await self.type(text)

    async def login(self, user: str, password: str, device: str = "laptop") -> None:
        for field, text in ("name", user), ("password", password), ("device", device):
            await self.fill(f"#login [name={field}]", text)
        await self.click("Log in")
        await self.shows(f"{user} ({device})", "#me")

    async def start(self, name: str) -> None:
        await self.fill("#start [name=name]", name)
        await self.click("Start")
        await self.prints("bash-(.*)")

    async def picture(self, name: str) -> None:
        """To look at, if a folder is given for it."""
        if folder := os.environ.get("ASYNCREVOKE_PICTURES"):
            data = (await self.tell("Page.captureScreenshot"))["data"]
            pathlib.Path(folder, f"{name}.png").write_bytes(base64.b64decode(data))


@contextlib.asynccontextmanager
async def chromium(url: str, pages: int) -> AsyncIterator[list[Page]]:
    """Pages on that address, each with cookies of its own, in Debian's browser without a window. They show no errors."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["chromium", "--headless=new", "--no-sandbox", "--window-size=1280,800", "--remote-debugging-port=0"]
        command.append(f"--user-data-dir={profile}")
        async with (
            contextlib.AsyncExitStack() as connections,
            await anyio.open_process(command, start_new_session=True, stdout=None, stderr=None) as process,
        ):

            async def open_page(path: str) -> Page:
                address = f"ws://127.0.0.1:{port}{path}"
                return Page(await connections.enter_async_context(connect(address, proxy=None, max_size=None)))

            try:
                said = pathlib.Path(profile, "DevToolsActivePort")  # the port, and the path of the browser itself
                while not (said.exists() and "/" in said.read_text()):
                    assert process.returncode is None
                    await anyio.sleep(0.02)
                port, path = said.read_text().split()
                browser = await open_page(path)
                opened = []
                for _ in range(pages):
                    context = await browser.tell("Target.createBrowserContext")
                    target = await browser.tell("Target.createTarget", url=url, **context)
                    opened.append(page := await open_page(f"/devtools/page/{target['targetId']}"))
                    await page.tell("Runtime.enable")
                    await page.tell("Log.enable")
                yield opened
                for page in opened:
                    await page.run("0")
                    assert page.errors == [], page.errors
            finally:
                os.killpg(process.pid, signal.SIGKILL)
