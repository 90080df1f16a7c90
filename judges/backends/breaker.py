"""A circuit breaker: while a server is away, one call at a time tries it, and all others wait.

Without it an outage would use up the attempts of every call, and end each in an error. See Nygard, Release It!, ch. 5.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

from judges.backends.limits import backoff

RETURN_S = 1.0


class AwayError(Exception):
    """The server did not come back within the patience. `seconds`: how long it has been away; `last`: its last sign.

    `alone`: only few requests met it, and no other was made: they may be what the server cannot bear.
    """

    def __init__(self, seconds: float, last: str, alone: bool) -> None:
        super().__init__(f"away for {seconds:.0f} s: {last}")
        self.seconds, self.last, self.alone = seconds, last, alone


class Breaker:
    """Opens after `after` failures of the server in a row; then tries it, after pauses of 0.5 s to 30 s.

    A task does `await ready()` while the breaker `holds` it, calls, and tells `succeeded` or `failed`. Tasks try the
    server in turn, so that one request that breaks it does not pass for an outage. Those that waited come back within
    a second, not all at once. After AwayError the breaker is closed. To be used in one event loop.
    """

    def __init__(self, after: int, patience_s: float) -> None:
        self._after, self._patience_s = after, patience_s
        self._chance = random.Random()  # noqa: S311  jitter
        self._failures = 0
        self._away_since: float | None = None
        self._tries = 0
        self._requests: set[str] = set()
        self._asked: float | None = None
        self._last = ""
        self._probe: asyncio.Task[object] | None = None
        self._line: deque[tuple[asyncio.Task[object] | None, asyncio.Future[None]]] = deque()

    @property
    def is_open(self) -> bool:
        return self._away_since is not None

    @property
    def holds(self) -> bool:
        """Whether the running task must not call now."""
        return self.is_open and asyncio.current_task() is not self._probe

    async def ready(self) -> None:
        """Wait for the server's return, or for this task's turn to try it.

        Raises AwayError where the server has been away for longer than the patience.
        """
        task = asyncio.current_task()
        if self._probe is None:
            self._probe = task
        else:
            turn = asyncio.get_running_loop().create_future()
            self._line.append((task, turn))
            await turn
        if self._probe is task:
            await asyncio.sleep(self._pause())
        else:
            await asyncio.sleep(self._chance.random() * RETURN_S)

    def succeeded(self) -> None:
        """The server answered, whatever it said."""
        self._failures = 0
        self._requests.clear()
        if self.is_open:
            self._away_since, self._probe = None, None
            while self._line:
                self._line.popleft()[1].set_result(None)

    def failed(self, request: str, why: str, asked: float | None = None) -> None:
        """The server failed at the request of this id. `asked`: seconds that it wants to be left alone."""
        self._failures += 1
        self._requests.add(request)
        self._last, self._asked = why, asked
        if not self.is_open and self._failures >= self._after:
            self._away_since, self._tries = asyncio.get_running_loop().time(), 0
        elif self.is_open and asyncio.current_task() is self._probe:
            self._tries += 1
            self._probe = None
            if self._line:
                self._probe, turn = self._line.popleft()
                turn.set_result(None)

    def _pause(self) -> float:
        away = asyncio.get_running_loop().time() - (self._away_since or 0.0)
        if away >= self._patience_s:
            error = AwayError(away, self._last, alone=len(self._requests) < self._after)
            self.succeeded()
            raise error
        # The last try is made when patience ends.
        return min(backoff(self._tries + 1, self._asked, self._chance), self._patience_s - away)
