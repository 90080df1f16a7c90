"""The API against its own description, by schemathesis: no 5xx, and no answer that the description lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.audit.web.world import World, pairs

pytestmark = pytest.mark.slow
schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'rlaif[test]'")


@pytest.mark.parametrize("name", ["root", "ada"])
def test_the_api_answers_as_described(world: Callable[..., World], name: str) -> None:
    from hypothesis import HealthCheck, given, settings

    server = world(pairs(40), overlap=2)
    scopes = ("claim", "submit", "read") if name == "ada" else ("claim", "submit", "read", "export", "import", "admin")
    headers = {"Authorization": f"Bearer {server.token(name, *scopes)}"}
    schema = schemathesis.openapi.from_url(f"{server.url}/api/v1/openapi.json")
    schemathesis.serializer.alias("application/vnd.apache.parquet", "application/octet-stream")
    # What a batch must be goes beyond a schema (a gold item has a winner, a name is used once, a body is parquet).
    beyond = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    seen = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        seen += 1

        @settings(
            max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def run(case: Any) -> None:
            case.call_and_validate(headers=headers, excluded_checks=beyond if "/batches" in case.path else [])

        run()
    assert seen == 18
