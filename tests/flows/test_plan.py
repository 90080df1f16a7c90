"""The plan of a round, and the seeds of its stages."""

from __future__ import annotations

from pathlib import Path

from audit.config import AuditConfig
from flows.load import load_round
from flows.plan import audit_config, plan_round, stage_seed
from flows.specs import ROUND, STAGES
from flows.workspace import Workspace


def begin(tmp_path: Path, *settings: str):
    return Workspace.create(tmp_path / "w").begin_round(load_round("demo", settings))


def test_every_stage_in_order_with_every_required_input(tmp_path: Path) -> None:
    steps = plan_round(begin(tmp_path))
    assert [step.stage for step in steps] == ROUND
    for step in steps:
        required = {item.name for item in step.spec.inputs if item.required}
        assert required <= {name for name, values in step.inputs.items() if values}
        assert set(step.inputs) <= {item.name for item in step.spec.inputs}


def test_sft_is_left_out_when_switched_off_or_tuned(tmp_path: Path) -> None:
    assert plan_round(begin(tmp_path, "sft.enabled=false"))[0].stage == "sample"
    space = Workspace.create(tmp_path / "tuned")
    policy = space.root / "rounds" / "001" / "ppo" / "policy"
    policy.mkdir(parents=True)
    space.record_decision(1, policy, {"promoted": True})
    steps = plan_round(space.begin_round(load_round("demo")))
    assert steps[0].stage == "sample"
    assert steps[0].inputs["policy"] == [str(policy)]


def test_the_rounds_own_attacks_reach_the_gate_and_the_audit(tmp_path: Path) -> None:
    without = {step.stage: step for step in plan_round(begin(tmp_path))}
    assert not without["aggregate"].inputs.get("checks")
    assert not without["audit"].inputs.get("attacks")
    steps = {step.stage: step for step in plan_round(begin(tmp_path, "judge.canaries=2"))}
    assert steps["aggregate"].inputs["checks"] == [str(steps["judge"].out / "canaries.json")]
    assert steps["audit"].inputs["attacks"] == [str(steps["judge"].out / "attacks.parquet")]


def test_stages_and_rounds_have_seeds_of_their_own() -> None:
    seeds = {stage_seed(seed, number, stage) for seed in (1, 2) for number in (1, 2) for stage in STAGES}
    assert len(seeds) == 4 * len(STAGES)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_shipped_configs_are_valid(tmp_path: Path) -> None:
    from flows.config import RoundConfig
    from store.config import load
    from store.resources import CONFIGS

    for path in CONFIGS.glob("*.yaml"):
        load(RoundConfig, path)


def test_the_audits_database_lies_in_the_workspace_unless_named(tmp_path: Path) -> None:
    root = tmp_path
    assert audit_config(AuditConfig(), root).database == str(root / "audit.db")
    assert audit_config(AuditConfig(database="mine.db"), root).database == str(root / "mine.db")
    assert audit_config(AuditConfig(database="/elsewhere/mine.db"), root).database == "/elsewhere/mine.db"
    assert audit_config(AuditConfig(database="postgresql://h/x"), root).database == "postgresql://h/x"
    assert audit_config(AuditConfig(database_env="X"), root).database is None
    assert audit_config(AuditConfig(inbox="in"), root).database is None
    assert audit_config(AuditConfig(), root, wait=True).wait
    assert audit_config(AuditConfig(), root, wait=True).identity() == AuditConfig().identity()


def test_a_later_round_takes_in_what_came_late(tmp_path: Path) -> None:
    first = begin(tmp_path)
    steps = {step.stage: step for step in plan_round(first)}
    assert steps["audit"].inputs["earlier"] == []
    assert len(steps["aggregate"].inputs["verdicts"]) == 1
    folder = first.stage("audit")
    folder.mkdir()
    (folder / "asked.json").write_text("{}")
    steps = {step.stage: step for step in plan_round(begin(tmp_path))}
    assert steps["audit"].inputs["earlier"] == [str(folder)]
    for name in ("pairs", "votes", "verdicts"):
        last = Path(steps["aggregate"].inputs[name][-1])
        assert (last.parent.name, last.name) == ("audit", f"late_{name}.parquet")
