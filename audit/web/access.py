"""Who is asking: sessions for pages, bearer tokens for the API, and the check that a form is one of ours."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.responses import Response

from audit.queue.errors import NotAllowed, Unauthenticated
from audit.queue.model import Role
from audit.queue.people import Scope, Session, User
from audit.web.csrf import csrf_matches
from audit.web.services import Services, services

Deps = Annotated[Services, Depends(services)]
_MOST_FIELDS = 200


class LoginError(Exception):
    """There is no valid session. `comment`: what the person had typed, to be shown again."""

    def __init__(self, comment: str = "") -> None:
        super().__init__("Sign in first.")
        self.comment = comment


class FormError(Exception):
    """A form without the token of this browser's session. `comment` as in LoginError."""

    def __init__(self, comment: str = "") -> None:
        super().__init__("This form is not of your session.")
        self.comment = comment


def session_cookie(secure: bool) -> str:
    # With this prefix browsers refuse the cookie from a neighbouring host or over http.
    return "__Host-audit" if secure else "audit_session"


def form_cookie(secure: bool) -> str:
    return "__Host-audit-form" if secure else "audit_form"


def set_cookie(response: Response, name: str, value: str, secure: bool) -> None:
    response.set_cookie(name, value, httponly=True, samesite="lax", secure=secure, path="/")


def drop_cookie(response: Response, name: str, secure: bool) -> None:
    response.delete_cookie(name, httponly=True, samesite="lax", secure=secure, path="/")


def current_session(request: Request, deps: Deps) -> Session | None:
    """The session of the cookie; None without one, and for one that is expired or revoked."""
    secret = request.cookies.get(session_cookie(deps.settings.secure))
    if not secret:
        return None
    try:
        session = deps.people.session(secret)
    except Unauthenticated:
        return None
    request.state.session = session
    request.state.user_id = session.user.id
    return session


def reader(role: Role = Role.AUDITOR) -> Callable[..., User]:
    """For pages that are read: the user, at least of `role`. Raises LoginError, NotAllowed."""

    def user(session: Annotated[Session | None, Depends(current_session)]) -> User:
        if session is None:
            raise LoginError
        return _at_least(session, role)

    return user


class Posted:
    """A form that was sent by a signed-in person from a page of ours."""

    def __init__(self, user: User, form: FormData) -> None:
        self.user = user
        self.form = form

    def get(self, name: str, default: str = "") -> str:
        return text_field(self.form, name, default)

    def many(self, name: str) -> tuple[str, ...]:
        return tuple(value for value in self.form.getlist(name) if isinstance(value, str))


async def parse_form(request: Request) -> FormData:
    """Text fields only: an uploaded file is refused (400)."""
    form = await request.form(max_files=0, max_fields=_MOST_FIELDS, max_part_size=1 << 20)
    request.state.form = form
    return form


def writer(role: Role = Role.AUDITOR) -> Callable[..., Posted]:
    """For all that changes something: the form and the user. Raises LoginError, FormError, NotAllowed."""

    def posted(
        form: Annotated[FormData, Depends(parse_form)], session: Annotated[Session | None, Depends(current_session)]
    ) -> Posted:
        comment = text_field(form, "comment")
        if session is None:
            raise LoginError(comment)
        if not csrf_matches(session.secret, text_field(form, "csrf")):
            raise FormError(comment)
        return Posted(_at_least(session, role), form)

    return posted


def before_login(request: Request, deps: Deps) -> str:
    """The secret that stands for a session on the login form, kept in a cookie of its own."""
    secret = request.cookies.get(form_cookie(deps.settings.secure)) or secrets.token_urlsafe(32)
    request.state.form_secret = secret
    return secret


_bearer = HTTPBearer(auto_error=False, description="A token made on the page Tokens, with the scope of the call.")


def bearer(scope: Scope) -> Callable[..., object]:
    """For the API: the token's owner. Cookies count for nothing here. Raises Unauthenticated, NotAllowed."""

    async def user(
        request: Request, deps: Deps, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> User:
        if given is None:
            raise Unauthenticated("The call carries no token: send it as Authorization: Bearer TOKEN.")
        found = await run_in_threadpool(deps.people.authenticate_token, given.credentials, scope)
        request.state.user_id = found.id
        return found

    return user


def _at_least(session: Session, role: Role) -> User:
    if not session.user.role.at_least(role):
        raise NotAllowed(f"This page is for a {role}; you are signed in as {session.user.role}.")
    return session.user


def text_field(form: FormData, name: str, default: str = "") -> str:
    value = form.get(name)
    return value if isinstance(value, str) else default
