"""What every backend is: calls go in, replies come out, one for each, in any order.

A call shows responses to one prompt, in an order, and says what it wants back: the log-probabilities of certain answers
(`Choice`), a text (`Text`), or a program's scores (`Scores`). A backend knows nothing of pairs, votes or verdicts: how
a reply is read is the matter of `judges.modes`. So each backend serves every mode, and a new one is one file.

Failures of single calls are replies with an `error`; what makes all further calls pointless (a wrong key, a model that
cannot be loaded) is raised as RlaifError.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from store.errors import UsageError

if TYPE_CHECKING:
    from judges.judge import Judge


@dataclass(frozen=True)
class Subject:
    """What is judged: one or more responses to one prompt, in the order in which they are shown."""

    prompt: str
    responses: tuple[str, ...]
    reference: str | None = None
    group: str = ""


@dataclass(frozen=True)
class Choice:
    """The next token matters: the log-probability of each of `options`, with and without a leading space, is wanted."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A text of at most `max_tokens` tokens is wanted.

    While `readable` refuses it, the call is made again, up to `parse_attempts` times in all. `schema` is the JSON
    schema of the answer, for servers that can keep a model to one, where the judge's settings ask for it.
    """

    max_tokens: int
    readable: Callable[[str], bool]
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Scores:
    """A program's score of each response is wanted."""


Want = Choice | Text | Scores


@dataclass(frozen=True)
class Call:
    """One question. `id` names it, and what is stored of it, for good; `text` is the user's message, untrusted parts
    made harmless; `seed` is of the sampling, if the judge samples: an answer does not depend on what is asked beside.

    `cell` numbers the run of calls that this one belongs to. A backend that batches must form its batches within a
    cell only, so that a table comes out the same, to the bit, however it was divided and wherever a run was killed:
    for that it is also given the calls of an unfinished cell that are already `answered`, to be laid into the same
    batches and not replied to. A backend that makes calls one by one skips those.
    """

    id: str
    subject: Subject
    text: str
    want: Want
    seed: int = 0
    cell: int = 0
    answered: bool = False


@dataclass(frozen=True)
class Reply:
    """What came of a call.

    `logprobs`: of the options of a `Choice`, in nats, -inf for one that was not reported. `text`: what the model wrote;
    also beside log-probs, where it is known. `scores` and `reasons`: of a program, in 0..1, for each response.
    `refusal`: the server's or the model's declared refusal to answer. `latency_s`: seconds from the call to its reply;
    in a batch, the batch's seconds divided by its size. `attempts`: calls made, at least 1; `tokens_*` count all of
    them. `error`: why there is nothing else. `transient`: of an error that another run may not meet.
    """

    call: Call
    text: str | None = None
    logprobs: tuple[float, ...] | None = None
    scores: tuple[float, ...] | None = None
    reasons: str | None = None
    refusal: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    latency_s: float = 0.0
    attempts: int = 1
    error: str | None = None
    transient: bool = False


class Backend(Protocol):
    """A loaded judge. `answer` pulls calls as it needs them and may be called again until `close`.

    `specials` are the tokens that untrusted text must not spell; `judges.prompts.neutralise` breaks them.
    """

    wants: ClassVar[tuple[type[Want], ...]]

    @property
    def specials(self) -> Sequence[str]: ...

    def answer(self, calls: Iterable[Call]) -> Generator[Reply, None, None]: ...

    def close(self) -> None: ...


BACKENDS = {
    "transformers": "judges.backends.transformers:TransformersBackend",
    "vllm": "judges.backends.vllm:VLLMBackend",
    "openai": "judges.backends.openai:OpenAIBackend",
    "rubric": "judges.backends.program:ProgramBackend",
}
"""Where the backends live. They are named, not imported: a judge that calls a server must not load torch."""

INSTALL = {"vllm": "pip install 'rlaif[vllm]'"}


def open_backend(judge: Judge) -> Backend:
    """Load the judge's backend. Raises UsageError with the remedy where a package that it needs is not installed."""
    module, _, name = BACKENDS[judge.settings.backend].partition(":")
    try:
        make: Callable[[Judge], Backend] = getattr(import_module(module), name)
    except ImportError as error:
        missing = (error.name or str(error)).split(".")[0]
        if missing in ("judges", "store"):
            raise
        remedy = INSTALL.get(missing, f"pip install {missing}")
        raise UsageError(f"Judge {judge.name} needs the package {missing}: {remedy}.") from error
    return make(judge)
