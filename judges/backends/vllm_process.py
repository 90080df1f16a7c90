"""The process of vLLM's engine: `python -m judges.backends.vllm_process IN OUT`, two file descriptors of pipes.

Messages are JSON behind their length. The first one in says what to load; the first one out says that it is loaded.
Then each one in is a batch of calls, and each one out a reply, or the end of a batch. A batch that comes while another
is answered replaces it. Whatever the engine prints goes to stdout and stderr, which are the parent's log of it.

The parent holds the writing end of IN: when it dies, however suddenly, the pipe closes, and this process ends with all
that it started. No orphan keeps a GPU.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

from store.errors import RlaifError, UsageError

GRACE_S = 10.0
"""How long the engine may take to end by itself, so that its workers and shared memory are put away."""

MEMORY = re.compile(
    r"out of memory|OutOfMemory|cannot allocate memory|MemoryError|KV cache|cache blocks|free memory", re.IGNORECASE
)
"""What an error says that is about memory."""

MORE_MEMORY = (
    "give it more (gpu_memory_utilization, tensor_parallel_size, cpu_kv_cache_gib), or lower max_model_len, or "
    "max_num_seqs in engine_args"
)

_LENGTH = struct.Struct(">Q")

Message = dict[str, Any]


def send(stream: BinaryIO, message: Message) -> None:
    body = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def receive(stream: BinaryIO) -> Message | None:
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


def _listen(stream: BinaryIO, inbox: queue.Queue[Message | None]) -> None:
    while (message := receive(stream)) is not None:
        inbox.put(message)
    inbox.put(None)
    time.sleep(GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _serve(inbox: queue.Queue[Message | None], replies: BinaryIO) -> None:
    setup = inbox.get()
    if setup is None:
        return
    # Heavy, and only after somebody listens whether the parent lives.
    from judges.backends.vllm_engine import Engine

    engine = Engine(setup)
    send(replies, {"ready": True, "specials": engine.specials})
    while (batch := inbox.get()) is not None:
        number = batch["batch"]
        for reply in engine.answer(batch["calls"], lambda: not inbox.empty()):
            send(replies, {"batch": number, **reply})
        send(replies, {"batch": number, "end": True})


def main() -> None:
    incoming, outgoing = (int(number) for number in sys.argv[1:])
    for number in (incoming, outgoing):
        # A worker of the engine that kept an end would hide this process's death from the parent, and the reverse.
        os.set_inheritable(number, False)
    inbox: queue.Queue[Message | None] = queue.Queue()
    threading.Thread(target=_listen, args=(os.fdopen(incoming, "rb"), inbox), daemon=True).start()
    replies = os.fdopen(outgoing, "wb")
    try:
        _serve(inbox, replies)
    except BrokenPipeError:
        sys.exit(1)
    except RlaifError as error:
        send(replies, {"error": str(error), "usage": isinstance(error, UsageError)})
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
