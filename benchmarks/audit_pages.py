"""The audit server as 20 browsers meet it: `python benchmarks/audit.py --only pages`.

`rlaif audit serve` is started as people start it, on 1,000, 10,000 and 100,000 queued items. From its start to the
first page that it answers is the first figure. Then 20 people are signed in, and each works on pair after pair over
HTTP, without a script, thinking two seconds on average, nine times less than one who judges 200 pairs an hour. Times
are the browser's, to the last byte of the page, and hold two requests, since a claim redirects to its page:

    claim and page    the pair before was given back, so that nothing else is done: what the target is about
    answer to page    a verdict flushed to the disk, then the same: what a person feels

The clients' own work is on the same cores; they are one asyncio process.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import sqlalchemy as sa

from audit.queue.database import Database
from audit.queue.tables import users

PASSWORD = "correct horse battery staple"
PEOPLE, ROUNDS, PAUSE_S = 20, 15, 2.0
START_S = 3.0


@dataclass(frozen=True)
class Found:
    """Seconds from a claim, and from an answer, until the next page is there; megabytes of the server, and its seconds
    of CPU for one of each."""

    claimed: list[float]
    onward: list[float]
    memory_mb: float
    start_s: float
    cpu: float


def measure(url: str) -> Found:
    """`url`: a filled database with the people p0 .. p19."""
    _set_passwords(url)
    started = time.monotonic()
    command = [sys.executable, "-m", "flows", "audit", "serve", "--database-env", "RLAIF_BENCH_DATABASE", "--port", "0"]
    root = Path(__file__).resolve().parent.parent
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "RLAIF_BENCH_DATABASE": url if "://" in url else f"sqlite:///{url}"},
        ) as server,
    ):
        try:
            line = (server.stdout or sys.stdin).readline()
            if (address := re.search(r"http://\S+", line)) is None:
                log.seek(0)
                raise SystemExit(f"the server did not start: {line}{log.read().decode()}")
            return asyncio.run(_people(address[0], started, psutil.Process(server.pid)))
        finally:
            server.terminate()
            server.wait()


def _set_passwords(url: str) -> None:
    """The same password for all: hashing it 20 times would take longer than the rest."""
    from argon2 import PasswordHasher

    database = Database(url)
    with database.write() as connection:
        connection.execute(sa.update(users).values(password_hash=PasswordHasher().hash(PASSWORD)))
    database.close()


async def _people(url: str, started: float, server: psutil.Process) -> Found:
    claimed: list[float] = []
    onward: list[float] = []
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/login") as answer:
            await answer.read()
        start_s = time.monotonic() - started
    people = [await _sign_in(url, number) for number in range(PEOPLE)]
    before = sum(server.cpu_times()[:2])
    try:
        await asyncio.gather(*(_sit(person, url, claimed, onward, number) for number, person in enumerate(people)))
        memory = server.memory_info().rss / 2**20
    finally:
        for person in people:
            await person.close()
    cpu = (sum(server.cpu_times()[:2]) - before) / len(onward)
    return Found(claimed, onward, memory, start_s, cpu)


async def _sign_in(url: str, number: int) -> aiohttp.ClientSession:
    person = aiohttp.ClientSession(headers={"Origin": url}, cookie_jar=aiohttp.CookieJar(unsafe=True))
    async with person.get(f"{url}/login") as answer:
        csrf = _field(await answer.text(), "csrf")
    data = {"csrf": csrf, "name": f"p{number}", "password": PASSWORD}
    async with person.post(f"{url}/login", data=data, allow_redirects=False) as answer:
        if answer.status != 303:
            raise SystemExit(f"p{number} could not sign in: {answer.status}")
    return person


async def _sit(person: aiohttp.ClientSession, url: str, claimed: list[float], onward: list[float], number: int) -> None:
    chance = random.Random(number)
    async with person.get(f"{url}/") as answer:
        text = await answer.text()
    place, text = await _post(person, url, "/claim", {"csrf": _field(text, "csrf")})
    for _ in range(ROUNDS):
        await asyncio.sleep(chance.uniform(0, 2 * PAUSE_S))
        data = {name: _field(text, name) for name in ("csrf", "token", "key")}
        begin = time.perf_counter()
        place, text = await _post(person, url, f"{place}/answer", data | {"choice": chance.choice(["left", "tie"])})
        onward.append(time.perf_counter() - begin)
        await asyncio.sleep(chance.uniform(0, 2 * PAUSE_S))
        data = {name: _field(text, name) for name in ("csrf", "token")}
        async with person.post(f"{url}{place}/release", data=data, allow_redirects=False) as answer:
            if answer.status != 303:
                raise SystemExit(f"giving back gave {answer.status}: {(await answer.text())[:500]}")
        begin = time.perf_counter()
        place, text = await _post(person, url, "/claim", {"csrf": data["csrf"]})
        claimed.append(time.perf_counter() - begin)


async def _post(person: aiohttp.ClientSession, url: str, path: str, data: dict[str, str]) -> tuple[str, str]:
    """Where the post leads to, and the page there."""
    async with person.post(f"{url}{path}", data=data, allow_redirects=False) as answer:
        place = answer.headers.get("location", "")
        if answer.status != 303 or "/items/" not in place:
            raise SystemExit(f"{path} gave {answer.status} {place}: {(await answer.text())[:500]}")
    async with person.get(f"{url}{place}") as answer:
        text = await answer.text()
        if answer.status != 200:
            raise SystemExit(f"{place} gave {answer.status}")
    return place.partition("?")[0], text


def _field(text: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', text)
    if found is None:
        raise SystemExit(f"the page has no field {name}")
    return found[1]
