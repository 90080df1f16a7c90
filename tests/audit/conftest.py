"""Builders of small tables (pairs p0, p1, ... and votes of judges with given order-wise probabilities), and real
databases: an SQLite file and a PostgreSQL server (`RLAIF_TEST_POSTGRES` names another one to use)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
import sqlalchemy as sa

from store.schemas import PAIRS, VOTES
from tests.audit.queue.servers import binaries, postgresql


@pytest.fixture
def make_pairs() -> Callable[[int], pa.Table]:
    def make(n: int) -> pa.Table:
        rows = [
            {
                "pair_id": f"p{i}",
                "prompt_id": f"x{i}",
                "prompt": f"prompt {i}",
                "rollout_a": f"r{i}a",
                "rollout_b": f"r{i}b",
                "response_a": f"first {i}",
                "response_b": f"second {i}",
                "group": "g",
                "split": "train",
                "reference": None,
            }
            for i in range(n)
        ]
        return pa.Table.from_pylist(rows, schema=PAIRS.schema)

    return make


@pytest.fixture
def make_votes() -> Callable[..., pa.Table]:
    """Each vote is (pair, judge, order, p_a), or with a dict of further columns behind."""

    def make(votes: Iterable[tuple[Any, ...]]) -> pa.Table:
        rows = []
        for number, (pair, judge, order, p_a, *rest) in enumerate(votes):
            row = {
                "vote_id": f"v{number}",
                "pair_id": f"p{pair}",
                "prompt_id": f"x{pair}",
                "rollout_a": f"r{pair}a",
                "rollout_b": f"r{pair}b",
                "judge": judge,
                "fingerprint": f"print-{judge}",
                "order": order,
                "status": "scored" if p_a is not None else "abstain",
                "winner": None if p_a is None else "a" if p_a > 0.5 else "b",
                "p_a": p_a,
                "tokens_in": 0,
                "tokens_out": 0,
                "cost": 0.0,
                "latency_s": 0.0,
                "attempts": 1,
            }
            rows.append(row | (rest[0] if rest else {}))
        return pa.Table.from_pylist(rows, schema=VOTES.schema)

    return make


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'rlaif[postgres]'")
    given = os.environ.get("RLAIF_TEST_POSTGRES")
    if given:
        yield given.rstrip("/") + "/"
        return
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql), RLAIF_TEST_POSTGRES unset")
    with postgresql(programs) as url:
        yield url


@pytest.fixture
def new_postgres(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases on the server, dropped at the end."""
    admin = sa.create_engine(
        postgres_server.replace("postgresql://", "postgresql+psycopg://") + "postgres", isolation_level="AUTOCOMMIT"
    )
    names: list[str] = []

    def make() -> str:
        names.append(f"rlaif_{uuid4().hex}")
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {names[-1]}"))
        return postgres_server + names[-1]

    yield make
    with admin.connect() as connection:
        for name in names:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes URLs of empty databases."""
    if request.param == "postgresql":
        make: Callable[[], str] = request.getfixturevalue("new_postgres")
        return make
    return lambda: f"sqlite:///{tmp_path / uuid4().hex}.db"
