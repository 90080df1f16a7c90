"""A stage in several processes: started, killed, failed and resumed. Law 3."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from flows.plan import Step
from flows.processes.execute import run_step
from flows.processes.ranks import ECHO, _report, is_many
from flows.specs import STAGES
from store.errors import RlaifError, TransientError, UsageError
from store.manifest import need_manifest
from store.schemas import DEMONSTRATIONS
from store.stage import Outcome, Progress, silent
from store.tables import write_table
from tests.flows.conftest import rlaif, small_settings
from tests.rlhf.conftest import make_llama, make_tokenizer

PATIENCE_S = 180


@pytest.mark.parametrize(
    ("codes", "first", "expected"),
    [
        ({1: 2, 0: ECHO}, 1, 2),
        ({0: ECHO, 1: 2}, 0, 2),  # the echo may be seen before its cause
        ({0: 75, 1: -signal.SIGTERM}, 0, 75),
        ({0: 1}, 0, 1),
        ({0: ECHO, 1: ECHO}, 0, 75),
    ],
)
def test_the_exit_code_is_that_of_the_cause(
    capsys: pytest.CaptureFixture[str], codes: dict[int, int], first: int, expected: int
) -> None:
    assert _report(codes, first) == expected
    assert capsys.readouterr().out == ""


def test_a_killed_process_is_told_and_worth_a_retry(capsys: pytest.CaptureFixture[str]) -> None:
    assert _report({0: ECHO, 3: -signal.SIGKILL, 1: -signal.SIGTERM}, 0) == 75
    assert "its process 3 was killed by SIGKILL, often for want of memory" in capsys.readouterr().out


def test_which_stages_may_ask_for_several_processes() -> None:
    assert not is_many("evaluate", {"device": {"processes": 1, "nodes": 1}})
    assert not is_many("promote", {})
    assert is_many("ppo", {"device": {"processes": 2, "nodes": 1}})
    assert is_many("sft", {"device": {"processes": 1, "nodes": 2}})
    assert is_many("reward", {"device": {"processes": 0}})
    with pytest.raises(UsageError, match=r"Stage evaluate runs in one process: set evaluate\.device\.processes"):
        is_many("evaluate", {"device": {"processes": 2}})


def test_where_the_machines_meet_does_not_change_the_result() -> None:
    """Another head node must find the checkpoints; another number of processes rounds differently."""
    device = {"nodes": 2, "rendezvous": "a:1"}
    one, moved, other = (
        STAGES["ppo"].config.model_validate({"device": device | more}).identity()
        for more in ({}, {"rendezvous": "b:2", "timeout_minutes": 5}, {"processes": 8})
    )
    assert one == moved
    assert one != other


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("inputs")
    make_llama().save_pretrained(folder / "policy")
    make_tokenizer().save_pretrained(folder / "policy")
    rows = [{"prompt": f"{word} why", "response": "yes the sea"} for word in ("dog", "cat", "fish", "tree", "sky")]
    table = pa.Table.from_pylist(rows, schema=DEMONSTRATIONS.schema)
    path = write_table(folder / "demonstrations.parquet", DEMONSTRATIONS, table)
    return {"policy": [str(folder / "policy")], "demonstrations": [str(path)]}


def step_of(inputs: dict[str, list[str]], out: Path, processes: int = 2, epochs: int = 2, **config: Any) -> Step:
    value = {
        "epochs": epochs,
        "batch_size": 3,
        "checkpoint_every": 2,
        "optimisation": {"learning_rate": 1e-2},
        "device": {"device": "cpu", "processes": processes, "threads": 1},
        **config,
    }
    return Step("sft", inputs, STAGES["sft"].config.model_validate(value), 3, out)


def run(step: Step, progress: Progress = silent) -> Outcome:
    return run_step(step, step.out.parent / "logs", progress)


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """The workers below a process, by rank."""
    workers = {}
    for child in process.children(recursive=True):
        try:
            environment, command = child.environ(), child.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if "flows.processes.worker" in command and "RANK" in environment:
            workers[int(environment["RANK"])] = child
    return [workers[rank] for rank in sorted(workers)]


class At:
    """Does something at the first step of training."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action, self.done = action, False

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        if what == "sft" and not self.done:
            self.done = True
            self.action()


@pytest.mark.slow
def test_two_processes_make_one_stage(inputs: dict[str, list[str]], tmp_path: Path) -> None:
    alone = run(step_of(inputs, tmp_path / "one", processes=1))
    together = run(step_of(inputs, tmp_path / "two"))
    for name in ("loss_start", "loss_end"):
        assert together.manifest.metrics[name] == pytest.approx(alone.manifest.metrics[name], abs=1e-5)
    assert together.manifest.outputs.keys() == alone.manifest.outputs.keys()
    assert not together.reused
    assert run(step_of(inputs, tmp_path / "two")).reused


@pytest.mark.slow
def test_two_machines_make_one_stage(inputs: dict[str, list[str]], tmp_path: Path) -> None:
    """The same command twice, each with a launcher of its own, as on two machines with one workspace."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    device = {"device": "cpu", "nodes": 2, "rendezvous": meeting, "threads": 1}
    step = step_of(inputs, tmp_path / "out", device=device)
    with ThreadPoolExecutor(2) as pool:
        # Not as on machines: both would write to one log file here.
        futures = [pool.submit(run_step, step, tmp_path / name) for name in ("logs-0", "logs-1")]
        outcomes = [future.result(timeout=PATIENCE_S * 2) for future in futures]
    assert outcomes[0].manifest == outcomes[1].manifest
    assert sorted(outcome.reused for outcome in outcomes) == [False, True]


@pytest.mark.slow
def test_a_killed_process_ends_the_stage_which_then_goes_on(inputs: dict[str, list[str]], tmp_path: Path) -> None:
    step = step_of(inputs, tmp_path / "out", epochs=400)
    workers: list[psutil.Process] = []

    def kill() -> None:
        workers.extend(ranks_of(psutil.Process()))
        workers[1].send_signal(signal.SIGKILL)

    with pytest.raises(TransientError, match="its process 1 was killed by SIGKILL, often for want of memory"):
        run(step, At(kill))
    assert len(workers) == 2
    psutil.wait_procs(workers, PATIENCE_S)
    assert not any(worker.is_running() for worker in workers)
    assert not step.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1e30])
def test_a_loss_that_is_no_number_is_one_sentence(inputs: dict[str, list[str]], tmp_path: Path, rate: float) -> None:
    step = step_of(inputs, tmp_path / "out", epochs=20, optimisation={"learning_rate": rate, "warmup_fraction": 0})
    with pytest.raises(RlaifError, match=r"^Stage sft: The loss of SFT step \d+ \(demonstrations .* is not a number"):
        run(step)
    assert not step.out.exists()


@pytest.mark.slow
def test_a_failure_of_one_process_alone_stops_all(inputs: dict[str, list[str]], tmp_path: Path) -> None:
    """The main process alone looks at the inputs; the other one waits for it."""
    step = step_of({**inputs, "demonstrations": [str(tmp_path / "missing.parquet")]}, tmp_path / "out")
    with pytest.raises(UsageError, match=r"missing\.parquet.* does not exist"):
        run(step)


@pytest.mark.slow
def test_no_process_outlives_the_one_that_asked(inputs: dict[str, list[str]], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.flows.test_ranks import run, step_of\n"
        "inputs = {'policy': [sys.argv[1]], 'demonstrations': [sys.argv[2]]}\n"
        "run(step_of(inputs, Path(sys.argv[3]), epochs=4000), lambda *event: print(event, flush=True))\n"
    )
    arguments = [inputs["policy"][0], inputs["demonstrations"][0], str(tmp_path / "out")]
    root = Path(__file__).resolve().parents[2]
    asker = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=root, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(PATIENCE_S, asker.kill)
    timer.start()
    try:
        assert asker.stdout is not None
        assert asker.stdout.readline().startswith("('sft', ")
        workers = ranks_of(psutil.Process(asker.pid))
        assert len(workers) == 2
        os.kill(asker.pid, signal.SIGKILL)
        psutil.wait_procs(workers, PATIENCE_S)
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    finally:
        timer.cancel()
        asker.kill()
        asker.wait()


@pytest.mark.slow
def test_a_round_whose_ppo_has_two_processes(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    settings = small_settings(
        **{"ppo.device.processes": 2, "ppo.device.sharding": "fsdp", "reward.device.processes": 2}
    )
    done = rlaif("run", "demo", "--workspace", str(workspace), *settings, timeout=1800)
    assert done.returncode == 0, done.stderr
    (found,) = workspace.glob("**/ppo/manifest.json")
    manifest = need_manifest(found.parent)
    assert manifest.config["device"]["processes"] == 2
    assert manifest.metrics["updates"] == 2
