"""`rlaif audit users` and `rlaif audit tokens`: who may audit, and programs that may."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from typing import Any

import click

from audit.queue.model import Role
from flows.cli.audit_database import database_command, now, open_people
from flows.cli.output import Output
from store.errors import UsageError


@click.group()
def users() -> None:
    """Accounts: auditors answer, leads see progress and settle disagreements, admins see and do all."""


@click.group()
def tokens() -> None:
    """Tokens for programs that use the API."""


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


@database_command(users, "add")
@click.argument("name")
@click.option("--role", type=_role, default="auditor", show_default=True)
@_from_stdin
@click.option("--no-password", is_flag=True, help="For who signs in with tokens or single sign-on alone.")
def add(where: dict[str, Any], name: str, role: str, password_stdin: bool, no_password: bool) -> None:
    """Make the account NAME. The password is asked for twice."""
    password = None if no_password else _password(password_stdin)
    with open_people(where, create=True) as people:
        user = people.add(name, Role(role), password)
    click.echo(f"{user.name} is there as {user.role}.")


@database_command(users, "disable")
@click.argument("name")
def disable(where: dict[str, Any], name: str) -> None:
    """Lock NAME out at once, sessions and tokens included. Verdicts stay."""
    with open_people(where) as people:
        click.echo(f"{people.disable(name).name} is disabled.")


@database_command(users, "enable")
@click.argument("name")
def enable(where: dict[str, Any], name: str) -> None:
    """Let NAME in again."""
    with open_people(where) as people:
        click.echo(f"{people.enable(name).name} is enabled.")


@database_command(users, "reset")
@click.argument("name")
@_from_stdin
def reset(where: dict[str, Any], name: str, password_stdin: bool) -> None:
    """Give NAME a new password and end all sessions."""
    with open_people(where) as people:
        people.get(name)  # an unknown name is said before a password is typed twice
        user = people.reset(name, _password(password_stdin))
    click.echo(f"{user.name} has a new password.")


@database_command(users, "list")
def list_users(where: dict[str, Any]) -> None:
    """List the accounts."""
    with open_people(where) as people:
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


@database_command(tokens, "create")
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

    with open_people(where) as people:
        secret, token = people.create_token(name, label, [Scope(scope) for scope in scopes], timedelta(days=days))
    click.echo(
        f"Token {token.id} of {token.user.name}, until {_day(token.expires_at)}; it is not shown again:", err=True
    )
    click.echo(secret)


@database_command(tokens, "list")
@click.argument("name", required=False)
def list_tokens(where: dict[str, Any], name: str | None) -> None:
    """List the tokens, of NAME or of everybody. Their secrets are not kept."""
    with open_people(where) as people:
        rows = [
            [
                token.id,
                token.user.name,
                token.label,
                " ".join(sorted(token.scopes)),
                "revoked" if token.revoked_at else "expired" if token.expires_at <= now() else "active",
                _day(token.expires_at),
            ]
            for token in people.tokens(name)
        ]
    Output().table(["id", "user", "label", "scopes", "state", "expires"], rows)


@database_command(tokens, "revoke")
@click.argument("token_id")
def revoke_token(where: dict[str, Any], token_id: str) -> None:
    """Revoke a token by its id, from `tokens list`."""
    with open_people(where) as people:
        people.revoke_token(token_id)
    click.echo(f"Token {token_id} is revoked.")


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d}"
