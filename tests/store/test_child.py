"""A process of one's own: what it answers, and how its death, its silence and its parent's death are met."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from store.child import Child
from store.errors import RlaifError, TransientError, UsageError

MODULE = """
import os, subprocess, sys, time
from store.child import serve, write
from store.errors import TransientError, UsageError

def work(inbox, replies):
    while (message := inbox.get()) is not None:
        if message["do"] == "echo":
            for number in range(message.get("beats", 0)):
                time.sleep(0.2)
                write(replies, {"done": number + 1})
            write(replies, {"end": True, "said": message["say"]})
        elif message["do"] == "helper":
            helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            write(replies, {"end": True, "pid": helper.pid})
        elif message["do"] == "crash":
            raise ZeroDivisionError("it divided")
        elif message["do"] == "sleep":
            time.sleep(600)
        else:
            raise {"usage": UsageError, "transient": TransientError}[message["do"]]("that cannot be: change it.")

sys.exit(serve(work, lambda: print("the parent is gone", flush=True)))
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Child]]:
    (tmp_path / "a_child.py").write_text(MODULE)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    started: list[Child] = []

    def start() -> Child:
        path = os.pathsep.join([str(tmp_path), *sys.path])
        started.append(Child("a_child", {**os.environ, "PYTHONPATH": path}, "The part"))
        return started[-1]

    yield start
    for child in started:
        child.end(patience_s=0)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_messages_of_any_size(start: Callable[[], Child]) -> None:
    child = start()
    seen: list[dict[str, object]] = []
    for say in ("", "ü" * 10, "x" * 3_000_000):
        reply = child.ask({"do": "echo", "say": say, "beats": 1}, 60, seen.append)
        assert reply["said"] == say
    assert seen == [{"done": 1}] * 3
    child.end()
    assert not child.log.exists()


def test_signs_of_life_keep_it_alive(start: Callable[[], Child]) -> None:
    child = start()
    child.ask({"do": "echo", "say": "it has started"}, 60)
    assert child.ask({"do": "echo", "say": "slow", "beats": 8}, 1.0)["said"] == "slow"


@pytest.mark.parametrize(("kind", "raised"), [("usage", UsageError), ("transient", TransientError)])
def test_its_own_errors_keep_their_kind(start: Callable[[], Child], kind: str, raised: type[RlaifError]) -> None:
    with pytest.raises(raised, match=r"^The part: that cannot be: change it\.$"):
        start().ask({"do": kind}, 60)


def test_a_crash_is_one_sentence_with_its_last_words(start: Callable[[], Child]) -> None:
    child = start()
    with pytest.raises(TransientError, match=r"^The part stopped \(ZeroDivisionError: it divided\): .* its log is "):
        child.ask({"do": "crash"}, 60)
    assert child.log.exists()
    with pytest.raises(TransientError, match="has ended already"):
        child.ask({"do": "echo", "say": ""}, 60)


def test_a_kill_and_a_hang_end_the_whole_group(start: Callable[[], Child]) -> None:
    for how, said in (("kill", "was killed"), ("hang", "said nothing for 0.5 s")):
        child = start()
        helper = child.ask({"do": "helper"}, 60)["pid"]
        if how == "kill":
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(TransientError, match=said):
            child.ask({"do": "sleep"}, 0.5)
        assert gone(child.pid)
        assert gone(helper)


@pytest.mark.slow
def test_it_dies_with_its_parent(start: Callable[[], Child], tmp_path: Path) -> None:
    script = """
        import os, sys, time
        from store.child import Child
        child = Child("a_child", os.environ, "The part")
        helper = child.ask({"do": "helper"}, 60)["pid"]
        child.send({"do": "sleep"})
        print(child.pid, helper, flush=True)
        time.sleep(600)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert any("the parent is gone" in log.read_text() for log in tmp_path.glob("rlaif-child-*.log"))
