"""Judges at the servers that the fixture `serve` starts."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from .conftest import PROMPT, make_pair
from .fault_server import FaultServer

VERDICT_PROMPT = PROMPT + "\nEnd with VERDICT: <1, 2 or tie>"
PAIRS = [make_pair(number) for number in range(40)]


def served(server: FaultServer, **settings: Any) -> dict[str, Any]:
    """The settings of a judge at this server."""
    own = {"backend": "openai", "model": "big", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY"}
    return own | settings


def assert_no_key(error: BaseException) -> None:
    """Nowhere in the error, its causes or its context, nor in the values of our frames, which a logger may show."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    pending: list[traceback.TracebackException | None] = [told]
    while pending:
        if (one := pending.pop()) is None:
            continue
        pending += [one.__cause__, one.__context__]
        assert "sk-very" not in "".join(one.format_exception_only())
        for frame in one.stack:
            if "tests" not in Path(frame.filename).parts:
                assert "sk-very" not in str(frame.locals), frame
