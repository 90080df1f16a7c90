"""Simulated auditors at a real audit server: they sign in with tokens, claim, look, answer, over HTTP, like people.

They know of an item what a person does: the texts on the sides drawn for them. Ids, sides and who gets which item are
random in the queue, on purpose, so unlike `audit.simulated.simulate` the rows differ from run to run; what an auditor
thinks of a pair does not. The server and its database serve this run alone: simulated auditors must never be handed
what waits for people.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from audit.asking import Heard, Selected, Terms
from audit.loop import count, enqueue, need_batch, open_queue, queue_items
from audit.names import SIMULATED_PREFIX
from audit.queue.errors import NotFound
from audit.queue.exchange import export_verdicts
from audit.queue.model import Guidelines, Role
from audit.queue.people import People, Scope
from audit.simulated import Auditor, Pair, ScoreDifference, choose, time_taken
from audit.verdicts import from_table
from audit.web.app import create_app
from audit.web.serve import address, listen
from audit.web.settings import WebSettings
from store.errors import RlaifError

_START_S = 30.0
_TOKEN_LIFE = timedelta(hours=12)


def ask_over_http(terms: Terms, selected: Selected, auditors: Sequence[Auditor], oracle: ScoreDifference) -> Heard:
    """Let the auditors answer all items in a queue of their own, which lies in the folder of the state: after a kill it
    is gone on with."""
    items = queue_items(selected)
    if not items:
        return Heard("simulated")
    url = f"sqlite:///{terms.state / 'simulated.db'}"
    asked = [Pair(*row.values()) for row in selected.items().select(list(Pair._fields)).to_pylist()]
    known = dict(zip(map(_texts, asked), zip(asked, oracle(asked), strict=True), strict=True))
    with open_queue(url, terms.clock) as queue:
        batch = need_batch(queue, enqueue(queue, items, terms.config.overlap, Guidelines(), 1.0))
        people = People(queue.database, terms.clock)
        tokens = {auditor: _token(people, auditor) for auditor in auditors}
        with running(create_app(WebSettings(url, port=0), clock=terms.clock)) as base:
            clients = {
                auditor: httpx.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=60)
                for auditor, token in tokens.items()
            }
            try:
                _answer_all(clients, known, terms.seed)
            finally:
                for client in clients.values():
                    client.close()
        rows = export_verdicts(queue.database, batch)
    counted = count(from_table(rows), rows)
    metrics = {"left_out": counted.left_out}
    return Heard("simulated", counted.verdicts, counted.gold, metrics=metrics, rows=rows)


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve `app` on a free port of this machine, in a thread; gives the address."""
    settings: WebSettings = app.state.services.settings
    with listen(settings) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="audit server", daemon=True)
        thread.start()
        end = time.monotonic() + _START_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > end:
                raise RlaifError(f"The audit server for simulated auditors did not start within {_START_S:.0f} s.")
            time.sleep(0.01)
        try:
            yield address(settings, listener)
        finally:
            server.should_exit = True
            thread.join(timeout=_START_S)


def _token(people: People, auditor: Auditor) -> str:
    name = SIMULATED_PREFIX + auditor.name
    try:
        people.get(name)
    except NotFound:
        people.add(name, Role.AUDITOR, simulated=True)
    return people.create_token(name, "simulation", [Scope.CLAIM, Scope.SUBMIT], _TOKEN_LIFE)[0]


def _answer_all(
    clients: dict[Auditor, httpx.Client], known: dict[tuple[str, ...], tuple[Pair, float | None]], seed: int
) -> None:
    """In turns, so that nobody takes all, until nothing waits for anybody."""
    working = dict(clients)
    while working:
        for auditor, client in list(working.items()):
            claim = _call(client, "/api/v1/claim")
            if claim is None:
                del working[auditor]
            else:
                _answer(client, auditor, claim, known, seed)


def _answer(
    client: httpx.Client,
    auditor: Auditor,
    claim: dict[str, Any],
    known: dict[tuple[str, ...], tuple[Pair, float | None]],
    seed: int,
) -> None:
    pair, difference = known[claim["prompt"], *sorted((claim["left"], claim["right"]))]
    left = "a" if claim["left"] == pair.response_a else "b"
    winner = choose(pair, auditor, difference, left, seed)
    place, held = f"/api/v1/items/{claim['item_id']}", {"token": claim["token"], "key": claim["item_id"]}
    if winner is None:
        _call(client, f"{place}/skip", held | {"reason": "the oracle has no score"})
        return
    choice = "tie" if winner == "tie" else "left" if winner == left else "right"
    _call(client, f"{place}/submit", held | {"choice": choice, "seconds": time_taken(pair, auditor, seed)})


def _call(client: httpx.Client, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    try:
        response = client.post(path, json=body)
    except httpx.HTTPError as error:
        raise RlaifError(f"The audit server for simulated auditors does not answer {path} ({error}).") from error
    if response.is_error:
        raise RlaifError(f"The audit server refused a simulated auditor's {path} ({response.status_code}).")
    value: dict[str, Any] | None = None if response.status_code == 204 else response.json()
    return value


def _texts(pair: Pair) -> tuple[str, ...]:
    return (pair.prompt, *sorted((pair.response_a, pair.response_b)))
