"""The lead's and ML ops' pages: work and trust, disputes, judges against people, batches."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from audit.queue.errors import BadInput
from audit.queue.model import CONFIDENCE, FLAWS, MAX_COMMENT, Answer, Role
from audit.queue.people import User
from audit.web.access import Deps, Posted, reader, writer
from audit.web.pages.review import FLAW_LABELS, Typed
from audit.web.text import prose
from store.errors import RlaifError

router = APIRouter()
Lead = Annotated[User, Depends(reader(Role.LEAD))]
LeadWrites = Annotated[Posted, Depends(writer(Role.LEAD))]


@router.get("/lead")
def work(request: Request, deps: Deps, lead: Lead, batch: str = "", after: str = "") -> Response:
    """Throughput, agreement, gold items and signs of careless work, of all batches or of one."""
    chosen = batch or None
    if chosen:
        deps.queue.batch_progress(chosen)  # an unknown one is refused
    notice = None
    if after in ("quarantined", "trusted"):
        aside = "Their answers are kept and marked, and their items asked of others."
        text = aside if after == "quarantined" else "Their answers count again."
        notice = {"kind": "good", "title": "Done.", "text": text}
    return deps.pages.page(
        request,
        "lead.html",
        batches=deps.queue.batches(),
        chosen=chosen,
        throughput=deps.insight.throughput(chosen),
        agreement=deps.insight.agreement(chosen),
        gold=deps.insight.gold(chosen),
        signals=deps.insight.signals(chosen),
        disputes=len(deps.insight.disputes(chosen)),
        notice=notice,
    )


@router.post("/lead/quarantine")
def quarantine(deps: Deps, posted: LeadWrites) -> Response:
    """Leads judge auditors' work; an admin's account is for admins."""
    name, reason = posted.get("name"), posted.get("reason").strip()
    if deps.people.get(name).role is Role.ADMIN and posted.user.role is not Role.ADMIN:
        raise BadInput(f"{name} is an admin: ask another admin.")
    if posted.get("lift") == "yes":
        deps.people.release_quarantine(name)
        return RedirectResponse("/lead?after=trusted", 303)
    if not reason:
        raise BadInput("A quarantine needs its reason: write one.")
    deps.people.quarantine(name, reason)
    return RedirectResponse("/lead?after=quarantined", 303)


@router.get("/disputes")
def disputes(request: Request, deps: Deps, lead: Lead, settled: str = "", after: str = "") -> Response:
    notice = {"kind": "good", "title": "Settled.", "text": ""} if after == "settled" else None
    found = deps.insight.disputes(settled=settled == "yes")
    return deps.pages.page(request, "disputes.html", disputes=found, settled=settled == "yes", notice=notice)


@router.get("/disputes/{item_id}")
def case(request: Request, deps: Deps, lead: Lead, item_id: str) -> Response:
    return _case(request, deps, lead, item_id, Typed())


@router.post("/disputes/{item_id}")
def adjudicate(request: Request, deps: Deps, posted: LeadWrites, item_id: str) -> Response:
    typed = Typed.of(posted)
    try:
        said = Answer(typed.choice, typed.confidence, typed.left_flaws, typed.right_flaws, typed.comment)
    except BadInput as error:
        return _case(request, deps, posted.user, item_id, typed, error)
    deps.queue.adjudicate(posted.user.id, item_id, said, posted.get("key"))
    return RedirectResponse("/disputes?after=settled", 303)


@router.post("/disputes/{item_id}/requeue")
def requeue(deps: Deps, posted: LeadWrites, item_id: str) -> Response:
    deps.queue.requeue(posted.user.id, item_id, 1)
    return RedirectResponse("/disputes", 303)


@router.get("/judges")
def judges(request: Request, deps: Deps, lead: Lead) -> Response:
    """The table is the caller's; where it fails, the page says why instead of showing an old one."""
    try:
        rows, problem = (list(deps.judges()) if deps.judges else []), None
    except RlaifError as error:
        rows, problem = [], str(error)
    notice = {"kind": "warn", "title": "No figures.", "text": problem} if problem else None
    return deps.pages.page(request, "judges.html", rows=rows, given=deps.judges is not None, notice=notice)


@router.get("/batches")
def batches(request: Request, deps: Deps, lead: Lead) -> Response:
    return deps.pages.page(request, "batches.html", batches=deps.queue.batches(), webhook=deps.settings.webhook_url)


@router.post("/batches/{batch_id}/close")
def close(deps: Deps, posted: LeadWrites, batch_id: str) -> Response:
    deps.queue.close_batch(batch_id)
    return RedirectResponse("/batches", 303)


def _case(
    request: Request, deps: Deps, lead: User, item_id: str, typed: Typed, error: BadInput | None = None
) -> Response:
    found = deps.queue.case(lead.id, item_id)
    notice = {"kind": "bad", "title": "Not saved.", "text": str(error)} if error else None
    return deps.pages.page(
        request,
        "case.html",
        422 if error else 200,
        case=found,
        prompt=prose(found.item.prompt),
        left=prose(found.item.left),
        right=prose(found.item.right),
        answer=typed,
        key=secrets.token_urlsafe(16),
        flaw_names=[(value, FLAW_LABELS[value]) for value in FLAWS],
        labels=FLAW_LABELS,
        confidences=list(CONFIDENCE),
        most_comment=MAX_COMMENT,
        notice=notice,
    )
