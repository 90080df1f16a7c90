"""Which round a run works on, and with which config: for the command line and for deployments."""

from __future__ import annotations

from collections.abc import Sequence

from flows.config import RoundConfig
from flows.load import change, load_round
from flows.workspace import Round, Workspace
from store.errors import UsageError


def choose_config(last: Round | None, config: str | None, settings: Sequence[str]) -> RoundConfig:
    """What `rlaif run CONFIG --set ...` means: without CONFIG that of the last round, `demo` in an empty workspace."""
    if config is None and last is not None:
        return change(last.config, settings)
    return load_round(config or "demo", settings)


def override_gate(config: RoundConfig, last: Round | None, reason: str | None) -> RoundConfig:
    """The config with the reason to go on past the judges' gate: the one given now, or given before for this round.

    It holds for one round: the next one starts without it. Raises UsageError for an empty reason.
    """
    if reason is not None and not reason.strip():
        raise UsageError("--override-gate needs a reason, which the journal and the report keep: give one.")
    own, before = config.aggregate.gate.override, last.config.aggregate.gate.override if last else None
    if reason is None:
        reason = own
        if last is not None and last.finished and own == before:
            reason = None
        elif last is not None and not last.finished and own is None:
            reason = before
    gate = config.aggregate.gate.model_copy(update={"override": reason})
    return config.model_copy(update={"aggregate": config.aggregate.model_copy(update={"gate": gate})})


def choose_round(space: Workspace, config: RoundConfig) -> Round:
    """The unfinished round, with `config` from now on, or the next one. Call it with the workspace's lock held."""
    last = space.last_round()
    if last is None or last.finished:
        new = space.begin_round(config)
        _tell_override(new, config, None)
        return new
    if config != last.config:
        last.journal.write("config_changed")
        _tell_override(last, config, last.config.aggregate.gate.override)
        last.set_config(config)
    return last


def _tell_override(round_: Round, config: RoundConfig, before: str | None) -> None:
    reason = config.aggregate.gate.override
    if reason is not None and reason != before:
        round_.journal.write("gate_overridden", reason=reason)
