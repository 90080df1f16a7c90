"""Judging: every figure beside its target, both sides of each ratio. `python benchmarks/judging.py`

- throughput: `judge_pairs` with a journal on disk against a bare aiohttp client, same payloads, one server with 200 ms
  latency, 256 calls in flight. Calls a second from the first call to the last answer; runs alternate, medians count.
- memory: 100,000 pairs in both orders against that server; resident memory at each quarter of the votes, and its peak.
- distilabel: 1.5.3 in an environment of its own, on the same server and pairs; see judging_distilabel.py.
- local: the local backend against a plain transformers loop; see judging_local.py.

The server and every client are processes of their own. A loaded machine slows all of them: the load is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judging_server import running

HERE = Path(__file__).resolve().parent
LATENCY_S = 0.2
# requests: distilabel imports it and does not declare it.
DISTILABEL = ["distilabel[openai]==1.5.3", "requests"]


@dataclass(frozen=True)
class Line:
    """`ours` and `other` are the two sides of a ratio, `value` what is compared with the target."""

    what: str
    ours: str
    other: str
    value: float
    sign: str
    target: float

    @property
    def passed(self) -> bool:
        return self.value >= self.target if self.sign == ">=" else self.value <= self.target

    def __str__(self) -> str:
        return (
            f"{self.what:<46} {self.ours:>18} {self.other:>18} {self.value:>9.2f}   {self.sign} {self.target:<6g} "
            f"{'ok' if self.passed else 'MISSED'}"
        )


def client(name: str, url: str, pairs: int, mode: str = "pairwise_logprobs") -> dict[str, Any]:
    command = [sys.executable, str(HERE / "judging_client.py"), name, url, str(pairs), "--mode", mode]
    return measured(command, url)


def measured(command: list[str], url: str) -> dict[str, Any]:
    """What the command prints in its last line, with `served`: what the server saw of it."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    with urllib.request.urlopen(url) as response:
        return found | {"served": json.load(response)}


def rate(found: dict[str, Any]) -> float:
    """Calls a second from the first request to the last answer."""
    return float(found["served"]["answered"] / found["served"]["seconds"])


def throughput(options: argparse.Namespace) -> list[Line]:
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    ratios = []
    with running(LATENCY_S) as url:
        client("bare", url, 500)
        for _ in range(options.runs):
            for name in rates:
                found = client(name, url, options.pairs)
                rates[name].append(rate(found))
                whole = found["calls"] / found["seconds"]
                print(
                    f"  {name}: {rates[name][-1]:.0f} calls/s while calling, {whole:.0f} over the whole run, "
                    f"{found['cpu_ms_per_call']:.2f} ms of CPU a call, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
            ratios.append(rates["ours"][-1] / rates["bare"][-1])
    ours, bare = statistics.median(rates["ours"]), statistics.median(rates["bare"])
    value = statistics.median(ratios)
    return [Line("calls/s of a bare aiohttp client's", f"{ours:.0f}", f"{bare:.0f}", value, ">=", 0.95)]


def memory(options: argparse.Namespace) -> list[Line]:
    with running(LATENCY_S) as url:
        found = client("ours", url, options.many)
    rss, quarters = found["rss_mb"], found["rss_mb"]["quarters"]
    shown = ", ".join(f"{quarter:.0f}" for quarter in quarters)
    print(
        f"  {found['calls']} votes in {found['seconds']:.0f} s ({rate(found):.0f} calls/s while calling), statuses "
        f"{found['statuses']}; resident MB before {rss['start']:.0f}, at 25, 50, 75, 100 % {shown}, at the peak "
        f"{rss['peak']:.0f}"
    )
    growth = quarters[3] - quarters[0]
    return [
        Line(f"peak memory in MB, {options.many:,} pairs", f"{rss['peak']:.0f}", "", rss["peak"], "<=", 500),
        Line("growth from 25 % to 100 % of the votes, MB", f"{growth:.1f}", "", growth, "<=", 20),
    ]


def distilabel(options: argparse.Namespace) -> list[Line]:
    python = environment(options.environment)
    sys.path.insert(0, str(HERE.parent))
    from judging_client import make_pairs

    found: dict[str, list[dict[str, Any]]] = {"ours": [], "distilabel": []}
    with tempfile.TemporaryDirectory() as folder, running(LATENCY_S) as url:
        file = Path(folder) / "pairs.jsonl"
        rows = [
            {"instruction": pair.prompt, "generations": [pair.response_a, pair.response_b]}
            for pair in make_pairs(options.distilabel_pairs)
        ]
        file.write_text("\n".join(map(json.dumps, rows)))
        batch = ["--batch", str(options.batch), "--replicas", str(options.replicas)]
        for _ in range(options.distilabel_runs):
            command = [str(python), str(HERE / "judging_distilabel.py"), url, str(file), *batch]
            found["distilabel"].append(measured(command, url))
            found["ours"].append(client("ours", url, options.distilabel_pairs, "pairwise_verdict"))
            for name, runs in found.items():
                told = runs[-1]
                print(
                    f"  {name}: {rate(told) / 2:.0f} pairs/s while calling, {told['calls'] / 2 / told['seconds']:.0f} "
                    f"over the whole run, at most {told['served']['peak']} calls in flight, "
                    f"{told.get('read', told.get('statuses'))} read, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    ours, other = (statistics.median(rate(told) / 2 for told in found[name]) for name in ("ours", "distilabel"))
    return [Line("pairs/s of distilabel 1.5.3's", f"{ours:.0f}", f"{other:.0f}", ours / other, ">=", 3.0)]


def environment(folder: Path) -> Path:
    """distilabel's interpreter; the environment is made where it is missing."""
    python = folder / "bin" / "python"
    ready = folder / ".installed"
    if not ready.exists():
        print(f"  installing {DISTILABEL[0]} into {folder}", flush=True)
        venv.create(folder, with_pip=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *DISTILABEL], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"distilabel cannot be installed: {done.stderr[-500:]}")
        ready.touch()
    return python


def local(options: argparse.Namespace) -> list[Line]:
    command = [sys.executable, str(HERE / "judging_local.py"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = []
    for one in map(json.loads, done.stdout.splitlines()):
        plain, ours = one["plain"], one["backend"]
        lines += [
            Line(
                f"votes/s of a plain loop's, {one['what']}"[:46], f"{ours:.0f}", f"{plain:.0f}", ours / plain, ">=", 3
            ),
            Line("  largest difference of probabilities / 1e-4", "", "", one["difference"] / 1e-4, "<=", 1),
        ]
    return lines


PARTS: dict[str, Callable[[argparse.Namespace], list[Line]]] = {
    "throughput": throughput,
    "memory": memory,
    "distilabel": distilabel,
    "local": local,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of ours and the bare client")
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs in each of these")
    parser.add_argument("--many", type=int, default=100_000, help="pairs for the figures of memory")
    parser.add_argument("--distilabel-pairs", type=int, default=2_000)
    parser.add_argument("--distilabel-runs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256, help="distilabel's rows in a batch")
    parser.add_argument("--replicas", type=int, default=1, help="distilabel's processes that call")
    parser.add_argument("--environment", type=Path, default=cache / "rlaif" / "distilabel-1.5.3", help="distilabel's")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    lines = []
    for name in options.parts or PARTS:
        print(name, flush=True)
        lines += PARTS[name](options)
    print(f"\n{'':<46} {'ours':>18} {'other':>18} {'figure':>9}   target")
    print(*lines, sep="\n")
    raise SystemExit(0 if all(line.passed for line in lines) else 1)


if __name__ == "__main__":
    main()
