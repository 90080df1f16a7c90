"""How fast a judge may call its server, and how long it waits after a failure."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
MAX_RETRY_AFTER_S = 600.0
_BURST_S = 1.0


class Bucket:
    """Lets `per_minute` units through a minute, evenly, with a burst of one second's worth; None lets all through.

    It keeps the time at which the next unit is due (the generic cell rate algorithm, ITU-T I.371): no timer, no queue.
    Callers are served in the order in which they came. To be used in one event loop.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_per_unit = 60 / per_minute if per_minute else 0.0
        self._due = -math.inf

    async def take(self, units: float = 1.0) -> None:
        """Wait until `units` may pass."""
        if not self._seconds_per_unit:
            return
        now = asyncio.get_running_loop().time()
        # Between reading and moving the due time nothing else runs: no two callers get the same slot.
        due = max(self._due, now - _BURST_S)
        self._due = due + units * self._seconds_per_unit
        if due > now:
            await asyncio.sleep(due - now)

    def correct(self, units: float) -> None:
        """Account for units that passed beyond those taken; negative where fewer did."""
        self._due += units * self._seconds_per_unit


class Pace:
    """The two buckets of a server, requests and tokens, and the pauses for which it asks."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests, self._tokens = Bucket(requests_per_minute), Bucket(tokens_per_minute)
        self._resume_at = 0.0
        self._chance = random.Random()  # noqa: S311  jitter

    async def take(self, tokens: float) -> None:
        """Wait until a call of about `tokens` tokens may be made."""
        clock = asyncio.get_running_loop().time
        while True:
            while (pause := self._resume_at - clock()) > 0:
                # Each waits a little longer than asked, by a time of its own: all at once would be too many again.
                await asyncio.sleep(pause * (1 + self._chance.random() / 4))
            await self._requests.take()
            await self._tokens.take(tokens)
            if self._resume_at <= clock():
                return
            # Asked to pause while waiting for a slot: the slots after the pause are given out anew.
            self.give_back(tokens)

    def give_back(self, tokens: float) -> None:
        """What was taken is not used."""
        self._requests.correct(-1)
        self._tokens.correct(-tokens)

    def correct(self, tokens: float) -> None:
        """The call took so many tokens more than thought; negative for fewer."""
        self._tokens.correct(tokens)

    def pause(self, seconds: float) -> None:
        """The server asks that no call is made for so long."""
        self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + seconds)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: a number or a date), within 0..600; None without it."""
    value = headers.get("retry-after-ms")
    try:
        if value is not None:
            return _within(float(value) / 1000)
        value = headers.get("retry-after")
        return None if value is None else _within(float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(str(value))
    except (ValueError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return _within((when - (now or datetime.now(UTC))).total_seconds())


def backoff(attempt: int, asked: float | None, chance: random.Random) -> float:
    """Seconds before the next call after failed call number `attempt` (from 1).

    What the server asked for and up to a quarter more; else half to all of a time that doubles from 0.5 s to 30 s.
    The random part keeps callers from coming back all at once.
    """
    if asked is not None:
        return asked * (1 + chance.random() / 4)
    longest: float = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 30))
    return longest * (1 + chance.random()) / 2


def _within(seconds: float) -> float:
    # A NaN compares false with everything and comes out as 0.
    return min(seconds, MAX_RETRY_AFTER_S) if seconds > 0 else 0.0
