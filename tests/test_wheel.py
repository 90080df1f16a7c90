"""The wheel carries code, configs and datasets, and works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True, timeout=300)
    (path,) = folder.glob("rlaif-*.whl")
    return path


def test_the_shipped_data_is_inside_and_datasets_stays_free(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("configs/demo.yaml", "configs/judges/tiny-good/judge.yaml", "datasets/tiny/models/base/config.json"):
        assert f"store/shipped/{name}" in names
    assert "flows/report/template.html.j2" in names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"flows", "judges", "audit", "rlhf", "store"}


def test_the_installed_wheel_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    code = (
        "import store.resources as r; from flows.load import load_round; c = load_round('demo');"
        "print(r.ROOT, c.judges, r.resolve(c.prompts))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(target / "store" / "shipped"))
