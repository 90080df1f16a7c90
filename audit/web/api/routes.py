"""The routes of the API. A claim is a POST, since it lends the item; what is read is a GET and writes nothing.

Texts may hold lone surrogates, which UTF-8 cannot carry: JSON is written with ASCII escapes, so they come through.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response, StreamingResponse

from audit.queue.errors import BadInput
from audit.queue.model import MAX_OVERLAP, Guidelines, Kind, NewItem
from audit.queue.people import Scope, User
from audit.web.access import Deps, bearer
from audit.web.api.models import (
    AnswerIn,
    BatchesOut,
    BatchIn,
    BatchOut,
    ClaimOut,
    ClaimsOut,
    ExpiryOut,
    Held,
    ItemId,
    MadeOut,
    ProgressOut,
    ReceiptOut,
    SkipIn,
    UndoIn,
    WebhookOut,
    batch_out,
    claim_out,
    receipt_out,
    refusals,
)
from audit.web.problems import problem
from store.errors import UsageError

router = APIRouter(prefix="/api/v1")
PARQUET = "application/vnd.apache.parquet"

Claims = Annotated[User, Depends(bearer(Scope.CLAIM))]
Submits = Annotated[User, Depends(bearer(Scope.SUBMIT))]
Reads = Annotated[User, Depends(bearer(Scope.READ))]
Exports = Annotated[User, Depends(bearer(Scope.EXPORT))]
Imports = Annotated[User, Depends(bearer(Scope.IMPORT))]
Admins = Annotated[User, Depends(bearer(Scope.ADMIN))]
Item = Annotated[ItemId, Path(description="The id that the claim gave.")]
Batch = Annotated[ItemId, Path(description="The batch's id.")]


class Json(Response):
    """JSON in ASCII, see above."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


@router.post(
    "/claim",
    tags=["review"],
    response_model=ClaimOut,
    responses={204: {"description": "Nothing waits for this person."}, **refusals()},
)
def claim(deps: Deps, user: Claims) -> Response:
    """Get an item to answer: the one held already, its time renewed, else the next."""
    found = deps.queue.claim(user.id)
    return Json(claim_out(found)) if found else Response(status_code=204)


@router.get("/items", tags=["review"], response_model=ClaimsOut, responses=refusals())
def held(deps: Deps, user: Claims) -> Response:
    """What the person holds now."""
    return Json({"items": [claim_out(found) for found in deps.queue.held(user.id)]})


@router.get("/items/{item_id}", tags=["review"], response_model=ClaimOut, responses=refusals(404, 409))
def view(deps: Deps, user: Claims, item_id: Item) -> Response:
    """One held item."""
    return Json(claim_out(deps.queue.view(user.id, item_id)))


@router.post("/items/{item_id}/reclaim", tags=["review"], response_model=ClaimOut, responses=refusals(404, 409, 410))
def reclaim(deps: Deps, user: Claims, item_id: Item) -> Response:
    """Take an item again whose time ran out, if it is still free."""
    return Json(claim_out(deps.queue.reclaim(user.id, item_id)))


@router.post("/items/{item_id}/heartbeat", tags=["review"], response_model=ExpiryOut, responses=refusals(404, 409, 410))
def heartbeat(deps: Deps, user: Claims, item_id: Item, body: Held) -> Response:
    """Hold the item longer."""
    return Json({"expires_at": deps.queue.heartbeat(user.id, item_id, body.token).isoformat()})


@router.post("/items/{item_id}/submit", tags=["review"], response_model=ReceiptOut, responses=refusals(404, 409, 410))
def submit(deps: Deps, user: Submits, item_id: Item, body: AnswerIn) -> Response:
    """Answer. With the same key it is stored once, however often it is sent."""
    return Json(receipt_out(deps.queue.submit(user.id, item_id, body.token, body.to_answer(), body.key)))


@router.post("/items/{item_id}/skip", tags=["review"], response_model=ReceiptOut, responses=refusals(404, 409, 410))
def skip(deps: Deps, user: Submits, item_id: Item, body: SkipIn) -> Response:
    """Pass the item on to other people."""
    return Json(receipt_out(deps.queue.skip(user.id, item_id, body.token, body.reason, body.key)))


@router.post(
    "/items/{item_id}/release",
    tags=["review"],
    status_code=204,
    response_class=Response,
    responses=refusals(404, 409, 410),
)
def release(deps: Deps, user: Claims, item_id: Item, body: Held) -> Response:
    """Give the item back unanswered."""
    deps.queue.release(user.id, item_id, body.token)
    return Response(status_code=204)


@router.post("/undo", tags=["review"], response_model=ClaimOut, responses=refusals(404, 409, 410))
def undo(deps: Deps, user: Submits, body: UndoIn) -> Response:
    """Take back the last answer, or the one on an item, and hold that item again."""
    return Json(claim_out(deps.queue.undo(user.id, body.key, body.item_id)))


@router.get("/progress", tags=["review"], response_model=ProgressOut, responses=refusals())
def progress(deps: Deps, user: Reads) -> Response:
    """Of the token's owner."""
    found = deps.queue.progress(user.id)
    return Json({name: getattr(found, name) for name in ProgressOut.model_fields})


@router.get("/batches", tags=["batches"], response_model=BatchesOut, responses=refusals())
def batches(deps: Deps, user: Exports) -> Response:
    """All batches with their progress, newest first."""
    return Json({"batches": [batch_out(batch) for batch in deps.queue.batches()]})


@router.get("/batches/{batch_id}", tags=["batches"], response_model=BatchOut, responses=refusals(404))
def batch(deps: Deps, user: Exports, batch_id: Batch) -> Response:
    return Json(batch_out(deps.queue.batch_progress(batch_id)))


@router.post("/batches", tags=["batches"], status_code=201, response_model=MadeOut, responses=refusals(409))
def add_batch(deps: Deps, user: Imports, body: BatchIn) -> Response:
    """Put pairs before people, all or none of them."""
    items = [NewItem(**(item.model_dump() | {"kind": Kind(item.kind)})) for item in body.items]
    guidelines = Guidelines(**body.guidelines.model_dump())
    batch_id = deps.queue.add_batch(body.name, items, body.overlap, guidelines, body.quota)
    return Json({"batch_id": batch_id}, 201)


@router.post(
    "/batches/parquet",
    tags=["batches"],
    status_code=201,
    response_model=MadeOut,
    responses=refusals(409, 415),
    openapi_extra={
        "requestBody": {"required": True, "content": {PARQUET: {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def add_parquet(
    request: Request,
    deps: Deps,
    user: Imports,
    name: Annotated[str, Query(min_length=1, max_length=200)],
    overlap: Annotated[int, Query(ge=1, le=MAX_OVERLAP)] = 1,
    quota: Annotated[float, Query(gt=0, le=1)] = 1.0,
    kind: Annotated[Kind, Query()] = Kind.PAIR,
) -> Response:
    """The same from any parquet file with `prompt` and two responses (`response_a`, `response_b` or `chosen`,
    `rejected`)."""
    from audit.queue.exchange import read_items  # loads pyarrow, which no page needs

    if request.headers.get("content-type", "").split(";")[0].strip() not in (PARQUET, "application/octet-stream"):
        return problem(415, "unsupported_type", f"The body is no parquet file: send it as {PARQUET}.")
    with tempfile.TemporaryDirectory(prefix="rlaif-import-") as folder:
        path = FilePath(folder) / "pairs.parquet"
        with path.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)

        def add() -> str:
            try:
                items = read_items(path, kind)
            except UsageError as error:  # names the file, of which the sender knows nothing
                raise BadInput(str(error).replace(f"file {path}", "body").replace(str(path), "body")) from error
            return deps.queue.add_batch(name, items, overlap, quota=quota)

        return Json({"batch_id": await run_in_threadpool(add)}, 201)


@router.post(
    "/batches/{batch_id}/close",
    tags=["batches"],
    status_code=204,
    response_class=Response,
    responses=refusals(404),
)
def close(deps: Deps, user: Imports, batch_id: Batch) -> Response:
    """Hand out no more of it."""
    deps.queue.close_batch(batch_id)
    return Response(status_code=204)


_ONE_BATCH = Query(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$", description="Of one batch alone.")


@router.get(
    "/verdicts.parquet",
    tags=["export"],
    response_class=FileResponse,
    responses={200: {"content": {PARQUET: {}}, "description": "The verdicts table."}, **refusals(404)},
)
def verdicts_parquet(deps: Deps, user: Exports, batch_id: Annotated[str | None, _ONE_BATCH] = None) -> Response:
    """All verdict rows, superseded ones too, winners in terms of a and b."""
    import pyarrow.parquet as pq  # as above

    from audit.queue.exchange import export_verdicts

    if batch_id is not None:
        deps.queue.batch_progress(batch_id)  # an unknown one is refused, not exported as empty
    table = export_verdicts(deps.database, batch_id)
    descriptor, name = tempfile.mkstemp(suffix=".parquet", prefix="rlaif-export-")
    os.close(descriptor)
    pq.write_table(table, name, compression="zstd")
    remove = BackgroundTask(FilePath(name).unlink, missing_ok=True)
    return FileResponse(name, media_type=PARQUET, filename="verdicts.parquet", background=remove)


@router.get(
    "/verdicts.csv",
    tags=["export"],
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {}}, "description": "No cell can act as a formula."}, **refusals(404)},
)
def verdicts_csv(deps: Deps, user: Exports, batch_id: Annotated[str | None, _ONE_BATCH] = None) -> Response:
    """The same as CSV."""
    from audit.queue.exchange import csv_lines, export_verdicts

    if batch_id is not None:
        deps.queue.batch_progress(batch_id)
    lines = csv_lines(export_verdicts(deps.database, batch_id))
    name = {"content-disposition": 'attachment; filename="verdicts.csv"'}
    return StreamingResponse(iter(lines), media_type="text/csv", headers=name)


@router.get("/webhook", tags=["batches"], response_model=WebhookOut, responses=refusals())
def webhook(deps: Deps, user: Admins) -> Response:
    """Where a reached quota is told."""
    settings = deps.settings
    signed = bool(os.environ.get(settings.webhook_secret_env))
    return Json({"url": settings.webhook_url, "signed": signed, "key_env": settings.webhook_secret_env})
