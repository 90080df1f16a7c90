"""What `rlaif run --dry-run` prints."""

from __future__ import annotations

from typing import Any

from flows.cli.output import Output, length, money, write_json
from flows.config import RoundConfig
from flows.launch.dry_run import Forecast, draft, forecast
from flows.report.text import NOTHING
from flows.workspace import Workspace

_UNKNOWN = "unknown"
_SHOWN = 3


def show_forecast(space: Workspace, config: RoundConfig, redo_from: str | None, as_json: bool) -> None:
    round_ = draft(space, config, redo_from)
    found = forecast(space, round_, redo_from)
    if as_json:
        write_json(_as_json(round_.number, found))
        return
    output = Output()
    output.line(f"Round {round_.number} in {space.root}: nothing is written by --dry-run.")
    columns = ("stage", "", "judge calls", "cost", "time", "why")
    output.table(columns, [_row(one) for one in found], numbers=("judge calls", "cost", "time"))
    if not any(one.run for one in found):
        output.line("All stages are complete; the run would write the report.")
        return
    total, cost, seconds = _calls(found), _total([one.cost for one in found]), _total([one.seconds for one in found])
    output.line(f"In all: {total} judge calls, cost {_money(cost)}, time {_time(seconds)}.")
    output.line("A stage that would run because another would is reused where the other's outputs come out as before.")


def _row(one: Forecast) -> list[str]:
    if not one.run:
        return [one.stage, "reuse", "", "", "", ""]
    calls = _calls([one]) if one.calls else NOTHING
    cost = _money(one.cost) if one.calls else NOTHING
    return [one.stage, "run", calls, cost, _time(one.seconds), _why(one.reasons)]


def _why(reasons: list[str]) -> str:
    """The first few: an upgrade may have changed dozens of defaults. --json has all."""
    more = len(reasons) - _SHOWN
    return "; ".join(reasons[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _calls(found: list[Forecast]) -> str:
    calls = [call for one in found for call in one.calls]
    left = sum(call.calls - call.answered for call in calls)
    answered = sum(call.answered for call in calls)
    most = "at most " if any(call.at_most for call in calls) else ""
    return f"{most}{left}" + (f" ({answered} answered)" if answered else "")


def _total(values: list[float | None]) -> float | None:
    return None if None in values else sum(value for value in values if value is not None)


def _money(value: float | None) -> str:
    return _UNKNOWN if value is None else money(value)


def _time(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else length(seconds)


def _as_json(number: int, found: list[Forecast]) -> dict[str, Any]:
    return {
        "round": number,
        "stages": [one.as_json() for one in found],
        "calls": sum(call.calls - call.answered for one in found for call in one.calls),
        "cost": _total([one.cost for one in found]),
        "seconds": _total([one.seconds for one in found]),
    }
