"""A server of chat completions that counts its calls, and a process that judges with it until it is killed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONCURRENCY = 8
# The backend's promise: of the calls it pulled, no more than this are not yet journalled.
IN_FLIGHT = 2 * CONCURRENCY


class RecordingServer:
    """Answers the same call always alike, after `delay_s`; `calls`: how often each message came."""

    def __init__(self, delay_s: float = 0.01) -> None:
        self.calls: Counter[str] = Counter()
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                content = body["messages"][0]["content"]
                with lock:
                    outer.calls[content] += 1
                time.sleep(delay_s)
                data = json.dumps(completion(content)).encode()
                try:
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # the caller was killed

            def log_message(self, *arguments: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def completion(content: str) -> dict[str, Any]:
    """Probabilities of 1 and 2 that hang on the message alone."""
    first = 0.02 + 0.96 * int(hashlib.sha256(content.encode()).hexdigest()[:8], 16) / 2**32
    top = [{"token": token, "logprob": math.log(p)} for token, p in (("1", first), ("2", 0.99 - first * 0.99))]
    return {
        "choices": [
            {
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "1"},
                "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
            }
        ],
        "usage": {"prompt_tokens": len(content) // 4, "completion_tokens": 1},
    }


def start(*arguments: Any, module: str = __name__) -> subprocess.Popen[bytes]:
    """`python -m module arguments`, in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kill_after(process: subprocess.Popen[bytes], server: RecordingServer, calls: int) -> bool:
    """SIGKILL once the server has counted so many calls in all; whether it was still running then."""
    while server.calls.total() < calls and process.poll() is None:
        time.sleep(0.001)
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return killed


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output.decode()


def main(judge: str, pairs: str, shards: str, shard_rows: str, out: str) -> None:
    """Judge a table of pairs, journalled, and write the votes."""
    from judges.judge import load_judge
    from judges.pairs import pairs_from_table
    from judges.panel import judge_pairs
    from store.schemas import PAIRS, VOTES
    from store.tables import read_table, write_table

    about: dict[str, Any] = {"shards": Path(shards), "shard_rows": int(shard_rows)}
    votes = judge_pairs([load_judge(judge)], pairs_from_table(read_table(Path(pairs), PAIRS)), seed=3, **about)
    write_table(Path(out), VOTES, votes)


if __name__ == "__main__":
    main(*sys.argv[1:])
