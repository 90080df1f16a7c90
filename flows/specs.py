"""The stages: for each its config, its inputs, and where its function lives. All else is derived from this table.

The function is named, not imported, so that torch is loaded only in the process that runs a training stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from audit.config import AuditConfig
from flows.config import AnchorsConfig, PromoteConfig
from flows.judge_parts import judge_parts
from judges.config import AggregateConfig, JudgeStageConfig, load_judge
from rlhf.config import DPOConfig, EvaluateConfig, PPOConfig, RewardConfig, SampleConfig, SFTConfig
from store.config import Config
from store.errors import UsageError
from store.hashing import file_hashes, hash_file, hash_json, hash_parts
from store.resources import is_local, resolve
from store.stage import Source, StageFunction


def _path(value: str) -> Source:
    return _local(resolve(value).resolve())


def _local(path: Path) -> Source:
    parts = file_hashes(path) if path.is_dir() else {}
    return Source(str(path), hash_parts(parts) if path.is_dir() else hash_file(path), parts)


def check_model(value: str) -> Path | None:
    """The folder of a local model, None for a name on a hub. UsageError where a local path holds no model."""
    if not (is_local(value) or Path(value).exists()):
        return None
    path = resolve(value).resolve()
    if not (path / "config.json").is_file():
        raise UsageError(
            f"{value!r} is no model directory: {path} has no config.json. Give a Hugging Face model folder."
        )
    return path


def _model(value: str) -> Source:
    """A local model by its content; a name on a hub by the name, since its files are not here yet."""
    path = check_model(value)
    return _local(path) if path else Source(value, hash_json(["hub", value]))


def _judge(value: str) -> Source:
    judge = load_judge(value)
    return Source(str(judge.folder), judge.digest, judge_parts(judge), kind="judge fingerprint")


@dataclass(frozen=True)
class Input:
    """An input of a stage. `source` finds the value and its content hash."""

    name: str
    help: str
    source: Callable[[str], Source] = _path
    required: bool = True
    many: bool = False


@dataclass(frozen=True)
class StageSpec:
    """`heavy`: loads torch, so it runs in a process of its own. `version` is raised when the code's results change.
    `in_round`: whether a round has it; others run by themselves."""

    name: str
    help: str
    config: type[Config]
    inputs: tuple[Input, ...]
    function: str
    heavy: bool
    version: int = 1
    in_round: bool = True

    def load(self) -> StageFunction:
        module, _, name = self.function.partition(":")
        function: StageFunction = getattr(import_module(module), name)
        return function


STAGES = {
    spec.name: spec
    for spec in (
        StageSpec(
            "sft",
            "Fine-tune a language model on expert demonstrations.",
            SFTConfig,
            (
                Input("policy", "Model to start from: a Hugging Face folder or a name on a hub.", _model),
                Input("demonstrations", "Parquet of prompt and response, or of messages (conversations)."),
            ),
            "flows.stages.sft:run",
            heavy=True,
        ),
        StageSpec(
            "sample",
            "Sample k responses a prompt from a policy.",
            SampleConfig,
            (Input("policy", "Model to sample from.", _model), Input("prompts", "Prompts parquet.")),
            "flows.stages.sample:run",
            heavy=True,
        ),
        StageSpec(
            "judge",
            "Let judges compare pairs of responses, each pair in both orders.",
            JudgeStageConfig,
            (
                Input("rollouts", "Rollouts parquet."),
                Input("prompts", "Prompts parquet: groups, splits and references."),
                Input("judge", "Judge folder or shipped name; once for each judge.", _judge, many=True),
                Input("calibration", "Pairs with gold winners, to measure the judges on.", required=False),
            ),
            "flows.stages.judge:run",
            heavy=True,
            version=3,
        ),
        StageSpec(
            "anchors",
            "Ask judges about frozen pairs again, to see whether they drift; a round does so by itself.",
            AnchorsConfig,
            (
                Input("judge", "Judge folder or shipped name; once for each judge.", _judge, many=True),
                Input("anchors", "Pairs with known winners."),
            ),
            "flows.stages.anchors:run",
            heavy=True,
            in_round=False,
        ),
        StageSpec(
            "audit",
            "Select judged pairs for people and collect their verdicts.",
            AuditConfig,
            (
                Input("pairs", "Pairs parquet."),
                Input("votes", "Votes parquet."),
                Input("oracle", "Judge that plays the simulated auditors.", _judge, required=False),
                Input("gold", "Pairs with known winners, some of which are hidden among the items.", required=False),
                Input(
                    "gold_votes", "The judges' votes on those: labels fitted on them steer the draw.", required=False
                ),
                Input("attacks", "What canaries did to the judges in these pairs (attacks.parquet).", required=False),
                Input("earlier", "Folder of an earlier round's audit, oldest first.", required=False, many=True),
            ),
            "flows.stages.audit:run",
            heavy=False,
            version=3,
        ),
        StageSpec(
            "aggregate",
            "Turn votes and verdicts into preferences and ratings.",
            AggregateConfig,
            (
                Input("votes", "Votes parquet; several are joined.", many=True),
                Input("pairs", "Pairs parquet; several are joined. Without: labels alone.", required=False, many=True),
                Input("verdicts", "Verdicts parquet; several are joined.", required=False, many=True),
                Input(
                    "gold_verdicts",
                    "Verdicts on hidden gold items, to test auditors.",
                    required=False,
                    many=True,
                ),
                Input("gold", "Pairs with known winners, which the judges' weights are fitted on.", required=False),
                Input("gold_votes", "The judges' votes on those pairs.", required=False),
                Input("prompts", "Prompts parquet: no preference is made of its held-out prompts.", required=False),
                Input("checks", "Report of rlaif judges check --json, for the gate.", required=False, many=True),
            ),
            "flows.stages.aggregate:run",
            heavy=False,
            version=4,
        ),
        StageSpec(
            "reward",
            "Train a reward model on preferences.",
            RewardConfig,
            (
                Input("model", "Model to start from.", _model),
                Input("preferences", "Preferences parquet; several are joined.", many=True),
                Input("prompts", "Prompts parquet: references that anchor the reward at 0."),
                Input("calibration", "Pairs with gold winners, to measure the reward model on.", required=False),
            ),
            "flows.stages.reward:run",
            heavy=True,
            version=3,
        ),
        StageSpec(
            "ppo",
            "Optimise the policy against the reward model, within a KL budget.",
            PPOConfig,
            (
                Input("policy", "Policy to start from; it is the reference too.", _model),
                Input("reward", "Reward model.", _model),
                Input("prompts", "Prompts parquet."),
                Input("judge", "Judges of the live probe.", _judge, required=False, many=True),
                Input("constraint", "Judges of the reward's constraint terms.", _judge, required=False, many=True),
            ),
            "flows.stages.ppo:run",
            heavy=True,
            version=2,
        ),
        StageSpec(
            "dpo",
            "Optimise the policy on preferences directly (DPO): a baseline, in no round.",
            DPOConfig,
            (
                Input("policy", "Policy to start from; it is the reference too.", _model),
                Input("preferences", "Preferences parquet; several are joined.", many=True),
            ),
            "flows.stages.dpo:run",
            heavy=True,
            in_round=False,
        ),
        StageSpec(
            "evaluate",
            "Compare a policy with its reference on held-out prompts.",
            EvaluateConfig,
            (
                Input("policy", "Policy to evaluate.", _model),
                Input("reference", "Policy to compare with.", _model),
                Input("reward", "Reward model.", _model, required=False),
                Input("prompts", "Prompts parquet."),
                Input("judge", "Evaluation judges.", _judge, many=True),
                Input("oracle", "Program judge that scores single responses.", _judge, required=False),
            ),
            "flows.stages.evaluate:run",
            heavy=True,
        ),
        StageSpec(
            "promote",
            "Decide whether the policy replaces the champion.",
            PromoteConfig,
            (
                Input("evaluation", "Evaluation of the evaluate stage (evaluation.json)."),
                Input("policy", "The evaluated policy.", _model),
            ),
            "flows.stages.promote:run",
            heavy=False,
        ),
    )
}

ROUND = [name for name, spec in STAGES.items() if spec.in_round]
"""The stages of a round, in their order."""
