"""The model registry: which policy is the champion, and every decision that made it so.

`registry/history.jsonl` is append-only and alone decides; `champion.json` is its last word, for other programs. Events:

decision    of a round: promoted or not, with its checks
promotion   by a person, with a reason, and another one where the checks had not passed
rollback    to an earlier champion (or to none, `policy` null), with a reason
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.stages.promote import explain
from store.errors import RlaifError, UsageError
from store.files import append_line, explain_os_errors, read_json, read_lines, write_json
from store.hashing import hash_path
from store.locks import exclusive
from store.resources import PREFIX

Entry = dict[str, Any]

_WHEN_AND_WHO = ("time", "by", "event")
_WAIT_S = 30.0


@dataclass(frozen=True)
class Candidate:
    """A policy that may become champion. `checks`: of its evaluation, see `flows.stages.promote`; empty where it has
    none. `evaluation`: path and sha256 of the file they come from."""

    policy: Path
    sha256: str
    round: int | None
    checks: list[Entry]
    win_rate: Entry | None
    evaluation: Entry | None

    @property
    def failed(self) -> list[Entry]:
        return [check for check in self.checks if not check["passed"]]


class Registry:
    """The registry of the workspace at `root`; paths below it are kept relative, so that it may be moved."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "registry"
        self.history = self.folder / "history.jsonl"

    def entries(self) -> list[Entry]:
        """All events, oldest first, `policy` as an absolute path. Of one that is there twice the first counts."""
        found = [entry for entry in read_lines(self.history) if isinstance(entry, dict)]
        return [self._outside({"event": "decision", **entry}) for entry in found]

    def champion(self) -> Entry | None:
        """The event that made the champion what it is, with `policy`; None before the first promotion."""
        entries = self.entries()
        if any(_makes_champion(entry) for entry in entries):
            standing = champions(entries)
            return standing[-1] if standing else None
        path = self.folder / "champion.json"
        value = self._outside(read_json(path)) if path.is_file() else None
        return value if value and value.get("policy") else None

    def decided(self, number: int) -> Entry | None:
        """The last decision on a round that was recorded."""
        found = [e for e in self.entries() if e["event"] == "decision" and e.get("round") == number]
        return found[-1] if found else None

    def record_decision(self, number: int, policy: Path, decision: Entry) -> None:
        """Enter a round's decision; the same again changes nothing."""
        with self._writing():
            entry = {"round": number, "policy": inside(self.root, str(policy)), **decision}
            known = [_what(other) for other in read_lines(self.history) if isinstance(other, dict)]
            if entry not in known:
                self._append("decision", f"round {number}", entry)
            self._write_champion()

    def promote(self, candidate: Candidate, reason: str, override: str | None, by: str | None) -> Entry:
        """Make the candidate champion. Raises UsageError without a reason, RlaifError where its evaluation does not
        allow it and there is no reason to override that."""
        reason = _reason(reason)
        if not candidate.checks and override is None:
            raise RlaifError(
                f"{candidate.policy} has no evaluation: evaluate it and give --evaluation, or --override REASON."
            )
        if candidate.failed and override is None:
            failed = explain(candidate.failed)
            raise RlaifError(f"Not promoted: {failed}. Nothing is promoted below its bounds without --override REASON.")
        entry = {
            "round": candidate.round,
            "policy": inside(self.root, str(candidate.policy)),
            "policy_sha256": candidate.sha256,
            "promoted": True,
            "reason": reason,
            "override": None if override is None else _reason(override),
            "checks": candidate.checks,
            "win_rate": candidate.win_rate,
            "evaluation": candidate.evaluation,
        }
        with self._writing():
            self._append("promotion", by, entry)
            self._write_champion()
        return entry

    def rollback(self, number: int | None, reason: str, by: str | None) -> Entry:
        """Go back to the champion of round `number`, or to the one before the present one.

        Raises UsageError where there is none, RlaifError where its files are gone or changed; then nothing is written.
        """
        reason = _reason(reason)
        with self._writing():
            standing = champions(self.entries())
            if not standing:
                raise UsageError(f"{self.root} has no champion to go back from: rlaif models lists its policies.")
            earlier = [entry for entry in standing[:-1] if number in (None, entry.get("round"))]
            if number is not None and not earlier:
                known = ", ".join(f"round {entry['round']}" for entry in standing[:-1]) or "none"
                raise UsageError(
                    f"Round {number} made no champion before the present one (there are: {known}): name one of them, "
                    f"or use rlaif promote."
                )
            target = earlier[-1] if earlier else None
            if target is not None:
                check_policy(target)
            entry = {
                "round": target.get("round") if target else None,
                "policy": inside(self.root, target["policy"]) if target else None,
                "policy_sha256": target.get("policy_sha256") if target else None,
                "promoted": False,
                "reason": reason,
                "from_round": standing[-1].get("round"),
            }
            self._append("rollback", by, entry)
            self._write_champion()
        return self._outside(entry)

    def _append(self, event: str, by: str | None, entry: Entry) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"event": event, "time": time, "by": by or user(), **entry}
        append_line(self.history, json.dumps(line, ensure_ascii=False))

    def _write_champion(self) -> None:
        """Bring champion.json in line with the history; where that never made a champion it is left alone, since in
        the first format the file alone said who is."""
        entries = [{"event": "decision", **entry} for entry in read_lines(self.history) if isinstance(entry, dict)]
        if not any(_makes_champion(entry) for entry in entries):
            return
        standing = champions(entries)
        path = self.folder / "champion.json"
        value = standing[-1] if standing else {"policy": None, "round": None}
        if not (path.is_file() and read_json(path) == value):
            write_json(path, value)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with explain_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        message = f"Another process has written to {self.folder} for {_WAIT_S:.0f} s: look for one that hangs."
        with exclusive(self.folder / ".lock", message, wait_s=_WAIT_S):
            yield

    def _outside(self, entry: Entry) -> Entry:
        name = entry.get("policy")
        if isinstance(name, str) and not name.startswith(PREFIX) and not Path(name).is_absolute():
            return {**entry, "policy": str(self.root / name)}
        return entry


def champions(entries: list[Entry]) -> list[Entry]:
    """The champions that a rollback can go to, the present one last. A rollback takes off all above its target; a
    round's decision that was made again takes the place of the first."""
    standing: list[Entry] = []
    for entry in entries:
        if entry["event"] == "rollback":
            while standing and not _same(standing[-1], entry):
                standing.pop()
            continue
        if entry["event"] == "decision":
            standing = [e for e in standing if e["event"] != "decision" or e.get("round") != entry.get("round")]
        if entry.get("promoted"):
            standing.append(entry)
    return standing


def check_policy(entry: Entry) -> None:
    """Raises RlaifError where the champion's files are gone, or not those that were promoted."""
    folder = Path(entry["policy"])
    if not folder.is_dir():
        raise RlaifError(
            f"The policy {folder} of round {entry.get('round')} is gone: restore it, or roll back further."
        )
    wanted = entry.get("policy_sha256")
    if wanted and hash_path(folder) != wanted:
        raise RlaifError(
            f"The policy {folder} is not what was promoted (its sha256 is not {wanted[:12]}...): restore it, or go "
            f"back to another with rlaif rollback."
        )


def user() -> str:
    """Who acts: RLAIF_USER, else the account's name."""
    try:
        return os.environ.get("RLAIF_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _makes_champion(entry: Entry) -> bool:
    return entry["event"] == "rollback" or bool(entry.get("promoted"))


def _same(one: Entry, other: Entry) -> bool:
    return all(one.get(name) == other.get(name) for name in ("policy", "policy_sha256", "round"))


def _what(entry: Entry) -> Entry:
    return {name: value for name, value in entry.items() if name not in _WHEN_AND_WHO}


def _reason(text: str) -> str:
    if not text.strip():
        raise UsageError("The reason is empty: say why, the registry keeps it.")
    return text.strip()


def inside(root: Path, name: str) -> str:
    """A path below the workspace as a relative one, so that a workspace can be moved; any other name as it is."""
    path = Path(name)
    return str(path.relative_to(root)) if path.is_absolute() and path.is_relative_to(root) else name
