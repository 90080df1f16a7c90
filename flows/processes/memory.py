"""Peak memory of a run: this process and everything it started, summed, looked at twice a second."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """A context; `peak_mb` is the largest sum of resident memory seen, in MiB. Shared pages count in each process."""

    def __init__(self, interval_s: float = 0.5) -> None:
        self.interval_s, self.peak_mb = interval_s, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(self.interval_s):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_mb = max(self.peak_mb, round(total / 2**20, 1))

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
