"""The tables that rooms pass on, declared once as Arrow schemas; `store.tables` reads, checks and writes them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 1


class Status(StrEnum):
    """What became of one attempted vote. attempted = scored + tie + abstain + parse_failure + error."""

    SCORED = "scored"
    TIE = "tie"
    ABSTAIN = "abstain"
    PARSE_FAILURE = "parse_failure"
    ERROR = "error"


@dataclass(frozen=True)
class Table:
    """A named schema: its columns, its key, and the columns that may be null."""

    name: str
    schema: pa.Schema
    key: str | None = None


def _schema(required: dict[str, pa.DataType], nullable: dict[str, pa.DataType] | None = None) -> pa.Schema:
    fields = [pa.field(name, kind, nullable=False) for name, kind in required.items()]
    fields += [pa.field(name, kind) for name, kind in (nullable or {}).items()]
    return pa.schema(fields)


_text, _int, _real, _bool, _time = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC")

PROMPTS = Table(
    "prompts",
    _schema(
        {"prompt_id": _text, "prompt": _text, "group": _text, "split": _text},
        {"reference": _text},
    ),
    key="prompt_id",
)
"""`group`: the slice for bias reports. `split`: train, calibration, heldout, ... `reference`: an expert's answer."""

DEMONSTRATIONS = Table("demonstrations", _schema({"prompt": _text, "response": _text}))

CONVERSATIONS = Table(
    "conversations", _schema({"messages": pa.list_(pa.struct([pa.field("role", _text), pa.field("content", _text)]))})
)
"""Demonstrations of several turns. `role`: system, user or assistant; every turn of the assistant is learnt from."""

ROLLOUTS = Table(
    "rollouts",
    _schema(
        {
            "rollout_id": _text,
            "prompt_id": _text,
            "prompt": _text,
            "response": _text,
            "sample": _int,
            "policy": _text,
            "finish_reason": _text,
            "n_tokens": _int,
            "logprob": _real,
            "seed": _int,
        }
    ),
    key="rollout_id",
)
"""`sample`: 0..k-1 within the prompt. `policy`: content hash. `finish_reason`: stop or length. `logprob`: log p(y|x) of
the sampled tokens, stop token included, at temperature 1, in nats."""

PAIRS = Table(
    "pairs",
    _schema(
        {
            "pair_id": _text,
            "prompt_id": _text,
            "prompt": _text,
            "rollout_a": _text,
            "rollout_b": _text,
            "response_a": _text,
            "response_b": _text,
            "group": _text,
            "split": _text,
        },
        {"reference": _text},
    ),
    key="pair_id",
)

GOLD = Table("gold", pa.schema([*PAIRS.schema, pa.field("winner", _text, nullable=False)]), key="pair_id")
"""Pairs with a known answer: `winner` is a, b or tie."""

VOTES = Table(
    "votes",
    _schema(
        {
            "vote_id": _text,
            "pair_id": _text,
            "prompt_id": _text,
            "rollout_a": _text,
            "rollout_b": _text,
            "judge": _text,
            "fingerprint": _text,
            "order": _text,
            "status": _text,
            "tokens_in": _int,
            "tokens_out": _int,
            "cost": _real,
            "latency_s": _real,
            "attempts": _int,
        },
        {
            "winner": _text,
            "p_a": _real,
            "mass": _real,
            "rationale": _text,
            "raw": _text,
            "error": _text,
            "answered_by": _text,
        },
    ),
    key="vote_id",
)
"""`order`: ab or ba, which rollout was shown first. `winner`: a, b or null, in terms of rollouts, not slots. `p_a`:
probability in 0..1 that a is better. `mass`: probability the judge gave to well-formed answers at all. `cost`: in the
currency of the judge's price list. `tokens_*`: 0 for judges that have none. `answered_by`: name@fingerprint of the
member whose answer this is, in votes of a cascade; null for every other judge."""

RATINGS = Table(
    "ratings",
    _schema(
        {
            "rating_id": _text,
            "rollout_id": _text,
            "prompt_id": _text,
            "judge": _text,
            "fingerprint": _text,
            "status": _text,
            "tokens_in": _int,
            "tokens_out": _int,
            "cost": _real,
            "latency_s": _real,
            "attempts": _int,
        },
        {
            "score": _real,
            "thumb": _text,
            "overall": _real,
            "flaws": pa.map_(_text, _text),
            "mass": _real,
            "rationale": _text,
            "raw": _text,
            "error": _text,
        },
    ),
    key="rating_id",
)
"""`score`: quality in 0..1, null unless the status is scored or tie. `thumb`: up or down, null at a tie. `overall`:
1..10. `flaws`: question -> yes, no, unsure. `mass`, `cost`, `tokens_*`: as in votes."""

ATTACKS = Table(
    "attacks",
    _schema(
        {
            "attack_id": _text,
            "pair_id": _text,
            "judge": _text,
            "fingerprint": _text,
            "canary": _text,
            "kind": _text,
            "target": _text,
            "outcome": _text,
            "p_before": _real,
        },
        {"p_after": _real},
    ),
    key="attack_id",
)
"""One row a canary planted into one pair for one judge; harmless controls are none. `target`: a or b, the response that
had lost and was attacked. `outcome`: flipped (the judge was won over), kept, tied, unanswered. `p_before`, `p_after`:
the judge's order-averaged probability in 0..1 that the attacked response is better."""

SELECTION = Table(
    "selection",
    _schema(
        {
            "pair_id": _text,
            "inclusion_probability": _real,
            "drawn": _bool,
            "stratum": _text,
            "reason": _text,
        }
    ),
    key="pair_id",
)
"""One row a judged pair, drawn or not. `stratum`: uniform, targeted or none."""

VERDICTS = Table(
    "verdicts",
    _schema(
        {
            "verdict_id": _text,
            "pair_id": _text,
            "auditor": _text,
            "shown_left": _text,
            "seconds": _real,
            "simulated": _bool,
            "created_at": _time,
        },
        {
            "winner": _text,
            "flaws": pa.list_(_text),
            "comment": _text,
            "inclusion_probability": _real,
            "supersedes": _text,
        },
    ),
    key="verdict_id",
)
"""Append-only. `winner`: a, b, tie, or null for a skip. `shown_left`: a or b. `simulated`: true for a program that
plays an auditor. `supersedes`: the verdict that this one replaces."""

PREFERENCES = Table(
    "preferences",
    _schema(
        {
            "pair_id": _text,
            "prompt_id": _text,
            "prompt": _text,
            "chosen": _text,
            "rejected": _text,
            "p_chosen": _real,
            "margin": _real,
            "weight": _real,
            "source": _text,
            "n_votes": _int,
            "agreement": _real,
            "group": _text,
            "split": _text,
        }
    ),
    key="pair_id",
)
"""One row a pair, plain strings as TRL's preference format has them. `p_chosen`: 0.5..1, the soft label. `margin`:
log-odds of p_chosen. `weight`: of the pair in the loss. `source`: ai or human. `agreement`: share of the votes with a
winner that chose `chosen`."""

ROLLOUT_RATINGS = Table(
    "rollout_ratings",
    _schema(
        {
            "rollout_id": _text,
            "prompt_id": _text,
            "rating": _real,
            "std_error": _real,
            "elo": _real,
            "reward": _real,
            "n_comparisons": _int,
        }
    ),
    key="rollout_id",
)
"""`rating`: Bradley-Terry strength in log-odds, centred within its prompt. `elo`: the same in Elo points around 1500.
`reward`: the rating normalised to 0..1."""

RESPONSES = Table(
    "responses",
    _schema(
        {
            "rollout_id": _text,
            "prompt_id": _text,
            "prompt": _text,
            "response": _text,
            "group": _text,
            "split": _text,
            "policy": _text,
            "sample": _int,
            "probability": _real,
            "n_tokens": _int,
        },
        {"reward": _real, "oracle": _real, "oracle_reasons": _text, "win_probability": _real},
    ),
    key="rollout_id",
)
"""The evaluation's table. `policy`: policy or reference. `probability`: p(y|x). `reward`: the reward model's. `oracle`:
r(x, y) in 0..1. `win_probability`: the panel's, of this response against its opponent."""

TABLES = {
    table.name: table
    for table in (
        PROMPTS,
        DEMONSTRATIONS,
        CONVERSATIONS,
        ROLLOUTS,
        PAIRS,
        GOLD,
        VOTES,
        RATINGS,
        ATTACKS,
        SELECTION,
        VERDICTS,
        PREFERENCES,
        ROLLOUT_RATINGS,
        RESPONSES,
    )
}
