"""What Prefect costs: `rlaif run` against the same stages plain. `python benchmarks/operations.py overhead [--quick]`

Both go through the same plan, each heavy stage in a process of its own, and write the report; the plain one is a
process without Prefect. A machine's stages never take the same time twice, so what is compared is the time outside of
stages: wall time less the seconds in the manifests. Start-up of Python and of the Prefect server, and the wait for its
history, are in it. The first round of a machine pays more: its server makes a database, which is kept for later ones.
That is measured apart, with servers that do nothing. Rounds alternate, so that a machine that slows down slows both.
CPU seconds, of all processes, are shown beside, as they depend less on what else runs. Target: at most 15 s or 2 % of
the round more.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from operations_chaos import QUICK, SAME  # noqa: E402

from flows.load import load_round  # noqa: E402
from flows.specs import ROUND  # noqa: E402
from flows.workspace import Workspace  # noqa: E402
from store.hashing import hash_path  # noqa: E402
from store.manifest import need_manifest  # noqa: E402

MOST_S, MOST_SHARE = 15.0, 0.02


def plain(root: Path, settings: list[str]) -> None:
    """The round without Prefect, in this process."""
    from flows.plan import plan_round
    from flows.processes.execute import run_step
    from flows.report import build_report
    from store.files import read_json

    space = Workspace.create(root)
    with space.locked():
        round_ = space.begin_round(load_round("demo", settings))
        for step in plan_round(round_):
            run_step(step, round_.folder / "logs")
        decision = read_json(round_.stage("promote") / "decision.json")
        space.record_decision(round_.number, round_.stage("ppo") / "policy", decision)
        build_report(round_.folder)


@dataclass(frozen=True)
class Run:
    """Wall seconds of the command, those of its stages, and CPU seconds of all its processes."""

    wall: float
    stages: float
    cpu: float

    @property
    def outside(self) -> float:
        return self.wall - self.stages


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def environment(root: Path) -> dict[str, str]:
    """Without settings of Prefect, and with a cache that all rounds in one folder share."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return {**kept, "RLAIF_CACHE": str(root.parent / "cache")}


def server_alone(home: Path) -> float:
    """Seconds of a process that only starts and ends a server, with a new database."""
    program = "import sys; from pathlib import Path; from flows.prefect_api import prefect_api\n"
    program += "with prefect_api(Path(sys.argv[1])): pass"
    clock = time.monotonic()
    subprocess.run([sys.executable, "-c", program, str(home)], cwd=ROOT, env=environment(home), check=True)
    return time.monotonic() - clock


def measure(line: list[str], root: Path) -> Run:
    clock, cpu = time.monotonic(), cpu_of_children()
    done = subprocess.run(line, cwd=ROOT, env=environment(root), capture_output=True, text=True)
    wall, cpu = time.monotonic() - clock, cpu_of_children() - cpu
    if done.returncode:
        sys.exit(f"{' '.join(line[:4])} failed: {done.stderr[-2000:]}")
    folder = root / "rounds" / "001"
    return Run(wall, sum(need_manifest(folder / name).seconds for name in ROUND), cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a miniature round")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    settings = [f"{key}={value}" for key, value in (QUICK if given.quick else {}).items()]
    if given.plain:
        plain(given.plain, settings)
        return
    quick = ["--quick"] if given.quick else []
    found: dict[str, list[Run]] = {"rlaif run": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        first, later = (server_alone(Path(folder) / name) for name in ("first", "later"))
        for number in range(given.repeats):
            flow, alone = (Path(folder) / f"{name}-{number}" for name in ("flow", "plain"))
            options = [part for setting in settings for part in ("--set", setting)]
            line = [sys.executable, "-m", "flows", "run", "demo", "--workspace", str(flow), *options]
            found["rlaif run"].append(measure(line, flow))
            own = [sys.executable, str(ROOT / "benchmarks" / "operations_overhead.py"), *quick, "--plain", str(alone)]
            found["plain"].append(measure(own, alone))
            for name in SAME:
                one, two = (hash_path(root / "rounds" / "001" / name) for root in (flow, alone))
                if one != two:
                    sys.exit(f"{name} differs between the two: law 2 is broken.")
    show(found, first - later)


def show(found: dict[str, list[Run]], once: float) -> None:
    """`once`: seconds more that the first round of a machine takes."""
    print(f"  {'':<10} {'wall s':>8} {'stages s':>9} {'outside s':>10} {'CPU s':>8}   median of {len(found['plain'])}")
    middle = {}
    for name, runs in found.items():
        middle[name] = Run(
            *(statistics.median(getattr(run, part) for run in runs) for part in ("wall", "stages", "cpu"))
        )
        run = middle[name]
        print(f"  {name:<10} {run.wall:>8.1f} {run.stages:>9.1f} {run.outside:>10.1f} {run.cpu:>8.1f}")
    cost = middle["rlaif run"].outside - middle["plain"].outside
    share = cost / middle["plain"].wall
    fine = cost <= MOST_S or share <= MOST_SHARE
    verdict = "ok" if fine else "MISSED"
    print(f"  orchestration costs {cost:.1f} s, {share:.1%} of the plain round   <= 15 s or 2 %   {verdict}")
    print(f"  and {once:.1f} s more in the first round of a machine, {cost + once:.1f} s in all")
    print(f"  and {middle['rlaif run'].cpu - middle['plain'].cpu:.1f} s of CPU in every round")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
