"""Tells another system that a batch reached its quota.

A thread asks the queue from time to time; the queue names each batch to exactly one caller once, so that several
servers on one database call once. The body holds counts and no content. With a key in the environment it is signed: the
header `X-Rlaif-Signature: sha256=...` is the HMAC of the body (RFC 2104). A call that fails is tried again with growing
pauses; after that the log says so, and progress in the API still shows the quota. Whoever embeds the server can give
it another way to announce a quota, which is tried as often.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from email.message import Message
from functools import partial
from typing import IO, Any

from audit.queue.model import BatchProgress
from store.errors import RlaifError

LOG = logging.getLogger("rlaif.audit")
_TIMEOUT_S = 10.0
_PAUSES_S = (1.0, 5.0, 30.0)

Announce = Callable[[BatchProgress], None]
"""Tells a batch's quota in another way than by webhook; raises OSError where it was not taken."""


class Watch:
    """`every_s`: seconds between two looks. `stop` ends it at once, also in a pause."""

    def __init__(
        self,
        reached: Callable[[], Sequence[BatchProgress]],
        url: str | None,
        key_env: str,
        every_s: float = 5.0,
        announce: Announce | None = None,
    ) -> None:
        self._reached, self._url, self._key_env, self._every_s = reached, url, key_env, every_s
        self._announce = announce
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quota watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=_TIMEOUT_S + 1)

    def look(self) -> None:
        for batch in self._reached():
            LOG.info("batch %s reached its quota: %d of %d pairs", batch.batch_id, batch.pairs_complete, batch.pairs)
            if self._announce is not None:
                self._try("announcement", batch, partial(_announced, self._announce, batch))
            if self._url is not None:
                self._deliver(batch)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except RlaifError as error:  # the database is busy or away; the next look may find it
                LOG.warning("quotas: %s", error)
            self._stop.wait(self._every_s)

    def _deliver(self, batch: BatchProgress) -> None:
        body = json.dumps(
            {
                "event": "quota_reached",
                "batch_id": batch.batch_id,
                "name": batch.name,
                "pairs": batch.pairs,
                "pairs_complete": batch.pairs_complete,
                "quota": batch.quota,
                "reached_at": batch.quota_reached_at.isoformat() if batch.quota_reached_at else None,
            }
        ).encode()
        self._try("webhook", batch, lambda: self._send(body))

    def _try(self, way: str, batch: BatchProgress, send: Callable[[], bool]) -> None:
        for pause in (*_PAUSES_S, None):
            if send():
                return
            if pause is None or self._stop.wait(pause):
                LOG.error("the %s was not delivered for batch %s", way, batch.batch_id)
                return

    def _send(self, body: bytes) -> bool:
        headers = {"Content-Type": "application/json", "User-Agent": "rlaif-audit"}
        if key := os.environ.get(self._key_env):
            headers["X-Rlaif-Signature"] = "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
        # Settings admit http and https alone; a redirect is not followed, so that the body goes nowhere else.
        request = urllib.request.Request(self._url or "", body, headers, method="POST")  # noqa: S310
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S) as answer:
                return bool(200 <= answer.status < 300)
        except (urllib.error.URLError, OSError, ValueError) as error:
            LOG.warning("webhook: %s", type(error).__name__)
            return False


def _announced(announce: Announce, batch: BatchProgress) -> bool:
    try:
        announce(batch)
    except OSError as error:
        LOG.warning("announcement: %s", error)
        return False
    return True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Any:
        return None
