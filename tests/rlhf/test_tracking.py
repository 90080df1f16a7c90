"""Trackers: what reaches TensorBoard's files, what fails, and what is never written into a stage's folder."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlhf import tracking as tracking_module
from rlhf.config import PPOConfig, SFTConfig
from rlhf.tracking import log_folder, no_log, samples_text, tracking
from store.errors import UsageError

from .stage_world import run, write_prompts

needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="tensorboard is not installed: pip install 'rlaif[track]'"
)
HOSTILE = "a | b <script>alert(1)</script> `x` ![i](http://e.vil) # *b*\nnext\\"


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@needs_tensorboard
def test_numbers_and_text_reach_tensorboard(tmp_path: Path) -> None:
    out = tmp_path / ".ppo.partial"
    with tracking(SFTConfig(tracking=["tensorboard"]), "ppo", out) as log:
        log(3, {"score": 1.5, "probe_win_rate": None, "stopped_early": True, "samples": "text"})
        log(4, {"score": 2.5})
    found = events(tmp_path / "logs" / "ppo")
    assert found.Tags()["scalars"] == ["ppo/score", "ppo/stopped_early"]
    assert [(event.step, event.value) for event in found.Scalars("ppo/score")] == [(3, 1.5), (4, 2.5)]
    assert "ppo/samples/text_summary" in found.Tags()["tensors"]
    config = found.Tensors("ppo/config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| batch&#95;size | 32 |" in config
    assert not out.exists()


@needs_tensorboard
def test_a_resumed_run_hides_what_the_killed_one_logged_later(tmp_path: Path) -> None:
    config = SFTConfig(tracking=["tensorboard"])
    for first, value in ((0, 1.0), (2, 9.0)):
        with tracking(config, "ppo", tmp_path / "ppo") as log:
            for step in range(first, 4):
                log(step, {"score": value})
    assert [event.value for event in events(tmp_path / "logs" / "ppo").Scalars("ppo/score")] == [1.0, 1.0, 9.0, 9.0]


def test_samples_are_shown_inert() -> None:
    row = samples_text([{"prompt": HOSTILE, "response": "fine", "score": 0.5}]).splitlines()[2]
    assert row.count("|") == 4
    assert row.endswith("| fine | 0.500 |")
    for mark in ("<", ">", "`", "![", "[", "*"):
        assert mark not in row


def test_a_tracker_that_is_not_installed_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking_module, "find_spec", lambda name: None)
    message = r"tracker mlflow is not installed: pip install 'rlaif\[track\]' mlflow"
    with pytest.raises(UsageError, match=message), tracking(SFTConfig(tracking=["mlflow"]), "sft", tmp_path / "sft"):
        pass
    with tracking(SFTConfig(), "sft", tmp_path / "sft") as log:  # nothing named, nothing there: nothing tracked
        assert log is no_log
    with pytest.raises(ValidationError, match="tensorboard"):
        SFTConfig.model_validate({"tracking": ["excel"]})


@needs_tensorboard
def test_only_the_main_process_tracks(tmp_path: Path) -> None:
    with tracking(SFTConfig(tracking=["tensorboard"]), "sft", tmp_path / "sft", main=False) as log:
        log(1, {"loss": 1.0})
    assert not (tmp_path / "logs").exists()


@needs_tensorboard
def test_a_tracker_that_fails_is_left_out_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from accelerate.tracking import TensorBoardTracker

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device\nmore")

    monkeypatch.setattr(TensorBoardTracker, "log", full)
    with tracking(SFTConfig(tracking=["tensorboard"]), "sft", tmp_path / "sft") as log:
        log(1, {"loss": 1.0})
        log(2, {"loss": 1.0})
    message = capsys.readouterr().err
    assert message == "Warning, the tracker tensorboard failed and is left out: No space left on device\n"


@needs_tensorboard
def test_where_the_files_lie(tmp_path: Path) -> None:
    assert log_folder(tmp_path / ".ppo.partial") == log_folder(tmp_path / "ppo") == tmp_path / "logs" / "ppo"
    config = SFTConfig(tracking=["tensorboard"], tracking_folder=str(tmp_path / "board"))
    with tracking(config, "sft", tmp_path / "out") as log:
        log(1, {"loss": 1.0})
    assert any((tmp_path / "board" / "sft").iterdir())
    assert not (tmp_path / "logs").exists()


@needs_tensorboard
def test_tracking_is_in_no_key_and_no_output(policy_folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    assert PPOConfig(tracking=["wandb"], tracking_folder="x").identity() == PPOConfig().identity()
    inputs = {"policy": policy_folder, "reward": reward_folder, "prompts": write_prompts(tmp_path)}
    config = {"updates": 1, "batch_size": 4, "minibatches": 1, "epochs": 1, "decoding": {"max_new_tokens": 4}}
    tracked = run("ppo", tmp_path / "a" / "ppo", {**config, "tracking": ["tensorboard"]}, inputs)
    plain = run("ppo", tmp_path / "b" / "ppo", {**config, "tracking": []}, inputs)
    assert tracked.manifest.key == plain.manifest.key
    assert tracked.manifest.outputs.keys() == plain.manifest.outputs.keys()
    assert not any("events" in name for name in tracked.manifest.outputs)
    found = events(tmp_path / "a" / "logs" / "ppo")
    assert {"ppo/score", "ppo/kl", "ppo/policy_loss", "ppo/term/missing_stop"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("ppo/kl")] == [0, 1]
    assert not (tmp_path / "b" / "logs").exists()


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed: pip install mlflow")
def test_mlflow_has_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking(SFTConfig(tracking=["mlflow"], tracking_project="mine"), "sft", tmp_path / "sft") as log:
        log(1, {"loss": 2.5, "samples": "text"})
    with sqlite3.connect(tmp_path / "logs" / "sft" / "mlflow.db") as base:
        assert base.execute("select key, value, step from metrics").fetchall() == [("sft/loss", 2.5, 1)]
        assert ("batch_size", "32") in base.execute("select key, value from params").fetchall()
    assert [path.name for path in (tmp_path / "logs").rglob("*.md")] == ["000001.md"]


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed: pip install mlflow")
def test_a_resumed_stage_goes_on_in_its_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config, out = SFTConfig(tracking=["mlflow"]), tmp_path / ".sft.partial"
    killed_in_the_middle(config, out)
    with tracking(config, "sft", out) as log:
        log(2, {"loss": 1.5})
    database = tmp_path / "logs" / "sft" / "mlflow.db"
    with sqlite3.connect(database) as base:
        assert base.execute("select status from runs").fetchall() == [("FINISHED",)]
        assert base.execute("select value, step from metrics order by step").fetchall() == [(2.5, 1), (1.5, 2)]
    shutil.rmtree(out)  # as when the stage is made anew
    with tracking(config, "sft", out) as log:
        log(1, {"loss": 3.5})
    with sqlite3.connect(database) as base:
        assert base.execute("select count(*) from runs").fetchone() == (2,)


@pytest.fixture
def _wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("wandb") is None:
        pytest.skip("wandb is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.usefixtures("_wandb_offline")
def test_a_resumed_stage_goes_on_in_its_run_of_weights_and_biases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = SFTConfig(tracking=["wandb"]), tmp_path / ".sft.partial"
    killed_in_the_middle(config, out)
    time.sleep(1.1)  # an offline run's folder is named after the second
    with tracking(config, "sft", out) as log:
        log(2, {"loss": 1.5})
    folders = sorted((tmp_path / "logs" / "sft" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2  # a sync puts folders of one id together
    assert {folder.name.rpartition("-")[2] for folder in folders} == {(out / ".tracking" / "wandb").read_text()}
    assert "left out" not in capsys.readouterr().err


def killed_in_the_middle(config: SFTConfig, out: Path) -> None:
    """A process that logs one step and is not there any more."""
    code = (
        "import os, sys; from pathlib import Path"
        "\nfrom rlhf.config import SFTConfig; from rlhf.tracking import tracking"
        "\nwith tracking(SFTConfig.model_validate_json(sys.argv[1]), 'sft', Path(sys.argv[2])) as log:"
        "\n    log(1, {'loss': 2.5}); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, config.model_dump_json(), str(out)], check=False)
    assert done.returncode == -9


@pytest.mark.usefixtures("_wandb_offline")
def test_wandb_writes_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import wandb

    with tracking(SFTConfig(tracking=["wandb"]), "sft", tmp_path / "sft") as log:
        log(1, {"loss": 2.5, "samples": "text <b>"})
        log(2, {"loss": 1.5})  # a step is written when the next one begins
        assert wandb.run is not None
        assert wandb.run.summary["sft/loss"] == 2.5
    folder = tmp_path / "logs" / "sft" / "wandb"
    assert len(list(folder.glob("offline-run-*/*.wandb"))) == 1
    shown = next(folder.glob("offline-run-*/files/media/html/sft/*.html"))
    assert shown.read_text() == "<pre>text &lt;b&gt;</pre>"
    assert "left out" not in capsys.readouterr().err
