"""The server as a process, a database that is locked, and the call at a quota."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from audit.queue.model import Answer
from audit.web.app import create_app
from audit.web.serve import address, listen
from audit.web.settings import WebSettings
from audit.web.webhook import Watch
from store.errors import UsageError
from tests.audit.web.world import World, field, pairs

PROGRAM = """
import sys
from audit.web.serve import serve
from audit.web.settings import WebSettings
serve(WebSettings(sys.argv[1], port=0))
"""


def test_it_starts_prints_its_address_and_stops_gracefully(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, f"sqlite:///{tmp_path / 'audit.db'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("The audit queue is at http://127.0.0.1:"), line
        response = httpx.get(line.split()[-1] + "/login", timeout=20)
        assert response.status_code == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert [(line["route"], line["status"]) for line in lines] == [("/login", 200)]
    assert "Traceback" not in errors


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=str(port)):
            listen(WebSettings("x.db", port=port))


def test_the_address_that_is_printed() -> None:
    with listen(WebSettings("x.db", port=0)) as listener:
        assert address(WebSettings("x.db", port=0), listener).startswith("http://127.0.0.1:")
        public = WebSettings("x.db", host="0.0.0.0", public_url="https://audit.example.org")
        assert address(public, listener) == "https://audit.example.org"


def test_it_refuses_a_database_without_its_tables(tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    app = create_app(WebSettings(f"sqlite:///{tmp_path / 'empty.db'}"))
    with pytest.raises(UsageError), TestClient(app):
        pass


@pytest.mark.slow
def test_a_locked_database_is_said_and_nothing_is_lost(world: Callable[..., World]) -> None:
    server = world(pairs(1))
    visitor = server.visitor("ada")
    place = visitor.claim()
    csrf = visitor.csrf(place)
    text = visitor.get(place).text
    fields = {"token": field(text, "token"), "key": "k", "choice": "left", "comment": "typed words"}
    with sqlite3.connect(server.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = visitor.submit(f"{place}/answer", csrf, **fields)
        other.execute("ROLLBACK")
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert "typed words" in refused.text
    assert visitor.submit(f"{place}/answer", csrf, **fields).status_code == 303
    assert server.queue.progress(server.user("ada")).answered == 1


class Receiver(HTTPServer):
    def __init__(self, statuses: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = statuses
        self.calls: list[tuple[bytes, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.calls.append((body, dict(self.headers)))
        self.send_response(self.server.statuses.pop(0))
        self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Callable[[list[int]], Receiver]]:
    made: list[Receiver] = []

    def make(statuses: list[int]) -> Receiver:
        made.append(Receiver(statuses))
        threading.Thread(target=made[-1].serve_forever, daemon=True).start()
        return made[-1]

    yield make
    for one in made:
        one.shutdown()
        one.server_close()


def test_a_reached_quota_is_told_once_signed_and_without_content(
    world: Callable[..., World], receiver: Callable[[list[int]], Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAIF_AUDIT_WEBHOOK_SECRET", "s3cret")
    monkeypatch.setattr("audit.web.webhook._PAUSES_S", (0.0, 0.0))
    hook = receiver([500, 200, 200])
    server = world(pairs(1))
    server.close()  # its own watch must not be the one that finds the quota
    watch = Watch(server.queue.quotas_reached, hook.url, "RLAIF_AUDIT_WEBHOOK_SECRET")
    watch.look()
    assert hook.calls == []
    ada = server.user("ada")
    claim = server.queue.claim(ada)
    assert claim is not None
    server.queue.submit(ada, claim.item.item_id, claim.token, Answer("left"), "k")
    watch.look()
    watch.look()
    assert len(hook.calls) == 2  # a failure, tried again
    body, headers = hook.calls[-1]
    told = json.loads(body)
    assert (told["event"], told["batch_id"], told["pairs_complete"]) == ("quota_reached", server.batch, 1)
    assert "Question" not in body.decode()
    assert headers["X-Rlaif-Signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()


def test_a_webhook_follows_no_redirect_and_gives_up(
    world: Callable[..., World], receiver: Callable[[list[int]], Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.web.webhook._PAUSES_S", (0.0,))
    hook = receiver([302, 302, 200])
    server = world(pairs(1))
    reached = [server.queue.batch_progress(server.batch)]
    Watch(lambda: reached, hook.url, "NOT_SET").look()
    assert len(hook.calls) == 2
    assert "X-Rlaif-Signature" not in hook.calls[0][1]


def test_the_webhook_is_shown_to_admins(world: Callable[..., World]) -> None:
    server = world(webhook_url="https://hooks.example.org/x")
    headers = {"Authorization": f"Bearer {server.token('root', 'admin')}"}
    shown = httpx.get(f"{server.url}/api/v1/webhook", headers=headers).json()
    assert shown == {"url": "https://hooks.example.org/x", "signed": False, "key_env": "RLAIF_AUDIT_WEBHOOK_SECRET"}
