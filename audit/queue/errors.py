"""What the queue refuses, and why: each error is a sentence for a person and a `status` for HTTP.

`QueueError` is the base. A refusal never changes anything, so the same call may simply be made again.
"""

# ruff: noqa: N818 - each is named for what happened; that they are errors is said by their base

from __future__ import annotations

from store.errors import RlaifError, TransientError, UsageError


class QueueError(RlaifError):
    """The queue refuses a call that is well formed."""

    status = 409


class LeaseExpired(QueueError):
    """The item is no longer held: its time ran out, it was given back, or this page is from an earlier claim."""


class AlreadyDecided(QueueError):
    """The person, or as many people as were wanted, answered this item already; or a lead settled it."""


class KeyReused(QueueError):
    """The idempotency key came before, with something else."""


class NothingToUndo(QueueError):
    """The person has no answer that could be taken back."""


class Closed(QueueError):
    """The batch is closed: it takes no answers any more."""

    status = 410


class NotFound(QueueError):
    """No such item, batch or person *for this person*. A foreign item and one that never was give the same answer."""

    status = 404


class NotAllowed(QueueError):
    """The person's role does not permit it, or the account is disabled."""

    status = 403


class NotYours(NotAllowed):
    """The thing belongs to somebody else."""


class Unauthenticated(QueueError):
    """Wrong name or password, or a session or token that is unknown, expired or revoked: never says which."""

    status = 401


class Throttled(QueueError):
    """Too many failed logins; `retry_after` is in seconds."""

    status = 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BadInput(UsageError):
    """An answer, item or account that cannot be right."""

    status = 422


class Busy(TransientError):
    """The database is locked or cannot be reached; nothing was changed, trying again is safe."""

    status = 503


class StorageFull(RlaifError):
    """The database has no room left; nothing was changed."""

    status = 503
