"""How many calls a stage would make to its judges: k responses x prompts x pairs x orders, and the attacks on them,
less what is answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.config import RoundConfig
from flows.plan import Step
from flows.stages.tables import read_prompts
from judges.asking import Inquiry
from judges.canaries import read_corpus
from judges.config import Judge, JudgeStageConfig, load_judge
from judges.journal import Journal
from judges.lists import inquiry_about_prompts
from judges.modes import Kind
from judges.pairs import Pair, make_pairs, pairs_from_table
from judges.ratings import inquiry_about_rollouts, rollouts_in, rollouts_of, unique
from judges.votes import inquiry_about_pairs
from rlhf.config import ConstraintTerm, EvaluateConfig, PPOConfig
from store.resources import resolve
from store.schemas import GOLD, PROMPTS, ROLLOUTS
from store.tables import read_table


@dataclass(frozen=True)
class Calls:
    """`calls` to a judge in all, of which `answered` are in the journal of an earlier try. `at_most`: it depends on
    texts or answers that are not there yet, and is an upper bound. Prices: of a million tokens. `canaries`: these calls
    are about attacks planted into pairs."""

    judge: str
    calls: int
    answered: int
    at_most: bool
    price_in: float
    price_out: float
    canaries: bool = False

    def cost(self, known: Mapping[str, float] | None) -> float | None:
        """Of the calls that are left; `known`: what the judge took last time (`calls`, `tokens_in`, `tokens_out`). None
        where that is needed but unknown."""
        if not self.price_in and not self.price_out:
            return 0.0
        if not known or not known.get("calls"):
            return None
        tokens = known["tokens_in"] * self.price_in + known["tokens_out"] * self.price_out
        return float((self.calls - self.answered) * tokens / known["calls"] / 1e6)


@dataclass(frozen=True)
class _Load:
    """What a judge of each kind is asked about, as numbers."""

    pairs: int
    prompts: int
    responses: int

    def calls(self, judge: Judge) -> int:
        """Two orders of a pair, a permutation of a prompt's responses and its reverse, or one call a response."""
        return {Kind.PAIR: 2 * self.pairs, Kind.LIST: 2 * self.prompts, Kind.SINGLE: self.responses}[judge.mode.kind]


def _of_pairs(pairs: int) -> _Load:
    """Each of a prompt of its own."""
    return _Load(pairs, pairs, 2 * pairs)


def count_calls(step: Step, config: RoundConfig, key: str | None, waits: bool) -> list[Calls]:
    """One for each judge that is asked, and one more where it is attacked with canaries.

    `key`: of the step, None where its inputs are not known yet or an earlier try's journal will not be used; `waits`:
    its inputs are not there yet.
    """
    if isinstance(step.config, JudgeStageConfig):
        return _of_judging(step, step.config, config, key, waits)
    judges = [load_judge(value) for value in step.inputs.get("judge", [])]
    if isinstance(step.config, EvaluateConfig):
        prompts = len(_prompts(step, step.config.splits, step.config.max_prompts, step.seed))
        return _bounded(judges, _of_pairs(prompts * step.config.responses), _journalled(step.out, ".votes", key))
    if isinstance(step.config, PPOConfig):
        return _of_ppo(step, step.config, judges, key)
    return []


def count_about_anchors(names: list[str], pairs: int) -> list[Calls]:
    """Of judges that are asked about so many frozen pairs, to see whether they drift."""
    return _bounded([load_judge(name) for name in names], _of_pairs(pairs), None)


def _of_ppo(step: Step, config: PPOConfig, judges: list[Judge], key: str | None) -> list[Calls]:
    """The live probe's, and those of terms whose judge rates each response; a rule is no call."""
    probe = config.probe
    pairs = config.updates // probe.every * probe.prompts if probe.every else 0
    found = _bounded(judges, _of_pairs(pairs), _journalled(step.out, ".probe", key)) if pairs else []
    given = {judge.name: judge for judge in map(load_judge, step.inputs.get("constraint", []))}
    terms = [term for term in config.terms if isinstance(term, ConstraintTerm) and term.kind != "rule"]
    rated = _Load(pairs=0, prompts=0, responses=config.updates * config.batch_size)
    return found + _bounded([given[term.judge] for term in terms], rated, _journalled(step.out, ".constraints", key))


def _of_judging(step: Step, config: JudgeStageConfig, round_: RoundConfig, key: str | None, waits: bool) -> list[Calls]:
    judges = [load_judge(value) for value in step.inputs["judge"]]
    gold: list[Pair] = []
    for value in step.inputs.get("calibration", []):
        gold = pairs_from_table(read_table(resolve(value), GOLD))
    shards = _journalled(step.out, ".shards", key)
    if not waits and config.pairs != "swiss":
        rollouts = read_table(Path(step.inputs["rollouts"][0]), ROLLOUTS)
        prompts = read_table(resolve(step.inputs["prompts"][0]), PROMPTS)
        made = make_pairs(rollouts, prompts, config.pairs, config.pairs_per_prompt, step.seed)
        pairs = list({pair.pair_id: pair for pair in [*gold, *pairs_from_table(made)]}.values())
        rated = unique([*rollouts_in(gold), *rollouts_of(rollouts, prompts)])

        def inquiry(judge: Judge) -> Inquiry[Any]:
            if judge.mode.kind == Kind.SINGLE:
                return inquiry_about_rollouts(judge, rated)
            return (
                inquiry_about_pairs(judge, pairs)
                if judge.mode.kind == Kind.PAIR
                else inquiry_about_prompts(judge, pairs)
            )

        # Of a sharded stage the journals of a killed try lie by part, and are not looked at here.
        in_parts = config.shards is not None
        return [
            *(
                _exactly(judge, inquiry(judge), shards, at_most or in_parts)
                for judge, at_most in _asked(judges).values()
            ),
            *_of_attacks(step, config, judges, made.num_rows, key),
        ]
    sampled = _prompts(step, round_.sample.splits, round_.sample.max_prompts, step.seed)
    most = round_.sample.responses * (round_.sample.responses - 1) // 2
    each = most if config.pairs == "all" else min(most, config.pairs_per_prompt)
    responses = len(sampled) * round_.sample.responses + len(unique(rollouts_in(gold)))
    groups = len(sampled) + len({pair.prompt_id for pair in gold})
    return [
        *_bounded(judges, _Load(len(sampled) * each + len(gold), groups, responses), shards),
        *_of_attacks(step, config, judges, len(sampled) * each, key),
    ]


def _of_attacks(step: Step, config: JudgeStageConfig, judges: list[Judge], pairs: int, key: str | None) -> list[Calls]:
    """At most, for only pairs that a judge decides alike in both orders are attacked. An attack is a pair with a prompt
    of its own, of which one response is new; a member of several cascades is asked about the attacks on each."""
    attacks = len(read_corpus().canaries) * min(config.canaries, pairs)
    if not attacks:
        return []
    shards = _journalled(step.out, ".canaries", key)
    asking = Counter(one.fingerprint for judge in judges for one in judge.asked)
    found = []
    for judge, _ in _asked(judges).values():
        own = attacks * asking[judge.fingerprint]
        found += _bounded([judge], _Load(own, own, own), shards)
    return [replace(one, canaries=True) for one in found]


def _asked(judges: list[Judge]) -> dict[str, tuple[Judge, bool]]:
    """Each judge that is really asked, once, by fingerprint; and whether it may be asked about fewer, as the second of
    a cascade is."""
    found: dict[str, tuple[Judge, bool]] = {}
    for judge in judges:
        for number, one in enumerate(judge.asked):
            sure = number == 0 or (one.fingerprint in found and not found[one.fingerprint][1])
            found[one.fingerprint] = one, not sure
    return found


def _exactly(judge: Judge, inquiry: Inquiry[Any], shards: Path | None, at_most: bool) -> Calls:
    folder = shards / judge.fingerprint if shards else None
    journal = Journal(folder, inquiry.table, (ask.id for ask in inquiry.asks()))
    return _calls(judge, journal.total, len(journal.done), at_most)


def _bounded(judges: list[Judge], load: _Load, shards: Path | None) -> list[Calls]:
    return [
        _calls(judge, load.calls(judge), _rows(shards, judge.fingerprint) if shards else 0, True)
        for judge, _ in _asked(judges).values()
    ]


def _calls(judge: Judge, calls: int, answered: int, at_most: bool) -> Calls:
    price = judge.settings.price
    return Calls(judge.name, calls, min(answered, calls), at_most, price.input, price.output)


def _journalled(out: Path, folder: str, key: str | None) -> Path | None:
    """The journal that a try of the same key has left."""
    partial = out.with_name(f".{out.name}.partial")
    mark = partial / ".key"
    return partial / folder if key and mark.is_file() and mark.read_text() == key else None


def _rows(shards: Path, fingerprint: str) -> int:
    """Of a judge's journal, which may be divided into folders."""
    return sum(path.read_bytes().count(b"\n") for path in shards.rglob(f"{fingerprint}/*.jsonl"))


def _prompts(step: Step, splits: list[str], most: int, seed: int) -> list[dict[str, Any]]:
    return read_prompts(resolve(step.inputs["prompts"][0]), splits, most, seed)
