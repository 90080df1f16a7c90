"""Alembic migrations of the queue's database, run by `Database.migrate`."""
