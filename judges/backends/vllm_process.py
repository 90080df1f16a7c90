"""The process of vLLM's engine: `python -m judges.backends.vllm_process IN OUT`; see store.child.

The first message in says what to load; the first one out says that it is loaded. Then each one in is a batch of calls,
and each one out a reply, or the end of a batch. A batch that comes while another is answered replaces it. Whatever the
engine prints goes to stdout and stderr, which are the parent's log of it.
"""

from __future__ import annotations

import queue
import re
import sys
from typing import BinaryIO

from store.child import Message, serve, write

MEMORY = re.compile(
    r"out of memory|OutOfMemory|cannot allocate memory|MemoryError|KV cache|cache blocks|free memory", re.IGNORECASE
)
"""What an error says that is about memory."""

MORE_MEMORY = (
    "give it more (gpu_memory_utilization, tensor_parallel_size, cpu_kv_cache_gib), or lower max_model_len, or "
    "max_num_seqs in engine_args"
)


def _work(inbox: queue.Queue[Message | None], replies: BinaryIO) -> None:
    setup = inbox.get()
    if setup is None:
        return
    # Heavy, and only after somebody listens whether the parent lives.
    from judges.backends.vllm_engine import Engine

    engine = Engine(setup)
    write(replies, {"ready": True, "specials": engine.specials})
    while (batch := inbox.get()) is not None:
        number = batch["batch"]
        for reply in engine.answer(batch["calls"], lambda: not inbox.empty()):
            write(replies, {"batch": number, **reply})
        write(replies, {"batch": number, "end": True})


if __name__ == "__main__":
    sys.exit(serve(_work, lambda: None))
