"""Servers and browsers. A browser page fails its test on any console error, page error or policy violation."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.audit.web.world import PASSWORD, World

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """`world(items, ...)` starts a server; all are stopped at the end."""
    made: list[World] = []

    def make(*args: Any, **more: Any) -> World:
        folder = tmp_path / f"world{len(made)}"
        folder.mkdir()
        made.append(World(folder, *args, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")  # playwright holds an event loop: not in the way of others
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'rlaif[test]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or name it in the variable CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Person:
    """One person in a browser context of their own."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(**({"base_url": url, "viewport": {"width": 1360, "height": 860}} | context))
        self.context.set_default_timeout(10_000)
        self.faults: list[str] = []
        self.expected: set[int] = set()
        self.page = self.tab()

    def tab(self) -> Any:
        page = self.context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(f"page error: {error}"))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", self._request)
        return page

    def expect(self, *statuses: int) -> None:
        """These refusals belong to the test; the browser's own line about them is no fault."""
        self.expected |= set(statuses)

    def login(self, name: str) -> Person:
        self.page.goto("/login")
        self.page.fill("[name=name]", name)
        self.page.fill("[name=password]", PASSWORD)
        self.page.click("button:has-text('Sign in')")
        self.page.wait_for_url("**/")
        return self

    def start(self) -> Person:
        self.page.click("main button.primary")
        self.page.wait_for_selector("#review")
        return self

    def _console(self, message: Any) -> None:
        if message.type not in ("error", "warning"):
            return
        refusal = re.search(r"responded with a status of (\d+)", message.text)
        if not (refusal and int(refusal[1]) in self.expected):
            self.faults.append(f"{message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith(self.url):
            self.faults.append(f"request elsewhere: {request.url}")


@pytest.fixture
def person(chromium: Any) -> Iterator[Callable[..., Person]]:
    """`person(url, "ada")` opens a context of its own, signed in. Ends by failing on what the browser complained of."""
    made: list[Person] = []

    def make(url: str, name: str | None = None, **context: Any) -> Person:
        one = Person(chromium, url, **context)
        made.append(one)
        return one.login(name) if name else one

    yield make
    faults = [fault for one in made for fault in one.faults]
    for one in made:
        one.context.close()
    assert not faults, faults
