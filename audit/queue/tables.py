"""The tables, for queries. What creates them is `migrations/`; a test holds both to be the same.

Text that people or models wrote is stored as bytes: UTF-8 with lone surrogates passed through. PostgreSQL's text takes
no NUL and UTF-8 no lone surrogate, and the queue must give back exactly what it got. Times are integers, microseconds
since 1970 in UTC, so that both databases order and compare them alike.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

OPEN, HELD, DONE, CLOSED, ASIDE = 0, 1, 2, 3, 4
"""States of a slot. ASIDE: answered by a person in quarantine since, and wanted again at another slot."""


def lossless(value: str) -> bytes:
    """The bytes of any Python string, lone surrogates too."""
    return value.encode("utf-8", "surrogatepass")


class Lossless(TypeDecorator[str]):
    """Any string, unchanged."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else lossless(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else bytes(value).decode("utf-8", "surrogatepass")


class Plain(TypeDecorator[str]):
    """Text by which rows are looked up. What no database can hold is spelt out, and so found nowhere."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")


class Moment(TypeDecorator[datetime]):
    """A time with its zone, to the microsecond."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


# SQLite gives numbers by itself to a column of type INTEGER only.
_Id = BigInteger().with_variant(Integer, "sqlite")

METADATA = MetaData()

users = Table(
    "users",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("name", Plain, nullable=False),
    Column("name_key", Plain, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("quarantined", Lossless),
    Column("password_hash", Text),
    Column("oidc_issuer", Plain),
    Column("oidc_subject", Plain),
    Column("created_at", Moment, nullable=False),
    Column("disabled_at", Moment),
    UniqueConstraint("oidc_issuer", "oidc_subject", name="users_oidc"),
)

sessions = Table(
    "sessions",
    METADATA,
    Column("hash", Plain, primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("revoked_at", Moment),
)

api_tokens = Table(
    "api_tokens",
    METADATA,
    Column("public_id", Plain, primary_key=True),
    Column("hash", Plain, nullable=False, unique=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("label", Lossless, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("revoked_at", Moment),
)

login_attempts = Table(
    "login_attempts",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("account", Text, nullable=False),
    Column("address", Text, nullable=False),
    Index("login_attempts_account", "account", "at"),
    Index("login_attempts_address", "address", "at"),
)
"""Failed ones. `account` is a hash: a password typed into the wrong field must not be kept."""

batches = Table(
    "batches",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("public_id", Plain, nullable=False, unique=True),
    Column("name", Plain, nullable=False, unique=True),
    Column("digest", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("quota", Float, nullable=False),
    Column("guidelines_version", Text, nullable=False),
    Column("guidelines", Lossless, nullable=False),
    Column("constitution_version", Text, nullable=False),
    Column("constitution", Lossless, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("closed_at", Moment),
    Column("quota_reached_at", Moment),
    Column("texts_deleted_at", Moment),
)

items = Table(
    "items",
    METADATA,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("public_id", Plain, nullable=False, unique=True),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("pair_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("gold_winner", Text),
    Column("inclusion_probability", Float),
    Column("group", Lossless, nullable=False),
    Column("stratum", Lossless, nullable=False),
    Column("reason", Lossless, nullable=False),
    Column("words", Integer, nullable=False),
    UniqueConstraint("batch_id", "pair_id", name="items_pair"),
)

texts = Table(
    "texts",
    METADATA,
    Column("item_id", ForeignKey("items.id"), primary_key=True, autoincrement=False),
    Column("prompt", Lossless, nullable=False),
    Column("response_a", Lossless, nullable=False),
    Column("response_b", Lossless, nullable=False),
)
"""Apart from the items, so that counting and claiming never read a megabyte, and retention has rows to delete."""

slots = Table(
    "slots",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("user_id", ForeignKey("users.id")),
    Column("turn", BigInteger),
    Column("claimed_at", Moment),
    Column("expires_at", Moment),
    # The law of the overlap: a person has at most one place in an item, however the calls race.
    UniqueConstraint("item_id", "user_id", name="slots_person"),
    Index("slots_batch", "batch_id", "state"),
    Index("slots_user", "user_id", "state"),
    Index("slots_open", "priority", "position", sqlite_where=text("state = 0"), postgresql_where=text("state = 0")),
    Index("slots_lease", "expires_at", sqlite_where=text("state = 1"), postgresql_where=text("state = 1")),
)
"""One row for each answer that is wanted. `turn`: order in which its holder works, the latest undone item first."""

skips = Table(
    "skips",
    METADATA,
    Column("item_id", ForeignKey("items.id"), primary_key=True, autoincrement=False),
    Column("user_id", ForeignKey("users.id"), primary_key=True, autoincrement=False, index=True),
)
"""Who is not to get an item again."""

cursors = Table(
    "cursors",
    METADATA,
    Column("user_id", ForeignKey("users.id"), primary_key=True, autoincrement=False),
    Column("priority", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
)
"""How far a person has looked: no open slot up to this position is for them. See `audit.queue.places`."""

counters = Table(
    "counters",
    METADATA,
    Column("name", Plain, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

verdicts = Table(
    "verdicts",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("public_id", Plain, nullable=False, unique=True),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("winner", Text),
    Column("shown_left", Text, nullable=False),
    Column("confidence", SmallInteger),
    Column("flaws", Lossless, nullable=False),
    Column("comment", Lossless, nullable=False),
    Column("seconds", Float),
    Column("elapsed", Float, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("supersedes", ForeignKey("verdicts.id"), unique=True),
    UniqueConstraint("user_id", "key", name="verdicts_key"),
    Index("verdicts_item", "item_id", "user_id"),
    Index("verdicts_user", "user_id", "id"),
)
"""Append-only, by trigger. `flaws`: JSON list such as ["a: wrong"]. `seconds`: as the page measured, `elapsed`: since
the person's claim or previous verdict, whichever was later, by the queue's clock."""

events = Table(
    "events",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("kind", Text, nullable=False),
    Column("user_id", ForeignKey("users.id")),
    Column("batch_id", ForeignKey("batches.id")),
    Column("item_id", ForeignKey("items.id")),
    Index("events_item", "item_id", "user_id"),
)
"""What happened, without any content."""
