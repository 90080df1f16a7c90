"""The first schema. Never edited after a release: a change is a new file."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _id() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", _id(), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_key", sa.Text, nullable=False, unique=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("quarantined", sa.LargeBinary),
        sa.Column("password_hash", sa.Text),
        sa.Column("oidc_issuer", sa.Text),
        sa.Column("oidc_subject", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
        sa.UniqueConstraint("oidc_issuer", "oidc_subject", name="users_oidc"),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("user_id", _id(), sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "api_tokens",
        sa.Column("public_id", sa.Text, primary_key=True),
        sa.Column("hash", sa.Text, nullable=False, unique=True),
        sa.Column("user_id", _id(), sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column("label", sa.LargeBinary, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "login_attempts",
        sa.Column("id", _id(), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Index("login_attempts_account", "account", "at"),
        sa.Index("login_attempts_address", "address", "at"),
    )
    op.create_table(
        "batches",
        sa.Column("id", _id(), primary_key=True),
        sa.Column("public_id", sa.Text, nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("quota", sa.Float, nullable=False),
        sa.Column("guidelines_version", sa.Text, nullable=False),
        sa.Column("guidelines", sa.LargeBinary, nullable=False),
        sa.Column("constitution_version", sa.Text, nullable=False),
        sa.Column("constitution", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("closed_at", sa.BigInteger),
        sa.Column("quota_reached_at", sa.BigInteger),
        sa.Column("texts_deleted_at", sa.BigInteger),
    )
    op.create_table(
        "items",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("public_id", sa.Text, nullable=False, unique=True),
        sa.Column("batch_id", _id(), sa.ForeignKey("batches.id"), nullable=False),
        sa.Column("pair_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("gold_winner", sa.Text),
        sa.Column("inclusion_probability", sa.Float),
        sa.Column("group", sa.LargeBinary, nullable=False),
        sa.Column("stratum", sa.LargeBinary, nullable=False),
        sa.Column("reason", sa.LargeBinary, nullable=False),
        sa.Column("words", sa.Integer, nullable=False),
        sa.UniqueConstraint("batch_id", "pair_id", name="items_pair"),
    )
    op.create_table(
        "texts",
        sa.Column("item_id", sa.BigInteger, sa.ForeignKey("items.id"), primary_key=True, autoincrement=False),
        sa.Column("prompt", sa.LargeBinary, nullable=False),
        sa.Column("response_a", sa.LargeBinary, nullable=False),
        sa.Column("response_b", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "slots",
        sa.Column("id", _id(), primary_key=True),
        sa.Column("item_id", sa.BigInteger, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("batch_id", _id(), sa.ForeignKey("batches.id"), nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("user_id", _id(), sa.ForeignKey("users.id")),
        sa.Column("turn", sa.BigInteger),
        sa.Column("claimed_at", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger),
        sa.UniqueConstraint("item_id", "user_id", name="slots_person"),
        sa.Index("slots_batch", "batch_id", "state"),
        sa.Index("slots_user", "user_id", "state"),
        sa.Index(
            "slots_open",
            "priority",
            "position",
            sqlite_where=sa.text("state = 0"),
            postgresql_where=sa.text("state = 0"),
        ),
        sa.Index("slots_lease", "expires_at", sqlite_where=sa.text("state = 1"), postgresql_where=sa.text("state = 1")),
    )
    op.create_table(
        "skips",
        sa.Column("item_id", sa.BigInteger, sa.ForeignKey("items.id"), primary_key=True, autoincrement=False),
        sa.Column("user_id", _id(), sa.ForeignKey("users.id"), primary_key=True, autoincrement=False, index=True),
    )
    op.create_table(
        "cursors",
        sa.Column("user_id", _id(), sa.ForeignKey("users.id"), primary_key=True, autoincrement=False),
        sa.Column("priority", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("position", sa.BigInteger, nullable=False),
    )
    counters = op.create_table(
        "counters",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counters, [{"name": "item", "value": 0}, {"name": "position", "value": 0}])
    op.create_table(
        "verdicts",
        sa.Column("id", _id(), primary_key=True),
        sa.Column("public_id", sa.Text, nullable=False, unique=True),
        sa.Column("item_id", sa.BigInteger, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("user_id", _id(), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("winner", sa.Text),
        sa.Column("shown_left", sa.Text, nullable=False),
        sa.Column("confidence", sa.SmallInteger),
        sa.Column("flaws", sa.LargeBinary, nullable=False),
        sa.Column("comment", sa.LargeBinary, nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("elapsed", sa.Float, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("supersedes", _id(), sa.ForeignKey("verdicts.id"), unique=True),
        sa.UniqueConstraint("user_id", "key", name="verdicts_key"),
        sa.Index("verdicts_item", "item_id", "user_id"),
        sa.Index("verdicts_user", "user_id", "id"),
    )
    op.create_table(
        "events",
        sa.Column("id", _id(), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("user_id", _id(), sa.ForeignKey("users.id")),
        sa.Column("batch_id", _id(), sa.ForeignKey("batches.id")),
        sa.Column("item_id", sa.BigInteger, sa.ForeignKey("items.id")),
        sa.Index("events_item", "item_id", "user_id"),
    )
