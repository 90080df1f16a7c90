"""The plan of a round, and the seeds of its stages."""

from __future__ import annotations

from pathlib import Path

from flows.load import load_round
from flows.plan import plan_round, stage_seed
from flows.specs import STAGES
from flows.workspace import Workspace


def begin(tmp_path: Path, *settings: str):
    return Workspace.create(tmp_path / "w").begin_round(load_round("demo", settings))


def test_every_stage_in_order_with_every_required_input(tmp_path: Path) -> None:
    steps = plan_round(begin(tmp_path))
    assert [step.stage for step in steps] == list(STAGES)
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
