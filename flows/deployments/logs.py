"""What a flow run's log in the Prefect UI says: a line where a stage starts, ends, fails or waits, with the reason."""

from __future__ import annotations

from prefect.logging import get_run_logger

from store.errors import WaitingError
from store.stage import Outcome


class RunLog:
    """A watcher (flows.telemetry.watch) that writes to the log of the run it is called in."""

    def started(self, stage: str, attempt: int) -> None:
        get_run_logger().info("%s starts%s", stage, f", attempt {attempt}" if attempt > 1 else "")

    def progress(self, stage: str, what: str, done: int, total: int, note: str) -> None:
        pass  # the progress artifact shows it

    def finished(self, stage: str, outcome: Outcome) -> None:
        if outcome.reused:
            get_run_logger().info("%s was complete already", stage)
            return
        seconds, reasons = outcome.manifest.seconds, "; ".join(outcome.reasons)
        get_run_logger().info("%s took %.1f s; it ran because %s", stage, seconds, reasons)

    def failed(self, stage: str, sentence: str) -> None:
        get_run_logger().error("%s", sentence)

    def waiting(self, stage: str, error: WaitingError) -> None:
        get_run_logger().info("%s", error)
