"""The workspace: a folder of rounds and the registry that says which policy is the champion.

workspace/
  rounds/001/round.yaml       the round's config, frozen
             round.json       where it started: policy, earlier preferences
             journal.jsonl    what ran when
             <stage>/         outputs and manifest of each stage
             report.html
  registry/champion.json      the policy in use, and the round that made it
           history.jsonl      every decision
  prefect/                    the local Prefect API's home and database
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.config import RoundConfig
from store.config import load
from store.errors import RlaifError, UsageError
from store.files import append_line, explain_os_errors, read_json, read_lines, write_json, write_text
from store.journal import Journal
from store.locks import exclusive
from store.manifest import read_manifest
from store.resources import PREFIX


@dataclass(frozen=True)
class Start:
    """Where a round begins. `tuned`: the policy is a champion, so SFT has nothing left to do. `audits`: folders of the
    earlier rounds' audits, oldest first."""

    policy: str
    tuned: bool
    replayed: tuple[str, ...]
    audits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Round:
    number: int
    folder: Path

    @property
    def config(self) -> RoundConfig:
        return load(RoundConfig, self.folder / "round.yaml")

    @property
    def start(self) -> Start:
        value = read_json(self.folder / "round.json")
        root = self.folder.parent.parent
        return Start(
            _outside(root, value["policy"]),
            value["tuned"],
            tuple(_outside(root, p) for p in value["replayed"]),
            tuple(_outside(root, p) for p in value.get("audits", [])),
        )

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "journal.jsonl")

    @property
    def finished(self) -> bool:
        return read_manifest(self.stage("promote")) is not None and (self.folder / "report.html").is_file()

    def stage(self, name: str) -> Path:
        return self.folder / name

    def set_config(self, config: RoundConfig) -> None:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.folder / "round.yaml", text)


class Workspace:
    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: Path) -> Workspace:
        """Open the workspace at `root`, making it where there is none. UsageError where it cannot be written."""
        with explain_os_errors(root):
            (root / "rounds").mkdir(parents=True, exist_ok=True)
            probe = root / ".writable"
            probe.touch()
            probe.unlink()
        return cls(root.resolve())

    @classmethod
    def existing(cls, root: Path) -> Workspace:
        if not (root / "rounds").is_dir():
            raise UsageError(
                f"{root} is no workspace (it has no folder rounds): give --workspace, or start with rlaif run."
            )
        return cls(root.resolve())

    def rounds(self) -> list[Round]:
        folders = sorted(path for path in (self.root / "rounds").glob("[0-9]*") if (path / "round.json").is_file())
        return [Round(int(path.name), path) for path in folders]

    def last_round(self) -> Round | None:
        rounds = self.rounds()
        return rounds[-1] if rounds else None

    def begin_round(self, config: RoundConfig) -> Round:
        """Lay down the next round, starting from the champion where there is one."""
        last = self.last_round()
        number = last.number + 1 if last else 1
        champion = self.champion()
        earlier = self.rounds()[-config.replay_rounds :] if config.replay_rounds else []
        tables = [path for r in earlier if (path := r.stage("aggregate") / "preferences.parquet").exists()]
        # All of them: a verdict may come late by any time.
        audits = [path for r in self.rounds() if ((path := r.stage("audit")) / "asked.json").is_file()]
        folder = self.root / "rounds" / f"{number:03d}"
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        new = Round(number, folder)
        new.set_config(config)
        start = {
            "round": number,
            "policy": _inside(self.root, champion["policy"]) if champion else config.policy,
            "tuned": champion is not None,
            "replayed": [_inside(self.root, str(path)) for path in tables],
            "audits": [_inside(self.root, str(path)) for path in audits],
        }
        write_json(folder / "round.json", start)
        new.journal.write("round_started", round=number, policy=start["policy"])
        return new

    def champion(self) -> dict[str, Any] | None:
        path = self.root / "registry" / "champion.json"
        if not path.is_file():
            return None
        value: dict[str, Any] = read_json(path)
        value["policy"] = _outside(self.root, value["policy"])
        if not Path(value["policy"]).is_dir():
            raise RlaifError(f"The champion {value['policy']} named by {path} is gone: restore it or remove {path}.")
        return value

    def record_decision(self, number: int, policy: Path, decision: dict[str, Any]) -> None:
        """Enter the decision on a round's `policy` into the registry; the same again changes nothing."""
        history = self.root / "registry" / "history.jsonl"
        entry = {"round": number, "policy": _inside(self.root, str(policy)), **decision}
        if entry not in read_lines(history):
            append_line(history, json.dumps(entry, ensure_ascii=False))
        if decision["promoted"]:
            write_json(self.root / "registry" / "champion.json", entry)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One round at a time: a second `rlaif run` on the same workspace is told so at once."""
        message = f"Another rlaif run works on {self.root}: wait for it, or give another --workspace."
        with exclusive(self.root / ".run.lock", message):
            yield


def _inside(root: Path, name: str) -> str:
    """A path below the workspace as a relative one, so that a workspace can be moved; any other name as it is."""
    path = Path(name)
    return str(path.relative_to(root)) if path.is_absolute() and path.is_relative_to(root) else name


def _outside(root: Path, name: str) -> str:
    """What `_inside` made relative, as an absolute path again."""
    return str(root / name) if (root / name).exists() and not name.startswith(PREFIX) else name
