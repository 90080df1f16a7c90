"""A real HTTP server that speaks chat completions and answers by what it is shown, for tests of whole judges."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | Mapping[str, float] | None
"""A text; or token -> probability of the first token; or None for a status 400, which no repetition mends."""


class Answering:
    """A context manager. `shown`: the messages so far. A call takes as many tokens as it has words, and gives 2."""

    def __init__(self, answer: Callable[[str], Answer]) -> None:
        self.shown: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                text = body["messages"][0]["content"]
                outer.bodies.append(body)
                outer.shown.append(text)
                found = answer(text)
                data = json.dumps(_completion(found, len(text.split())) if found is not None else {"error": "no"})
                self.send_response(200 if found is not None else 400)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data.encode())))
                self.end_headers()
                self.wfile.write(data.encode())

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Answering:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *about: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _completion(answer: str | Mapping[str, float], words: int) -> dict[str, Any]:
    text = answer if isinstance(answer, str) else max(answer, key=lambda token: answer[token])
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if not isinstance(answer, str):
        listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in answer.items()]
        choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    usage = {"prompt_tokens": words, "completion_tokens": 2}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}
