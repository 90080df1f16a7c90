"""A real audit server on a temporary database, with people and pairs, under a clock that tests can move."""

from __future__ import annotations

import atexit
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import httpx
import uvicorn

from audit.queue.database import Database
from audit.queue.model import Guidelines, NewItem, Role
from audit.queue.people import Limits, People
from audit.queue.queue import Queue, Rules
from audit.web.app import create_app
from audit.web.services import JudgeTable
from audit.web.settings import WebSettings

PASSWORD = "correct horse battery staple"
PEOPLE = {"ada": Role.AUDITOR, "bob": Role.AUDITOR, "lena": Role.LEAD, "root": Role.ADMIN}
GUIDE = Guidelines(
    version="3",
    text="Read both to the end.\n\n- Choose what *serves* the person.\n- A tie is an answer.",
    constitution_version="1",
    constitution="1. What it says is true.\n2. It does what was asked.",
)


class Clock:
    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def forward(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


def pairs(n: int, **more: object) -> list[NewItem]:
    items = [NewItem(f"pair-{i}", f"Question {i}?", f"First answer {i}.", f"Second answer {i}.") for i in range(n)]
    return [replace(item, **more) for item in items]  # type: ignore[arg-type]


@cache
def _with_people() -> Path:
    """A migrated database with the people, made once: hashing passwords takes its time, as it should."""
    folder = Path(tempfile.mkdtemp(prefix="rlaif-audit-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    database = Database(f"sqlite:///{folder / 'made.db'}")
    database.migrate()
    people = People(database, Clock())
    for name, role in PEOPLE.items():
        people.add(name, role, PASSWORD)
    database.backup(folder / "people.db")
    database.close()
    return folder / "people.db"


class World:
    """`url` is where the server listens; `queue` and `people` work on the same database, under the same clock."""

    def __init__(
        self,
        folder: Path,
        items: Iterable[NewItem] = (),
        overlap: int = 1,
        rules: Rules | None = None,
        limits: Limits | None = None,
        judges: JudgeTable | None = None,
        guidelines: Guidelines = GUIDE,
        **settings: object,
    ) -> None:
        self.clock = Clock()
        self.path = folder / "audit.db"
        url = f"sqlite:///{self.path}"
        shutil.copyfile(_with_people(), self.path)
        self.database = Database(url)
        self.queue = Queue(self.database, self.clock, rules)
        self.people = People(self.database, self.clock, limits)
        items = list(items)
        self.batch = self.queue.add_batch("first", items, overlap, guidelines) if items else ""
        self.settings = WebSettings(url, **settings)  # type: ignore[arg-type]
        self.app = create_app(self.settings, judges, self.clock, rules, limits)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(self.app, log_config=None, access_log=False, server_header=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        until = time.monotonic() + 20
        while not self._server.started and time.monotonic() < until:
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)
        self.database.close()

    def user(self, name: str) -> int:
        return self.people.get(name).id

    def token(self, name: str, *scopes: str) -> str:
        return self.people.create_token(name, "test", scopes)[0]  # type: ignore[arg-type]

    def visitor(self, name: str | None = None) -> Visitor:
        visitor = Visitor(self.url)
        if name is not None:
            assert visitor.login(name).status_code == 303
        return visitor


class Visitor(httpx.Client):
    """A browser without a script: keeps cookies, sends Origin with posts, follows nothing by itself."""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, timeout=30)
        self.origin = url

    def csrf(self, path: str = "/") -> str:
        return field(self.get(path).text, "csrf")

    def submit(self, path: str, csrf: str | None = None, **fields: object) -> httpx.Response:
        data = {"csrf": self.csrf() if csrf is None else csrf} | fields
        return self.post(path, data=data, headers={"Origin": self.origin})

    def login(self, name: str, password: str = PASSWORD, **more: object) -> httpx.Response:
        return self.submit("/login", self.csrf("/login"), name=name, password=password, **more)

    def claim(self) -> str:
        """The address of the pair that is held now."""
        response = self.submit("/claim")
        assert response.status_code == 303
        return response.headers["location"]

    def answer(self, place: str, **fields: object) -> httpx.Response:
        text = self.get(place).text
        data = {name: field(text, name) for name in ("token", "key")} | {"choice": "left"} | fields
        return self.submit(f"{place}/answer", field(text, "csrf"), **data)

    def answer_again(self, place: str) -> httpx.Response:
        """An answer from a tab that is behind."""
        return self.submit(f"{place}/answer", token="1", key="another", choice="right")


def field(html: str, name: str) -> str:
    """The value of the first hidden field of that name; in the review form, where there is one."""
    start = max(html.find('id="review"'), 0)
    found = re.search(rf'<input[^>]*name="{name}" value="([^"]*)"', html[start:])
    assert found, f"no field {name} in {html[:2000]}"
    return found[1]
