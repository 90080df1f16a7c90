"""A Prefect API for a run: the one that PREFECT_API_URL names, or a local one with its database in the workspace.

Prefect's own ephemeral API is not used: it often misses its start-up time on a fresh database, and it loses the end of
a run's history when the process exits. This one is a server process that is waited for at both ends.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx

from flows.prefect_database import begin_database, keep_database
from flows.processes.lifeline import spawn, stop
from store.errors import RlaifError, TransientError, UsageError
from store.files import explain_os_errors

START_TIMEOUT_S = 180.0
HISTORY_TIMEOUT_S = 60.0


def quiet_prefect(home: Path) -> None:
    """Settings that must stand before prefect is imported: no telemetry, its files in `home`, a console left to us."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if not (Path.home() / ".prefect").is_dir():
        os.environ.setdefault("PREFECT_HOME", str(home))


@contextmanager
def prefect_api(home: Path, port: int | None = None, meanwhile: Callable[[], object] = lambda: None) -> Iterator[str]:
    """Yield the URL of a healthy API, with PREFECT_API_URL set to it. A local server ends with the block.

    `port`: of a local server; a free one without. `meanwhile` is called while a local server starts. Raises
    TransientError where a named server does not answer, UsageError where the port is taken.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url:
        if not _healthy(url):
            raise TransientError(
                f"The Prefect API {url} (PREFECT_API_URL) does not answer: start it, or unset the variable."
            )
        with _explain_loss(url):
            yield url
        return
    with _local_server(home, port, meanwhile) as url:
        os.environ["PREFECT_API_URL"] = url
        _read_settings_again()
        try:
            with _explain_loss(url):
                yield url
        finally:
            del os.environ["PREFECT_API_URL"]
            _read_settings_again()


@contextmanager
def _explain_loss(url: str) -> Iterator[None]:
    """A server that goes, or fails, in the middle of a run is one sentence too. What the stages made does not depend on
    it."""
    try:
        yield
    except RlaifError:
        raise
    except Exception as error:
        if (explained := _explained(_http_error(error), url)) is None:
            raise
        raise explained from error


def _http_error(error: BaseException | None) -> httpx.HTTPError | None:
    """What went wrong with a request; Prefect's client hides it in the cause of errors of its own."""
    while error is not None and not isinstance(error, httpx.HTTPError):
        error = error.__cause__
    return error


def _explained(error: httpx.HTTPError | None, url: str) -> RlaifError | None:
    """One sentence; None for what is no failure of the API at `url`."""
    kept = "stages that were finished are kept. When it is back, the same rlaif run goes on from there."
    if isinstance(error, httpx.TransportError):
        return TransientError(f"The Prefect API {url} stopped answering ({type(error).__name__}): {kept}")
    if not isinstance(error, httpx.HTTPStatusError) or not str(error.request.url).startswith(url.rstrip("/")):
        return None
    code = error.response.status_code
    if code in (401, 403):
        return UsageError(
            f"The Prefect API {url} refuses this user ({code}): set PREFECT_API_AUTH_STRING=user:password."
        )
    if code < 500:
        return None
    return TransientError(
        f"The Prefect API {url} answers with {code}, also when asked again (its log says why; most often its database "
        f"is locked): {kept}"
    )


def _read_settings_again() -> None:
    """Prefect reads the environment once, when it is imported; without this it would start a server of its own."""
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


@contextmanager
def _local_server(home: Path, port: int | None, meanwhile: Callable[[], object]) -> Iterator[str]:
    port = _free_port(port)
    url = f"http://127.0.0.1:{port}/api"
    log = home / "server.log"
    with explain_os_errors(log):
        home.mkdir(parents=True, exist_ok=True)
        output = log.open("a", encoding="utf-8")
    database = home / "prefect.db"
    to_keep = begin_database(database)
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": url,
        "PREFECT_UI_API_URL": url,
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with output:
        server = spawn(command, env=environment, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            meanwhile()
            while not _healthy(url):
                if server.poll() is not None:
                    raise TransientError(
                        f"The local Prefect API ended at its start (exit code {server.returncode}): see {log}."
                    )
                if time.monotonic() > deadline:
                    raise TransientError(
                        f"The local Prefect API was not ready after {START_TIMEOUT_S:.0f} s: see {log}."
                    )
                time.sleep(0.2)
            if to_keep:
                keep_database(database)
            yield url
        finally:
            # What is still to be sent must go now: at the process's end nobody would be there to take it.
            send_pending(timeout_s=5)
            stop(server, patience_s=10)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url.rstrip('/')}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _free_port(wanted: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as error:
            raise UsageError(f"Port {wanted} is taken ({error.strerror}): give another --port.") from error
        port: int = probe.getsockname()[1]
        return port


def send_pending(timeout_s: float) -> None:
    """Send the events and logs that this process still holds."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=timeout_s)
    APILogWorker.drain_all(timeout=timeout_s)


def wait_for_history(flow_run_id: str, tasks: int) -> None:
    """Return once the API shows `tasks` task runs of the flow run, all of them ended.

    Task runs are recorded by a background service of the server, seconds after they happened: a server stopped at once
    would show a finished run with half of its tasks. Raises RlaifError after a minute.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    send_pending(HISTORY_TIMEOUT_S)
    deadline = time.monotonic() + HISTORY_TIMEOUT_S
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_id)]))
    ended = 0
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            runs = client.read_task_runs(flow_run_filter=wanted)
            ended = sum(run.state is not None and run.state.is_final() for run in runs)
            if ended >= tasks:
                return
            time.sleep(0.2)
    raise RlaifError(f"The Prefect API has {ended} of {tasks} task runs: the round is complete, its history is not.")
