"""Starts the audit server: migrates the database, prints the address, serves until it is asked to stop."""

from __future__ import annotations

import logging
import socket
import sys

import uvicorn

from audit.queue.database import Database
from audit.queue.people import Limits
from audit.queue.queue import Rules
from audit.web.app import create_app
from audit.web.services import JudgeTable
from audit.web.settings import WebSettings
from audit.web.webhook import Announce
from store.errors import UsageError

_GRACE_S = 10


def serve(
    settings: WebSettings,
    judges: JudgeTable | None = None,
    rules: Rules | None = None,
    limits: Limits | None = None,
    announce: Announce | None = None,
) -> None:
    """Blocks until SIGINT or SIGTERM; requests under way get 10 seconds to end.

    Prints the address to standard output once it listens; the request log goes to standard error, a JSON line each.
    Raises UsageError where the address is taken or the database is of another version.
    """
    database = Database(settings.database_url)
    database.migrate()
    database.close()
    app = create_app(settings, judges, rules=rules, limits=limits, announce=announce)
    listener = listen(settings)
    _log_lines()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=settings.trusted_proxy is not None,
        forwarded_allow_ips=settings.trusted_proxy,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError among them
        raise UsageError(
            f"The certificate {settings.tls_cert} and its key cannot be used ({error}): check them."
        ) from error
    print(f"The audit queue is at {address(settings, listener)}", flush=True)
    with listener:
        uvicorn.Server(config).run(sockets=[listener])


def listen(settings: WebSettings) -> socket.socket:
    """A listening socket, bound before anything is promised. Raises UsageError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror}): choose another host or port."
        ) from error
    # asyncio sets this on sockets of its own alone; without it the end of a page waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address(settings: WebSettings, listener: socket.socket) -> str:
    """Where people reach the server."""
    if settings.public_url is not None:
        return settings.public_url
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_lines() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("rlaif.audit")
    if not logger.handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
