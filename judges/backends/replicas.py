"""Several servers that run one model, as one: a call goes to the healthy one with the fewest calls in flight.

A replica that fails several times in a row is taken out, and takes no call until a health check (GET /models, which
costs no tokens) finds it there again; checks come after growing, jittered pauses. Back in, one more failure takes it
out again until it has answered a call. Where none is left, the caller's breaker decides, as for a single server: see
`judges.backends.breaker`. To be used in one event loop.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from judges.backends.chat import ChatServer
from judges.backends.limits import backoff
from judges.backends.reply import Completion
from judges.settings import OpenAISettings


@dataclass(eq=False)
class Replica:
    """`flying`: calls in flight. `failures`: in a row. `checks`: failed ones since it last answered a call.
    `last`: number of the call that it was last chosen for, so that equals take turns."""

    server: ChatServer
    flying: int = 0
    failures: int = 0
    checks: int = 0
    last: int = 0
    out: bool = False
    rests_until: float = 0.0
    watch: asyncio.Task[None] | None = field(default=None, repr=False)


class Replicas:
    """`await open()`, `choose()`, `await complete(replica, payload)`, `failed` or `succeeded`, `await close()`."""

    def __init__(self, judge: str, model: str, settings: OpenAISettings) -> None:
        self._after = settings.outage_after
        self._chance = random.Random()  # noqa: S311  jitter
        self._calls = 0
        self._all = [Replica(ChatServer(judge, model, settings, address)) for address in settings.addresses]
        self.reached = asyncio.Event()
        """Set once any of them has answered a call otherwise than by refusing them all."""

    async def open(self) -> None:
        for replica in self._all:
            await replica.server.open()

    async def close(self) -> None:
        watches = [replica.watch for replica in self._all if replica.watch is not None]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for replica in self._all:
            await replica.server.close()

    def choose(self, avoid: Replica | None = None) -> Replica:
        """The healthy replica with the fewest calls in flight, another than `avoid` where there is one.

        Where none is healthy they take turns: whoever calls now wants to know whether any is back.
        """
        now = asyncio.get_running_loop().time()
        healthy = [replica for replica in self._all if not replica.out]
        rested = [replica for replica in healthy if replica.rests_until <= now] or healthy
        others = [replica for replica in rested if replica is not avoid] or rested
        if others:
            chosen = min(others, key=lambda replica: (replica.flying, replica.last))
        else:
            chosen = min(self._all, key=lambda replica: replica.last)
        self._calls += 1
        chosen.last = self._calls
        return chosen

    async def complete(self, replica: Replica, payload: dict[str, Any]) -> Completion:
        """One call to that replica. Raises as `ChatServer.complete`."""
        replica.flying += 1
        try:
            return await replica.server.complete(payload)
        finally:
            replica.flying -= 1
            if replica.server.reached.is_set():
                self.reached.set()

    def has_other(self, replica: Replica) -> bool:
        """Whether calls can go elsewhere, so that this one's failing is no outage."""
        return any(not other.out for other in self._all if other is not replica)

    def rest(self, replica: Replica, seconds: float) -> None:
        """The replica asks to be left alone for so long."""
        replica.rests_until = max(replica.rests_until, asyncio.get_running_loop().time() + seconds)

    def succeeded(self, replica: Replica) -> None:
        """It answered a call, whatever it said."""
        replica.failures = replica.checks = 0
        replica.out = False

    def failed(self, replica: Replica) -> None:
        """It is not there, or broken."""
        replica.failures += 1
        # A single server has the caller's breaker for all this.
        if len(self._all) == 1 or replica.out or (replica.failures < self._after and not replica.checks):
            return
        replica.out = True
        replica.watch = asyncio.get_running_loop().create_task(self._watch(replica))

    def clean(self, text: str) -> str:
        """See `ChatServer.clean`: all have one key."""
        return self._all[0].server.clean(text)

    async def _watch(self, replica: Replica) -> None:
        while replica.out:
            replica.checks += 1
            await asyncio.sleep(backoff(replica.checks, None, self._chance))
            if await replica.server.healthy():
                replica.out = False
