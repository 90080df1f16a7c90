"""What every backend is to the panel: requests go in, answers come out, one for each, in any order.

A request shows one pair in one order. A backend knows slots only (first and second); the panel maps its answers back
to rollouts. Failures of single requests are answers with a status; what makes all further calls pointless (a wrong
key, a model that cannot be loaded) is raised as RlaifError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol

from judges.judge import Judge
from judges.pairs import Pair
from store.errors import UsageError
from store.hashing import short_id
from store.tables import Status

Order = Literal["ab", "ba"]
ORDERS: tuple[Order, Order] = ("ab", "ba")


@dataclass(frozen=True)
class Request:
    """One pair in one order. `seed`: of the sampling, if the judge samples."""

    pair: Pair
    order: Order
    seed: int = 0

    @property
    def first(self) -> str:
        return self.pair.response_a if self.order == "ab" else self.pair.response_b

    @property
    def second(self) -> str:
        return self.pair.response_b if self.order == "ab" else self.pair.response_a

    @property
    def sampling_seed(self) -> int:
        """A seed of this request alone, in 0..2^31-1: an answer does not depend on what is asked beside it."""
        return int(short_id("vote", self.seed, self.pair.pair_id, self.order), 16) % 2**31


@dataclass(frozen=True)
class Answer:
    """A backend's answer in terms of slots.

    `p_first`: probability in 0..1 that the first response is better; set for status scored and tie, else None.
    `mass`: probability of all valid answers together, in 0..1; None where there is none. `latency_s`: seconds from
    the call to its answer; in a batch, the batch's seconds divided by its size. `attempts`: calls made, at least 1.
    `transient`: of an error that another run may not meet (a server that is busy or away).
    """

    request: Request
    status: Status
    p_first: float | None = None
    mass: float | None = None
    raw: str | None = None
    rationale: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    latency_s: float = 0.0
    attempts: int = 1
    error: str | None = None
    transient: bool = False


class Backend(Protocol):
    """A loaded judge. `answer` pulls requests as it needs them and may be called again until `close`."""

    def answer(self, requests: Iterable[Request]) -> Generator[Answer, None, None]: ...

    def close(self) -> None: ...


BACKENDS = {
    "transformers": "judges.backends.transformers:TransformersBackend",
    "openai": "judges.backends.openai:OpenAIBackend",
    "rubric": "judges.backends.program:ProgramBackend",
}
"""Where the backends live. They are named, not imported: a judge that calls a server must not load torch."""


def open_backend(judge: Judge) -> Backend:
    """Load the judge's backend. Raises UsageError with the remedy where a package that it needs is not installed."""
    module, _, name = BACKENDS[judge.settings.backend].partition(":")
    try:
        make: Callable[[Judge], Backend] = getattr(import_module(module), name)
    except ImportError as error:
        missing = (error.name or str(error)).split(".")[0]
        if missing in ("judges", "store"):
            raise
        raise UsageError(f"Judge {judge.name} needs the package {missing}: pip install {missing}.") from error
    return make(judge)


@dataclass(frozen=True)
class Preference:
    """What the log-probs of the answer tokens say: see `Answer`."""

    status: Status
    p_first: float | None
    mass: float


def preference_from_logprobs(first: float, second: float, min_mass: float) -> Preference:
    """Soft preference from the log-probabilities, in nats, of all tokens that mean the first and the second response.

    p_first = P(first) / (P(first) + P(second)), as in RLAIF (Lee et al. 2023, section 2.1). The denominator is the
    covered mass; less than `min_mass` of it is an abstention, which has no preference. Equal sides are a tie. Either
    log-probability may be -inf, for a token without any.
    """
    highest = max(first, second)
    if highest == -math.inf:
        return Preference(Status.ABSTAIN, None, 0.0)
    one, two = math.exp(first - highest), math.exp(second - highest)
    mass = min(1.0, math.exp(highest) * (one + two))
    if mass < min_mass:
        return Preference(Status.ABSTAIN, None, mass)
    p_first = one / (one + two)
    return Preference(Status.TIE if p_first == 0.5 else Status.SCORED, p_first, mass)
