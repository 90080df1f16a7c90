"""What auditors are told, by batch and version. Markdown without raw HTML or images: the text comes from a config."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from markupsafe import Markup
from starlette.responses import Response

from audit.queue.people import User
from audit.web.access import Deps, reader

router = APIRouter()


@router.get("/guidelines")
def current(request: Request, deps: Deps, user: Annotated[User, Depends(reader())]) -> Response:
    """Of the pair that the person holds, else of the newest open batch."""
    held = deps.queue.held(user.id)
    if held:
        return _page(request, deps, held[0].item.batch_id)
    open_batches = [batch for batch in deps.queue.batches() if batch.closed_at is None]
    if not open_batches:
        return deps.pages.page(request, "guidelines.html", guidelines=None, text="", constitution="", batch_id="")
    return _page(request, deps, open_batches[0].batch_id)


@router.get("/guidelines/{batch_id}")
def of_batch(request: Request, deps: Deps, user: Annotated[User, Depends(reader())], batch_id: str) -> Response:
    return _page(request, deps, batch_id)


def _page(request: Request, deps: Deps, batch_id: str) -> Response:
    found = deps.queue.guidelines(batch_id)
    return deps.pages.page(
        request,
        "guidelines.html",
        guidelines=found,
        text=rendered(found.text),
        constitution=rendered(found.constitution),
        batch_id=batch_id,
    )


@lru_cache(maxsize=16)
def rendered(text: str) -> Markup:
    """Markdown as HTML: raw HTML is shown as text, images are left out, links say nothing about where they were."""
    from markdown_it import MarkdownIt  # loaded with the first guidelines, not with the server

    reader = MarkdownIt("commonmark", {"html": False}).disable("image")
    safe = text.encode("utf-8", "backslashreplace").decode()
    return Markup(reader.render(safe))  # noqa: S704 - the renderer escapes everything it does not make itself
