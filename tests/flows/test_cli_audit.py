"""`rlaif audit` as a person types it, on real databases and a real server."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from flows.cli import rlaif
from flows.inspection.audited import judges_against_people
from flows.load import load_round
from flows.workspace import Workspace
from store.errors import RlaifError

PASSWORD = "correct horse battery staple"
COMMANDS = [
    *("serve", "import", "export", "status", "backup", "restore", "retain", "migrate"),
    *(f"users {name}" for name in ("add", "disable", "enable", "reset", "list")),
    *(f"tokens {name}" for name in ("create", "list", "revoke")),
]


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "audit.db")


def call(database: str | None, *arguments: str, stdin: str = "") -> Result:
    where = [] if database is None else ["--database", database]
    return CliRunner().invoke(rlaif, ["audit", *arguments, *where], input=stdin)


def done(database: str | None, *arguments: str, stdin: str = "") -> str:
    result = call(database, *arguments, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refused(database: str | None, *arguments: str, stdin: str = "") -> str:
    result = call(database, *arguments, stdin=stdin)
    assert isinstance(result.exception, RlaifError), (result.output, result.exception)
    return str(result.exception)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = {
        "prompt": [f"Question {i}?" for i in range(4)],
        "response_a": [f"First {i}." for i in range(4)],
        "response_b": [f"Second {i}." for i in range(4)],
    }
    pq.write_table(pa.table(rows), tmp_path / "mine.parquet")
    return tmp_path / "mine.parquet"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(rlaif, ["audit", *name.split(), "--help"])
    assert result.exit_code == 0
    assert "--workspace" in result.output
    assert "--database-env" in result.output


def test_accounts_from_first_to_last(database: str) -> None:
    assert "root is there as admin" in done(
        database, "users", "add", "root", "--role", "admin", "--password-stdin", stdin=PASSWORD
    )
    done(database, "users", "add", "ann", "--no-password")
    assert "taken" in refused(database, "users", "add", "ANN", "--no-password")
    assert "12" in refused(database, "users", "add", "bob", "--password-stdin", stdin="short\n")
    assert "--password-stdin" in refused(database, "users", "add", "bob")
    assert "no account 'nobody'" in refused(database, "users", "reset", "nobody", "--password-stdin", stdin=PASSWORD)
    done(database, "users", "reset", "ann", "--password-stdin", stdin=f"{PASSWORD}\n")
    done(database, "users", "disable", "ann")
    assert "last admin" in refused(database, "users", "disable", "root")
    listed = done(database, "users", "list").splitlines()
    assert [line.split()[:4] for line in listed[1:]] == [
        ["ann", "auditor", "disabled", "person"],
        ["root", "admin", "active", "person"],
    ]
    done(database, "users", "enable", "ann")
    assert "active" in done(database, "users", "list").splitlines()[1]


def test_a_password_is_asked_for_twice_and_never_shown(database: str) -> None:
    command = [sys.executable, "-m", "flows", "audit", "users", "add", "ann", "--database", database]
    terminal, other = pty.openpty()
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    seen = b""
    for question in (b"Password:", b"confirmation:"):
        while question not in seen.rsplit(b"\n", 1)[-1]:
            seen += os.read(terminal, 1000)
        time.sleep(0.2)  # the terminal's echo is switched off just after the question
        os.write(terminal, f"{PASSWORD}\n".encode())
    assert process.wait(60) == 0
    seen += os.read(terminal, 1000)
    os.close(terminal)
    assert PASSWORD.encode() not in seen
    assert b"ann is there" in seen


def test_tokens_are_shown_once(database: str) -> None:
    done(database, "users", "add", "ann", "--no-password")
    arguments = ["tokens", "create", "ann", "--label", "laptop", "--scope", "claim"]
    secret = done(database, *arguments).strip()
    assert secret.startswith("rlaif_")
    assert "cannot have a token for export" in refused(database, *arguments, "--scope", "export")
    listed = done(database, "tokens", "list")
    assert secret not in listed
    token = listed.splitlines()[1].split()[0]
    done(database, "tokens", "revoke", token)
    assert "revoked" in done(database, "tokens", "list", "ann")
    assert "no token 'x'" in refused(database, "tokens", "revoke", "x")


def test_items_in_verdicts_out_and_a_backup_between(database: str, pairs: Path, tmp_path: Path) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text("Compare.")
    assert "4 items" in done(database, "import", str(pairs), "--overlap", "2", "--guidelines", str(guide))
    assert "4 items" in done(database, "import", str(pairs), "--overlap", "2", "--guidelines", str(guide)), "again"
    assert "other items or settings" in refused(database, "import", str(pairs))
    assert "does not exist" in refused(database, "import", str(tmp_path / "none.parquet"))
    status = done(database, "status")
    assert "0 of 4" in status
    assert len(status.splitlines()) == 3
    done(database, "backup", str(tmp_path / "copy.db"))
    assert "there already" in refused(database, "backup", str(tmp_path / "copy.db"))
    assert "holds data already" in refused(database, "restore", str(tmp_path / "copy.db"))
    other = str(tmp_path / "other.db")
    done(other, "restore", str(tmp_path / "copy.db"))
    assert done(other, "status").splitlines()[1:] == status.splitlines()[1:]
    for suffix in (".parquet", ".csv"):
        done(database, "export", str(tmp_path / f"v{suffix}"), "--batch", "mine")
    assert pq.read_table(tmp_path / "v.parquet").num_rows == 0
    assert (tmp_path / "v.csv").read_text().startswith('"verdict_id"')
    assert "neither .parquet nor .csv" in refused(database, "export", str(tmp_path / "v.json"))
    assert "no batch 'x'" in refused(database, "export", str(tmp_path / "w.csv"), "--batch", "x")
    assert "0 items" in done(database, "retain", "--days", "0"), "an open batch keeps its texts"
    assert "up to date" in done(database, "migrate")


def test_a_database_that_is_not_there(database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "rlaif audit migrate" in refused(database, "status")
    assert not Path(database).exists(), "looking makes nothing"
    assert "no workspace" in refused(None, "status", "--workspace", str(tmp_path / "none"))
    message = refused("postgresql://u:secret@h/x", "status")
    assert "database_env" in message
    assert "secret" not in message
    assert "AUDIT_URL, which is not set" in refused(None, "status", "--database-env", "AUDIT_URL")
    monkeypatch.setenv("AUDIT_URL", database)
    done(None, "migrate", "--database-env", "AUDIT_URL")
    assert Path(database).is_file()


def test_a_workspace_has_its_own_database(tmp_path: Path) -> None:
    space = Workspace.create(tmp_path / "w")
    space.begin_round(load_round("demo", ["audit.mode=people"]))
    done(None, "users", "add", "ann", "--no-password", "--workspace", str(space.root))
    assert (space.root / "audit.db").is_file()
    with pytest.raises(RlaifError, match="No round of w has selected pairs"):
        judges_against_people(space.root)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "does not know the address"),
        (["--oidc-issuer", "https://id.example.org"], "--oidc-client-id"),
        (["--tls-cert", "none.pem"], "tls_key"),
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], "none.pem does not exist"),
    ],
)
def test_a_server_that_cannot_be_right(database: str, arguments: list[str], sentence: str) -> None:
    assert sentence in refused(database, "serve", *arguments)
    assert not Path(database).exists()


def test_one_command_serves_and_says_how_to_make_the_first_admin(database: str, pairs: Path) -> None:
    done(database, "import", str(pairs))
    command = [sys.executable, "-m", "flows", "audit", "serve", "--database", database, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        done(database, "users", "add", "ann", "--password-stdin", stdin=PASSWORD)
        secret = done(database, "tokens", "create", "ann", "--label", "t", "--scope", "claim").strip()
        headers = {"Authorization": f"Bearer {secret}"}
        claim = httpx.post(f"{address}/api/v1/claim", headers=headers, timeout=30).json()
        assert claim["prompt"].startswith("Question")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert f"rlaif audit users add NAME --role admin --database {database}" in errors
    assert "Traceback" not in errors
