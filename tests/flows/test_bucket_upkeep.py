"""Retention, looks and drift of a workspace in a bucket, whose machines have nothing but what is there."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.cli.deploy import retain
from flows.cli.labels import drift
from flows.inspection.drift import drift_of_workspace
from flows.load import load_round
from flows.plan import plan_round
from flows.retention import HEAVY, Retention, apply, removals
from flows.workspace import Round, Workspace
from judges.drift import Anchors
from store.config import Config
from store.errors import TransientError
from store.files import append_line, write_json
from store.manifest import MANIFEST
from store.remote import folders
from store.remote.bucket import Bucket
from store.remote.folders import RETIRED
from store.resources import resolve
from store.stage import Job, run_stage

from ..s3 import S3, as_machine
from .conftest import small_settings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STAGES = {
    "sft": ("model/weights", "model/config.json"),
    "aggregate": ("preferences.parquet",),
    "reward": ("model/weights", "validation.json"),
    "ppo": ("policy/weights", "policy/config.json", "updates.parquet"),
    "promote": ("decision.json",),
}
JUDGE = "tiny-oracle"
"""A program: it needs no model."""


_numbers = iter(range(1000))


@pytest.fixture
def url(s3: S3) -> str:
    return s3.make_bucket(f"upkeep{next(_numbers)}") + "/rlaif"


class Machines:
    """Each has a cache of its own, empty at first."""

    def __init__(self, s3: S3, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.s3, self.address, self.folder, self.patch = s3, url, folder, monkeypatch
        self.url = Path(url)

    def on(self, name: str) -> Any:
        return as_machine(self.s3, self.folder / name, self.patch)

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.address)

    def files(self, name: str) -> set[str]:
        """Names of the visible files in a machine's copy."""
        found = ((path, path.relative_to(self.folder / name)) for path in (self.folder / name).glob("*/workspace/**/*"))
        inside = ("/".join(name.parts[2:]) for path, name in found if path.is_file())
        return {name for name in inside if not any(part.startswith(".") for part in name.split("/"))}


@pytest.fixture
def machines(s3: S3, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(s3, url, tmp_path, monkeypatch)


def make(bucket: Bucket, key: str, folder: Path, names: tuple[str, ...]) -> None:
    """A finished stage directory, here and in the bucket."""

    def stage(job: Job[Any]) -> dict[str, Any]:
        for name in names:
            (job.out / name).parent.mkdir(parents=True, exist_ok=True)
            (job.out / name).write_text(f"{key}/{name}")
        return {}

    run_stage(key, stage, inputs={}, config=Config(), seed=0, out=folder)
    folders.push(bucket, key, folder)


def add_round(space: Workspace, promoted: bool) -> Round:
    round_ = space.begin_round(load_round("demo", small_settings()[1::2]))
    assert space.remote is not None
    for stage, names in STAGES.items():
        make(space.remote.bucket, f"rounds/{round_.number:03d}/{stage}", round_.stage(stage), names)
    (round_.folder / "report.html").write_text("<!doctype html>")
    entry = {"round": round_.number, "policy": f"rounds/{round_.number:03d}/ppo/policy", "promoted": promoted}
    append_line(space.root / "registry" / "history.jsonl", json.dumps(entry))
    if promoted:
        write_json(space.root / "registry" / "champion.json", entry)
    return round_


@pytest.fixture(scope="module")
def template(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects of three finished rounds, the second of which was promoted."""
    with pytest.MonkeyPatch.context() as patch:
        made = Machines(s3, s3.make_bucket("template") + "/rlaif", tmp_path_factory.mktemp("made"), patch)
        with made.on("maker"):
            space = Workspace.create(made.url)
            with space.locked():
                for number in range(1, 4):
                    add_round(space, promoted=number == 2)
            bucket = made.bucket
            return {key: bucket.read(key) or b"" for key in list(bucket.keys())}


@pytest.fixture
def rounds(machines: Machines, template: dict[str, bytes]) -> Machines:
    with machines.on("maker"):
        bucket = machines.bucket
        for key, data in template.items():
            bucket.write(key, data)
    return machines


def weights(keys: set[str] | dict[str, int]) -> set[str]:
    return {"/".join(key.split("/")[1:3]) for key in keys if key.endswith("/weights")}


OLD = {f"001/{stage}" for stage in HEAVY}
KEPT = {f"{number}/{stage}" for number in ("002", "003") for stage in HEAVY}


def test_old_weights_go_from_the_bucket_and_nothing_else(rounds: Machines) -> None:
    with rounds.on("ops"):
        bucket = rounds.bucket
        before = bucket.keys()
        arguments = ["--workspace", str(rounds.url), "--keep-rounds", "1"]
        shown = CliRunner().invoke(retain, [*arguments, "--dry-run"])
        assert shown.exit_code == 0, shown.output
        assert "Would remove 3 outputs" in shown.output
        assert bucket.keys() == before
        done = CliRunner().invoke(retain, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        assert {one["path"].rpartition("/rounds/")[2].rpartition("/")[0] for one in json.loads(done.output)} == OLD
        after = bucket.keys()
        assert weights(after) == KEPT
    gone = {key for key in before if "/".join(key.split("/")[1:3]) in OLD and key.split("/")[3] in ("model", "policy")}
    assert before.keys() - after.keys() == gone
    assert {key.rpartition("/")[2] for key in after.keys() - before.keys()} == {RETIRED}
    assert not weights(rounds.files("ops")), "what goes is not fetched first, nor what stays"
    with rounds.on("ops"):
        lines = [json.loads(line) for line in (bucket.read("rounds/001/journal.jsonl") or b"").splitlines()]
        assert sorted(line["path"] for line in lines if line["event"] == "removed") == [
            "ppo/policy",
            "reward/model",
            "sft/model",
        ]
        assert "Removed 0 outputs" in CliRunner().invoke(retain, arguments).output


def test_another_machine_misses_nothing_and_goes_on(rounds: Machines) -> None:
    with rounds.on("cached"):
        Workspace.existing(rounds.url)
        assert weights(rounds.files("cached")) >= OLD
    with rounds.on("ops"):
        assert CliRunner().invoke(retain, ["--workspace", str(rounds.url), "--keep-rounds", "1"]).exit_code == 0
    with rounds.on("fresh"):
        space = Workspace.existing(rounds.url)
        events = [event for round_ in space.rounds() for event in round_.journal.events()]
        assert not [event for event in events if event["event"] == "damaged_in_bucket"]
        here = rounds.files("fresh")
        assert weights(here) == KEPT
        assert {
            "rounds/001/ppo/updates.parquet",
            "rounds/001/aggregate/preferences.parquet",
            f"rounds/001/sft/{MANIFEST}",
        } <= here
        space.fetched()
        assert rounds.files("fresh") == here, "what is not there any more is not looked for anew"
    with rounds.on("cached"):
        Workspace.existing(rounds.url)
        assert weights(rounds.files("cached")) == KEPT, "else it could promote what others do not have"
    with rounds.on("next"):
        space = Workspace.create(rounds.url)
        with space.locked():
            round_ = space.begin_round(load_round("demo", small_settings()[1::2]))
            assert round_.number == 4
            assert Path(round_.start.policy) == space.root / "rounds/002/ppo/policy"
            steps = plan_round(round_)
            assert Path(round_.start.policy, "weights").read_text() == "rounds/002/ppo/policy/weights"
            assert [Path(path).is_file() for path in round_.start.replayed] == [True] * 3
            assert steps[0].inputs["policy"] == [round_.start.policy]
    with rounds.on("fourth"):
        found = removals(Workspace.opened(rounds.url), Retention(keep_rounds=1), NOW)
        assert found == [], "round 4 is not finished, and 3 is the last one that is"


def test_a_lost_object_is_still_told_beside_those_that_were_removed(rounds: Machines) -> None:
    with rounds.on("ops"):
        assert CliRunner().invoke(retain, ["--workspace", str(rounds.url), "--keep-rounds", "1"]).exit_code == 0
        space = Workspace.opened(rounds.url)
        assert space.remote is not None
        space.remote.bucket.delete(["rounds/001/ppo/updates.parquet"])
    with rounds.on("fresh"):
        events = Workspace.existing(rounds.url).rounds()[0].journal.events()
        assert [event["objects"] for event in events if event["event"] == "damaged_in_bucket"] == [
            "updates.parquet is missing"
        ]


@pytest.mark.slow
def test_a_machine_that_dies_at_any_request_loses_nothing_and_the_next_call_goes_on(
    rounds: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing goes that was not told before, and what is half gone is missed by nobody."""
    policy, deaths, left = Retention(keep_rounds=1), 0, 0

    def mutating(name: str) -> Any:
        original = getattr(Bucket, name)

        def call(self: Bucket, keys: Any, *rest: Any, **named: Any) -> Any:
            nonlocal left
            if isinstance(keys, str) and not keys.startswith("rounds/"):
                return original(self, keys, *rest, **named)
            for key in [keys] if isinstance(keys, str) else list(keys):
                if key.startswith("rounds/"):
                    left -= 1
                    if left < 0:
                        raise TransientError("died")
                original(self, key if isinstance(keys, str) else [key], *rest, **named)
            return None

        return call

    monkeypatch.setattr(Bucket, "write", mutating("write"))
    monkeypatch.setattr(Bucket, "delete", mutating("delete"))
    with rounds.on("ops"):
        space = Workspace.opened(rounds.url)
        assert space.remote is not None
        bucket = space.remote.bucket
        before = bucket.keys()
        while True:
            left = deaths
            try:
                with space.locked(start=False):
                    apply(space, removals(space, policy, NOW))
                break
            except TransientError:
                deaths += 1
            keys = bucket.keys()
            for number in ("001", "002", "003"):
                lines = (bucket.read(f"rounds/{number}/journal.jsonl") or b"").splitlines()
                told = {line["path"] for line in map(json.loads, lines) if line["event"] == "removed"}
                gone = {key for key in before.keys() - keys.keys() if key.startswith(f"rounds/{number}/")}
                assert {"/".join(key.split("/")[2:4]) for key in gone} <= told
            assert weights(keys) >= KEPT
            for key in space.remote.stages():
                assert folders.pull(bucket, key, rounds.folder / str(deaths) / key) == {}
        assert deaths > 2
        assert weights(bucket.keys()) == KEPT


def test_what_kills_and_looks_left_goes_too(rounds: Machines) -> None:
    with rounds.on("ops"):
        space = Workspace.create(rounds.url)
        assert space.remote is not None
        bucket = space.remote.bucket
        with space.locked():
            space.begin_round(load_round("demo", small_settings()[1::2]))
        for number in ("003", "004"):
            bucket.write(f"rounds/{number}/.mirror/judge/index.json", b"{}")
        for days in (40, 10):
            for stage, name in (("sample", "rollouts.parquet"), ("judge", "votes.parquet")):
                key = f"monitor/{NOW - timedelta(days=days):%Y%m%dT%H%M%SZ}/{stage}"
                make(bucket, key, rounds.folder / "looks" / key, (name,))
        before = bucket.keys()
        with space.locked(start=False):
            apply(space, removals(space, Retention(keep_rounds=9), NOW))
        old = f"{NOW - timedelta(days=40):%Y%m%dT%H%M%SZ}"
        assert before.keys() - bucket.keys().keys() == {
            "rounds/003/.mirror/judge/index.json",
            f"monitor/{old}/sample/rollouts.parquet",
        }


def test_nothing_is_removed_while_a_round_runs_elsewhere(rounds: Machines) -> None:
    with rounds.on("maker"):
        space = Workspace.opened(rounds.url)
    with space.locked(start=False), rounds.on("ops"):
        result = CliRunner().invoke(retain, ["--workspace", str(rounds.url), "--keep-rounds", "1"])
    assert "Another rlaif run works on s3://" in str(result.exception)


def ask(machines: Machines, *more: str) -> dict[str, Any]:
    result = CliRunner().invoke(drift, ["--workspace", str(machines.url), "--judge", JUDGE, "--json", *more])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)[JUDGE]
    return found


def test_askings_are_in_the_bucket_and_seen_by_others(machines: Machines) -> None:
    """Also beside a round, whose lease another machine holds."""
    with machines.on("one"):
        space = Workspace.create(machines.url)
        with space.locked():
            space.begin_round(load_round("demo", small_settings()[1::2]))
            with machines.on("two"):
                assert ask(machines) is None
    with machines.on("three"):
        found = ask(machines, "--force")
        assert (found["before"]["number"], found["now"]["number"]) == (1, 2)
        assert found["pairs"] > 0
        assert found["flips"] == 0
    with machines.on("one"), Workspace.create(machines.url).locked():
        assert "anchors/anchors.parquet" in machines.files("one"), "a round finds them too"
    with machines.on("three"):
        kept = machines.bucket.keys("anchors")
    assert {key for key in machines.files("one") if key.startswith("anchors")} == kept.keys()
    assert len(kept) == 3


@pytest.mark.slow
def test_askings_of_two_machines_at_once_are_both_kept(machines: Machines) -> None:
    """One was killed before its answers went up; meanwhile another took the same number."""
    with machines.on("one"):
        space = Workspace.create(machines.url)
        with space.locked():
            space.begin_round(load_round("demo", small_settings()[1::2]))
        ask(machines)
        drift_of_workspace(space, NOW, [JUDGE], force=True)
    with machines.on("two"):
        ask(machines, "--force")
        assert ask(machines)["now"]["number"] == 2
    with machines.on("one"):
        ask(machines)
    with machines.on("three"):
        known = Anchors(Workspace.opened(machines.url).root / "anchors").askings(JUDGE)
    assert [one.number for one in known] == [1, 2, 3]
    assert known[2].asked_at == NOW.isoformat(timespec="seconds")
    assert known[1].asked_at > known[2].asked_at, "that of the machine which was first in the bucket has its number"
    for name in ("one", "two"):
        with machines.on(name):
            folder = Workspace.opened(machines.url).root / "anchors"
        assert [one.asked_at for one in Anchors(folder).askings(JUDGE)] == [one.asked_at for one in known]


@pytest.mark.slow
def test_the_scheduled_flows_work_on_a_bucket(machines: Machines) -> None:
    """A look, the drift of a judge, and retention, each on a machine of its own, as a work pool's pods are."""
    from prefect.testing.utilities import prefect_test_harness

    from flows.deployments import flows
    from flows.inspection.monitor import looks

    model = resolve("shipped:tiny/models/base")
    with machines.on("maker"):
        space = Workspace.create(machines.url)
        with space.locked():
            round_ = add_round(space, promoted=True)
            assert space.remote is not None
            names = [path.name for path in model.iterdir() if path.is_file()]

            def policy(job: Job[Any]) -> dict[str, Any]:
                for name in names:
                    (job.out / "policy").mkdir(exist_ok=True)
                    (job.out / "policy" / name).write_bytes((model / name).read_bytes())
                return {}

            run_stage("ppo", policy, inputs={}, config=Config(), seed=1, out=round_.stage("ppo"))
            folders.push(space.remote.bucket, "rounds/001/ppo", round_.stage("ppo"))
    url = str(machines.url)
    with prefect_test_harness(server_startup_timeout=120):
        with machines.on("one"):
            folder = Path(str(flows.sample(url, prompts=4, judges=[JUDGE])))
            assert not [key for key in machines.files("one") if "/reward/" in key], "only what a look needs is fetched"
        with machines.on("two"):
            flows.drift(url, judges=[JUDGE])
        with machines.on("three"):
            assert flows.drift(url, judges=[JUDGE]) == {JUDGE: 0.0}
        with machines.on("four"):
            assert flows.retain(url, Retention(keep_looks_days=0)) > 0
    with machines.on("five"):
        (seen,) = looks(Workspace.opened(machines.url))
        assert seen["time"] == folder.name
        assert seen["policy"] == "001"
        assert seen["attempted"] == 2 * seen["pairs"] > 0
        keys = machines.bucket.keys(f"monitor/{folder.name}")
    assert f"monitor/{folder.name}/judge/votes.parquet" in keys
    assert f"monitor/{folder.name}/sample/rollouts.parquet" not in keys
