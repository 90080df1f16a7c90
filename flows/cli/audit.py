"""`rlaif audit`: the server where people compare pairs, and its data in and out."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click

from audit.queue.model import MAX_OVERLAP, Guidelines, Kind, Role
from flows.cli.audit_accounts import tokens, users
from flows.cli.audit_database import database_command, now, open_database, open_people, url_of
from flows.cli.output import Output
from store.errors import UsageError
from store.hashing import hash_file


@click.group()
def audit() -> None:
    """Let people compare pairs: serve the pages, make accounts, move items and verdicts in and out."""


audit.add_command(users)
audit.add_command(tokens)


@database_command(audit, "serve")
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
        url_of(**where),
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
    with open_people(where, create=True) as people:
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


@database_command(audit, "import")
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
    with open_database(where, create=True) as database:
        Queue(database, now).add_batch(name or file.stem, items, overlap, texts, quota)
    click.echo(f"{len(items)} items are in the batch {name or file.stem}.")


@database_command(audit, "export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--batch", help="Name or id of one batch [default: all].")
def export(where: dict[str, Any], file: Path, batch: str | None) -> None:
    """Write the verdicts to FILE: .parquet, or .csv in which no cell can act as a formula."""
    from audit.queue.exchange import export_verdicts, write_csv
    from audit.queue.queue import Queue
    from store.schemas import VERDICTS
    from store.tables import write_table

    if file.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{file} is neither .parquet nor .csv: give it one of these endings.")
    with open_database(where) as database:
        known = {name: one.batch_id for one in Queue(database, now).batches() for name in (one.name, one.batch_id)}
        if batch is not None and batch not in known:
            raise UsageError(f"There is no batch {batch!r}: `rlaif audit status` lists them.")
        table = export_verdicts(database, None if batch is None else known[batch])
    if file.suffix == ".csv":
        write_csv(file, table)
    else:
        write_table(file, VERDICTS, table)
    click.echo(f"{table.num_rows} verdicts are in {file}.")


@database_command(audit, "status")
def status(where: dict[str, Any]) -> None:
    """Show the batches and how far they are, and how many people there are."""
    from audit.queue.people import People
    from audit.queue.queue import Queue

    with open_database(where) as database:
        batches = Queue(database, now).batches()
        people = [user for user in People(database, now).all() if not user.disabled]
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


@database_command(audit, "backup")
@click.argument("file", type=click.Path(path_type=Path))
def backup(where: dict[str, Any], file: Path) -> None:
    """Write a consistent copy of the database to FILE, while people go on."""
    if file.exists():
        raise UsageError(f"{file} is there already: give a new name, so that no earlier backup is lost.")
    with open_database(where) as database:
        database.backup(file)
    click.echo(f"The backup is {file}.")


@database_command(audit, "restore")
@click.argument("file", type=click.Path(path_type=Path))
def restore(where: dict[str, Any], file: Path) -> None:
    """Fill an empty database from a backup. One that holds data is left as it is, and said so."""
    from audit.queue.database import Database

    database = Database(url_of(**where))
    try:
        database.restore(file)
    finally:
        database.close()
    click.echo(f"{database.name} holds what {file} held.")


@database_command(audit, "retain")
@click.option("--days", type=click.IntRange(0), required=True, help="Age since the batch was closed.")
def retain(where: dict[str, Any], days: int) -> None:
    """Delete the prompts and responses of batches that were closed longer ago. Verdicts stay."""
    from audit.queue.retention import forget_texts

    with open_database(where) as database:
        count = forget_texts(database, now, timedelta(days=days))
    click.echo(f"The texts of {count} items are deleted; their verdicts stay.")


@database_command(audit, "migrate")
def migrate(where: dict[str, Any]) -> None:
    """Make the tables, or bring them up to this version, data kept."""
    with open_database(where, create=True) as database:
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
