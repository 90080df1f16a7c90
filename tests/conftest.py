"""Fixtures for tests of every room."""

from __future__ import annotations

pytest_plugins = ["tests.s3"]
