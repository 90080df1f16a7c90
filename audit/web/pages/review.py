"""The auditor's pages: start, compare two responses, skip, undo.

A claim is a write, so it is made by a post: the start button, or the answer to the pair before. Reading /items/ID only
shows what the person holds already. The script sends the same forms and asks for JSON, so both ways have one set of
rules; every refusal gives back what was typed.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from audit.queue.errors import BadInput, LeaseExpired, QueueError
from audit.queue.model import CONFIDENCE, FLAWS, MAX_COMMENT, Answer, Claim
from audit.queue.people import User
from audit.web.access import Deps, Posted, reader, writer
from audit.web.differences import compare
from audit.web.problems import wants_json
from audit.web.services import Services
from audit.web.text import direction, prose

router = APIRouter()
Reader = Annotated[User, Depends(reader())]
Writer = Annotated[Posted, Depends(writer())]

FLAW_LABELS = {
    "wrong": "Wrong",
    "incomplete": "Incomplete",
    "off_topic": "Off topic",
    "ignores_instructions": "Ignores request",
    "unsafe": "Unsafe",
    "badly_written": "Badly written",
    "too_long": "Too long",
    "gibberish": "Gibberish",
}
SKIP_REASONS = {
    "cannot_tell": "I cannot tell",
    "language": "A language I do not read",
    "expertise": "Needs an expert",
    "broken": "Broken or empty",
    "unpleasant": "I would rather not",
}
_SURE = {1: "a guess", 5: "certain"}
_AFTER = {
    "saved": ("good", "Saved.", ""),
    "skipped": ("good", "Skipped.", ""),
    "undone": ("warn", "Taken back.", "Change what you like, then save again."),
    "released": ("good", "Put back.", "Somebody else may get that pair now, or you again."),
}


@dataclass(frozen=True)
class Typed:
    """What stands in the form: as sent, or as answered before an undo."""

    choice: str = ""
    confidence: int | None = None
    left_flaws: tuple[str, ...] = ()
    right_flaws: tuple[str, ...] = ()
    comment: str = ""

    @classmethod
    def of(cls, posted: Posted) -> Typed:
        sure = posted.get("confidence")
        return cls(
            posted.get("choice"),
            int(sure) if sure.isascii() and sure.isdigit() and len(sure) < 3 else None,
            posted.many("left_flaws"),
            posted.many("right_flaws"),
            # A form sends line ends as CRLF, whatever was typed.
            posted.get("comment").replace("\r\n", "\n"),
        )

    @classmethod
    def before(cls, claim: Claim) -> Typed:
        if (said := claim.previous) is None:
            return cls()
        return cls(said.choice, said.confidence, said.flaws_left, said.flaws_right, said.comment)


@router.get("/")
def start(request: Request, deps: Deps, user: Reader, after: str = "") -> Response:
    held = deps.queue.held(user.id)
    return deps.pages.page(
        request,
        "start.html",
        progress=deps.queue.progress(user.id),
        held=held[0].item.item_id if held else None,
        key=secrets.token_urlsafe(16),
        empty=after == "empty",
        notice=_notice(after),
    )


@router.post("/claim")
def claim(request: Request, deps: Deps, posted: Writer) -> Response:
    return _onward(request, deps, posted.user)


@router.post("/preload")
def preload(request: Request, deps: Deps, posted: Writer) -> Response:
    """Claim the pair after the one on the screen, so that the script can have it ready."""
    user, current = posted.user.id, posted.get("current")
    # A page that is behind, whose pair was given back or answered by now, gets nothing claimed.
    behind = all(claim.item.item_id != current for claim in deps.queue.held(user))
    following = None if behind else deps.queue.peek_next(user, current)
    return JSONResponse({"next": f"/items/{following.item.item_id}" if following else None})


@router.get("/items/{item_id}")
def item(request: Request, deps: Deps, user: Reader, item_id: str, after: str = "", differences: str = "") -> Response:
    try:
        held = deps.queue.view(user.id, item_id)
    except LeaseExpired as error:
        return deps.pages.page(request, "expired.html", 409, item_id=item_id, text=str(error))
    return _show(request, deps, user, held, Typed.before(held), after=after, differences=differences == "on")


@router.post("/items/{item_id}/look")
def look(request: Request, deps: Deps, posted: Writer, item_id: str) -> Response:
    """The page again with the differences marked, or without, and with all that was typed. Changes nothing."""
    held = deps.queue.view(posted.user.id, item_id)
    return _show(
        request, deps, posted.user, held, Typed.of(posted), differences=posted.get("differences") == "on", posted=posted
    )


@router.post("/items/{item_id}/reclaim")
def reclaim(request: Request, deps: Deps, posted: Writer, item_id: str) -> Response:
    deps.queue.reclaim(posted.user.id, item_id)
    return RedirectResponse(f"/items/{item_id}", 303)


@router.post("/items/{item_id}/heartbeat")
def heartbeat(request: Request, deps: Deps, posted: Writer, item_id: str) -> Response:
    until = deps.queue.heartbeat(posted.user.id, item_id, _token(posted))
    return JSONResponse({"expires_in": _left(deps, until)})


@router.post("/items/{item_id}/answer")
def answer(request: Request, deps: Deps, posted: Writer, item_id: str) -> Response:
    typed, user = Typed.of(posted), posted.user
    try:
        said = Answer(
            choice=typed.choice,
            confidence=typed.confidence,
            flaws_left=typed.left_flaws,
            flaws_right=typed.right_flaws,
            comment=typed.comment,
            seconds=_seconds(posted),
        )
        deps.queue.submit(user.id, item_id, _token(posted), said, posted.get("key"))
    except BadInput as error:
        return _again(request, deps, posted, item_id, typed, error, 422)
    except LeaseExpired as error:
        return _again(request, deps, posted, item_id, typed, error, 409)
    return _onward(request, deps, user, "saved")


@router.post("/items/{item_id}/skip")
def skip(request: Request, deps: Deps, posted: Writer, item_id: str) -> Response:
    reason = posted.get("reason")
    if reason not in SKIP_REASONS:
        raise BadInput(f"The reason {reason!r} is none of {', '.join(SKIP_REASONS)}: choose one of them.")
    deps.queue.skip(posted.user.id, item_id, _token(posted), reason, posted.get("key"))
    return _onward(request, deps, posted.user, "skipped")


@router.post("/items/{item_id}/release")
def release(request: Request, deps: Deps, posted: Writer, item_id: str) -> Response:
    """Stop for now: the pair on the screen goes back, and the preloaded one with it."""
    deps.queue.release(posted.user.id, item_id, _token(posted))
    deps.queue.release_all(posted.user.id)
    return _to(request, "/?after=released")


@router.post("/undo")
def undo(request: Request, deps: Deps, posted: Writer) -> Response:
    back = deps.queue.undo(posted.user.id, posted.get("key"))
    return _to(request, f"/items/{back.item.item_id}?after=undone")


def _onward(request: Request, deps: Deps, user: User, after: str = "") -> Response:
    """To the next pair, which is claimed here: this is a post."""
    following = deps.queue.claim(user.id)
    place = f"/items/{following.item.item_id}" if following else "/"
    more = {"token": following.token, "expires_in": _left(deps, following.expires_at)} if following else {}
    if following is None:
        after = "empty"
    return _to(request, f"{place}?after={after}" if after else place, **more)


def _to(request: Request, place: str, **more: Any) -> Response:
    return JSONResponse({"next": place} | more) if wants_json(request) else RedirectResponse(place, 303)


def _again(
    request: Request, deps: Deps, posted: Posted, item_id: str, typed: Typed, error: QueueError | BadInput, status: int
) -> Response:
    """The same pair with everything that was typed. One whose claim had run out is claimed anew, if it is still free:
    sending again is then enough. Where it is not, that error goes its way, and the page keeps the text all the same."""
    late = isinstance(error, LeaseExpired)
    held = deps.queue.reclaim(posted.user.id, item_id) if late else deps.queue.view(posted.user.id, item_id)
    text = (
        "Your hold on this pair had ended, so nothing was saved. It is yours again, with all you typed: save once more."
        if late
        else str(error)
    )
    if wants_json(request):
        detail = {"status": status, "code": "lease_expired" if late else "bad_input", "detail": text}
        if late:
            detail |= {"token": held.token, "expires_in": _left(deps, held.expires_at)}
        return JSONResponse(detail, status)
    notice = {"kind": "bad", "title": "Not saved.", "text": text}
    return _show(request, deps, posted.user, held, typed, status=status, notice=notice)


def _show(
    request: Request,
    deps: Deps,
    user: User,
    held: Claim,
    typed: Typed,
    status: int = 200,
    after: str = "",
    notice: dict[str, Any] | None = None,
    differences: bool = False,
    posted: Posted | None = None,
) -> Response:
    item = held.item
    left, right = prose(item.left), prose(item.right)
    if differences:
        marked = compare(item.left, item.right)
        if marked is None:
            text = "These texts are too long to be compared word by word."
            notice = {"kind": "warn", "title": "No differences marked.", "text": text}
        else:
            left, right = marked
    progress = deps.queue.progress(user.id)
    return deps.pages.page(
        request,
        "review.html",
        status,
        item={
            "item_id": item.item_id,
            "batch_id": item.batch_id,
            "prompt": prose(item.prompt),
            "left": left,
            "right": right,
            "directions": [direction(text) for text in (item.prompt, item.left, item.right)],
            "guidelines_version": item.guidelines_version,
            # A page that is shown again keeps its fencing token and key: a stale one must stay stale.
            "token": posted.get("token") if posted else held.token,
            "key": posted.get("key") if posted else secrets.token_urlsafe(16),
            "expires_in": _left(deps, held.expires_at),
            "lease": int(deps.rules.lease_s),
        },
        undo_key=secrets.token_urlsafe(16),
        # Names the person's drafts in the browser without saying who it is.
        person=hashlib.sha256(f"drafts of {user.id} since {user.created_at}".encode()).hexdigest()[:16],
        answer=typed,
        differences=differences and left is not None,
        flaw_names=[(value, FLAW_LABELS[value]) for value in FLAWS],
        confidences=[(value, _SURE.get(value, "")) for value in CONFIDENCE],
        skip_reasons=list(SKIP_REASONS.items()),
        most_comment=MAX_COMMENT,
        progress=progress,
        saved=_AFTER[after][1] if after in ("saved", "skipped") else None,
        notice=notice or (_notice(after) if after == "undone" else None),
    )


def _notice(after: str) -> dict[str, Any] | None:
    if after not in _AFTER:
        return None
    kind, title, text = _AFTER[after]
    return {"kind": kind, "title": title, "text": text}


def _token(posted: Posted) -> int:
    token = posted.get("token")
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise BadInput("The form lacks its claim number: load the page again.")
    return int(token)


def _seconds(posted: Posted) -> float | None:
    """The page's own measurement; a value that is no number was not measured."""
    try:
        seconds = float(posted.get("seconds"))
    except ValueError:
        return None
    return seconds if 0 <= seconds <= 1e6 else None


def _left(deps: Services, until: datetime) -> int:
    return max(0, int((until - deps.clock()).total_seconds()))
