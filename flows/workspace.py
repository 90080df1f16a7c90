"""The workspace: a folder of rounds and the registry that says which policy is the champion.

workspace/
  rounds/001/round.yaml       the round's config, frozen
             round.json       where it started: policy, earlier preferences
             journal.jsonl    what ran when
             <stage>/         outputs and manifest of each stage
             report.html
  registry/history.jsonl      every decision, promotion and rollback; see flows.policies.registry
           champion.json      the policy in use, and the round that made it
  prefect/                    the local Prefect API's home and database
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.bucket import Remote
from flows.config import RoundConfig
from flows.policies.registry import Registry, check_policy, inside
from store.config import load
from store.errors import RlaifError, UsageError
from store.files import explain_os_errors, read_json, write_json, write_text
from store.journal import Journal
from store.locks import exclusive
from store.manifest import read_manifest
from store.resources import PREFIX

LOCK = ".run.lock"


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
        return _start(self.folder.parent.parent, read_json(self.folder / "round.json"))

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "journal.jsonl")

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the decision is made, recorded and reported."""
        done = read_manifest(self.stage("promote")) is not None and (self.folder / "report.html").is_file()
        return done and Registry(self.folder.parent.parent).decided(self.number) is not None

    def stage(self, name: str) -> Path:
        return self.folder / name

    def set_config(self, config: RoundConfig) -> None:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.folder / "round.yaml", text)


class Workspace:
    """At a folder, or at s3://BUCKET/PREFIX: then `root` is this machine's copy of it; see `flows.bucket`."""

    def __init__(self, root: Path, remote: Remote | None = None) -> None:
        self.remote = remote or Remote.of(root)
        self.root = root if self.remote is None else self.remote.root

    @classmethod
    def create(cls, root: Path) -> Workspace:
        """Open the workspace at `root`, making it where there is none. UsageError where it cannot be written."""
        if (remote := Remote.of(root)) is not None:
            root = remote.root
        with explain_os_errors(root):
            (root / "rounds").mkdir(parents=True, exist_ok=True)
            probe = root / ".writable"
            probe.touch()
            probe.unlink()
        return cls(root.resolve(), remote)

    @classmethod
    def existing(cls, root: Path) -> Workspace:
        """A workspace that is there, whole: of one in a bucket every stage's files are fetched that are not here."""
        space = cls.opened(root)
        return space if root.resolve() == space.root else space.fetched()

    @classmethod
    def opened(cls, root: Path) -> Workspace:
        """A workspace that is there; of one in a bucket only records and decisions are fetched, no other files."""
        return cls._found(root, Remote.of(root))

    def fetched(self) -> Workspace:
        """Itself, with every stage's files at hand where it lies in a bucket."""
        if self.remote is not None:
            self.remote.fetch_all()
        return self

    @classmethod
    def view(cls, root: Path) -> Workspace:
        """A workspace to be looked at: of one in a bucket only records and manifests are fetched, no stage's files."""
        return cls._found(root, Remote.of(root, view=True))

    @classmethod
    def _found(cls, root: Path, remote: Remote | None) -> Workspace:
        if not ((remote.root if remote else root) / "rounds").is_dir():
            raise UsageError(
                f"{remote.url if remote else root} is no workspace (it has no folder rounds): give --workspace, or "
                f"start with rlaif run."
            )
        return cls(root.resolve(), remote)

    def rounds(self) -> list[Round]:
        """By number. Anything else in the folder, such as a copy that somebody made of a round, is none."""
        folders = [path for path in (self.root / "rounds").glob("[0-9]*") if path.name.isdecimal()]
        found = [Round(int(path.name), path) for path in folders if (path / "round.json").is_file()]
        return sorted(found, key=lambda round_: round_.number)

    def last_round(self) -> Round | None:
        rounds = self.rounds()
        return rounds[-1] if rounds else None

    def next_start(self, config: RoundConfig) -> tuple[int, dict[str, Any]]:
        """The number of the next round and where it begins, as round.json holds it; nothing is written."""
        last = self.last_round()
        number = last.number + 1 if last else 1
        champion = self.champion()
        earlier = self.rounds()[-config.replay_rounds :] if config.replay_rounds else []
        tables = [path for r in earlier if (path := r.stage("aggregate") / "preferences.parquet").exists()]
        # All of them: a verdict may come late by any time.
        audits = [path for r in self.rounds() if ((path := r.stage("audit")) / "asked.json").is_file()]
        start = {
            "round": number,
            "policy": inside(self.root, champion["policy"]) if champion else config.policy,
            "tuned": champion is not None,
            "replayed": [inside(self.root, str(path)) for path in tables],
            "audits": [inside(self.root, str(path)) for path in audits],
        }
        return number, start

    def start_of(self, value: dict[str, Any]) -> Start:
        """What a round.json means."""
        return _start(self.root, value)

    def begin_round(self, config: RoundConfig) -> Round:
        """Lay down the next round, starting from the champion where there is one."""
        number, start = self.next_start(config)
        if (champion := self.champion()) is not None:
            check_policy(champion)
        folder = self.root / "rounds" / f"{number:03d}"
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        new = Round(number, folder)
        new.set_config(config)
        write_json(folder / "round.json", start)
        new.journal.write("round_started", round=number, policy=start["policy"])
        if self.remote is not None:
            self.remote.push_records()
        return new

    @property
    def registry(self) -> Registry:
        return Registry(self.root)

    def champion(self) -> dict[str, Any] | None:
        """The registry's entry of the policy in use. RlaifError where its files are gone."""
        value = self.registry.champion()
        if value is not None and not Path(value["policy"]).is_dir() and not (self.remote and self.remote.view):
            raise RlaifError(
                f"The champion {value['policy']} is gone: restore it, or go back with rlaif rollback --reason REASON."
            )
        return value

    def record_decision(self, number: int, policy: Path, decision: dict[str, Any]) -> None:
        """Enter the decision on a round's `policy` into the registry; the same again changes nothing."""
        self.registry.record_decision(number, policy, decision)
        if self.remote is not None:
            self.remote.push_records()

    @contextmanager
    def locked(self, start: bool = True) -> Iterator[None]:
        """One round at a time: a second `rlaif run` on the same workspace is told so at once. Of one in a bucket, what
        a round starts from is fetched, unless `start` is false."""
        message = f"Another rlaif run works on {self.root}: wait for it, or give another --workspace."
        with exclusive(self.root / LOCK, message), self.remote.session(start) if self.remote else nullcontext():
            yield

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Around what only adds files (askings of anchors), also beside a round: in a bucket they go up at the end,
        those of a command that failed too."""
        try:
            yield
        finally:
            if self.remote is not None:
                self.remote.records.push_added()


def _start(root: Path, value: dict[str, Any]) -> Start:
    return Start(
        _outside(root, value["policy"]),
        value["tuned"],
        tuple(_outside(root, name) for name in value["replayed"]),
        tuple(_outside(root, name) for name in value.get("audits", [])),
    )


def _outside(root: Path, name: str) -> str:
    """What `inside` made relative, as an absolute path again."""
    return str(root / name) if (root / name).exists() and not name.startswith(PREFIX) else name
