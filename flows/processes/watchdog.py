"""Stops a stage's process that takes too long, or that shows no progress any more: nothing may hang for ever.

Where the process is stopped its whole group is (see `lifeline`), so that what it started does not stay behind.
"""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from flows.processes.lifeline import stop


@dataclass(frozen=True)
class Limits:
    """`timeout_s`: of the whole try. `silence_s`: between two signs of progress. None: no limit."""

    timeout_s: float | None = None
    silence_s: float | None = None


class Watchdog:
    """A context. `seen` tells it that the process lives; `barked` is why it was stopped, None where it was not."""

    def __init__(self, process: subprocess.Popen[str], limits: Limits) -> None:
        self.process, self.limits = process, limits
        self.barked: str | None = None
        self._started = self._last = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def seen(self) -> None:
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._end.wait(self._left()):
            if self.barked is None and self._left() <= 0:
                self.barked = self._why()
                stop(self.process, patience_s=5.0)
                return

    def _deadlines(self) -> list[tuple[float, str]]:
        found = []
        if self.limits.timeout_s is not None:
            said = f"was stopped after {self.limits.timeout_s:g} s (retry.timeout_s)"
            found.append((self._started + self.limits.timeout_s, said))
        if self.limits.silence_s is not None:
            said = f"was stopped: no progress for {self.limits.silence_s:g} s (retry.silence_s)"
            found.append((self._last + self.limits.silence_s, said))
        return found

    def _left(self) -> float:
        """Seconds until it may be time. The clock is the monotonic one, which no change of the date moves."""
        return min((deadline for deadline, _ in self._deadlines()), default=time.monotonic() + 3600) - time.monotonic()

    def _why(self) -> str:
        return min(self._deadlines())[1]

    def __enter__(self) -> Watchdog:
        if self.limits != Limits():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
