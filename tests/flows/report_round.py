"""Builds a round folder as the stages write it: the declared schemas, manifests, journal. Synthetic, seeded, small."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from store.files import append_line, write_json, write_text
from store.manifest import MANIFEST, Manifest, describe_outputs
from store.schemas import PREFERENCES, RESPONSES, ROLLOUTS, SELECTION, VERDICTS, VOTES, Table
from store.tables import write_table

GROUPS = ("arithmetic", "etiquette", "geography", "recipes")
JUDGES = {"rubric": 0.9, "tiny-lm": 0.72, "length-shy": 0.64}
HOSTILE = (
    '<script>alert("x")</script><img src=x onerror=alert(1)> {{ 7*7 }} \u202egnp.exe\u202c zero\u200bwidth nul\x00end'
)

_ANSWERS = {
    "arithmetic": ("It is 12 i think, or maybe 13.", "Seven times six is 42."),
    "etiquette": ("just go in", "Knock, wait for an answer, and greet the host before you sit down."),
    "geography": ("Lima is a city. Lima is a city. Lima is", "Lima is the capital of Peru, on the Pacific coast."),
    "recipes": ("Boil it.", "Boil the rice for 12 minutes, drain it, and let it rest under a lid."),
}


def build_round(folder: Path, prompts: int = 48, hostile: bool = False, audit: bool = True, sft: bool = True) -> Path:
    """A finished and promoted round in `folder`."""
    rng = np.random.default_rng(17)
    seconds = {
        "sample": 41.2,
        "judge": 96.4,
        "aggregate": 0.8,
        "reward": 63.9,
        "ppo": 412.5,
        "evaluate": 88.1,
        "promote": 0.1,
    }
    config: dict[str, Any] = {
        "seed": 17,
        "policy": "shipped:tiny/policy",
        "judges": [f"shipped:{name}" for name in JUDGES],
        "sft": {"enabled": sft},
        "audit": {"mode": "simulated" if audit else "off"},
    }
    write_text(
        folder / "round.yaml", yaml.safe_dump(config, sort_keys=False) + ("# \u202e hidden\n" if hostile else "")
    )
    if sft:
        steps = np.arange(0, 200, 10)
        _parquet(folder / "sft" / "curve.parquet", {"step": steps, "loss": 1.4 + 2.2 * np.exp(-steps / 50)})
        finish(folder, "sft", {"loss": 1.43}, 33.0)
    _sample(folder, rng, prompts)
    _judge(folder, rng, prompts)
    if audit:
        _audit(folder, rng, prompts)
    _aggregate(folder, rng, prompts)
    _reward(folder, rng, prompts)
    _ppo(folder, rng)
    _evaluate(folder, rng, prompts, hostile)
    _promote(folder)
    for stage, spent in seconds.items():
        metrics = json.loads((folder / stage / MANIFEST).read_text())["metrics"]
        finish(folder, stage, metrics, spent)
    return folder


def finish(
    folder: Path, stage: str, metrics: dict[str, Any], seconds: float = 1.0, journal: bool = True, **config: Any
) -> None:
    """Write a stage's manifest, and its events the first time."""
    place = folder / stage
    known = place / MANIFEST
    config = config or (json.loads(known.read_text())["config"] if known.is_file() else {})
    manifest = Manifest(
        stage=stage,
        stage_version=1,
        key="4e" * 32,
        inputs={"prompts": [{"value": "/data/tiny/prompts.parquet", "identity": "ab" * 32}]},
        config=config,
        seed=17,
        outputs=describe_outputs(place),
        metrics=metrics,
        started_at="2026-11-20T08:15:00+00:00",
        seconds=seconds,
        peak_rss_mb=612.5 if stage in ("judge", "promote") else 1433.0,
        machine={"python": "3.11.7", "system": "Linux-6.1-x86_64-with-glibc2.36", "processor": "x86_64"},
        packages={"torch": "2.13.0", "transformers": "5.19.0", "pandas": "3.1.1"},
        code_version="0.1.0+1a2b3c4d5e6f",
    )
    write_json(known, manifest.model_dump(mode="json"))
    lines = (folder / "journal.jsonl").read_text() if (folder / "journal.jsonl").exists() else ""
    if journal and f'"finished", "stage": "{stage}"' not in lines and seconds != 1.0:
        tries = 2 if stage == "ppo" else 1
        for attempt in range(1, tries + 1):
            event(folder, "started", stage=stage, attempt=attempt)
            if attempt < tries:
                event(
                    folder,
                    "failed",
                    stage=stage,
                    attempt=attempt,
                    error="killed by signal 9, most likely out of memory",
                )
        event(folder, "finished", stage=stage, attempt=tries, seconds=seconds)


def event(folder: Path, name: str, **values: Any) -> None:
    append_line(folder / "journal.jsonl", json.dumps({"time": "2026-11-20T08:15:00+00:00", "event": name, **values}))


def _around(mean: float, half: float, n: int, name: str = "mean") -> dict[str, float]:
    return {name: mean, "low": mean - half, "high": mean + half, "n": n}


def _parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _table(path: Path, table: Table, rows: list[dict[str, Any]]) -> None:
    write_table(path, table, pa.Table.from_pylist(rows, schema=table.schema))


def _prompt(index: int) -> tuple[str, str, str]:
    group = GROUPS[index % len(GROUPS)]
    return f"prompt-{index:03d}", f"Please help me with {group}, question {index}.", group


def _sample(folder: Path, rng: np.random.Generator, prompts: int) -> None:
    rows = []
    for index in range(prompts):
        prompt_id, prompt, group = _prompt(index)
        for sample in range(4):
            rows.append(
                {
                    "rollout_id": f"{prompt_id}-{sample}",
                    "prompt_id": prompt_id,
                    "prompt": prompt,
                    "response": _ANSWERS[group][sample % 2],
                    "sample": sample,
                    "policy": "cd" * 32,
                    "finish_reason": "stop",
                    "n_tokens": int(rng.integers(4, 40)),
                    "logprob": float(-rng.random() * 30),
                    "seed": 17,
                }
            )
    _table(folder / "sample" / "rollouts.parquet", ROLLOUTS, rows)
    finish(folder, "sample", {"responses": len(rows)})


def _votes(rng: np.random.Generator, prompts: int, prefix: str) -> list[dict[str, Any]]:
    rows = []
    for index in range(prompts * 3):
        truth = rng.random() < 0.5
        for judge, skill in JUDGES.items():
            right = rng.random() < skill
            for order in ("ab", "ba"):
                status = str(
                    rng.choice(["scored", "tie", "abstain", "parse_failure", "error"], p=[0.88, 0.05, 0.03, 0.03, 0.01])
                )
                p_a = float(np.clip((0.8 if truth == right else 0.2) + rng.normal(0, 0.12), 0.01, 0.99))
                scored = status == "scored"
                rows.append(
                    {
                        "vote_id": f"{prefix}-{index}-{judge}-{order}",
                        "pair_id": f"{prefix}-{index}",
                        "prompt_id": f"prompt-{index // 3:03d}",
                        "rollout_a": "a",
                        "rollout_b": "b",
                        "judge": judge,
                        "fingerprint": f"{judge.encode().hex():0<64}"[:64],
                        "order": order,
                        "status": status,
                        "tokens_in": 220,
                        "tokens_out": 12,
                        "cost": 0.0021 if judge == "tiny-lm" else 0.0,
                        "latency_s": 0.1,
                        "attempts": 1,
                        "error": f"status 429: slow down, {index} s" if status == "error" else None,
                        "raw": "Both are fine." if status == "parse_failure" else None,
                        "mass": 0.04 if status == "abstain" else 0.97 if scored else None,
                        "winner": ("a" if p_a > 0.5 else "b") if scored else None,
                        "p_a": p_a if scored else None,
                    }
                )
    return rows


def _counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    names = ("scored", "tie", "abstain", "parse_failure", "error")
    return {"attempted": len(rows), **{name: sum(row["status"] == name for row in rows) for name in names}}


def _biases(flips: float) -> dict[str, Any]:
    return {
        "pairs_in_both_orders": 132,
        "order_flip_rate": flips,
        "order_flip_low": max(0.0, flips - 0.06),
        "order_flip_high": flips + 0.07,
        "first_slot_rate": 0.5 + flips / 3,
        "first_slot_low": 0.46 + flips / 3,
        "first_slot_high": 0.54 + flips / 3,
        "length_slope": flips - 0.1,
        "length_slope_low": flips - 0.15,
        "length_slope_high": flips - 0.05,
        "tie_rate": 0.05,
        "abstain_rate": 0.03,
    }


def _judge(folder: Path, rng: np.random.Generator, prompts: int) -> None:
    votes = _votes(rng, prompts, "pair")
    _table(folder / "judge" / "votes.parquet", VOTES, votes)
    _table(folder / "judge" / "calibration_votes.parquet", VOTES, _votes(rng, 20, "gold"))
    flips = {"rubric": 0.0, "tiny-lm": 0.31, "length-shy": 0.12}
    metrics = {
        "pairs": prompts * 3,
        "votes": _counts(votes),
        "per_judge": {
            judge: {
                **_counts([row for row in votes if row["judge"] == judge]),
                **_biases(flips[judge]),
                "by_group": {group: _biases(flips[judge] * (1 + index / 4)) for index, group in enumerate(GROUPS)},
                "cost": 0.6,
                "tokens_in": 63_360,
                "tokens_out": 3_456,
            }
            for judge in JUDGES
        },
        "agreement": [
            {"judges": ["length-shy", "rubric"], "agreement": 0.62, "pairs": 141},
            {"judges": ["length-shy", "tiny-lm"], "agreement": 0.47, "pairs": 141},
            {"judges": ["rubric", "tiny-lm"], "agreement": 0.81, "pairs": 138},
        ],
        "judge_accuracy": {
            judge: {**_around(skill, 0.06, 120, "accuracy"), "length": {"controlled_accuracy": skill - 0.02}}
            for judge, skill in JUDGES.items()
        },
        "self_preference": {
            "rubric": {"beyond_gold": None, "beyond_others": None, "reason": "the judge has no family and no model"},
            "tiny-lm": {
                "beyond_gold": None,
                "beyond_others": {"mean": 0.08, "low": 0.02, "high": 0.14, "n": 60, "clusters": 20},
                "reason": None,
            },
        },
    }
    finish(folder, "judge", metrics)


def _audit(folder: Path, rng: np.random.Generator, prompts: int) -> None:
    pairs = [f"pair-{index}" for index in range(prompts * 3)]
    drawn = pairs[::6]
    _table(
        folder / "audit" / "selection.parquet",
        SELECTION,
        [
            {
                "pair_id": pair,
                "inclusion_probability": 0.17,
                "drawn": pair in drawn,
                "stratum": ("uniform" if index % 18 == 0 else "targeted") if pair in drawn else "none",
                "reason": "judges disagree",
            }
            for index, pair in enumerate(pairs)
        ],
    )
    rows = []
    for index, pair in enumerate(drawn):
        rows.append(
            {
                "verdict_id": f"verdict-{index}",
                "pair_id": pair,
                "auditor": "simulated-careful" if index % 2 else "simulated-hasty",
                "shown_left": "a",
                "seconds": float(5 + 20 * rng.random()),
                "simulated": True,
                "created_at": datetime(2026, 11, 20, 9, 0, tzinfo=UTC),
                "winner": (None if index == 3 else str(rng.choice(["a", "b", "tie"], p=[0.45, 0.45, 0.1]))),
                "supersedes": None,
            }
        )
    rows.append({**rows[0], "verdict_id": "verdict-changed-mind", "winner": "a", "supersedes": "verdict-0"})
    _table(folder / "audit" / "verdicts.parquet", VERDICTS, rows)
    figures: dict[str, Any] = {"audited": 22, "uniform": 0.88, "low": 0.53, "high": 0.98}
    for name, value in (("naive", 0.71), ("hajek", 0.87), ("corrected", 0.86)):
        figures |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
    estimates = {"panel": {"judge": "panel", **figures}, "judges": [{"judge": judge, **figures} for judge in JUDGES]}
    said = {
        "gold": {"simulated-careful": {"answered": 10, "right": 9}},
        "late": {"verdicts": 3, "pairs": 2},
        "left_out": {"quarantined": 4, "settled_by_a_lead": 0},
    }
    finish(folder, "audit", {"drawn": len(drawn), "estimates": estimates, **said}, 4.2, mode="simulated")


def _aggregate(folder: Path, rng: np.random.Generator, prompts: int) -> None:
    rows = []
    for index in range(prompts * 3 - 9):
        prompt_id, prompt, group = _prompt(index // 3)
        p = float(np.clip(0.5 + 0.5 * rng.beta(2.2, 1.6), 0.5, 0.999))
        rows.append(
            {
                "pair_id": f"pair-{index}",
                "prompt_id": prompt_id,
                "prompt": prompt,
                "chosen": _ANSWERS[group][1],
                "rejected": _ANSWERS[group][0],
                "p_chosen": p,
                "margin": float(np.log(p / (1 - p))),
                "weight": 1.0,
                "source": "human" if index % 7 == 0 else "ai",
                "n_votes": 6,
                "agreement": 0.8,
                "group": group,
                "split": "test" if index % 10 < 3 else "train",
            }
        )
    _table(folder / "aggregate" / "preferences.parquet", PREFERENCES, rows)
    flips = {"figure": "order flips", "of": "panel", "value": 0.2, "limit": 0.5, "key": "max_flip_rate", "state": "ok"}
    silent = {"figure": "canary flips", "of": next(iter(JUDGES)), "state": "unmeasured"}
    gate = {"passed": True, "override": None, "checks": [flips, silent]}
    metrics = {"pairs": prompts * 3, "preferences": len(rows), "dropped": {"no_votes": 2, "tie": 7}, "gate": gate}
    finish(folder, "aggregate", metrics)


def _reward(folder: Path, rng: np.random.Generator, prompts: int) -> None:
    steps = np.arange(0, 120, 5)
    loss = 0.5 + 0.22 * np.exp(-steps / 30)
    _parquet(
        folder / "reward" / "curve.parquet",
        {
            "step": steps,
            "train_loss": loss - 0.03 + rng.normal(0, 0.012, len(steps)),
            "validation_loss": np.where(steps % 20 == 0, loss, np.nan),
            "validation_accuracy": np.where(steps % 20 == 0, 0.78 - 0.25 * np.exp(-steps / 25), np.nan),
        },
    )
    n = prompts * 3
    label = np.clip(0.5 + 0.5 * rng.beta(2.2, 1.6, n), 0.5, 1.0)
    predicted = 1 / (1 + np.exp(-(np.log(label / (1.001 - label)) * 0.8 + rng.normal(0, 0.9, n))))
    _parquet(
        folder / "reward" / "predictions.parquet",
        {
            "pair_id": [f"pair-{index}" for index in range(n)],
            "p_chosen": label,
            "predicted": predicted,
            "group": [_prompt(index // 3)[2] for index in range(n)],
            "split": ["train" if index % 3 == 0 else "test" for index in range(n)],
        },
    )
    by_group = {group: {"accuracy": 0.71 + 0.04 * index, "n": 24} for index, group in enumerate(GROUPS)}
    finish(
        folder,
        "reward",
        {
            "accuracy": 0.771,
            "log_loss": 0.512,
            "n": 96,
            "by_group": by_group,
            "intervals": {
                "accuracy": {"mean": 0.771, "low": 0.68, "high": 0.84, "n": 96},
                "log_loss": {"mean": 0.512, "low": 0.471, "high": 0.553, "n": 96},
                "calibration_error": {"mean": 0.043, "low": 0.031, "high": 0.092, "n": 96},
                "length_slope": {"mean": 0.018, "low": 0.009, "high": 0.027, "n": 96},
            },
            "least_log_loss": 0.431,
            "reward_scale": 1.853,
            "gold_accuracy": {"mean": 0.81, "n": 100},
            "measured_on": "test",
        },
    )


def _ppo(folder: Path, rng: np.random.Generator) -> None:
    update = np.arange(1, 41)
    ramp = 1 - np.exp(-update / 14)
    noise = lambda scale: rng.normal(0, scale, len(update))  # noqa: E731
    probe = np.where(update % 5 == 0, 0.5 + 0.16 * ramp + noise(0.015), np.nan)
    _parquet(
        folder / "ppo" / "updates.parquet",
        {
            "update": update,
            "reward": -0.02 + 1.25 * ramp + noise(0.05),
            "score": 0.05 + 1.6 * ramp + noise(0.05),
            "kl": 9.1 * ramp + noise(0.2),
            "entropy": 2.1 - 0.7 * ramp + noise(0.03),
            "clip_fraction": 0.06 + 0.06 * ramp + noise(0.008),
            "approx_kl": 0.008 + 0.008 * ramp + noise(0.001),
            "value_loss": 0.4 - 0.28 * ramp + noise(0.01),
            "response_length": 18 + 6 * ramp + noise(0.5),
            "stop_rate": np.clip(0.86 + 0.13 * ramp + noise(0.008), 0, 1),
            "probe_win_rate": probe,
        },
    )
    metrics = {"updates": 40, "kl": 8.7, "reward_start": 0.06, "reward_end": 1.55, "stopped": None, "best_update": 40}
    finish(folder, "ppo", metrics, kl={"budget": 12.0, "coefficient": 0.05})


def _evaluate(folder: Path, rng: np.random.Generator, prompts: int, hostile: bool) -> None:
    rows: list[dict[str, Any]] = []
    for index in range(prompts):
        prompt_id, prompt, group = _prompt(index)
        for sample in range(2):
            gain = float(rng.normal(0.14, 0.3))
            base = float(np.clip(rng.normal(0.5, 0.15), 0, 1))
            for policy, score in (("reference", base), ("policy", float(np.clip(base + gain, 0, 1)))):
                text = _ANSWERS[group][score > 0.5]
                win = 1 / (1 + np.exp(-4 * gain))
                rows.append(
                    {
                        "rollout_id": f"{prompt_id}-{sample}-{policy}",
                        "prompt_id": prompt_id,
                        "prompt": f"{prompt} {HOSTILE}" if hostile else prompt,
                        "response": f"{text} {HOSTILE}" if hostile else text,
                        "group": f"{group} {HOSTILE}" if hostile else group,
                        "split": "heldout" if index % 3 else "heldout_entities",
                        "policy": policy,
                        "sample": sample,
                        "probability": 0.01,
                        "n_tokens": 12,
                        "reward": score * 3 - 1,
                        "oracle": score,
                        "oracle_reasons": None if score >= 0.999 else f"-{1 - score:.2f} the answer is vague",
                        "win_probability": win if policy == "policy" else 1 - win,
                    }
                )
    _table(folder / "evaluate" / "responses.parquet", RESPONSES, rows)
    evaluation = [{**row, "judge": f"evaluator-{row['judge']}"} for row in _votes(rng, 16, "evaluation")]
    _table(folder / "evaluate" / "votes.parquet", VOTES, evaluation)
    frame = pd.DataFrame(rows)
    means = frame.groupby("policy")["oracle"].mean()
    groups = sorted(frame["group"].unique())
    value = {
        "win_rate": _around(0.641, 0.055, prompts),
        "by_group": {group: _around(0.56 + 0.05 * index, 0.09, prompts // 4) for index, group in enumerate(groups)},
        "by_split": {"heldout": _around(0.66, 0.06, 32), "heldout_entities": _around(0.6, 0.09, 16)},
        "expected_reward": {name: _around(float(means[name]), 0.03, prompts) for name in means.index},
        "reward_model": {"policy": _around(1.5, 0.1, prompts), "reference": _around(0.05, 0.1, prompts)},
        "length": {"policy": _around(21, 1, prompts), "reference": _around(18, 1, prompts)},
        "length_controlled_win_rate": 0.607,
        "pairs": {"total": 2 * prompts, "identical": 3, "undecided": 1},
        "kl": _around(8.6, 0.5, prompts),
        "votes": _counts(evaluation),
    }
    write_json(folder / "evaluate" / "evaluation.json", value)
    finish(folder, "evaluate", {"win_rate": 0.641}, confidence=0.95)


def _promote(folder: Path) -> None:
    checks = [
        {"name": "lower bound of the win rate", "value": 0.586, "bar": 0.5, "passed": True},
        {"name": "lower bound of the win rate, group arithmetic", "value": 0.47, "bar": 0.4, "passed": True},
    ]
    reason = "all 2 checks passed; lower bound of the win rate is 0.586, above 0.5"
    write_json(folder / "promote" / "decision.json", {"promoted": True, "reason": reason, "checks": checks})
    finish(folder, "promote", {"promoted": True})
