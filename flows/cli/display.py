"""What a person at the terminal sees: a moving bar and a line for each stage; plain lines without a terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from flows.report.text import plain
from store.errors import WaitingError
from store.reasons import FIRST_TIME
from store.stage import Outcome


class BarProgress:
    """A progress bar on the error stream, so that the output stays clean for a pipe."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:g}/{task.total:g}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BarProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total, note=note)
        self.bars.update(self.tasks[what], completed=done, total=total, note=note)

    def clear(self) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks.clear()


class TerminalWatcher:
    """Follows a round on the terminal. Without one, a line every `interval_s` seconds shows that it lives.

    `waits`: the stage at which the round ended to wait for people, and what it said.
    """

    def __init__(self, bars: BarProgress, interval_s: float = 15.0) -> None:
        self.bars, self.interval_s, self.last = bars, interval_s, 0.0
        self.console = bars.console
        self.waits: tuple[str, WaitingError] | None = None

    def started(self, stage: str, attempt: int) -> None:
        self.last = time.monotonic()
        again = f" (attempt {attempt})" if attempt > 1 else ""
        self.bars.clear()
        self.bars(f"{stage}{again}", 0, 1, "starting")

    def progress(self, stage: str, what: str, done: int, total: int, note: str) -> None:
        for name in [name for name in self.bars.tasks if name.startswith(stage) and name != f"{stage}: {what}"]:
            self.bars.bars.remove_task(self.bars.tasks.pop(name))
        self.bars(f"{stage}: {what}", done, total, note)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last >= self.interval_s:
            self.last = now
            self.console.print(f"  {stage}: {what} {done}/{total} {note}".rstrip(), highlight=False, markup=False)

    def finished(self, stage: str, outcome: Outcome) -> None:
        self.bars.clear()
        state = "already complete" if outcome.reused else f"{outcome.manifest.seconds:7.1f} s"
        line = Text.assemble(("✓", "green"), f" {stage:<10} {state:>18}")
        if outcome.reasons not in ([], [FIRST_TIME]):
            line.append(f"   {plain('; '.join(outcome.reasons))}", style="dim")
        self.console.print(line, soft_wrap=True)

    def failed(self, stage: str, sentence: str) -> None:
        self.bars.clear()
        self.console.print(f"[red]✗[/red] {stage}", highlight=False)

    def waiting(self, stage: str, error: WaitingError) -> None:
        self.bars.clear()
        self.waits = (stage, error)
        self.console.print(f"[yellow]…[/yellow] {stage}", highlight=False)
