"""Signing in and out, and one's own password."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import FormData
from starlette.responses import RedirectResponse, Response

from audit.queue.errors import BadInput, Throttled, Unauthenticated
from audit.queue.people import Session, User
from audit.web.access import (
    Deps,
    FormError,
    Posted,
    before_login,
    current_session,
    drop_cookie,
    form_cookie,
    parse_form,
    reader,
    session_cookie,
    set_cookie,
    text_field,
    writer,
)
from audit.web.csrf import csrf_matches, local_path
from audit.web.services import Services

router = APIRouter()


@router.get("/login")
def login_page(
    request: Request,
    deps: Deps,
    session: Annotated[Session | None, Depends(current_session)],
    secret: Annotated[str, Depends(before_login)],
    next: str = "/",
) -> Response:
    if session is not None:
        return RedirectResponse(local_path(next), 303)
    return _form(request, deps, secret, local_path(next))


@router.post("/login")
def login(
    request: Request,
    deps: Deps,
    form: Annotated[FormData, Depends(parse_form)],
    secret: Annotated[str, Depends(before_login)],
) -> Response:
    def sent(field: str) -> str:
        return text_field(form, field)

    if not csrf_matches(secret, sent("csrf")) or form_cookie(deps.settings.secure) not in request.cookies:
        raise FormError
    address = request.client.host if request.client else ""
    old = request.cookies.get(session_cookie(deps.settings.secure))
    try:
        session = deps.people.login(sent("name"), sent("password"), address, old)
    except Unauthenticated:
        deps.metrics.refused.labels("unauthenticated").inc()
        text = "Name and password do not match an account."
        return _form(request, deps, secret, local_path(sent("next")), 401, sent("name"), text)
    except Throttled as error:
        deps.metrics.refused.labels("throttled").inc()
        response = _form(request, deps, secret, local_path(sent("next")), 429, sent("name"), str(error))
        response.headers["Retry-After"] = str(error.retry_after)
        return response
    return signed_in(deps, session, local_path(sent("next")))


@router.post("/logout")
def logout(deps: Deps, posted: Annotated[Posted, Depends(writer())], request: Request) -> Response:
    """Also gives back what the person holds, so that nobody waits for it."""
    deps.queue.release_all(posted.user.id)
    deps.people.logout(request.state.session.secret)
    response = RedirectResponse("/login", 303)
    drop_cookie(response, session_cookie(deps.settings.secure), deps.settings.secure)
    return response


@router.get("/account")
def account(request: Request, deps: Deps, user: Annotated[User, Depends(reader())], after: str = "") -> Response:
    notice = {"kind": "good", "title": "Signed out everywhere else.", "text": ""} if after == "elsewhere" else None
    return deps.pages.page(request, "account.html", notice=notice)


@router.post("/account/password")
def change_password(request: Request, deps: Deps, posted: Annotated[Posted, Depends(writer())]) -> Response:
    """Asks for the present password, so that an unlocked screen is not enough. All other sessions end."""
    address = request.client.host if request.client else ""
    try:
        if posted.get("new") != posted.get("again"):
            raise BadInput("The new password was not typed twice the same: type it again.")
        deps.people.login(posted.user.name, posted.get("present"), address)
        deps.people.reset(posted.user.name, posted.get("new"))
    except (BadInput, Unauthenticated) as error:
        text = "The present password is another one." if isinstance(error, Unauthenticated) else str(error)
        notice = {"kind": "bad", "title": "Not changed.", "text": text}
        return deps.pages.page(request, "account.html", error.status, notice=notice)
    return signed_in(deps, deps.people.open_session(posted.user.id), "/account?after=elsewhere")


@router.post("/account/sessions")
def end_sessions(deps: Deps, posted: Annotated[Posted, Depends(writer())]) -> Response:
    deps.people.revoke_sessions(posted.user.id)
    return signed_in(deps, deps.people.open_session(posted.user.id), "/account?after=elsewhere")


def signed_in(deps: Services, session: Session, place: str) -> Response:
    response = RedirectResponse(place, 303)
    set_cookie(response, session_cookie(deps.settings.secure), session.secret, deps.settings.secure)
    drop_cookie(response, form_cookie(deps.settings.secure), deps.settings.secure)
    return response


def _form(
    request: Request, deps: Services, secret: str, place: str, status: int = 200, name: str = "", error: str = ""
) -> Response:
    label = deps.settings.oidc.label if deps.settings.oidc else None
    notice = {"kind": "bad", "title": "Not signed in.", "text": error} if error else None
    response = deps.pages.page(request, "login.html", status, next=place, name=name, oidc_label=label, notice=notice)
    set_cookie(response, form_cookie(deps.settings.secure), secret, deps.settings.secure)
    return response
