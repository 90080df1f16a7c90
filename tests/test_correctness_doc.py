"""docs/training/correctness.md names tests that exist, and one for each of the 30 details."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOC = TESTS.parent / "docs" / "training" / "correctness.md"


def test_every_named_test_exists() -> None:
    text = DOC.read_text()
    rows = re.findall(r"^\| (\d+) \|.*$", text, re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 31))
    file = ""
    for name, test in re.findall(r"`([\w/]+\.py)?(?:::(\w+))?`", text):
        file = name or file
        path = TESTS / file
        assert path.is_file(), f"{file} is not there"
        assert not test or f"def {test}(" in path.read_text(), f"{file} has no {test}"
