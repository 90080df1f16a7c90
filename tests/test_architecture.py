"""The rooms: imports run downwards only, prefect stays in flows, torch in rlhf and the judges' local backends."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "store": set(),
    "judges": {"store"},
    "audit": {"store"},
    "rlhf": {"store"},
    "flows": {"store", "judges", "audit", "rlhf"},
}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path} imports relatively: name the room")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    names = imported(path)
    assert names & set(ROOMS) <= ROOMS[room] | {room}
    if room != "flows":
        assert "prefect" not in names
    if room in ("store", "audit"):
        assert not names & {"torch", "transformers"}
    if path.parent.name == "stages":
        assert "prefect" not in names


def test_a_forbidden_import_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from flows.round import round_flow\n    import prefect.runtime\n")
    assert imported(path) == {"flows", "prefect"}


def test_datasets_is_no_package() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py"))


def test_no_pickle_between_stages() -> None:
    for path in FILES:
        assert not imported(path) & {"pickle", "dill", "cloudpickle", "joblib"}, path
