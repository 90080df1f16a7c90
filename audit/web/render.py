"""Templates, with everything escaped and nothing hidden in what they print."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from audit.queue.model import Role
from audit.web.csrf import csrf_token
from audit.web.text import direction, plain, prose, visible

STATIC = Path(__file__).parent / "static"
NOTHING = "–"
_MENU = (
    ("/", "Review", Role.AUDITOR),
    ("/guidelines", "Guidelines", Role.AUDITOR),
    ("/lead", "Work", Role.LEAD),
    ("/disputes", "Disputes", Role.LEAD),
    ("/judges", "Judges", Role.LEAD),
    ("/batches", "Batches", Role.LEAD),
    ("/users", "People", Role.ADMIN),
    ("/tokens", "Tokens", Role.ADMIN),
)


class Renderer:
    """`page` gives a response: the template with who is signed in, the menu of that role and the form's token."""

    def __init__(self, title: str) -> None:
        self.environment = Environment(
            loader=PackageLoader("audit.web"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.globals |= {"site": title, "static": static_url}
        self.environment.filters |= {
            "visible": visible,
            "prose": prose,
            "direction": direction,
            "raw": _raw,
            "percent": percent,
            "number": number,
            "when": when,
        }

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        session = getattr(request.state, "session", None)
        secret = session.secret if session else getattr(request.state, "form_secret", "")
        user = session.user if session else None
        context = {
            "user": user,
            "menu": [(path, label) for path, label, role in _MENU if user and user.role.at_least(role)],
            "here": request.url.path,
            "csrf_field": lambda: Markup('<input type="hidden" name="csrf" value="{}">').format(csrf_token(secret)),
            "notice": None,
        }
        return HTMLResponse(self.environment.get_template(template).render(context | values), status)


@cache
def static_url(name: str) -> str:
    """The address of a file of ours, with its content's hash, so that browsers may keep it for ever."""
    return f"/static/{name}?v={hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def percent(value: float | None, digits: int = 0) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def when(value: datetime | None) -> str:
    return NOTHING if value is None else value.astimezone(UTC).strftime("%d %b %Y, %H:%M UTC")


def _finalize(value: Any) -> Any:
    if value is None:
        return NOTHING
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _raw(text: str) -> Markup:
    """Text for a form's field, which sends it back: unchanged, but for lone surrogates, which no page can carry."""
    return escape(text.encode("utf-8", "backslashreplace").decode())
