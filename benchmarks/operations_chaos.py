"""A round killed again and again, against one left alone. `python benchmarks/operations.py chaos [--quick]`

The undisturbed round comes first; its times of stages tell where the kills go: at random instants (seeded) of every
stage, between stages, before the first one and in the report. Each kill is a SIGKILL to the whole process group of
`rlaif run`, every other one to all its descendants too, as a machine dies; then `rlaif run` is called again. At the end
preferences, reward model, policy and evaluation must be byte for byte those of the undisturbed round, every vote there
once, and a judge behind a real HTTP server must have had no more calls than in the undisturbed round but for those in
flight at a kill.

With --folder an interrupted benchmark goes on where it was, with the same kills.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from counting_judge import CONCURRENCY, CountingJudge  # noqa: E402

from flows.processes.lifeline import spawn, stop  # noqa: E402
from flows.specs import STAGES  # noqa: E402
from flows.workspace import Workspace  # noqa: E402
from judges.requests import ORDERS  # noqa: E402
from store.files import read_json, read_lines, write_json  # noqa: E402
from store.hashing import hash_path  # noqa: E402
from store.schemas import PAIRS, VOTES  # noqa: E402
from store.tables import read_table  # noqa: E402

QUICK = {
    "sft.max_demonstrations": 32,
    "sample.max_prompts": 24,
    "sample.responses": 3,
    "judge.pairs_per_prompt": 2,
    "audit.budget": 10,
    "reward.epochs": 1,
    "ppo.updates": 6,
    "ppo.batch_size": 16,
    "ppo.checkpoint_every": 2,
    "ppo.probe.every": 2,
    "ppo.probe.prompts": 4,
    "evaluate.max_prompts": 24,
    "evaluate.responses": 1,
}
SAME = ("aggregate/preferences.parquet", "reward/model", "ppo/policy", "evaluate/evaluation.json")
RESUMES = ("judge", "ppo")
"""Stages that go on within themselves: several kills share one pass through them."""
START, REPORT = "start-up", "report"
CALLS = (("judge", ("judge",)), ("probe and evaluation", ("ppo", "evaluate")))
"""Calls that are counted, and the stages that make them."""


@dataclass(frozen=True)
class Kill:
    """`delay_s` after `event` (started or finished) of `stage`; START: after the process began."""

    stage: str
    event: str
    delay_s: float
    everything: bool

    @property
    def name(self) -> str:
        return self.stage if self.event == "started" else f"after {self.stage}"


def command(folder: Path, name: str, quick: bool, first: bool) -> list[str]:
    judges = ["tiny-good", "tiny-middling", "tiny-biased", str(folder / "counting")]
    values = {**(QUICK if quick else {}), "judges": f"[{', '.join(judges)}]", "retry.attempts": 1}
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")] if first else []
    config = ["demo"] if first else []
    return [sys.executable, "-m", "flows", "run", *config, "--workspace", str(folder / name), *settings]


@contextmanager
def started(line: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """`rlaif run` in a process group of its own, which ends with this benchmark whatever happens to it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    here = os.getcwd()
    os.chdir(ROOT)
    try:
        with log.open("a") as output:
            process = spawn(line, env=clean, stdout=output, stderr=output)
    finally:
        os.chdir(here)
    try:
        yield process
    finally:
        stop(process)


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [e for e in read_lines(folder / name / "rounds" / "001" / "journal.jsonl") if isinstance(e, dict)]


def run_alone(folder: Path, quick: bool) -> dict[str, float]:
    """Seconds of each stage, of the start-up and of the report in an undisturbed round."""
    shutil.rmtree(folder / "alone", ignore_errors=True)  # of a benchmark that was interrupted in here
    clock = time.time()
    with started(command(folder, "alone", quick, True), folder / "alone.log") as process:
        if process.wait():
            sys.exit(f"The undisturbed round failed: see {folder / 'alone.log'}.")
    end, times = time.time(), {}
    begun: dict[str, float] = {}
    for event in events(folder, "alone"):
        at = datetime.fromisoformat(event["time"]).timestamp()
        if event["event"] == "started":
            begun[event["stage"]] = at
        elif event["event"] == "finished":
            times[event["stage"]] = at - begun[event["stage"]]
    last = max(begun[stage] + seconds for stage, seconds in times.items())
    return {START: min(begun.values()) - clock, **times, REPORT: end - last}


def plan(times: dict[str, float], kills: int, seed: int) -> list[Kill]:
    """Instants in the order of the round: one in the start-up, one after each stage, and the others in stages and
    report, by their length but at least one each."""
    chance = random.Random(seed)
    stages = [name for name in times if name != START]
    between = [stage for stage in stages if stage != REPORT]
    # Few kills: stages first, then what lies between them.
    between = between[: max(0, kills - len(stages) - 1)]
    inside = dict.fromkeys(stages, 1)
    for _ in range(kills - 1 - len(between) - len(stages)):
        inside[max(stages, key=lambda stage: times[stage] / inside[stage])] += 1
    found = [Kill(START, "started", chance.random() * times[START], False)]
    for stage in stages:
        share = times[stage] / (inside[stage] if stage in RESUMES else 1)
        event, at = ("finished", "promote") if stage == REPORT else ("started", stage)
        found += [Kill(at, event, chance.random() * share, False) for _ in range(inside[stage])]
        if stage in between:
            found.append(Kill(stage, "finished", chance.random() * 0.2, False))
    return [Kill(k.stage, k.event, k.delay_s, everything=bool(n % 2)) for n, k in enumerate(found)][:kills]


def where(found: list[dict[str, Any]]) -> str:
    """In which stage the journal of this run ends."""
    last = next((e for e in reversed(found) if e.get("stage") in STAGES), None)
    if last is None:
        return START
    if last["event"] == "started":
        return str(last["stage"])
    return REPORT if last["stage"] == "promote" else f"after {last['stage']}"


def strike(folder: Path, kill: Kill, quick: bool, judge: CountingJudge) -> dict[str, Any] | None:
    """Run until the kill's instant, or until its stage is over, and kill; None where the round ended before it."""
    before = len(events(folder, "killed"))
    clock = time.monotonic()
    first = not (folder / "killed" / "rounds" / "001" / "round.json").exists()
    with started(command(folder, "killed", quick, first), folder / "killed.log") as process:
        due = clock + kill.delay_s if kill.stage == START else None
        while process.poll() is None and (due is None or time.monotonic() < due):
            seen = {e["event"] for e in events(folder, "killed")[before:] if e.get("stage") == kill.stage}
            if seen & {"finished", "reused"} and kill.event == "started":
                break  # a stage that goes on within itself may have little left
            if due is None and seen & ({"started"} if kill.event == "started" else {"finished", "reused"}):
                due = time.monotonic() + kill.delay_s
            time.sleep(0.005)
        if process.poll() is not None:
            if process.returncode:
                sys.exit(f"rlaif run failed after a kill: see {folder / 'killed.log'}.")
            return None
        family = psutil.Process(process.pid).children(recursive=True)
        flying = judge.flying
        os.killpg(process.pid, signal.SIGKILL)
        if kill.everything:
            for one in family:
                try:
                    one.kill()
                except psutil.NoSuchProcess:
                    continue
        _, alive = psutil.wait_procs(family, timeout=20)
        found = {"stage": where(events(folder, "killed")[before:]), "meant": kill.name, "flying": flying}
        return {**found, "orphans": len(alive), "seconds": round(time.monotonic() - clock, 2)}


def finished(folder: Path) -> bool:
    """Whether the killed round is over, so that `rlaif run` would begin the next one. A kill in the wait for Prefect's
    history comes after that."""
    space = Workspace(folder / "killed")
    return any(round_.finished for round_ in space.rounds()[:1])


def finish(folder: Path, quick: bool) -> float:
    """Seconds of the last run, which nobody kills; 0 where the round is over."""
    if finished(folder):
        return 0.0
    clock = time.monotonic()
    first = not (folder / "killed" / "rounds" / "001" / "round.json").exists()
    with started(command(folder, "killed", quick, first), folder / "killed.log") as process:
        if process.wait():
            sys.exit(f"The last rlaif run failed: see {folder / 'killed.log'}.")
    return time.monotonic() - clock


def calls_of(folder: Path, name: str, judge: CountingJudge) -> list[int]:
    """Calls until the judge stage was done, and after it."""
    judged = next(e["time"] for e in events(folder, name) if e["event"] == "finished" and e["stage"] == "judge")
    until = datetime.fromisoformat(judged).timestamp()
    return [judge.count(0, until), judge.count(until, math.inf)]


def check(folder: Path, kills: list[dict[str, Any]], judge: CountingJudge, alone_calls: list[int], whole: bool) -> bool:
    """Print each demand with what was found. `alone_calls`: those of the undisturbed round, as `calls_of`. `whole`: the
    judge has counted all calls of the killed round."""
    alone, killed = (folder / name / "rounds" / "001" for name in ("alone", "killed"))
    rows = []
    for name in SAME:
        one, two = hash_path(alone / name), hash_path(killed / name)
        rows.append((f"{name} byte-identical", one == two, f"{one[:12]} and {two[:12]}"))
    pairs, votes = read_table(killed / "judge/pairs.parquet", PAIRS), read_table(killed / "judge/votes.parquet", VOTES)
    wanted = pairs.num_rows * 4 * len(ORDERS)
    asked = Counter(zip(*(votes[name].to_pylist() for name in ("pair_id", "judge", "order")), strict=True))
    once = len(asked) == wanted == votes.num_rows
    rows.append(("every vote once", once, f"{votes.num_rows} votes of {wanted}"))
    for (what, stages), calls, needed in zip(CALLS, calls_of(folder, "killed", judge), alone_calls, strict=True):
        most = sum(kill["stage"] in stages for kill in kills) * CONCURRENCY
        text = f"{calls} for {needed}; in flight at most {most}" + ("" if whole else " (counted since going on)")
        rows.append((f"{what}: calls repeated <= in flight", calls - needed <= most, text))
    rows.append(("no process left behind", not any(kill["orphans"] for kill in kills), ""))
    print()
    for name, fine, text in rows:
        print(f"  {name:<44} {'ok' if fine else 'FAILED':<7} {text}")
    return all(fine for _, fine, _ in rows)


def show(kills: list[dict[str, Any]], times: dict[str, float], attempts: Counter[str]) -> None:
    counts = Counter(kill["stage"] for kill in kills)
    print(f"\n  {'stage':<18} {'seconds alone':>13} {'kills':>6} {'attempts':>9}")
    order = [START, *(part for stage in STAGES for part in (stage, f"after {stage}")), REPORT]
    for name in order:
        if name in times or counts[name]:
            seconds = f"{times[name]:.1f}" if name in times else "-"
            print(f"  {name:<18} {seconds:>13} {counts[name]:>6} {attempts[name] or '-':>9}")
    print(f"  {'in all':<18} {sum(times.values()):>13.1f} {sum(counts.values()):>6}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a miniature round, 14 kills unless --kills says otherwise"
    )
    parser.add_argument("--kills", type=int, help="how many; 50 for the whole demo")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--folder", type=Path, help="where to work, and to go on; a temporary folder otherwise")
    given = parser.parse_args()
    kills = given.kills or (14 if given.quick else 50)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        sys.exit(0 if chaos(folder, given.quick, kills, given.seed) else 1)


def chaos(folder: Path, quick: bool, kills: int, seed: int) -> bool:
    judge = CountingJudge()
    judge.write_folder(folder / "counting")
    progress = folder / "progress.json"
    if not progress.exists():
        times = run_alone(folder, quick)
        planned = [asdict(kill) for kill in plan(times, kills, seed)]
        write_json(progress, {"times": times, "calls": calls_of(folder, "alone", judge), "plan": planned, "done": []})
        judge.calls.clear()
    state = read_json(progress)
    whole = not state["done"]
    todo = [Kill(**kill) for kill in state["plan"]]
    for number in range(len(state["done"]), len(todo)):
        struck = None if finished(folder) else strike(folder, todo[number], quick, judge)
        if struck is None:
            print(f"The round ended before kill {number + 1} ({todo[number].name}).", flush=True)
            break
        state["done"].append(struck)
        write_json(progress, state)
        print(
            f"kill {number + 1:>3} of {len(todo)}: meant {struck['meant']:<16} hit {struck['stage']:<16} after "
            f"{struck['seconds']:.1f} s",
            flush=True,
        )
    print(f"The last run took {finish(folder, quick):.0f} s.")
    attempts: Counter[str] = Counter()
    for event in events(folder, "killed"):
        if event["event"] in ("started", "reused") and "stage" in event:
            attempts[event["stage"]] += 1 if event["event"] == "started" else -1
    show(state["done"], state["times"], attempts)
    return check(folder, state["done"], judge, state["calls"], whole)


if __name__ == "__main__":
    main()
