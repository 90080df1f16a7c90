"""A real S3 server on this machine (moto), for tests of workspaces in buckets: the fixture `s3`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest


@dataclass(frozen=True)
class S3:
    """`url`: the endpoint. `env`: what a process needs to reach it."""

    url: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        self._ask("PUT", name)
        return f"s3://{name}"

    def check_rights(self, after: int = 0) -> None:
        """From `after` requests on, only known users with a policy may do anything; -1 lifts it again."""
        count = str(after) if after >= 0 else "1000000000"
        self._ask("POST", "moto-api/reset-auth", count)

    def _ask(self, method: str, path: str, content: str = "") -> None:
        # Not with a library: every environment of the tests loads this file.
        headers = {"Content-Type": "text/plain"}  # else urllib calls it a form, and moto finds nothing in it
        request = Request(f"{self.url}/{path}", content.encode() or None, headers, method=method)
        with urlopen(request, timeout=30) as answer:
            assert answer.status == 200


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    moto = pytest.importorskip("moto.server", reason="pip install 's3fs' 'moto[server]'")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield S3(f"http://{host}:{port}")
    finally:
        server.stop()


@contextmanager
def as_machine(s3: S3, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What this process is with the settings of a machine that has its cache there."""
    with monkeypatch.context() as patch:
        for name, value in {**s3.env, "RLAIF_CACHE": str(cache)}.items():
            patch.setenv(name, value)
        yield
