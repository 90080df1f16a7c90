"""The application: pages under /, the API under /api/v1, health and metrics.

From the outside in, each request passes the log, the security headers, the checks of host, origin and size, then its
route. Routes are plain functions in a thread pool, since the database calls block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from audit.queue.database import Database
from audit.queue.errors import Busy
from audit.queue.insight import Insight
from audit.queue.model import Clock
from audit.queue.people import Limits, People
from audit.queue.queue import Queue, Rules
from audit.web.access import Deps
from audit.web.api import routes
from audit.web.metrics import CONTENT_TYPE, Metrics
from audit.web.middleware import BodyLimit, OwnHost, OwnOrigin, RequestLog, SecurityHeaders
from audit.web.pages import admin, guidelines, lead, login, review
from audit.web.problems import add_handlers
from audit.web.render import STATIC, Renderer
from audit.web.services import JudgeTable, Services
from audit.web.settings import Oidc, WebSettings
from audit.web.webhook import Announce, Watch
from store.errors import UsageError

_DESCRIPTION = """\
People compare two responses to one prompt, blind. Claim an item, answer it with the claim's token and a key of your
own; sending the same again is safe. Tokens are made by an admin; each call names the scope that it needs.
"""


THREADS = 12
"""Requests that are worked on at once. Calls wait for one writer and one interpreter: more threads take memory only."""

BUSY_S = 10.0
"""How long a person's request waits for another writer before it is refused, with what they typed."""


def now() -> datetime:
    return datetime.now(UTC)


def create_app(
    settings: WebSettings,
    judges: JudgeTable | None = None,
    clock: Clock = now,
    rules: Rules | None = None,
    limits: Limits | None = None,
    announce: Announce | None = None,
) -> FastAPI:
    """The database must be migrated already: starting on another version is refused with a sentence (UsageError).

    `announce`: told of each batch that reached its quota, beside the webhook."""
    rules = rules or Rules()
    database = Database(settings.database_url, busy_s=BUSY_S)
    queue = Queue(database, clock, rules)
    metrics = Metrics(queue.batches)
    watch = Watch(queue.quotas_reached, settings.webhook_url, settings.webhook_secret_env, announce=announce)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database.check_version()
        current_default_thread_limiter().total_tokens = THREADS
        watch.start()
        yield
        watch.stop()
        database.close()

    app = FastAPI(
        title="Audit queue",
        version="1",
        description=_DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.state.services = Services(
        settings=settings,
        database=database,
        queue=queue,
        people=People(database, clock, limits),
        insight=Insight(database),
        clock=clock,
        rules=rules,
        metrics=metrics,
        pages=Renderer(settings.title),
        judges=judges,
    )
    add_handlers(app)
    app.include_router(routes.router)
    for page in (login, review, guidelines, lead, admin):
        app.include_router(page.router, include_in_schema=False)
    app.add_api_route("/healthz", _health, include_in_schema=False)
    app.add_api_route("/metrics", _metrics, include_in_schema=False)
    app.mount("/static", _Static(directory=STATIC))

    def limit_of(path: str) -> int:
        return settings.import_bytes if path.startswith("/api/v1/batches") else settings.body_bytes

    if settings.oidc is not None:
        _add_oidc(app, settings, settings.oidc)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, limit_of=limit_of)
    app.add_middleware(OwnOrigin, settings=settings)
    app.add_middleware(OwnHost, settings=settings)
    app.add_middleware(SecurityHeaders, secure=settings.secure)
    app.add_middleware(RequestLog, observe=metrics.observe)
    return app


def _add_oidc(app: FastAPI, settings: WebSettings, oidc: Oidc) -> None:
    try:
        from audit.web.oidc import add_oidc
    except ImportError as error:
        raise UsageError("Single sign-on needs the extra oidc: run pip install 'rlaif[oidc]'.") from error
    add_oidc(app, settings, oidc)


def _health(deps: Deps) -> Response:
    try:
        deps.database.ping()
    except Busy:
        return JSONResponse({"status": "database does not answer"}, 503)
    return JSONResponse({"status": "ok"})


def _metrics(deps: Deps) -> Response:
    return Response(deps.metrics.text(), media_type=CONTENT_TYPE)


class _Static(StaticFiles):
    """Kept for ever under an address with the content's hash, which pages use; not at all under the bare one."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if b"v=" in scope["query_string"]:
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response
