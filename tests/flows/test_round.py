"""A whole round on the real command line: real models, a real Prefect server, real kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.specs import ROUND
from flows.telemetry.costs import judge_costs
from store.hashing import hash_path
from store.manifest import read_manifest
from store.schemas import PREFERENCES, RESPONSES, ROLLOUTS, VOTES
from store.tables import read_table
from tests.flows.conftest import rlaif, small_settings

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy to change: a workspace may be moved, so a copy is as good as the original."""
    return Path(shutil.copytree(finished, tmp_path / "workspace"))


def status(workspace: Path) -> dict:
    done = rlaif("status", "--json", "--workspace", str(workspace))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_stage_is_there_with_its_tables(finished: Path) -> None:
    folder = finished / "rounds" / "001"
    for name in ROUND:
        manifest = read_manifest(folder / name)
        assert manifest is not None, name
        assert manifest.outputs, name
    read_table(folder / "sample" / "rollouts.parquet", ROLLOUTS)
    votes = read_table(folder / "judge" / "votes.parquet", VOTES)
    read_table(folder / "aggregate" / "preferences.parquet", PREFERENCES)
    responses = read_table(folder / "evaluate" / "responses.parquet", RESPONSES)
    assert set(responses.column("split").to_pylist()) <= {"heldout", "heldout_entities"}
    assert set(votes.column("order").to_pylist()) == {"ab", "ba"}


def test_every_call_to_a_judge_is_told(finished: Path) -> None:
    """PPO's probe asks too, of which no table tells."""
    folder = finished / "rounds" / "001"
    rows = judge_costs(folder)
    assert {row["stage"] for row in rows} == {"judge", "ppo", "evaluate"}
    calls = sum(row["calls"] for row in rows if row["stage"] == "judge")
    votes = [read_table(folder / "judge" / f"{name}.parquet", VOTES) for name in ("votes", "calibration_votes")]
    assert calls == sum(table.num_rows for table in votes)


def test_status_keeps_its_contract(finished: Path) -> None:
    value = status(finished)
    assert value["round"] == 1
    assert set(value["stages"]) == set(ROUND)
    for stage in value["stages"].values():
        assert stage["state"] == "done"
        assert stage["attempts"] == 1
        assert stage["seconds"] >= 0
    metrics = value["metrics"]
    for name in (
        "expected_reward_reference",
        "expected_reward_policy",
        "win_rate",
        "win_rate_low",
        "win_rate_high",
        "kl",
        "reward_model_accuracy",
        "peak_rss_mb",
    ):
        assert isinstance(metrics[name], float), name
    assert metrics["win_rate_low"] <= metrics["win_rate"] <= metrics["win_rate_high"]
    assert set(metrics["judge_accuracy"]) == {"tiny-good", "tiny-middling", "tiny-biased"}
    votes = metrics["votes"]
    assert votes["attempted"] == sum(votes[k] for k in ("scored", "tie", "abstain", "parse_failure", "error"))
    assert isinstance(metrics["promoted"], bool)


def test_the_prefect_history_is_complete(finished: Path) -> None:
    with sqlite3.connect(finished / "prefect" / "prefect.db") as database:
        runs = dict(database.execute("select name, state_type from task_run").fetchall())
        flows = database.execute("select name, state_type from flow_run").fetchall()
        artifacts = {key for (key,) in database.execute("select key from artifact").fetchall()}
    assert flows == [("round-1", "COMPLETED")]
    assert runs == dict.fromkeys([*ROUND, "report"], "COMPLETED")
    assert {f"{name}-figures" for name in ROUND} <= artifacts


def test_the_report_is_one_file_without_script(finished: Path) -> None:
    text = (finished / "rounds" / "001" / "report.html").read_text()
    assert "<script" not in text
    assert "http-equiv" in text
    out = finished.parent / "elsewhere.html"
    done = rlaif("report", "--workspace", str(finished), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert out.read_text().startswith("<!doctype html>") or out.read_text().startswith("<!DOCTYPE html>")


def test_a_stage_alone_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    """Law 2: without Prefect and without a workspace, from the command line, on the same files."""
    folder = finished / "rounds" / "001"
    manifest = read_manifest(folder / "aggregate")
    assert manifest is not None
    inputs = [
        part
        for name, given in manifest.inputs.items()
        for one in given
        for part in (f"--{name.replace('_', '-')}", one["value"])
    ]
    done = rlaif("stage", "aggregate", *inputs, "--seed", str(manifest.seed), "--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "preferences.parquet").read_bytes() == (
        folder / "aggregate" / "preferences.parquet"
    ).read_bytes()


def test_a_deleted_output_and_what_needs_it_are_rebuilt(copy: Path) -> None:
    folder = copy / "rounds" / "001"
    before = hash_path(folder / "reward" / "model")
    (folder / "report.html").unlink()
    (folder / "aggregate" / "preferences.parquet").unlink()
    done = rlaif("run", "--workspace", str(copy))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    last = max(i for i, event in enumerate(events[:-1]) if event["event"] == "round_finished")
    kinds = {event["stage"]: event["event"] for event in events[last + 1 :] if "stage" in event}
    assert kinds["aggregate"] == "finished"
    # The same bytes came out again, so nothing after it had to run.
    assert {name: kinds[name] for name in ROUND if name != "aggregate"} == dict.fromkeys(
        [name for name in ROUND if name != "aggregate"], "reused"
    )
    assert hash_path(folder / "reward" / "model") == before


def test_a_second_round_starts_where_the_first_ended(copy: Path) -> None:
    champion = copy / "registry" / "champion.json"
    policy = copy / "rounds" / "001" / "ppo" / "policy"
    champion.parent.mkdir(exist_ok=True)
    champion.write_text(json.dumps({"round": 1, "promoted": True, "policy": "rounds/001/ppo/policy"}))
    done = rlaif("run", "--workspace", str(copy), "--set", "ppo.updates=1")
    assert done.returncode == 0, done.stderr
    value = status(copy)
    assert value["round"] == 2
    assert value["stages"]["sft"]["state"] == "skipped"
    manifest = read_manifest(copy / "rounds" / "002" / "sample")
    assert manifest is not None
    assert manifest.inputs["policy"][0]["value"] == str(policy)
    replayed = read_manifest(copy / "rounds" / "002" / "reward")
    assert replayed is not None
    assert len(replayed.inputs["preferences"]) == 2


def test_interrupted_and_killed_runs_go_on(tmp_path: Path) -> None:
    """Ctrl-C during a stage, SIGKILL during another; the third run ends the same round."""
    workspace = tmp_path / "w"
    command = [sys.executable, "-m", "flows", "run", "demo", "--workspace", str(workspace), *small_settings()]

    def run_until(started: str, sign: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell starts background jobs with Ctrl-C ignored, and children inherit that: here it must arrive.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        journal = workspace / "rounds" / "001" / "journal.jsonl"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            if journal.exists() and f'"started", "stage": "{started}"' in journal.read_text():
                break
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
        os.killpg(process.pid, sign)
        process.wait(60)
        return process

    process = run_until("sample", signal.SIGINT)
    assert process.stdout is not None
    said = process.stdout.read()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "rlaif run" in said
    assert run_until("reward", signal.SIGKILL).returncode == -signal.SIGKILL
    assert not (workspace / "rounds" / "001" / "reward").exists()
    done = rlaif("run", "--workspace", str(workspace))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted((workspace / "rounds").iterdir())] == ["001"]
    assert status(workspace)["finished"]


def test_the_same_seed_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    """A round in another place, at another time: preferences, reward model and policy are byte for byte the same."""
    workspace = tmp_path / "again"
    done = rlaif("run", "demo", "--workspace", str(workspace), *small_settings())
    assert done.returncode == 0, done.stderr
    for name in ("aggregate/preferences.parquet", "reward/model", "ppo/policy"):
        assert hash_path(workspace / "rounds" / "001" / name) == hash_path(finished / "rounds" / "001" / name), name


def test_two_runs_at_once_are_told_apart(finished: Path) -> None:
    import fcntl

    with (finished / ".run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = rlaif("run", "--workspace", str(finished))
    assert done.returncode == 1
    assert "Another rlaif run works on" in done.stderr


def test_responses_hold_both_policies(finished: Path) -> None:
    table = pq.read_table(finished / "rounds" / "001" / "evaluate" / "responses.parquet")
    assert set(table.column("policy").to_pylist()) == {"policy", "reference"}
    assert all(0 <= value <= 1 for value in table.column("oracle").to_pylist())


def test_another_architecture_and_a_users_own_prompts(tmp_path: Path) -> None:
    """Swapping the model is a line of the config: Qwen2 with random weights and another chat template, own prompts."""
    import pyarrow as pa
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from store.resources import DATASETS
    from store.schemas import PROMPTS
    from store.tables import write_table

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DATASETS / "tiny" / "models" / "base")
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A:"
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **size,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    rows = [
        {"prompt_id": f"mine-{i}", "prompt": f"What is {i} and {i}?", "group": "mine", "split": split}
        for i, split in enumerate(["train"] * 10 + ["heldout"] * 4)
    ]
    write_table(tmp_path / "mine.parquet", PROMPTS, pa.Table.from_pylist(rows))
    settings = small_settings(
        policy="./qwen",
        prompts="mine.parquet",
        demonstrations="null",
        calibration="null",
        oracle="null",
        judges="[tiny-good]",
        # Random weights write gibberish, between which no judge decides: the gate would stop that, and rightly.
        **{"audit.mode": "off", "evaluate.splits": "[heldout]", "ppo.decoding.max_new_tokens": 8},
        **{"aggregate.gate.max_label_entropy": 1},
    )
    done = rlaif("run", "demo", "--workspace", "w", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    value = status(tmp_path / "w")
    assert value["stages"]["sft"]["state"] == "skipped"
    assert value["metrics"]["expected_reward_policy"] is None
    assert value["metrics"]["win_rate"] is not None
    saved = json.loads((tmp_path / "w" / "rounds" / "001" / "ppo" / "policy" / "config.json").read_text())
    assert saved["model_type"] == "qwen2"


def test_a_killed_stage_process_is_tried_again(copy: Path) -> None:
    """As the kernel kills it for want of memory: the flow goes on by itself, and the journal says why."""
    import psutil

    folder = copy / "rounds" / "001"
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "reward")
    command = [sys.executable, "-m", "flows", "run", "--workspace", str(copy), "--set", "retry.delay_s=0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    victim = None
    deadline = time.monotonic() + 300
    while victim is None and time.monotonic() < deadline and process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                line = child.cmdline()
            except psutil.Error:
                continue
            if line[1:3] == ["-m", "flows.processes.worker"] and '"stage": "reward"' in line[3]:
                victim = child
        time.sleep(0.05)
    assert victim is not None, process.communicate()[0]
    victim.kill()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    mine = [event for event in events if event.get("stage") == "reward"][-4:]
    assert [event["event"] for event in mine] == ["started", "failed", "started", "finished"]
    assert "killed by SIGKILL" in mine[1]["error"]
    assert status(copy)["stages"]["reward"]["attempts"] == 3


def test_a_wrong_config_is_not_tried_again(copy: Path) -> None:
    """What is wrong is as wrong the second time: one attempt, one sentence, exit code 2."""
    folder = copy / "rounds" / "001"
    (folder / "report.html").unlink()
    done = rlaif("run", "--workspace", str(copy), "--set", "sample.splits=[nowhere]")
    assert done.returncode == 2, done.stderr
    assert "no prompts in the split 'nowhere'" in done.stderr
    assert "Traceback" not in done.stderr
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event.get("stage") == "sample"][-2:] == ["started", "failed"]
