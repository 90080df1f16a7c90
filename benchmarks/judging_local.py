"""The local backend against a plain transformers loop, on the tiny judge. `python benchmarks/judging_local.py`

The plain loop is what a careful user writes: one prompt at a time, inference mode, the chat template, the softmax of
the last position. Both sides render the prompts of the calibration pairs, in both orders, and give P(first) of each
vote; loading is left out. Runs alternate and medians count. The judge is the shipped one, once as it is and once with
a long constitution, which all prompts share. The backend's most tokens in a pass on a CPU were chosen by timing it on
this judge and these pairs, so the figures are those of a case it was fitted to. A single core (`--threads 1`) is half
busy with the plain loop already, so that less is left to win; a machine with other work loses most with several. Both
sides have the environment that the judge stage gives its process (`flows.processes.execute.ENVIRONMENT`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The folder of a script comes first on Python's path, and there a benchmark could be taken for a package of its name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jinja2  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from flows.processes.execute import ENVIRONMENT  # noqa: E402
from judges.backends.base import Call  # noqa: E402
from judges.backends.transformers import TransformersBackend  # noqa: E402
from judges.collect import CELL  # noqa: E402
from judges.judge import Judge, load_judge  # noqa: E402
from judges.modes import find  # noqa: E402
from judges.pairs import Pair, pairs_from_table  # noqa: E402
from judges.votes import asks_about  # noqa: E402
from store.resources import CONFIGS, DATASETS  # noqa: E402
from store.schemas import GOLD  # noqa: E402
from store.tables import read_table  # noqa: E402

RATIO, DIFFERENCE = 3.0, 1e-4
LONG = 2
"""How often the long constitution repeats the principles of the embedded world, whose judges read 512 tokens."""


@dataclass(frozen=True)
class Result:
    """Votes per second of both sides, medians, and the largest difference of P(first) between them.

    `cpu_ratio`: the same ratio in CPU seconds, which other work on the machine disturbs less.
    """

    what: str
    votes: int
    plain: float
    backend: float
    cpu_ratio: float
    difference: float

    @property
    def ratio(self) -> float:
        return self.backend / self.plain

    @property
    def passed(self) -> bool:
        return self.ratio >= RATIO and self.difference <= DIFFERENCE

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.votes} votes, plain loop {self.plain:.0f}/s, local backend {self.backend:.0f}/s, "
            f"ratio {self.ratio:.2f} (target >= {RATIO:g}; in CPU time {self.cpu_ratio:.2f}), largest difference of "
            f"probabilities {self.difference:.1e} (target <= {DIFFERENCE:g}): {'passed' if self.passed else 'MISSED'}"
        )


class Plain:
    """The loop that the backend is compared with."""

    def __init__(self, judge: Judge) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(judge.model)
        self._model = AutoModelForCausalLM.from_pretrained(judge.model).eval()
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        self._template, self._principles = environment.from_string(judge.prompt_text), judge.principles
        vocabulary = self._tokenizer.get_vocab()
        self._first, self._second = ([vocabulary[f"{space}{n}"] for space in ("", "Ġ")] for n in "12")

    def __call__(self, pairs: list[Pair]) -> list[float]:
        found = []
        for pair in pairs:
            for first, second in ((pair.response_a, pair.response_b), (pair.response_b, pair.response_a)):
                text = self._template.render(
                    prompt=pair.prompt, first=first, second=second, principles=self._principles
                )
                inputs = self._tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}],
                    add_generation_prompt=True,
                    return_tensors="pt",
                    return_dict=True,
                )
                with torch.inference_mode():
                    probabilities = torch.softmax(self._model(**inputs).logits[0, -1], dim=-1)
                one, two = (probabilities[ids].sum().item() for ids in (self._first, self._second))
                found.append(one / (one + two))
        return found


class Backend:
    """The local backend, asked as the panel asks it."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self._backend = judge, TransformersBackend(judge)

    def __call__(self, pairs: list[Pair]) -> list[float | None]:
        found: dict[str, float | None] = {}
        calls = []
        for number, ask in enumerate(asks_about(self._judge, pairs)):
            text = self._judge.render(ask.subject, ask.about, self._backend.specials)
            want = self._judge.mode.want(self._judge.settings, len(ask.subject.responses))
            calls.append(Call(ask.id, ask.subject, text, want, cell=number // CELL))
        for reply in self._backend.answer(calls):
            found[reply.call.id] = find(self._judge.mode, reply, self._judge.settings).p_first
        return [found[call.id] for call in calls]


def compare(what: str, judge: Judge, pairs: list[Pair], runs: int) -> Result:
    plain, backend = Plain(judge), Backend(judge)
    expected, got = plain(pairs), backend(pairs)  # also warms both up
    difference = max(1.0 if q is None else abs(p - q) for p, q in zip(expected, got, strict=True))
    times: list[tuple[float, float, float, float]] = []
    for _ in range(runs):
        times.append((*_timed(plain, pairs), *_timed(backend, pairs)))
    wall, cpu, own_wall, own_cpu = map(statistics.median, zip(*times, strict=True))
    votes = 2 * len(pairs)
    return Result(what, votes, votes / wall, votes / own_wall, cpu / own_cpu, difference)


def measure(threads: int | None = None, runs: int = 5, most: int | None = None) -> list[Result]:
    """Both prompts, at `threads` torch threads (None: torch's own choice, all cores), on the first `most` pairs."""
    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(threads)
    try:
        pairs = pairs_from_table(read_table(DATASETS / "tiny" / "calibration.parquet", GOLD))[:most]
        with tempfile.TemporaryDirectory() as folder:
            long = load_judge(_with_long_constitution(Path(folder)))
            return [
                compare(f"tiny-good, {threads} thread(s)", load_judge("tiny-good"), pairs, runs),
                compare(f"tiny-good with a long constitution, {threads} thread(s)", long, pairs, runs),
            ]
    finally:
        torch.set_num_threads(before)


def _with_long_constitution(folder: Path) -> Path:
    source = CONFIGS / "judges" / "tiny-good"
    settings = yaml.safe_load((source / "judge.yaml").read_text())
    (folder / "judge.yaml").write_text(yaml.safe_dump({**settings, "name": "long", "constitution": "long.yaml"}))
    (folder / "prompt.jinja").write_text((source / "prompt.jinja").read_text())
    principles = yaml.safe_load((DATASETS / "tiny" / "constitution.yaml").read_text())["principles"]
    (folder / "long.yaml").write_text(yaml.safe_dump([principle["text"] for principle in principles] * LONG))
    return folder


def _timed(run: Callable[[list[Pair]], Any], pairs: list[Pair]) -> tuple[float, float]:
    """Seconds by the clock, and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(pairs)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="torch threads of both sides; default: torch's own choice")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each side")
    parser.add_argument("--pairs", type=int, help="only the first so many calibration pairs")
    parser.add_argument("--json", action="store_true", help="the figures for a program")
    options = parser.parse_args()
    if not ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:]], {**ENVIRONMENT, **os.environ})
    results = measure(options.threads, options.runs, options.pairs)
    print(*(json.dumps(asdict(result)) if options.json else result for result in results), sep="\n")
    raise SystemExit(0 if all(result.passed for result in results) else 1)


if __name__ == "__main__":
    main()
