"""A stand-in for a judge's server: chat completions over HTTP/1.1, each after a fixed latency, at little cost of CPU.

Run as a process of its own, so that client and server share no interpreter: `python benchmarks/judging_server.py`
prints its address on the first line. A GET tells the most requests that were in flight at a time, how many were
answered, and the seconds from the first request to the last answer, and starts counting again. What it answers depends
on the request alone: log-probs where they are asked for, else a verdict and ratings as prose, so that each client under
test finds what it parses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_END = b"\r\n\r\n"
_PROSE = (
    "#### Output for Text 1\\nRating: {one}\\nRationale: It answers the question.\\n\\n"
    "#### Output for Text 2\\nRating: {two}\\nRationale: It wanders off.\\nVERDICT: {verdict}"
)


def _completion(choice: dict[str, Any]) -> bytes:
    body = {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [{"index": 0, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 1, "total_tokens": 301},
    }
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def _logprobs(p_first: float) -> bytes:
    rest = [(f"token{number}", 0.01 / 18) for number in range(18)]
    listed = [
        {"token": t, "logprob": math.log(p), "bytes": None} for t, p in [("1", p_first), ("2", 0.99 - p_first), *rest]
    ]
    content = {"role": "assistant", "content": "1" if p_first > 0.5 else "2"}
    return _completion({"message": content, "logprobs": {"content": [{**listed[0], "top_logprobs": listed}]}})


def _prose(first: bool) -> bytes:
    one, two, verdict = (5, 2, 1) if first else (2, 5, 2)
    text = _PROSE.format(one=one, two=two, verdict=verdict).replace("\\n", "\n")
    return _completion({"message": {"role": "assistant", "content": text}})


LOGPROBS = [_logprobs(0.005 + 0.98 * number / 99) for number in range(100)]
PROSE = [_prose(True), _prose(False)]


class Chat(asyncio.Protocol):
    """One connection. Requests on it come one after the other, as HTTP clients without pipelining send them."""

    latency_s = 0.2
    now = peak = answered = 0
    first = last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.data = transport, b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(_END)
        if not end:
            return
        if head.startswith(b"GET"):
            self.data = b""
            seconds = Chat.last - Chat.first
            told = json.dumps({"peak": Chat.peak, "answered": Chat.answered, "seconds": seconds}).encode()
            Chat.peak = Chat.answered = 0
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told)  # type: ignore[attr-defined]
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length):
            return
        self.data = b""
        # Of the whole request: the same question gets the same answer.
        chance = zlib.crc32(body)
        asked = b'"logprobs": true' in body or b'"logprobs":true' in body
        answer = LOGPROBS[chance % 100] if asked else PROSE[chance % 2]
        Chat.now += 1
        Chat.peak = max(Chat.peak, Chat.now)
        if not Chat.answered and Chat.now == 1:
            Chat.first = asyncio.get_running_loop().time()
        asyncio.get_running_loop().call_later(self.latency_s, self._answer, answer)

    def _answer(self, answer: bytes) -> None:
        Chat.now -= 1
        Chat.answered += 1
        Chat.last = asyncio.get_running_loop().time()
        if not self.transport.is_closing():
            self.transport.write(answer)  # type: ignore[attr-defined]


async def serve(latency_s: float) -> None:
    Chat.latency_s = latency_s
    server = await asyncio.get_running_loop().create_server(Chat, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


@contextmanager
def running(latency_s: float) -> Iterator[str]:
    """The server in a process of its own; gives its address, up to and with /v1."""
    command = [sys.executable, str(Path(__file__)), "--latency-s", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield (process.stdout.readline() if process.stdout else "").strip()
        finally:
            process.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-s", type=float, default=0.2)
    asyncio.run(serve(parser.parse_args().latency_s))
