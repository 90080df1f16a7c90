"""Tells a Prefect server that people answered enough of a batch, so that it starts the round that waits for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

from audit.queue.model import BatchProgress

QUOTA_REACHED = "rlaif.audit.quota-reached"
RESOURCE = "rlaif.audit"


def quota_event() -> Callable[[BatchProgress], None] | None:
    """What announces a batch to the server that PREFECT_API_URL names; None where it names none.

    Prefect's own `emit_event` hands over to a thread and never says whether the server took it; a quota is reached
    once, so the event is posted here and now. The function raises ConnectionError where the server did not take it.
    """
    if not os.environ.get("PREFECT_API_URL"):
        return None
    return announce


def announce(batch: BatchProgress) -> None:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": QUOTA_REACHED,
        "resource": {"prefect.resource.id": f"{RESOURCE}.{batch.batch_id}", "prefect.resource.name": batch.name},
        "payload": {"pairs": batch.pairs, "pairs_complete": batch.pairs_complete, "quota": batch.quota},
    }
    try:
        with get_client(sync_client=True) as client:
            client._client.post("/events", json=[event]).raise_for_status()
    except (PrefectHTTPStatusError, httpx.HTTPError) as error:
        raise ConnectionError(f"The Prefect server did not take the event ({type(error).__name__}).") from error
