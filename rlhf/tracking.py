"""Metrics of training to experiment trackers: TensorBoard, MLflow, Weights & Biases, through accelerate's trackers.

The tables of a stage (updates.parquet, curve.parquet) are its results; trackers are for people who watch. What they
write depends on the clock, so it lies outside the stage's folder and no key depends on it. A tracker that fails during
training is dropped with one line, and training goes on.

A stage that was killed goes on in the same run of MLflow or Weights & Biases: its id stands in the working folder,
beside the checkpoints. Steps taken since the last checkpoint are taken again: TensorBoard hides the first time, MLflow
keeps both values of a step, and Weights & Biases the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf.config import Tracked
from store.errors import UsageError
from store.files import write_text

Log = Callable[[int, Mapping[str, Any]], None]
"""Told the step and its metrics: numbers, None for what was not measured, or text."""

INSTALL = "pip install 'rlaif[track]'"
RUNS = ".tracking"
"""Folder in a stage's working folder: for each tracker that has runs a file with the id of this stage's."""


def no_log(step: int, values: Mapping[str, Any]) -> None:
    """The log of nobody watching."""


def log_folder(out: Path) -> Path:
    """Where the trackers of the stage that writes `out` keep their files: logs/<stage folder> beside it."""
    return out.parent / "logs" / out.name.removeprefix(".").removesuffix(".partial")


@contextmanager
def tracking(config: Tracked, stage: str, out: Path, main: bool = True) -> Iterator[Log]:
    """The log of a stage. `out`: its output folder; `main`: whether this process is the one that writes.

    Raises UsageError where a tracker that the config names is not installed. Without names, TensorBoard is used where
    it is installed, and a line says so where it is not.
    """
    names = config.tracking
    if names is None:
        names = ["tensorboard"] if find_spec("tensorboard") else []
        if not names and main:
            print(f"No curves for TensorBoard: it is not installed ({INSTALL} tensorboard).", file=sys.stderr)
    if absent := [name for name in names if not find_spec(name)]:
        raise UsageError(
            f"The tracker {absent[0]} is not installed: {INSTALL} {absent[0]}, or take it out of tracking."
        )
    if not names or not main:
        yield no_log
        return
    folder = Path(config.tracking_folder).expanduser() / stage if config.tracking_folder else log_folder(out)
    group = _Group([_Tracker(name, stage, folder, out / RUNS / name, config) for name in names])
    try:
        yield group.log
    finally:
        group.close()


class _Group:
    """Several trackers; one that fails leaves the group."""

    def __init__(self, trackers: Sequence[_Tracker]) -> None:
        self.trackers = list(trackers)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._all(lambda tracker: tracker.log(step, values))

    def close(self) -> None:
        self._all(lambda tracker: tracker.close())

    def _all(self, act: Callable[[_Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001 - whatever a tracker's server does, training goes on
                self.trackers.remove(tracker)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                print(f"Warning, the tracker {tracker.name} failed and is left out: {reason}", file=sys.stderr)


class _Tracker:
    """One of accelerate's trackers, started at its first log: only then is the first step known, and what a killed run
    had logged from there on can be hidden."""

    def __init__(self, name: str, stage: str, folder: Path, run: Path, config: Tracked) -> None:
        self.name, self.stage, self.folder, self.run, self.config = name, stage, folder, run, config
        self.inner: Any = None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if self.inner is None:
            self.inner = self._start(step)
        numbers = {
            f"{self.stage}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float)  # a bool is an int
        }
        self.inner.log(numbers, step=step)
        for name, value in values.items():
            if isinstance(value, str):
                self._text(f"{self.stage}/{name}", value, step)

    def close(self) -> None:
        if self.inner is not None:
            self.inner.finish()

    def _text(self, name: str, text: str, step: int) -> None:
        if self.name == "mlflow":
            import mlflow

            mlflow.log_text(text, f"{name}/{step:06d}.md")
        elif self.name == "wandb":
            import wandb

            self.inner.log({name: wandb.Html(f"<pre>{_escape(text)}</pre>", inject=False)}, step=step)
        else:
            self.inner.log({name: text}, step=step)

    def _start(self, step: int) -> Any:
        from accelerate import PartialState, tracking

        PartialState()  # accelerate's loggers refuse to work before
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = _flat(self.config.identity())
        if self.name == "tensorboard":
            inner = tracking.TensorBoardTracker("", self.folder, purge_step=step)
            inner.start()
            inner.log({f"{self.stage}/config": _table(settings)}, step=step)
            return inner
        known = self.run.read_text() if self.run.is_file() else None
        if self.name == "mlflow":
            import os

            import mlflow

            if not os.environ.get("MLFLOW_TRACKING_URI"):
                mlflow.set_tracking_uri(f"sqlite:///{(self.folder / 'mlflow.db').resolve()}")
            inner = tracking.MLflowTracker(
                self.config.tracking_project, str(self.folder / "artifacts"), run_id=known, run_name=self.stage
            )
        else:
            inner = tracking.WandBTracker(
                self.config.tracking_project, name=self.stage, dir=str(self.folder), id=known, resume="allow"
            )
        inner.start()
        if known is None:
            inner.store_init_configuration(settings)
            write_text(self.run, inner.tracker.info.run_id if self.name == "mlflow" else inner.tracker.id)
        return inner


def samples_text(samples: Sequence[Mapping[str, Any]]) -> str:
    """Prompts with responses and scores as a Markdown table. Text of a model is untrusted: it is shown as code."""
    rows = [f"| {_code(row['prompt'])} | {_code(row['response'])} | {row['score']:.3f} |" for row in samples]
    return "\n".join(["| prompt | response | score |", "|---|---|---|", *rows])


def _code(text: str) -> str:
    """One line without anything that Markdown or HTML would read."""
    line = _escape(" ".join(text.split()))
    for mark in ("#", "\\", "|", "`", "*", "_", "[", "]", "!"):
        line = line.replace(mark, f"&#{ord(mark)};")
    return line


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(settings: Mapping[str, Any]) -> str:
    rows = [f"| {_code(name)} | {_code(str(value))} |" for name, value in settings.items()]
    return "\n".join(["| key | value |", "|---|---|", *rows])


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"a.b": 1} from nested mappings."""
    if not isinstance(value, dict):
        return {name: value if isinstance(value, bool | int | float | str) else str(value)}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}.{key}" if name else str(key))
    return found
