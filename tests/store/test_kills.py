"""A stage killed by SIGKILL before each single thing that it does to the file system, and then run again."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.config import Config
from store.hashing import hash_path
from store.manifest import damages, read_manifest
from store.stage import Job, Metrics, redo, run_stage

_STEPS = ((os, "replace"), (os, "fsync"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "open"))


class Knobs(Config):
    n: int = 3


def write(job: Job[Knobs]) -> Metrics:
    (job.out / ".shards").mkdir(exist_ok=True)
    (job.out / ".shards" / "0").write_text("work in between")
    (job.out / "folder").mkdir(exist_ok=True)
    (job.out / "folder" / "one.txt").write_text("1" * job.config.n)
    (job.out / "two.txt").write_text("2" * job.config.n)
    return {}


def run(out: Path, n: int = 3) -> None:
    run_stage("s", write, inputs={}, config=Knobs(n=n), seed=1, out=out)


def die_before(number: int, work: Callable[[], None]) -> None:
    """In the child: do the work, but not its `number`-th step."""
    left = number

    def armed(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **named)

        return call

    for module, name in _STEPS:
        setattr(module, name, armed(getattr(module, name)))
    work()


def killed_before(number: int, work: Callable[[], None]) -> bool:
    """Whether the child was killed, and did not come to its end before that."""
    child = multiprocessing.get_context("fork").Process(target=die_before, args=(number, work))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def fresh(out: Path) -> None:
    pass


def of_another_config(out: Path) -> None:
    run(out, n=5)


def damaged(out: Path) -> None:
    run(out)
    (out / "two.txt").unlink()


def set_aside(out: Path) -> None:
    run(out)
    redo(out, "asked for")


@pytest.mark.parametrize("before", [fresh, of_another_config, damaged, set_aside])
def test_a_kill_at_any_step_leaves_nothing_half_and_the_next_run_ends_the_same(
    before: Callable[[Path], None], tmp_path: Path
) -> None:
    run(tmp_path / "alone")
    wanted = hash_path(tmp_path / "alone")
    number = 0
    while True:
        number += 1
        root = tmp_path / str(number)
        root.mkdir()
        before(root / "s")
        if not killed_before(number, lambda out=root / "s": run(out)):  # type: ignore[misc]
            break
        manifest = read_manifest(root / "s")
        if manifest is not None and before is not damaged:
            assert damages(root / "s", manifest) == {}
        run(root / "s")
        assert hash_path(root / "s") == wanted
        assert sorted(path.name for path in (root / "s").iterdir()) == ["folder", "manifest.json", "two.txt"]
        shutil.rmtree(root)
    assert number > 10


def test_a_kill_while_it_is_set_aside_keeps_it_or_not_but_nothing_between(tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        out = tmp_path / str(number)
        run(out)
        if not killed_before(number, lambda out=out: redo(out, "asked for")):  # type: ignore[misc]
            break
        manifest = read_manifest(out)
        assert manifest is None or damages(out, manifest) == {}
        run(out)
        assert damages(out, read_manifest(out)) == {}  # type: ignore[arg-type]
    assert number > 2
