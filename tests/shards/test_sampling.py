"""Sampling in shards on threads: the same rollouts for any workers, restarts that repeat only unfinished shards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.plan import Step
from flows.processes.execute import _count, _wanted
from flows.shards import sampling
from flows.shards.exchange import to_stream
from rlhf.config import SampleConfig
from rlhf.sampling import open_policy, sample_rollouts
from store.config import parse
from store.errors import TransientError, UsageError
from store.hashing import hash_file, hash_path
from store.resources import DATASETS, resolve
from store.schemas import ROLLOUTS
from store.sharding import ShardsConfig
from store.tables import read_table

from ..rlhf.conftest import make_llama, make_tokenizer, policy_folder
from .sampling_world import CONFIG, prompts_file, sampled

__all__ = ["policy_folder"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return prompts_file(tmp_path)


def content(out: Path) -> str:
    return hash_file(out / "rollouts.parquet")


def shard_of(policy: str, identity: str, rows: Sequence[dict[str, str]] = ()) -> sampling.Shard:
    table = pa.Table.from_pylist(list(rows), schema=sampling._PROMPTS)
    return sampling.Shard(to_stream(table), policy, identity, SampleConfig.model_validate(CONFIG), 0)


class Asked:
    """What was sampled: the prompts of each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, away: str | None = None) -> None:
        self.calls: list[list[str]] = []
        self.away = away
        monkeypatch.setattr(sampling, "sample_rollouts", self)

    def __call__(self, engine: Any, codec: Any, prompts: Any, **about: Any) -> Any:
        names = [prompt.prompt_id for prompt in prompts]
        self.calls.append(names)
        if self.away in names:
            raise TransientError("The engine is away: run again.")
        return sample_rollouts(engine, codec, prompts, **about)


def test_any_workers_give_the_same_rollouts(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    outcomes = [
        sampled(policy_folder, prompts, tmp_path / str(workers), {"size": 7, "workers": workers})
        for workers in (1, 2, 9)
    ]
    assert len({content(outcome.folder) for outcome in outcomes}) == 1
    assert len({outcome.manifest.key for outcome in outcomes}) == 1, "where work is done is no part of what is done"
    assert not list(outcomes[0].folder.glob(".*")), "the parts are gone"
    other = sampled(policy_folder, prompts, tmp_path / "other", {"size": 8})
    assert other.manifest.key != outcomes[0].manifest.key, "the size may change the last bit"


def test_one_shard_is_the_stage_without(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    whole = sampled(policy_folder, prompts, tmp_path / "whole")
    shard = sampled(policy_folder, prompts, tmp_path / "shard", {"size": 9999})
    assert content(shard.folder) == content(whole.folder)
    assert shard.manifest.metrics == whole.manifest.metrics


def test_shards_change_nothing_but_rounding(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    sampled(policy_folder, prompts, tmp_path / "whole")
    sampled(policy_folder, prompts, tmp_path / "shards", {"size": 7})
    whole, shards = (read_table(tmp_path / name / "rollouts.parquet", ROLLOUTS) for name in ("whole", "shards"))
    assert shards.drop_columns(["logprob"]).equals(whole.drop_columns(["logprob"])), "in the same order too"
    assert shards["logprob"].to_pylist() == pytest.approx(whole["logprob"].to_pylist(), abs=1e-4)


def test_the_policy_is_loaded_once(
    policy_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def spy(name: str, *about: Any) -> Any:
        opened.append(name)
        return open_policy(name, *about)

    monkeypatch.setattr(sampling, "open_policy", spy)
    for number in (1, 2):
        sampled(policy_folder, prompts, tmp_path / str(number), {"size": 7, "workers": 3})
        assert len(opened) == number, "by all shards of a stage, and not kept after it"
    assert sampling._held._engine is None


def test_an_engine_that_failed_is_not_used_again(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(str(policy_folder), hash_path(policy_folder), [{"prompt_id": "p", "prompt": "the cat"}])
    sampling.sample_shard(shard).raise_error()
    first = sampling._held._engine
    assert first is not None
    sampling.sample_shard(shard).raise_error()
    assert sampling._held._engine is first
    asked = Asked(monkeypatch, away="p")
    assert sampling.sample_shard(shard).kind == "transient"
    assert sampling._held._engine is None
    asked.away = None
    sampling.sample_shard(shard).raise_error()
    sampling.close_policy()
    assert sampling._held._engine is None


def interrupted(policy: Path, prompts: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Shards of 7 prompts: all of them in `whole`, and in `out` until the third fails."""
    sampled(policy, prompts, folder / "whole", {"size": 7})
    asked = Asked(monkeypatch, away="p020")
    with pytest.raises(TransientError, match="away"):
        sampled(policy, prompts, folder / "out", {"size": 7})
    return asked


def test_a_restart_repeats_only_what_was_not_finished(
    policy_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = interrupted(policy_folder, prompts, tmp_path, monkeypatch)
    assert [names[0] for names in asked.calls] == ["p000", "p007", "p014"]
    assert not (tmp_path / "out").exists()
    asked.calls, asked.away = [], None
    sampled(policy_folder, prompts, tmp_path / "out", {"size": 7, "workers": 2})
    assert sorted(names[0] for names in asked.calls) == ["p014", "p021", "p028", "p035"]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_damaged_part_is_made_again(
    policy_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = interrupted(policy_folder, prompts, tmp_path, monkeypatch)
    (tmp_path / ".out.partial" / ".parts" / "000001" / "rollouts.parquet").write_bytes(b"damaged")
    asked.calls, asked.away = [], None
    sampled(policy_folder, prompts, tmp_path / "out", {"size": 7})
    assert [names[0] for names in asked.calls] == ["p007", "p014", "p021", "p028", "p035"]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_is_continued(policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SIGKILL, in the middle of a shard or between two."""
    prompts = prompts_file(tmp_path, 2000)
    program = "import sys; from tests.shards.sampling_world import *; sampled(*map(Path, sys.argv[1:]), {'size': 20})"
    whole = sampled(policy_folder, prompts, tmp_path / "whole", {"size": 20})
    given = [str(path) for path in (policy_folder, prompts, tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-c", program, *given], cwd=Path(__file__).parents[2])
    parts = tmp_path / ".out.partial" / ".parts"
    while len(list(parts.glob("*/manifest.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list(parts.glob("[0-9]*/manifest.json")))
    assert 3 <= finished < 100
    asked = Asked(monkeypatch)
    sampled(policy_folder, prompts, tmp_path / "out", {"size": 20})
    assert len(asked.calls) <= 100 - finished
    assert content(tmp_path / "out") == content(whole.folder)


def test_another_policy_on_a_worker_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_llama(seed=1).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    with pytest.raises(UsageError, match=r"other is another one on the worker .*: give all machines the same folder"):
        sampling.sample_shard(shard_of(str(other), hash_path(policy_folder))).raise_error()
    with pytest.raises(UsageError, match=r"The worker .* does not find the policy .*under the same path"):
        sampling.sample_shard(shard_of(str(tmp_path / "gone"), "0" * 64)).raise_error()
    assert sampling._held._engine is None


def test_a_policy_that_changes_under_its_path_is_seen(
    policy_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two tries of a stage whose inputs were looked at before: as on another machine."""
    policy = shutil.copytree(policy_folder, tmp_path / "policy")
    source = sampling.Source(str(policy), hash_path(policy))
    make_llama(seed=1).save_pretrained(policy)
    with pytest.raises(UsageError, match="is another one"):
        sampling.sample_in_shards(
            source,
            [sampling.Prompt("p", "the cat")],
            config=SampleConfig.model_validate(CONFIG),
            shards=ShardsConfig(),
            seed=0,
            folder=tmp_path / "parts",
        )
    assert not list((tmp_path / "parts").glob("*/manifest.json"))


def test_names_of_policies() -> None:
    shipped = next(path.parent for path in DATASETS.rglob("config.json"))
    assert resolve(sampling._name(str(shipped))) == shipped, "wherever rlaif is installed"
    assert sampling._name("/models/policy") == "/models/policy"
    assert sampling._find("team/policy", "known by its name") == "team/policy"


def test_what_a_shard_refuses_is_what_the_stage_refuses(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lower max_new_tokens"):
        sampled(policy_folder, prompts, tmp_path / "out", {"size": 7}, decoding={"max_new_tokens": 200})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"device": {"processes": 2}, "shards": {}}, "^sample: shards = .*: a shard is sampled by one process"),
        ({"device": {"processes": 0}, "shards": {}}, "set device.processes and device.nodes to 1, or remove shards$"),
        ({"device": {"device": "cuda:1"}, "shards": {"runner": "ray"}}, "every ray worker would take the same GPU"),
        ({"vllm": {"devices": "2"}, "shards": {"runner": "dask"}}, "every dask worker would take the same GPU"),
        ({"shards": {"gpus": 1}}, r"shards\.gpus = 1: the runner local hands out no GPUs: set runner to ray"),
        ({"shards": {"address": "auto"}}, r"shards\.address = 'auto': the runner local has no address"),
        ({"shards": {"size": 0}}, r"shards\.size = 0: input should be greater"),
    ],
)
def test_configs_that_make_no_sense(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse(SampleConfig, config, source="sample")


def test_configs_that_do() -> None:
    for shards in ({"runner": "ray", "address": "auto", "gpus": 0.5}, {"runner": "dask", "address": "tcp://h:1"}):
        config = parse(SampleConfig, {"device": {"device": "cuda"}, "shards": shards}, source="sample")
        assert config.identity()["shards"] == {"size": 512}
        assert parse(SampleConfig, config.model_dump(mode="json"), source="sample") == config


def test_gpus_of_a_stage_in_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that the stage starts here gets the GPUs that its shards ask for; one elsewhere takes none of ours."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")

    def step(**shards: Any) -> Step:
        return Step("sample", {}, parse(SampleConfig, {"shards": shards or None}, source="sample"), 0, Path("out"))

    assert (len(_wanted(step())), _count(step())) == (4, 1)
    assert _count(step(runner="ray", gpus=1, workers=3)) == 3
    assert _count(step(runner="ray", gpus=0.5, workers=3)) == 2
    assert _count(step(runner="ray", gpus=1)) >= 4
    assert _wanted(step(runner="ray", gpus=1, address="ray://head:10001")) == []
