"""A process of one's own for a heavy part, and messages with it: both sides.

A part that needs a process of its own (an engine with its own memory, that can be killed or hang) is a module M that is
started as `python -m M IN OUT`, two file descriptors of pipes. Messages are JSON behind their length. What M prints
goes to a log, which is kept only where the process failed.

Neither side outlives the other: the child is the leader of a process group, which `Child.end` kills whole; and when
the parent dies, however suddenly, the pipe closes, and `hear` ends the child's group from within.
"""

from __future__ import annotations

import json
import os
import queue
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from store.errors import RlaifError, TransientError, UsageError

GRACE_S = 10.0
"""How long a child that is to end may take for it by itself, so that its workers and shared memory are put away."""

Message = dict[str, Any]

_LENGTH = struct.Struct(">Q")
_EXCEPTION = re.compile(r"\b\w+(?:Error|Exception)\b.*")
_KINDS: dict[str, type[RlaifError]] = {"usage": UsageError, "transient": TransientError}


class Child:
    """The parent's side. `name` is how sentences call the process.

    Raises TransientError, in one sentence, where the process died, was killed, or said nothing for too long; it is then
    ended with its whole group. An error that the child reports by itself is raised as what it said it is.
    """

    def __init__(self, module: str, environment: Mapping[str, str], name: str) -> None:
        self.name = name
        self._failed = False
        descriptor, path = tempfile.mkstemp(prefix="rlaif-child-", suffix=".log")
        self.log = Path(path)
        its_in, to = os.pipe()
        self._from, its_out = os.pipe()
        self._to = os.fdopen(to, "wb")
        try:
            with os.fdopen(descriptor, "wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, str(its_in), str(its_out)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    pass_fds=(its_in, its_out),
                    start_new_session=True,
                )
        finally:
            os.close(its_in)
            os.close(its_out)

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    def ask(self, message: Message, timeout_s: float, on_message: Callable[[Message], None] | None = None) -> Message:
        """Send, and return the first message that has the key "end".

        on_message: told each one before it. timeout_s: how long the process may say nothing.
        """
        self.send(message)
        while True:
            reply = self.receive(timeout_s)
            if "end" in reply:
                return reply
            if on_message is not None:
                on_message(reply)

    def send(self, message: Message) -> None:
        if self._to.closed:
            raise TransientError(f"{self.name} has ended already: start it again.")
        # An OSError says that the process has ended; what it said last, or its log, tells why.
        with suppress(OSError):
            write(self._to, message)

    def receive(self, timeout_s: float) -> Message:
        head = self._read(_LENGTH.size, timeout_s)
        message: Message = json.loads(self._read(_LENGTH.unpack(head)[0], timeout_s))
        if "error" in message:
            self._fail()
            raise _KINDS.get(message.get("kind", ""), RlaifError)(f"{self.name}: {message['error']}")
        return message

    def end(self, patience_s: float = GRACE_S + 5) -> None:
        """Close the pipes, give it so long to end by itself, and kill what is left of its group."""
        with suppress(OSError):
            self._to.close()
        with suppress(OSError):
            os.close(self._from)
        self._from = -1
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if not self._failed:
            self.log.unlink(missing_ok=True)

    def _read(self, count: int, timeout_s: float) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            if not select.select([self._from], [], [], timeout_s)[0]:
                raise self._failure(
                    f"said nothing for {timeout_s:g} s and was ended", "raise its timeout if it is slow"
                )
            part = os.read(self._from, min(count - len(parts), 1 << 20))
            if not part:
                raise self._explained()
            parts += part
        return bytes(parts)

    def _explained(self) -> RlaifError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        code = self._process.poll()
        if code == -signal.SIGKILL:
            return self._failure("was killed, most often for want of memory", "give it more, or let it use less")
        if code is not None and code < 0:
            return self._failure(f"was ended by {signal.Signals(-code).name}", "run again")
        return self._failure("stopped", "correct what its log names")

    def _failure(self, what: str, remedy: str) -> RlaifError:
        words = last_words(self.log)
        said = f" ({words})" if words else ""
        self._fail()
        return TransientError(f"{self.name} {what}{said}: {remedy}; its log is {self.log}.")

    def _fail(self) -> None:
        self._failed = True
        self.end(patience_s=0)


def last_words(log: Path) -> str:
    """The last exception in a log, or its last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    for line in reversed(lines):
        if found := _EXCEPTION.search(line):
            return found.group()[:300].rstrip(".:")
    return lines[-1][:300].rstrip(".:") if lines else ""


def write(stream: BinaryIO, message: Message) -> None:
    body = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def read(stream: BinaryIO) -> Message | None:
    """The next message; None where the other side is gone, also in the middle of one."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    if len(body) < length:
        return None
    message: Message = json.loads(body)
    return message


def serve(work: Callable[[queue.Queue[Message | None], BinaryIO], None], at_end: Callable[[], None]) -> int:
    """The child's side: `work(inbox, replies)` until the inbox holds None, the parent's end. Returns the exit code.

    at_end: called when the parent is gone, also in the middle of the work, before the group is ended.
    """
    incoming, outgoing = (int(number) for number in sys.argv[1:])
    for number in (incoming, outgoing):
        # A further process that kept an end would hide this one's death from the parent, and the reverse.
        os.set_inheritable(number, False)
    inbox: queue.Queue[Message | None] = queue.Queue()
    threading.Thread(target=_hear, args=(os.fdopen(incoming, "rb"), inbox, at_end), daemon=True).start()
    replies = os.fdopen(outgoing, "wb")
    try:
        work(inbox, replies)
    except BrokenPipeError:
        return 1
    except RlaifError as error:
        kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), "")
        write(replies, {"error": str(error), "kind": kind})
        return error.exit_code
    return 0


def _hear(stream: BinaryIO, inbox: queue.Queue[Message | None], at_end: Callable[[], None]) -> None:
    while (message := read(stream)) is not None:
        inbox.put(message)
    inbox.put(None)
    at_end()
    time.sleep(GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)
