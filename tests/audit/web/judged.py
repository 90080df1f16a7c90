"""Rows of a judges-versus-people table."""

from __future__ import annotations

from audit.estimates import Accuracy
from audit.web.services import JudgeRow


def rows() -> list[JudgeRow]:
    return [
        Accuracy("panel", None, 132, 0, 0.71, 0.86, 0.03, 68, 59, 0.868, 0.77, 0.93),
        Accuracy("tiny-good", "f1", 132, 2, 0.69, 0.83, 0.033, 68, 57, 0.838, 0.73, 0.91),
        Accuracy("tiny-new", "f2", 0, 4, None, None, None, 0, 0, None, None, None),
    ]
