"""The ranges in pyproject.toml and the two sets of versions that the tests run with belong together."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = [
    Requirement(line)
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {package.lower(): version for package, version in pairs}


@pytest.mark.parametrize("file", ["constraints-cpu.txt", "constraints-lowest.txt"])
def test_both_sets_lie_in_the_ranges(file: str) -> None:
    pinned = pins(file)
    for requirement in REQUIREMENTS:
        if (version := pinned.get(requirement.name.lower())) is not None:
            assert version in requirement.specifier, f"{requirement} and {file} {version}"


def test_every_lower_bound_was_tested() -> None:
    lowest = pins("constraints-lowest.txt")
    for requirement in REQUIREMENTS:
        bounds = [part.version for part in requirement.specifier if part.operator == ">="]
        for bound in bounds:
            tested = lowest[requirement.name.lower()]
            assert tested == bound or tested.startswith(f"{bound}."), f"{requirement} was tested with {tested}"
