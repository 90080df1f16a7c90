"""A real Prefect server for tests: its own port, its own home, nothing of the person's who runs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx

from flows.processes.lifeline import spawn, stop

T = TypeVar("T")


def until(look: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first true value of `look`, asked twice a second. `seconds` are those of an idle machine, times five."""
    end = time.monotonic() + 5 * seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {5 * seconds} s")


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RLAIF_"))}
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    return {**kept, **quiet, "PREFECT_HOME": str(home), **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`start` may be called again after `kill`: the same address, the same database."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home, self.settings = home, settings
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        environment = clean_environment(self.home, PREFECT_API_URL=self.api, **self.settings)
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.home / "server.log").open("a") as log:
            self.process = spawn(command, env=environment, stdout=log, stderr=log)
        until(self._healthy, 240, "the server")

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            stop(self.process)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """As Prefect's own clients: a server that says it is busy, or says nothing, is asked again."""

        def once() -> httpx.Response | None:
            with suppress(httpx.TransportError):
                response = httpx.request(method, f"{self.api}{path}", json=body, timeout=30)
                return None if response.status_code == 503 else response
            return None

        response = until(once, 60, f"an answer to {path}").raise_for_status()
        return response.json() if response.content else None


@contextmanager
def prefect_server(home: Path, **settings: str) -> Iterator[Server]:
    server = Server(home, **settings)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def background(arguments: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The command line in a process group of its own, which is asked to end, and killed when it stays."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", *arguments],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
