"""A real HTTP server on this machine that records what it is asked and fails in every way that servers do."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Answer:
    """`how`: send it; never answer; send a byte now and then; reset the connection; break off within the body."""

    status: int = 200
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    how: Literal["send", "hang", "drip", "reset", "break off"] = "send"


Script = Callable[[int, dict[str, Any]], Answer]


def completion(content: str = "1", top: list[tuple[str, float]] | None = None, **choice: Any) -> Answer:
    """A well-formed chat completion; `top`: tokens and probabilities."""
    whole: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    if top is not None:
        listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in top]
        whole["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    usage = {"prompt_tokens": 30, "completion_tokens": 2}
    body = {"id": "x", "object": "chat.completion", "choices": [whole | choice], "usage": usage}
    return Answer(text=json.dumps(body))


GOOD = completion("1", [("1", 0.6), (" 2", 0.2), ("Ġ1", 0.1), ("The", 0.1)])
GOOD_WORDS = completion("They differ.\nVERDICT: 2")
REFUSAL = completion("", message={"role": "assistant", "content": None, "refusal": "I will not."})

FAULTS: dict[str, Answer] = {
    "429 with Retry-After": Answer(429, "slow down", {"Retry-After": "0.01"}),
    "429": Answer(429, '{"error": {"message": "slow down"}}'),
    "500": Answer(500, "oops"),
    "reset": Answer(how="reset"),
    "hang": Answer(how="hang"),
    "broken off": Answer(text=GOOD.text, how="break off"),
    "truncated": Answer(text=GOOD.text[: len(GOOD.text) // 2]),
    "html": Answer(text="<html><body>maintenance</body></html>", headers={"Content-Type": "text/html"}),
    "no choices": Answer(text='{"choices": []}'),
    "log-prob shape": completion("1", logprobs={"content": [{"top_logprobs": [{"token": "1"}]}]}),
    "other language": completion("评判：第一个更好", [("评", 0.7), ("第", 0.2)]),
    "refused": REFUSAL,
}
"""Each way to fail. All but the last three may pass when the call is made again."""

SAID = {
    "429 with Retry-After": "status 429: slow down",
    "429": "status 429: slow down",
    "500": "status 500: oops",
    "reset": "no connection",
    "hang": "no answer within",
    "broken off": "broken answer",
    "truncated": "is no JSON",
    "html": "is a web page: '<html><body>maintenance",
    "no choices": "no choices",
    "log-prob shape": "log-probs have another shape",
}
"""What the error of a vote says where the fault stays."""


class FaultServer:
    """Answers the n-th call (from 0) with `script(n, body)`. `flying`: calls being answered; `most`: their maximum."""

    def __init__(self, script: Script, port: int = 0) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.flying = self.most = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._connection, "127.0.0.1", port))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        if self._thread.is_alive():
            self._run(stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # a client that hangs up is part of these tests
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = (line.split(": ", 1) for line in head.splitlines()[1:] if line)
        headers = {name.lower(): value for name, value in fields}
        # A GET, such as a health check, has none.
        body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(headers)
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            return await self._answer(self.script(number, body), writer)
        finally:
            self.flying -= 1

    async def _answer(self, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        if answer.how == "reset":
            # A close that throws away what was not sent: the client gets a reset, not an end.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if answer.how == "hang":
            await asyncio.sleep(3600)
        data = answer.text.encode()
        lines = [f"HTTP/1.1 {answer.status} X", f"Content-Length: {len(data) + 100 * (answer.how == 'drip')}"]
        lines += [f"{name}: {value}" for name, value in {"Content-Type": "application/json", **answer.headers}.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if answer.how == "drip":
            for _ in range(100):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.write(data[: len(data) // 2] if answer.how == "break off" else data)
        await writer.drain()
        if answer.how == "break off":
            writer.close()  # sends what is left, where an abort would not
            await writer.wait_closed()
        return answer.how == "send"
