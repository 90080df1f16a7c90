"""Refusals and failures as people and programs see them: one sentence, what was typed, and a way on. Never a trace."""

from __future__ import annotations

import logging
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

from audit.queue.errors import Busy, Throttled, Unauthenticated
from audit.web.access import FormError, LoginError, current_session
from audit.web.middleware import API
from audit.web.services import services
from store.errors import RlaifError, UsageError

LOG = logging.getLogger("rlaif.audit")
_HEADINGS = {
    400: "That request cannot be read",
    401: "Please sign in",
    403: "Not for this account",
    404: "Nothing here",
    405: "Not like that",
    409: "Not saved",
    410: "This batch is closed",
    413: "Too large",
    422: "Something is missing or wrong",
    429: "Too many attempts",
    503: "Not at the moment",
}


class Problem(BaseModel):
    """Why a call was refused; a refusal changes nothing."""

    status: int = Field(description="The HTTP status once more.")
    code: str = Field(description="The kind of problem, such as lease_expired; stable.")
    detail: str = Field(description="One sentence for people: what, and what to do.")


def wants_json(request: Request) -> bool:
    """Whether the page's own script asks, or the path is the API's."""
    return request.url.path.startswith(API) or request.headers.get("accept", "").startswith("application/json")


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    content = Problem(status=status, code=code, detail=detail.encode("utf-8", "backslashreplace").decode())
    return JSONResponse(content.model_dump(), status, headers)


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RlaifError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(LoginError, _login)
    app.add_exception_handler(FormError, _forged)
    app.add_exception_handler(Exception, _failed)


def _respond(
    request: Request, status: int, code: str, detail: str, headers: dict[str, str] | None = None, **more: Any
) -> Response:
    deps = services(request)
    deps.metrics.refused.labels(code).inc()
    if wants_json(request):
        return problem(status, code, detail, headers)
    if getattr(request.state, "session", None) is None and status != 503:
        current_session(request, deps)
    response = deps.pages.page(
        request,
        "message.html",
        status,
        code=status,
        heading=_HEADINGS.get(status, "That did not work"),
        text=detail,
        comment=more.get("comment") or _comment(request),
        onward=status in (409, 410) and request.method == "POST",
        back=more.get("back"),
    )
    response.headers.update(headers or {})
    return response


def _refused(request: Request, error: Exception) -> Response:
    status = getattr(error, "status", 422 if isinstance(error, UsageError) else 500)
    headers = {}
    if isinstance(error, Throttled):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Busy):
        headers["Retry-After"] = "2"
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if status >= 500:
        LOG.error("%s: %s", type(error).__name__, error)
    return _respond(request, status, _code(error), str(error), headers)


def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise TypeError(type(error))
    text = {
        404: "There is no such page: follow a link or go back to the start.",
        405: "This address does not take that kind of request.",
    }.get(error.status_code, str(error.detail))
    code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "bad_request")
    return _respond(request, error.status_code, code, text, dict(error.headers or {}))


def _invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise TypeError(type(error))
    # Places and reasons only: the values may be content, and need not even be printable.
    faults = [f"{'.'.join(map(str, fault['loc'][1:])) or 'body'}: {fault['msg']}" for fault in error.errors()[:5]]
    return _respond(request, 422, "invalid", f"The call cannot be right: {'; '.join(faults)}.")


def _login(request: Request, error: Exception) -> Response:
    if wants_json(request):
        return problem(
            401, "login_needed", "Your session has ended. Sign in again in another tab, then save once more."
        )
    if request.method == "GET":
        path = request.url.path
        return RedirectResponse("/login" if path == "/" else f"/login?next={path}", 303)
    text = "Your session has ended, so nothing was saved. Sign in again; the pair is still yours while it is held."
    return _respond(request, 401, "login_needed", text, comment=getattr(error, "comment", ""), back="/login")


def _forged(request: Request, error: Exception) -> Response:
    text = "This form belongs to another session, or it is from before you signed in. Load the page again."
    return _respond(request, 403, "forged_form", text, comment=getattr(error, "comment", ""))


def _failed(request: Request, error: Exception) -> Response:
    # The type only: a message may hold content.
    LOG.error("%s in %s", type(error).__name__, getattr(request.scope.get("route"), "path", "?"))
    if wants_json(request):
        return problem(500, "internal", "The server failed at this; nothing was saved. Try again.")
    return Response(
        "The server failed at this; nothing was saved. Go back and try again.\n", 500, media_type="text/plain"
    )


def _comment(request: Request) -> str:
    form = getattr(request.state, "form", None)
    value = form.get("comment") if isinstance(form, FormData) else None
    return value if isinstance(value, str) else ""


def _code(error: Exception) -> str:
    return re.sub(r"(?<=.)(?=[A-Z])", "_", type(error).__name__).lower()
