"""`rlaif doctor` says what is there, what is missing, and how to get it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli.doctor import EXTRAS, doctor

ROOT = Path(__file__).resolve().parents[2]


def test_every_extra_it_names_exists() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) <= set(declared)


def test_a_sound_machine_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 0, result.output
    assert "problem" not in result.output
    for subject in ("python", "torch", "prefect", "cpu", "disk", "embedded world"):
        assert f"ok       {subject}" in result.output


def test_a_server_that_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 1
    assert "http://127.0.0.1:9/api/health does not answer" in result.output
