"""One writer at a time in a bucket: a lease, an object that only one machine can write and that ends by itself.

The kernel's lock of a folder does not reach beyond a machine. The lease is taken by a conditional write, renewed by a
thread three times in its life, and ends that long after its holder died. Ages are told by the server's clock.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

from store.errors import RlaifError
from store.remote.bucket import Bucket, ConflictError

KEY = ".lease.json"


class Lease:
    """A context manager. `identity`: of this machine's copy of the workspace, whose own lease it may take up again at
    once: the kernel's lock says that no other process here works on it."""

    def __init__(self, bucket: Bucket, identity: str, ttl_s: float) -> None:
        self._bucket, self._identity, self._ttl_s = bucket, identity, ttl_s
        self._etag = ""
        self._renewed = 0.0
        self._lost: str | None = None
        self._stop, self._one_at_a_time = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            found = self._bucket.fetch(KEY)
            if found is not None and _read(found.data).get("id") == self._identity:
                self._bucket.delete([KEY])

    def check(self) -> None:
        """Raises RlaifError where this machine may not write any more."""
        if self._lost is None and time.monotonic() - self._renewed > self._ttl_s:
            # A machine that was too busy, or cut off: it is still ours if nobody took it meanwhile.
            try:
                self._renew()
            except ConflictError:
                self._lost = "another run took it"
        if self._lost is not None:
            raise RlaifError(
                f"This run lost its lease on {self._bucket.url} ({self._lost}): nothing more is written; run again."
            )

    def _body(self) -> bytes:
        about = {
            "id": self._identity,
            "host": socket.gethostname(),
            "user": _user(),
            "pid": os.getpid(),
            "ttl_s": self._ttl_s,
            "renewed_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        return json.dumps(about).encode()

    def _take(self) -> None:
        """Raises RlaifError that names the holder."""
        self._renewed = time.monotonic()
        try:
            self._etag = self._bucket.write(KEY, self._body(), new=True)
            return
        except ConflictError:
            found = self._bucket.fetch(KEY)
        if found is None:
            self._take()
            return
        holder = _read(found.data)
        left = float(holder.get("ttl_s", self._ttl_s)) - (found.now - found.modified).total_seconds()
        if left > 0 and holder.get("id") != self._identity:
            raise RlaifError(self._busy(holder, left))
        try:
            self._etag = self._bucket.write(KEY, self._body(), instead_of=found.etag)
        except ConflictError as error:
            raise RlaifError(self._busy({}, self._ttl_s)) from error

    def _busy(self, holder: dict[str, Any], left: float) -> str:
        who = f"{holder.get('user', 'somebody')} on {holder.get('host', 'another machine')}"
        pid = f", process {holder['pid']}" if "pid" in holder else ""
        return (
            f"Another rlaif run works on {self._bucket.url} ({who}{pid}): wait for it, or give another --workspace. "
            f"If it was killed, its lease ends in {max(1, round(left))} s."
        )

    def _keep(self) -> None:
        while not self._stop.wait(self._ttl_s / 3):
            try:
                self._renew()
            except RlaifError:
                pass  # the server may be away for a moment: `check` tells when it was too long
            except ConflictError:
                self._lost = "another run took it"
                return

    def _renew(self) -> None:
        with self._one_at_a_time:
            now = time.monotonic()
            try:
                self._etag = self._bucket.write(KEY, self._body(), instead_of=self._etag)
            except ConflictError:
                # A renewal whose answer was lost was made all the same, and is found as ours.
                found = self._bucket.fetch(KEY)
                if found is None or _read(found.data).get("id") != self._identity:
                    raise
                self._etag = self._bucket.write(KEY, self._body(), instead_of=found.etag)
            self._renewed = now


def _read(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
