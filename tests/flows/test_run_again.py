"""Doing a real round again, in part: --from on the real command line, and an export that transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from flows.specs import ROUND
from store.hashing import hash_path
from tests.flows.conftest import rlaif

pytestmark = pytest.mark.slow


def test_from_a_stage_on_a_finished_round_is_made_again(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "workspace"))
    folder = copy / "rounds" / "001"
    # Votes hold latencies, which are never the same twice; what follows from them is.
    same = [name for name in ROUND if name != "evaluate"] + ["evaluate/evaluation.json"]
    before = {name: hash_path(folder / name) for name in same}
    said = rlaif("run", "--workspace", str(copy), "--from", "evaluate", "--dry-run", "--json")
    forecast = json.loads(said.stdout)
    assert [one["stage"] for one in forecast["stages"] if one["run"]] == ["evaluate", "promote"]
    done = rlaif("run", "--workspace", str(copy), "--from", "evaluate")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (copy / "rounds").iterdir()] == ["001"]
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    last = max(i for i, event in enumerate(events) if event["event"] == "redo")
    kinds = {event["stage"]: event for event in events[last:] if "stage" in event}
    again = {name for name, event in kinds.items() if event["event"] == "finished"}
    assert again == {"evaluate", "promote"}
    assert kinds["evaluate"]["reasons"] == ["--from evaluate asks for it"]
    assert {name: hash_path(folder / name) for name in same} == before


def test_an_export_is_loaded_by_transformers_and_answers_as_the_policy(finished: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "model"
    done = rlaif("export", str(out), "--workspace", str(finished), "--round", "1")
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("Say hello.", return_tensors="pt")["input_ids"]
    one, two = (
        AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
        for folder in (out, finished / "rounds" / "001" / "ppo" / "policy")
    )
    assert torch.equal(one, two)
    checked = rlaif("lineage", str(out), "--verify")
    assert checked.returncode == 0, checked.stderr
    assert "Every hash is as recorded." in checked.stdout
    text = (out / "README.md").read_text()
    assert "Judge: `tiny-evaluator`" not in text  # it is no part of what the policy was made from
    assert "by `tiny-evaluator` (fingerprint `" in text
    assert "it was trained with other judges" in text
    assert "Judge: `tiny-good`" in text
