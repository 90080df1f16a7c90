"""Judging and sampling in shards on a Ray cluster of two nodes and on Dask workers, with some that are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from flows.shards.sampling import sample_in_shards
from judges.judge import Judge, load_judge
from judges.panel import judge_pairs
from rlhf.config import SampleConfig
from rlhf.sampling import Prompt
from store.errors import TransientError, UsageError
from store.manifest import need_manifest
from store.stage import Source

from ..judges.answering import Answering
from ..judges.conftest import PROMPT, Folder, judge_folder, make_pair, rubric_judge, tiny_model
from ..rlhf.conftest import policy_folder
from .sampling_world import CONFIG, prompts_file, sampled
from .world import PAIRS, content, in_shards

__all__ = ["judge_folder", "policy_folder", "rubric_judge", "tiny_model"]

pytestmark = pytest.mark.ray

MANY = [make_pair(number) for number in range(1500)]


class RayNodes:
    """A cluster of two nodes with a processor each, as processes of this machine."""

    runner = "ray"

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.second = self.cluster.add_node(num_cpus=1)
        self.address = self.cluster.address

    def kill_worker(self) -> None:
        """A process that works on a shard right now, or in a moment."""
        for _ in range(1000):
            for process in psutil.process_iter(["cmdline"]):
                line = " ".join(process.info["cmdline"] or [])
                if "ray::judge_shard" in line or "ray::sample_shard" in line:
                    process.kill()
                    return
        raise AssertionError("no worker is at it")

    def close(self) -> None:
        self.cluster.shutdown()


class DaskWorkers:
    runner = "dask"

    def __init__(self) -> None:
        from distributed import LocalCluster

        self.cluster: Any = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        self.address = self.cluster.scheduler_address

    def kill_worker(self) -> None:
        os.kill(next(iter(self.cluster.workers.values())).process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.cluster.close()


Nodes = RayNodes | DaskWorkers


@pytest.fixture(scope="module", params=[RayNodes, DaskWorkers])
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    pytest.importorskip("distributed")
    found: Nodes = request.param()
    yield found
    found.close()


def test_the_same_votes_from_a_cluster(nodes: Nodes, rubric_judge: Judge, tmp_path: Path) -> None:
    whole = judge_pairs([rubric_judge], PAIRS, seed=0)
    how: dict[str, Any] = {"runner": nodes.runner, "address": nodes.address, "workers": 2}
    for size in (256, 9999):
        votes = in_shards([rubric_judge], tmp_path / str(size), size=size, **how)
        assert content(votes).equals(content(whole))


def test_both_nodes_work(nodes: Nodes, judge_folder: Folder, tmp_path: Path) -> None:
    with Answering(lambda text: {"1": 0.7, "2": 0.3}) as server:
        judge = load_judge(judge_folder("served", PROMPT, backend="openai", model="m", base_url=server.url))
        in_shards([judge], tmp_path, MANY, runner=nodes.runner, address=nodes.address, workers=2, size=256)
    workers = {need_manifest(path.parent).metrics["worker"] for path in tmp_path.glob("*/manifest.json")}
    assert len(workers) == 2


def test_the_same_rollouts_from_a_cluster(nodes: Nodes, policy_folder: Path, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path)
    whole = sampled(policy_folder, prompts, tmp_path / "here", {"size": 7})
    shards = {"runner": nodes.runner, "address": nodes.address, "workers": 2, "size": 7}
    there = sampled(policy_folder, prompts, tmp_path / "there", shards)
    assert there.manifest.outputs == whole.manifest.outputs
    assert there.manifest.key == whole.manifest.key


def test_a_sampling_worker_is_killed(nodes: Nodes, policy_folder: Path, tmp_path: Path) -> None:
    """Its shard goes to another, which loads the policy and samples it again."""
    prompts = prompts_file(tmp_path, 600)
    whole = sampled(policy_folder, prompts, tmp_path / "here", {"size": 20})
    shards = {"runner": nodes.runner, "address": nodes.address, "workers": 2, "size": 20}
    with ThreadPoolExecutor() as pool:
        there = pool.submit(sampled, policy_folder, prompts, tmp_path / "there", shards)
        parts = tmp_path / ".there.partial" / ".parts"
        while len(list(parts.glob("[0-9]*/manifest.json"))) < 3:
            assert not there.done(), there.exception()
            time.sleep(0.01)
        nodes.kill_worker()
        assert not there.done()
        assert there.result(180).manifest.outputs == whole.manifest.outputs


def test_a_worker_with_another_policy(nodes: Nodes, policy_folder: Path, tmp_path: Path) -> None:
    shards = {"runner": nodes.runner, "address": nodes.address, "workers": 2}
    source = Source(str(policy_folder), "0" * 64)
    config = SampleConfig.model_validate({**CONFIG, "shards": shards})
    assert config.shards is not None
    with pytest.raises(UsageError, match="is another one on the worker"):
        sample_in_shards(
            source, [Prompt("p", "the cat")], config=config, shards=config.shards, seed=0, folder=tmp_path / "parts"
        )


@pytest.mark.parametrize("victim", ["worker", "node"])
def test_a_worker_killed_in_the_middle_of_a_shard(
    nodes: Nodes, judge_folder: Folder, tmp_path: Path, victim: str
) -> None:
    """Its shard goes to another, which asks only what has no answer yet: no vote is lost, none is there twice."""
    if victim == "node" and isinstance(nodes, DaskWorkers):
        pytest.skip("a Dask worker is its node")
    kill: Callable[[], Any] = nodes.kill_worker
    if victim == "node" and isinstance(nodes, RayNodes):
        ray_nodes = nodes
        kill = lambda: ray_nodes.cluster.remove_node(ray_nodes.second, allow_graceful=False)  # noqa: E731
    reached = threading.Event()

    def answer(text: str) -> dict[str, float]:
        if len(server.shown) > 900:
            reached.set()
        time.sleep(0.005)
        return {"1": 0.7, "2": 0.3}

    with Answering(answer) as server:
        judge = load_judge(judge_folder("served", PROMPT, backend="openai", model="m", base_url=server.url))
        found: list[pa.Table | BaseException] = []

        def judged() -> None:
            how: dict[str, Any] = {"runner": nodes.runner, "address": nodes.address, "workers": 2, "size": 512}
            try:
                found.append(in_shards([judge], tmp_path, MANY, **how))
            except BaseException as error:  # noqa: BLE001  shown by the assertion below
                found.append(error)

        thread = threading.Thread(target=judged)
        thread.start()
        while not reached.wait(0.1):
            assert thread.is_alive(), found
        kill()
        thread.join(180)
        votes = found[0]
        assert isinstance(votes, pa.Table), votes
        assert len(set(votes["vote_id"].to_pylist())) == votes.num_rows == 3000
        assert set(votes["status"].to_pylist()) == {"scored"}
        assert len(server.shown) - 3000 < 2 * 64, "what was in flight is asked again, and nothing that was answered"


def test_a_worker_with_a_gpu_keeps_what_it_loaded(rubric_judge: Judge, tmp_path: Path) -> None:
    """Ray would start a process anew for each task that asks for a GPU, which is a mere number to it here."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        in_shards([rubric_judge], tmp_path, runner="ray", workers=1, size=256, gpus=1)
    finally:
        ray.shutdown()
    workers = [need_manifest(path.parent).metrics["worker"] for path in tmp_path.glob("*/manifest.json")]
    assert len(workers) == 3
    assert len(set(workers)) == 1


def test_a_cluster_that_is_not_there(nodes: Nodes, rubric_judge: Judge, tmp_path: Path) -> None:
    if isinstance(nodes, RayNodes):
        pytest.skip("Ray itself waits for a minute")
    with pytest.raises(TransientError, match="does not answer: start it"):
        in_shards([rubric_judge], tmp_path, runner=nodes.runner, address="tcp://127.0.0.1:9")
