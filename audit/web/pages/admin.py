"""The admin's pages: people and tokens."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from audit.queue.errors import BadInput
from audit.queue.model import Role
from audit.queue.people import SCOPES_OF_ROLE, Scope, User
from audit.web.access import Deps, Posted, reader, writer
from audit.web.services import Services

router = APIRouter()
Admin = Annotated[User, Depends(reader(Role.ADMIN))]
AdminWrites = Annotated[Posted, Depends(writer(Role.ADMIN))]
_ACTIONS = ("disable", "enable", "reset", "role")


@router.get("/users")
def users(request: Request, deps: Deps, admin: Admin, after: str = "") -> Response:
    notice = {"kind": "good", "title": "Done.", "text": ""} if after == "done" else None
    return _users(request, deps, notice=notice)


@router.post("/users")
def add(request: Request, deps: Deps, posted: AdminWrites) -> Response:
    """Makes the password too and shows it this once; the person changes it on the page of the account."""
    try:
        password = _password()
        user = deps.people.add(posted.get("name"), _role(posted.get("role")), password)
    except BadInput as error:
        return _users(request, deps, 422, {"kind": "bad", "title": "Not added.", "text": str(error)})
    return _users(request, deps, shown=(user.name, password))


@router.post("/users/{action}")
def change(request: Request, deps: Deps, posted: AdminWrites, action: str) -> Response:
    name = posted.get("name")
    if action not in _ACTIONS:
        raise BadInput(f"There is no action {action!r}: there are {', '.join(_ACTIONS)}.")
    if name == posted.user.name and action in ("disable", "role"):
        raise BadInput("That is your own account: ask another admin, so that nobody is locked out by a slip.")
    if action == "disable":
        deps.people.disable(name)
    elif action == "enable":
        deps.people.enable(name)
    elif action == "role":
        deps.people.set_role(name, _role(posted.get("role")))
    else:
        password = _password()
        deps.people.reset(name, password)
        if name == posted.user.name:  # the reset ended this session too
            return RedirectResponse("/login", 303)
        return _users(request, deps, shown=(name, password))
    return RedirectResponse("/users?after=done", 303)


@router.get("/tokens")
def tokens(request: Request, deps: Deps, admin: Admin, after: str = "") -> Response:
    notice = {"kind": "good", "title": "Revoked.", "text": ""} if after == "revoked" else None
    return _tokens(request, deps, notice=notice)


@router.post("/tokens")
def make_token(request: Request, deps: Deps, posted: AdminWrites) -> Response:
    try:
        days = posted.get("days")
        if not (days.isascii() and days.isdigit() and len(days) < 4):
            raise BadInput(f"The life {days!r} is no number of days: give 1 to 365.")
        scopes = [Scope(scope) for scope in posted.many("scopes") if scope in set(Scope)]
        life = timedelta(days=int(days))
        secret, token = deps.people.create_token(posted.get("name"), posted.get("label"), scopes, life)
    except BadInput as error:
        return _tokens(request, deps, 422, {"kind": "bad", "title": "Not made.", "text": str(error)})
    return _tokens(request, deps, shown=(f"{token.label} of {token.user.name}", secret))


@router.post("/tokens/revoke")
def revoke(deps: Deps, posted: AdminWrites) -> Response:
    deps.people.revoke_token(posted.get("id"))
    return RedirectResponse("/tokens?after=revoked", 303)


def _users(
    request: Request,
    deps: Services,
    status: int = 200,
    notice: dict[str, Any] | None = None,
    shown: tuple[str, str] | None = None,
) -> Response:
    people = deps.people.all()
    return deps.pages.page(request, "users.html", status, people=people, roles=list(Role), shown=shown, notice=notice)


def _tokens(
    request: Request,
    deps: Services,
    status: int = 200,
    notice: dict[str, Any] | None = None,
    shown: tuple[str, str] | None = None,
) -> Response:
    return deps.pages.page(
        request,
        "tokens.html",
        status,
        tokens=deps.people.tokens(),
        people=[user for user in deps.people.all() if not user.disabled],
        scopes=list(Scope),
        of_role={role: sorted(scopes) for role, scopes in SCOPES_OF_ROLE.items()},
        now=deps.clock(),
        shown=shown,
        notice=notice,
    )


def _role(value: str) -> Role:
    if value not in set(Role):
        raise BadInput(f"The role {value!r} is none of {', '.join(Role)}: choose one of them.")
    return Role(value)


def _password() -> str:
    return secrets.token_urlsafe(15)
