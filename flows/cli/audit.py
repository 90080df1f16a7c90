"""`rlaif audit`: the server where people compare pairs, its accounts, and its data in and out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from audit.config import AuditConfig
from audit.queue.model import MAX_OVERLAP, Guidelines, Kind, Role
from flows.cli.output import Output
from store.config import parse
from store.errors import UsageError
from store.hashing import hash_file

if TYPE_CHECKING:
    from audit.queue.database import Database
    from audit.queue.people import People

F = TypeVar("F", bound=Callable[..., Any])


def _now() -> datetime:
    return datetime.now(UTC)


def _where(function: F) -> F:
    """The options that say which database is meant."""
    for option in (
        click.option(
            "--database-env", metavar="NAME", help="Environment variable that holds its URL, for one with a password."
        ),
        click.option("--database", help="SQLite file, or URL without a password, in place of the workspace's."),
        click.option(
            "--workspace",
            type=click.Path(path_type=Path),
            default=Path("workspace"),
            show_default=True,
            envvar="RLAIF_WORKSPACE",
            help="Workspace whose queue is meant.",
        ),
    ):
        function = option(function)
    return function


def _url(workspace: Path, database: str | None, database_env: str | None) -> str:
    if database is None and database_env is None:
        from flows.inspection.audited import workspace_database  # loads scipy

        return workspace_database(workspace)
    from audit.loop import database_url

    given = {"database": database, "database_env": database_env}
    return database_url(parse(AuditConfig, given, source="--database"))


@contextmanager
def _open(where: dict[str, Any], create: bool = False) -> Iterator[Database]:
    """The database; `create` makes or migrates it, which only commands do that put something in."""
    from audit.queue.database import Database

    database = Database(_url(**where))
    try:
        if create:
            database.migrate()
        else:
            database.check_version()
        yield database
    finally:
        database.close()


@contextmanager
def _people(where: dict[str, Any], create: bool = False) -> Iterator[People]:
    from audit.queue.people import People

    with _open(where, create) as database:
        yield People(database, _now)


def _command(group: click.Group, name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command of `group` with the options of `_where`, given to the function as the dict `where`."""

    def decorate(function: Callable[..., None]) -> click.Command:
        def call(workspace: Path, database: str | None, database_env: str | None, **given: Any) -> None:
            function({"workspace": workspace, "database": database, "database_env": database_env}, **given)

        return group.command(name)(_where(update_wrapper(call, function)))

    return decorate


@click.group()
def audit() -> None:
    """Let people compare pairs: serve the pages, make accounts, move items and verdicts in and out."""


@audit.group()
def users() -> None:
    """Accounts: auditors answer, leads see progress and settle disagreements, admins see and do all."""


@audit.group()
def tokens() -> None:
    """Tokens for programs that use the API."""


@_command(audit, "serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8321, show_default=True, help="0 picks a free one.")
@click.option("--public-url", help="Where people reach it, such as https://audit.example.org; needed off this machine.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain (PEM), to serve https itself.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="The certificate's private key (PEM).")
@click.option("--trusted-proxy", metavar="ADDRESS", help="Reverse proxy whose X-Forwarded headers are believed.")
@click.option("--title", default="Audit", show_default=True, help="Shown at the top of the pages.")
@click.option("--webhook-url", help="Called when a batch reaches its quota.")
@click.option("--oidc-issuer", help="Single sign-on: the identity provider's URL.")
@click.option("--oidc-client-id", help="Single sign-on: the client's id.")
@click.option("--oidc-secret-env", metavar="NAME", help="Single sign-on: variable that holds the client's secret.")
def serve(
    where: dict[str, Any],
    host: str,
    port: int,
    public_url: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    trusted_proxy: str | None,
    title: str,
    webhook_url: str | None,
    oidc_issuer: str | None,
    oidc_client_id: str | None,
    oidc_secret_env: str | None,
) -> None:
    """Serve the pages and the API until interrupted. With PREFECT_API_URL set, that server is told of each quota, so
    that the round that waits goes on."""
    from audit.web.serve import serve as start
    from audit.web.settings import Oidc, WebSettings
    from flows.launch.quota import quota_event

    oidc = None
    if oidc_issuer or oidc_client_id or oidc_secret_env:
        if not (oidc_issuer and oidc_client_id and oidc_secret_env):
            raise UsageError("Single sign-on needs all of --oidc-issuer, --oidc-client-id and --oidc-secret-env.")
        oidc = Oidc(oidc_issuer, oidc_client_id, oidc_secret_env)
    settings = WebSettings(
        _url(**where),
        host=host,
        port=port,
        public_url=public_url,
        trusted_proxy=trusted_proxy,
        title=title,
        webhook_url=webhook_url,
        oidc=oidc,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    with _people(where, create=True) as people:
        if not any(user.role is Role.ADMIN and not user.disabled for user in people.all()):
            command = f"rlaif audit users add NAME --role admin{_same(where)}"
            click.echo(f"There is no admin yet. Make the first one with: {command}", err=True)
    judges = None
    if not (where["database"] or where["database_env"]):
        from flows.inspection.audited import judges_against_people

        judges = partial(judges_against_people, where["workspace"])
    start(settings, judges, announce=quota_event())


def _same(where: dict[str, Any]) -> str:
    """The options that name the same database again."""
    given = {"--database": where["database"], "--database-env": where["database_env"]}
    named = [f" {option} {value}" for option, value in given.items() if value]
    return "".join(named) or f" --workspace {where['workspace']}"


# people


def _password(from_stdin: bool) -> str:
    """Asked twice without showing it, or a line of standard input; never an argument, which others could see."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask for a password: give it on standard input, --password-stdin.")
    password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    return password


_from_stdin = click.option("--password-stdin", is_flag=True, help="Read the password from a line of standard input.")
_role = click.Choice([role.value for role in Role])


@_command(users, "add")
@click.argument("name")
@click.option("--role", type=_role, default="auditor", show_default=True)
@_from_stdin
@click.option("--no-password", is_flag=True, help="For who signs in with tokens or single sign-on alone.")
def add(where: dict[str, Any], name: str, role: str, password_stdin: bool, no_password: bool) -> None:
    """Make the account NAME. The password is asked for twice."""
    password = None if no_password else _password(password_stdin)
    with _people(where, create=True) as people:
        user = people.add(name, Role(role), password)
    click.echo(f"{user.name} is there as {user.role}.")


@_command(users, "disable")
@click.argument("name")
def disable(where: dict[str, Any], name: str) -> None:
    """Lock NAME out at once, sessions and tokens included. Verdicts stay."""
    with _people(where) as people:
        click.echo(f"{people.disable(name).name} is disabled.")


@_command(users, "enable")
@click.argument("name")
def enable(where: dict[str, Any], name: str) -> None:
    """Let NAME in again."""
    with _people(where) as people:
        click.echo(f"{people.enable(name).name} is enabled.")


@_command(users, "reset")
@click.argument("name")
@_from_stdin
def reset(where: dict[str, Any], name: str, password_stdin: bool) -> None:
    """Give NAME a new password and end all sessions."""
    with _people(where) as people:
        people.get(name)  # an unknown name is said before a password is typed twice
        user = people.reset(name, _password(password_stdin))
    click.echo(f"{user.name} has a new password.")


@_command(users, "list")
def list_users(where: dict[str, Any]) -> None:
    """List the accounts."""
    with _people(where) as people:
        rows = [
            [
                user.name,
                user.role.value,
                "disabled" if user.disabled else "quarantined" if user.quarantined is not None else "active",
                "simulated" if user.simulated else "person",
                _day(user.created_at),
            ]
            for user in people.all()
        ]
    Output().table(["name", "role", "state", "kind", "since"], rows)


@_command(tokens, "create")
@click.argument("name")
@click.option("--label", required=True, help="What it is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(["claim", "submit", "read", "export", "import", "admin"]),
    help="What it may do; once for each.",
)
@click.option("--days", type=click.IntRange(1, 366), default=90, show_default=True, help="Days until it expires.")
def create_token(where: dict[str, Any], name: str, label: str, scopes: tuple[str, ...], days: int) -> None:
    """Make a token for NAME and print it, this once."""
    from audit.queue.people import Scope

    with _people(where) as people:
        secret, token = people.create_token(name, label, [Scope(scope) for scope in scopes], timedelta(days=days))
    click.echo(
        f"Token {token.id} of {token.user.name}, until {_day(token.expires_at)}; it is not shown again:", err=True
    )
    click.echo(secret)


@_command(tokens, "list")
@click.argument("name", required=False)
def list_tokens(where: dict[str, Any], name: str | None) -> None:
    """List the tokens, of NAME or of everybody. Their secrets are not kept."""
    with _people(where) as people:
        rows = [
            [
                token.id,
                token.user.name,
                token.label,
                " ".join(sorted(token.scopes)),
                "revoked" if token.revoked_at else "expired" if token.expires_at <= _now() else "active",
                _day(token.expires_at),
            ]
            for token in people.tokens(name)
        ]
    Output().table(["id", "user", "label", "scopes", "state", "expires"], rows)


@_command(tokens, "revoke")
@click.argument("token_id")
def revoke_token(where: dict[str, Any], token_id: str) -> None:
    """Revoke a token by its id, from `tokens list`."""
    with _people(where) as people:
        people.revoke_token(token_id)
    click.echo(f"Token {token_id} is revoked.")


# data


@_command(audit, "import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the batch [default: the file's].")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), default="pair", show_default=True)
@click.option("--overlap", type=click.IntRange(1, MAX_OVERLAP), default=1, show_default=True, help="People an item.")
@click.option("--quota", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--guidelines", type=click.Path(path_type=Path), help="Text file that tells auditors how to compare.")
@click.option("--constitution", type=click.Path(path_type=Path), help="Text file of principles beside each pair.")
def import_items(
    where: dict[str, Any],
    file: Path,
    name: str | None,
    kind: str,
    overlap: int,
    quota: float,
    guidelines: Path | None,
    constitution: Path | None,
) -> None:
    """Put the pairs of a parquet FILE before people: prompt with response_a and response_b, or chosen and rejected."""
    from audit.queue.exchange import read_items
    from audit.queue.queue import Queue

    if not file.is_file():
        raise UsageError(f"The file {file} does not exist: check the path.")
    items = read_items(file, Kind(kind))
    texts = Guidelines(*_text(guidelines), *_text(constitution))
    with _open(where, create=True) as database:
        Queue(database, _now).add_batch(name or file.stem, items, overlap, texts, quota)
    click.echo(f"{len(items)} items are in the batch {name or file.stem}.")


@_command(audit, "export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--batch", help="Name or id of one batch [default: all].")
def export(where: dict[str, Any], file: Path, batch: str | None) -> None:
    """Write the verdicts to FILE: .parquet, or .csv in which no cell can act as a formula."""
    from audit.queue.exchange import export_verdicts, write_csv
    from audit.queue.queue import Queue
    from store.tables import VERDICTS, write_table

    if file.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{file} is neither .parquet nor .csv: give it one of these endings.")
    with _open(where) as database:
        known = {name: one.batch_id for one in Queue(database, _now).batches() for name in (one.name, one.batch_id)}
        if batch is not None and batch not in known:
            raise UsageError(f"There is no batch {batch!r}: `rlaif audit status` lists them.")
        table = export_verdicts(database, None if batch is None else known[batch])
    if file.suffix == ".csv":
        write_csv(file, table)
    else:
        write_table(file, VERDICTS, table)
    click.echo(f"{table.num_rows} verdicts are in {file}.")


@_command(audit, "status")
def status(where: dict[str, Any]) -> None:
    """Show the batches and how far they are, and how many people there are."""
    from audit.queue.people import People
    from audit.queue.queue import Queue

    with _open(where) as database:
        batches = Queue(database, _now).batches()
        people = [user for user in People(database, _now).all() if not user.disabled]
        name = database.name
    output = Output()
    output.line(f"{name}: {len(people)} accounts, {sum(user.simulated for user in people)} of them simulated")
    rows = [
        [
            one.name,
            f"{one.pairs_complete} of {one.pairs}",
            one.items - one.pairs,
            one.open,
            one.held,
            one.skips,
            f"{one.quota:g}" + (" reached" if one.quota_reached_at else ""),
            "closed" if one.closed_at else "open",
        ]
        for one in batches
    ]
    if rows:
        columns = ["batch", "pairs done", "gold", "places open", "held", "skips", "quota", "state"]
        output.table(columns, rows, numbers=("gold", "places open", "held", "skips"))


@_command(audit, "backup")
@click.argument("file", type=click.Path(path_type=Path))
def backup(where: dict[str, Any], file: Path) -> None:
    """Write a consistent copy of the database to FILE, while people go on."""
    if file.exists():
        raise UsageError(f"{file} is there already: give a new name, so that no earlier backup is lost.")
    with _open(where) as database:
        database.backup(file)
    click.echo(f"The backup is {file}.")


@_command(audit, "restore")
@click.argument("file", type=click.Path(path_type=Path))
def restore(where: dict[str, Any], file: Path) -> None:
    """Fill an empty database from a backup. One that holds data is left as it is, and said so."""
    from audit.queue.database import Database

    database = Database(_url(**where))
    try:
        database.restore(file)
    finally:
        database.close()
    click.echo(f"{database.name} holds what {file} held.")


@_command(audit, "retain")
@click.option("--days", type=click.IntRange(0), required=True, help="Age since the batch was closed.")
def retain(where: dict[str, Any], days: int) -> None:
    """Delete the prompts and responses of batches that were closed longer ago. Verdicts stay."""
    from audit.queue.retention import forget_texts

    with _open(where) as database:
        count = forget_texts(database, _now, timedelta(days=days))
    click.echo(f"The texts of {count} items are deleted; their verdicts stay.")


@_command(audit, "migrate")
def migrate(where: dict[str, Any]) -> None:
    """Make the tables, or bring them up to this version, data kept."""
    with _open(where, create=True) as database:
        click.echo(f"{database.name} is up to date.")


@audit.command()
def resume() -> None:
    """Resume the rounds that suspended themselves to wait for people; for cron, or behind the quota's webhook.

    Only rounds that run as a Prefect deployment suspend themselves. One that people are still at suspends itself again.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError("PREFECT_API_URL is not set: name the Prefect API that the rounds are deployed on.")
    from flows.prefect_api import prefect_api, quiet_prefect

    home = Path.home() / ".prefect"
    quiet_prefect(home)
    with prefect_api(home):
        from flows.launch.resume import resume_waiting

        click.echo(f"Resumed rounds: {resume_waiting()}")


def _text(path: Path | None) -> tuple[str, str]:
    """A version, made of the content, and the text."""
    if path is None:
        return "", ""
    try:
        return hash_file(path)[:8], path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The file {path} cannot be read ({error}): check the path.") from error


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d}"
