"""The top of the page: what happened in a few plain sentences, the verdict, and the key figures.

A sentence whose numbers are not there is left out; nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from flows.report.data import Judge, Round
from flows.report.measures import proportion, total_votes, training_votes
from flows.report.text import NOTHING, number, percent, plural
from flows.report.values import Estimate, estimates


@dataclass(frozen=True)
class Verdict:
    """The badge. `kind`: promoted, kept or open."""

    kind: str
    label: str
    reason: str


@dataclass(frozen=True)
class Card:
    """One key figure. `before` is the reference's value, where the figure is a change."""

    label: str
    value: str
    note: str
    before: str | None = None


def verdict(round_: Round) -> Verdict:
    decision = round_.decision
    if decision is None:
        words = {"failed": "failed", "unfinished": "has not finished"}
        open_ = [f"The stage {row.name} {words[row.state]}." for row in round_.stages if row.state in words]
        reason = open_[0] if open_ else "The promote stage has not run."
        return Verdict("open", "No decision yet", reason)
    kind, label = ("promoted", "Promoted") if decision.promoted else ("kept", "Champion kept")
    reason = decision.reason or "The promote stage gave no reason."
    return Verdict(kind, label, reason[:1].upper() + reason[1:])


def lead(round_: Round) -> str:
    """What came out of it, in one or two sentences; empty where nothing has come out yet."""
    return " ".join(sentence for sentence in (_result(round_), _outcome(round_)) if sentence)


def story(round_: Round) -> str:
    """How it came about: votes, reward model, PPO, in the order of the loop."""
    said = [_sampled(round_), _votes(round_), _reward_model(round_), _ppo(round_)]
    return " ".join(sentence for sentence in said if sentence)


def cards(round_: Round, judges: list[Judge]) -> list[Card]:
    """Win rate, expected reward, KL, reward model, best judge, votes: always six, "-" where a figure is not there."""
    evaluation, level = round_.evaluation, confidence(round_)
    win = evaluation.win_rate if evaluation else None
    reward = evaluation.both.get("expected_reward", {}) if evaluation else {}
    kl = evaluation.kl if evaluation else None
    model = reward_accuracy(round_)
    best = best_judge(judges)
    votes = total_votes(training_votes(round_))
    before, after = reward.get("reference"), reward.get("policy")
    return [
        Card("Win rate over the reference", percent(win.mean if win else None), _interval(win, level, "prompts")),
        Card(
            "Expected reward",
            number(after.mean if after else None),
            f"{_range(before)} → {_range(after)}" if before and after else "not measured",
            number(before.mean) if before and after else None,
        ),
        Card("KL to the reference", f"{number(kl.mean, 1)} nats" if kl else NOTHING, _kl_note(round_, kl)),
        Card("Reward model accuracy", percent(model.mean if model else None), _interval(model, level, "pairs")),
        Card(
            "Best judge's accuracy",
            percent(best.accuracy.mean if best and best.accuracy else None),
            f"{best.name} · {_interval(best.accuracy, 0.95, 'pairs')}" if best else "not measured",
        ),
        Card(
            "Votes attempted",
            f"{votes.attempted:,}" if votes else NOTHING,
            f"{percent(votes.scored / votes.attempted)} scored" if votes and votes.attempted else "not run",
        ),
    ]


def confidence(round_: Round) -> float:
    """The level of the evaluation's intervals; 0.95 is also what this page uses where it computes one itself."""
    return (round_.evaluation.confidence if round_.evaluation else None) or 0.95


def reward_accuracy(round_: Round) -> Estimate | None:
    metrics = round_.metrics("reward")
    share, n = metrics.get("accuracy"), metrics.get("n")
    if not isinstance(share, int | float) or isinstance(share, bool):
        return None
    whole = n if isinstance(n, int) and not isinstance(n, bool) else None
    if (known := estimates(metrics.get("intervals")).get("accuracy")) is not None:
        return known
    return proportion(Estimate(float(share), n=whole), confidence(round_))


def best_judge(judges: list[Judge]) -> Judge | None:
    measured = [(judge.accuracy.mean, judge.name, judge) for judge in judges if judge.accuracy]
    return max(measured)[2] if measured else None


def _sampled(round_: Round) -> str:
    if round_.rollouts is None or round_.prompts is None:
        return ""
    return f"The policy wrote {plural(round_.rollouts, 'response')} to {plural(round_.prompts, 'prompt')}."


def _votes(round_: Round) -> str:
    counts = training_votes(round_)
    votes = total_votes(counts)
    if votes is None:
        return ""
    lost = votes.attempted - votes.scored
    end = "all gave a winner" if not lost else f"{votes.scored:,} gave a winner and {lost:,} did not"
    start = "One judge" if len(counts) == 1 else f"{len(counts)} judges"
    return f"{start} attempted {plural(votes.attempted, 'vote')}: {end}."


def _reward_model(round_: Round) -> str:
    model = reward_accuracy(round_)
    if model is None:
        return ""
    source = ""
    if round_.preferences is not None:
        source = f"Trained on this round's {plural(len(round_.preferences), 'preference')}, "
    start = "the reward model" if source else "The reward model"
    pairs = f"of {plural(model.n, 'pair')}" if model.n else "of the pairs"
    seen = "it was trained on" if round_.metrics("reward").get("measured_on") == "train" else "it had not seen"
    return f"{source}{start} picks the preferred response in {percent(model.mean)} {pairs} {seen}."


def _ppo(round_: Round) -> str:
    metrics = round_.metrics("ppo")
    updates, start, end, kl = (metrics.get(name) for name in ("updates", "reward_start", "reward_end", "kl"))
    if not isinstance(updates, int):
        return ""
    text = f"PPO ran {plural(updates, 'update')}"
    if isinstance(start, int | float) and isinstance(end, int | float):
        text += f" and moved the reward model's score from {number(start)} to {number(end)}"
    if isinstance(kl, int | float):
        text += f", {number(kl, 1)} nats from where it began"
    return text + "."


def _result(round_: Round) -> str:
    if round_.evaluation is None or round_.evaluation.win_rate is None:
        return "The policy has not been evaluated." if round_.metrics("ppo") else ""
    win, reward = round_.evaluation.win_rate, round_.evaluation.both.get("expected_reward", {})
    text = f"On prompts it never trained on, the new policy beats its reference in {percent(win.mean)} of comparisons"
    if win.low is not None and win.high is not None:
        text += f" ({percent(confidence(round_), 0)} interval {percent(win.low)} to {percent(win.high)})"
    if "policy" in reward and "reference" in reward:
        before, after = reward["reference"].mean, reward["policy"].mean
        verb = "rose" if after > before else "fell" if after < before else "stayed"
        text += f", and its expected reward {verb} from {number(before)} to {number(after)}"
    return text + "."


def _outcome(round_: Round) -> str:
    if round_.decision is None:
        return ""
    if round_.decision.promoted:
        return "The new policy was promoted and starts the next round."
    return "The new policy was not promoted; the champion stays as it was."


def _interval(value: Estimate | None, level: float, unit: str) -> str:
    if value is None:
        return "not measured"
    n = f"{value.n:,} {unit}" if value.n is not None else ""
    if value.low is None or value.high is None:
        return n or "no interval given"
    return f"{percent(level, 0)} interval {percent(value.low)} to {percent(value.high)}" + (f" · {n}" if n else "")


def _range(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return number(value.mean)
    return f"{number(value.low)} to {number(value.high)}"


def _kl_note(round_: Round, kl: Estimate | None) -> str:
    budget = round_.setting("ppo", "kl", "budget")
    parts = []
    if kl and kl.low is not None and kl.high is not None:
        parts.append(f"{number(kl.low, 1)} to {number(kl.high, 1)}")
    if isinstance(budget, int | float):
        parts.append(f"budget {number(budget, 1)}")
    return " · ".join(parts) or ("not measured" if kl is None else "no interval given")
