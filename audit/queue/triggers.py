"""Triggers that make the verdicts append-only, whoever connects to the database."""

from __future__ import annotations

from sqlalchemy import Connection

_SAYS = "verdicts are append-only: append a row that supersedes"

# INSERT OR REPLACE deletes what is in its way without firing a delete trigger, so it is met before it inserts.
_SQLITE = [
    "DROP TRIGGER IF EXISTS verdicts_update",
    "DROP TRIGGER IF EXISTS verdicts_delete",
    "DROP TRIGGER IF EXISTS verdicts_replace",
    f"CREATE TRIGGER verdicts_update BEFORE UPDATE ON verdicts BEGIN SELECT RAISE(ABORT, '{_SAYS}'); END",
    f"CREATE TRIGGER verdicts_delete BEFORE DELETE ON verdicts BEGIN SELECT RAISE(ABORT, '{_SAYS}'); END",
    f"""CREATE TRIGGER verdicts_replace BEFORE INSERT ON verdicts
        WHEN EXISTS (SELECT 1 FROM verdicts WHERE id = NEW.id)
          OR EXISTS (SELECT 1 FROM verdicts WHERE public_id = NEW.public_id)
          OR EXISTS (SELECT 1 FROM verdicts WHERE user_id = NEW.user_id AND key = NEW.key)
          OR EXISTS (SELECT 1 FROM verdicts WHERE supersedes = NEW.supersedes)
        BEGIN SELECT RAISE(ABORT, '{_SAYS}'); END""",  # noqa: S608 - no input is in it
]

_POSTGRESQL = [
    f"""CREATE OR REPLACE FUNCTION verdicts_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION '{_SAYS}'; END $$""",
    "DROP TRIGGER IF EXISTS verdicts_change ON verdicts",
    "DROP TRIGGER IF EXISTS verdicts_truncate ON verdicts",
    "CREATE TRIGGER verdicts_change BEFORE UPDATE OR DELETE ON verdicts "
    "FOR EACH ROW EXECUTE FUNCTION verdicts_append_only()",
    "CREATE TRIGGER verdicts_truncate BEFORE TRUNCATE ON verdicts "
    "FOR EACH STATEMENT EXECUTE FUNCTION verdicts_append_only()",
]


def install(connection: Connection) -> None:
    """Create the triggers, or create them again: a migration on SQLite may copy a table and lose them."""
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)
