"""One GPU stage a GPU, over processes, and no lock outlives its holder. No GPU is needed: the locks are files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.plan import Step
from flows.processes.execute import _count, _wanted
from flows.processes.gpus import gpus, own_gpus
from flows.specs import STAGES


def nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_the_visible_gpus_are_those_that_cuda_would_see(tmp_path: Path) -> None:
    two = nvidia_smi(
        tmp_path, "echo 'GPU 0: NVIDIA X (UUID: GPU-1)'; echo '  MIG 1g'; echo 'GPU 1: NVIDIA X (UUID: GPU-2)'"
    )
    assert gpus(two) == ["0", "1"]
    assert gpus({**two, "CUDA_VISIBLE_DEVICES": "3,GPU-5f"}) == ["3", "GPU-5f"]
    assert gpus({**two, "CUDA_VISIBLE_DEVICES": ""}) == []
    assert gpus({**two, "CUDA_VISIBLE_DEVICES": "-1"}) == []
    assert gpus(nvidia_smi(tmp_path, "echo 'no driver'; exit 9")) == []
    assert gpus({"PATH": str(tmp_path / "none")}) == []


def test_without_a_gpu_nothing_is_held(tmp_path: Path) -> None:
    with own_gpus([], folder=tmp_path) as variables:
        assert variables == {}
    assert not list(tmp_path.iterdir())


class Busy(Exception):  # noqa: N818 - it ends a wait, it is no error
    pass


def refuse() -> None:
    raise Busy


def test_each_holder_has_its_own_and_the_next_waits(tmp_path: Path) -> None:
    names = ["0", "1"]
    with own_gpus(names, folder=tmp_path) as first, own_gpus(names, folder=tmp_path) as second:
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
        with pytest.raises(Busy), own_gpus(names, folder=tmp_path, waiting=refuse):
            raise AssertionError("a third was let in")
    with own_gpus(names, 2, tmp_path, refuse) as both:
        assert both == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_one_that_waits_for_two_holds_none_meanwhile(tmp_path: Path) -> None:
    names = ["0", "1"]

    def look() -> None:
        with own_gpus(["1"], folder=tmp_path, waiting=lambda: pytest.fail("GPU 1 is held by the one that waits")):
            raise Busy

    with own_gpus(["0"], folder=tmp_path), pytest.raises(Busy), own_gpus(names, 2, tmp_path, look):
        raise AssertionError("two were given, one is held")


def test_a_kill_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from flows.processes.gpus import own_gpus\n"
        "with own_gpus(['0'], folder=pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Busy), own_gpus(["0"], folder=tmp_path, waiting=refuse):
        raise AssertionError("it is held")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with own_gpus(["0"], folder=tmp_path, waiting=refuse) as variables:
        assert variables == {"CUDA_VISIBLE_DEVICES": "0"}


def judge(folder: Path, backend: str, **settings: Any) -> str:
    folder.mkdir()
    about = {"name": folder.name, "backend": backend, "model": "shipped:tiny/models/tiny-good", **settings}
    (folder / "judge.yaml").write_text(yaml.safe_dump(about))
    (folder / "prompt.jinja").write_text("{{ prompt }} {{ first }} {{ second }} 1 or 2?")
    return str(folder)


def test_judges_take_a_gpu_only_for_models_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def wanted(stage: str, *judges: str) -> int:
        return len(_wanted(Step(stage, {"judge": list(judges)}, STAGES[stage].config(), 0, tmp_path / "out")))

    served = judge(tmp_path / "served", "openai", base_url="http://127.0.0.1:9/v1", model="m")
    local = judge(tmp_path / "local", "transformers")
    on_cpu = judge(tmp_path / "on-cpu", "transformers", device="cpu")
    cheap = tmp_path / "cheap"
    cheap.mkdir()
    about = {"name": "cheap", "backend": "cascade", "first": served, "then": local}
    (cheap / "judge.yaml").write_text(yaml.safe_dump(about))
    assert wanted("judge", served) == 0
    assert wanted("judge", served, "tiny-oracle", on_cpu) == 0
    assert wanted("judge", served, local) == 2
    assert wanted("judge", judge(tmp_path / "offline", "vllm")) == 2
    assert wanted("judge", str(cheap)) == 2, "the second of the cascade loads a model"
    assert wanted("anchors", served) == 0
    assert wanted("anchors", local) == 2
    for stage in ("sample", "ppo", "evaluate"):
        assert wanted(stage, served) == 2, "they load a policy in any case"


def test_a_stage_takes_as_many_gpus_as_its_most_divided_model(tmp_path: Path) -> None:
    def count(stage: str, *judges: str, **settings: Any) -> int:
        config = STAGES[stage].config.model_validate(settings)
        return _count(Step(stage, {"judge": list(judges)}, config, 0, tmp_path / "out"))

    one = judge(tmp_path / "one", "vllm")
    two = judge(tmp_path / "two", "vllm", tensor_parallel_size=2)
    served = judge(tmp_path / "served", "openai", base_url="http://127.0.0.1:9/v1", model="m")
    assert count("judge", one) == 1
    assert count("judge", served, two, one) == 2
    assert count("ppo", two) == 2, "the probe asks the judges beside the policy"
    divided = {"tensor_parallel_size": 4}
    assert count("sample", engine="vllm", vllm=divided) == 4
    assert count("sample", engine="vllm", vllm={**divided, "devices": "4,5,6,7"}) == 1, "the engine has its own"
    assert count("sample", vllm=divided) == 1, "the engine transformers is asked for"
    assert count("ppo", two, device={"processes": 3}) == 3
    assert count("ppo", two, device={"processes": 0}) > 100, "all there are"


def test_a_lock_is_everybodys(tmp_path: Path) -> None:
    """Also of somebody whose files are their own: whoever may read it may hold it."""
    before = os.umask(0o077)
    try:
        with own_gpus(["0"], folder=tmp_path):
            pass
    finally:
        os.umask(before)
    (lock,) = tmp_path.iterdir()
    assert lock.stat().st_mode & 0o777 == 0o644
    with own_gpus(["0"], folder=tmp_path) as variables:
        assert variables == {"CUDA_VISIBLE_DEVICES": "0"}
