"""Our client and a bare one against one server: calls a second, and memory. A process for each measurement.

`python benchmarks/judging_client.py ours|bare URL PAIRS` prints its figures as JSON. Both send the same payloads: the
bare client gets them rendered, sends them with aiohttp, 256 workers on one session, and reads the answers' JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from judges.backends.base import Call
from judges.judge import Judge, load_judge
from judges.pairs import Pair, pair_id
from judges.panel import judge_pairs
from judges.votes import asks_about

IN_FLIGHT = 256
WORDS = ("the", "river", "runs", "under", "an", "old", "bridge", "and", "a", "blue", "dog", "sleeps", "in", "spring")
PROMPT = """Which answer is better? Say 1 or 2.
<question>{{ prompt }}</question>
<answer_1>{{ first }}</answer_1>
<answer_2>{{ second }}</answer_2>
Answer with the number alone{}."""


def text(number: int, words: int) -> str:
    """Words in lines, different for each number."""
    drawn = [WORDS[(number * 7 + at * (1 + number % 5)) % len(WORDS)] for at in range(words)]
    return f"{number} " + "\n".join(" ".join(drawn[at : at + 12]) for at in range(0, words, 12))


def make_pairs(count: int) -> list[Pair]:
    """Pairs of a usual size: a question of 20 words and two answers of 60 to 120."""
    pairs = []
    for number in range(count):
        prompt, one, two = f"prompt{number}", f"rollout{number}a", f"rollout{number}b"
        first, second = text(3 * number, 60 + number % 61), text(3 * number + 1, 120 - number % 61)
        pairs.append(
            Pair(pair_id(prompt, one, two), prompt, text(3 * number + 2, 20), one, two, first, second, "", "train")
        )
    return pairs


def make_judge(folder: Path, url: str, mode: str) -> Judge:
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "name": "served",
        "backend": "openai",
        "model": "judge",
        "base_url": url,
        "concurrency": IN_FLIGHT,
        "mode": mode,
        "min_mass": 0.5,
    }
    (folder / "judge.yaml").write_text(yaml.safe_dump(values))
    ending = "" if mode == "pairwise_logprobs" else " in a last line VERDICT: <number>"
    (folder / "prompt.jinja").write_text(PROMPT.replace("{}", ending))
    return load_judge(folder)


class Memory:
    """Resident memory of this process in MB, sampled at each quarter of the work and at its peak."""

    def __init__(self) -> None:
        self.start, self.quarters = _rss_mb(), [0.0] * 4

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        for quarter in range(4):
            if done == total * (quarter + 1) // 4:
                self.quarters[quarter] = _rss_mb()

    @property
    def peak(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def ours(url: str, pairs: list[Pair], mode: str) -> dict[str, Any]:
    """judge_pairs with a journal on disk: rendering, calls, parsing, durable votes, and the sorted table at the end."""
    with tempfile.TemporaryDirectory() as folder:
        judge = make_judge(Path(folder) / "judge", url, mode)
        memory = Memory()
        ended = []

        def progress(what: str, done: int, total: int, note: str = "") -> None:
            memory(what, done, total)
            if done == total:
                ended.append(time.perf_counter())

        start, cpu = time.perf_counter(), time.process_time()
        votes = judge_pairs([judge], pairs, seed=0, progress=progress, shards=Path(folder) / "shards")
        end = time.perf_counter()
        statuses = votes["status"].value_counts().to_pylist()
        return {
            "calls": votes.num_rows,
            "seconds": end - start,
            "calling_seconds": ended[0] - start,
            "cpu_ms_per_call": 1000 * (time.process_time() - cpu) / votes.num_rows,
            "statuses": {one["values"]: one["counts"] for one in statuses},
            "rss_mb": {"start": memory.start, "quarters": memory.quarters, "peak": memory.peak},
        }


async def _bare(url: str, payloads: list[dict[str, Any]]) -> float:
    async def work(stream: Iterator[dict[str, Any]], session: aiohttp.ClientSession) -> None:
        for payload in stream:
            async with session.post(f"{url}/chat/completions", json=payload) as response:
                response.raise_for_status()
                (await response.json())["choices"][0]["message"]

    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector) as session:
        stream = iter(payloads)
        start = time.perf_counter()
        await asyncio.gather(*(work(stream, session) for _ in range(IN_FLIGHT)))
        return time.perf_counter() - start


def bare(url: str, pairs: list[Pair], mode: str) -> dict[str, Any]:
    """The same payloads, rendered before the clock starts."""
    with tempfile.TemporaryDirectory() as folder:
        judge = make_judge(Path(folder), url, mode)
        asks = asks_about(judge, pairs)
        calls = [
            Call(a.id, a.subject, judge.render(a.subject, a.about, ()), judge.mode.want(judge.settings, 2))
            for a in asks
        ]
    payloads = [
        {
            "model": "judge",
            "messages": [{"role": "user", "content": call.text}],
            "temperature": 0.0,
            "top_p": 1.0,
            **(
                {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
                if mode == "pairwise_logprobs"
                else {"max_tokens": 512}
            ),
        }
        for call in calls
    ]
    cpu = time.process_time()
    seconds = asyncio.run(_bare(url, payloads))
    return {
        "calls": len(payloads),
        "seconds": seconds,
        "cpu_ms_per_call": 1000 * (time.process_time() - cpu) / len(payloads),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", choices=["ours", "bare"])
    parser.add_argument("url")
    parser.add_argument("pairs", type=int)
    parser.add_argument("--mode", default="pairwise_logprobs", choices=["pairwise_logprobs", "pairwise_verdict"])
    arguments = parser.parse_args()
    run = ours if arguments.client == "ours" else bare
    print(json.dumps(run(arguments.url, make_pairs(arguments.pairs), arguments.mode)))
