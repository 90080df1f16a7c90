"""People: accounts, passwords, sessions and tokens.

Passwords are hashed with argon2id at the least that OWASP's cheat sheet on password storage names (19 MiB, 2 passes, 1
lane): twenty people may log in at once within a small server's memory. Secrets of sessions and tokens have 256 random
bits, so a plain SHA-256 keeps them; the database never holds the secret. There is no default password.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from audit.names import SIMULATED_PREFIX
from audit.queue import replacing
from audit.queue.batches import unmark
from audit.queue.database import Database
from audit.queue.errors import BadInput, NotAllowed, NotFound, Throttled, Unauthenticated
from audit.queue.model import Clock, Role, UserId
from audit.queue.places import log
from audit.queue.tables import api_tokens, login_attempts, sessions, users

_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_PASSWORD = range(12, 1025)
_LONGEST_NAME = 100
_LONGEST_LIFE = timedelta(days=366)
_TOKEN_PREFIX = "rlaif_"  # noqa: S105 - lets scanners of repositories recognise a leaked token
_WRONG = "The name or the password is wrong."
_NO_SESSION = "You are not logged in, or no longer: log in again."
_NO_TOKEN = "The token is unknown, expired or revoked: ask an admin for a new one."  # noqa: S105


class Scope(StrEnum):
    """What an API token may do; never more than its owner's role."""

    CLAIM = "claim"
    SUBMIT = "submit"
    READ = "read"
    EXPORT = "export"
    IMPORT = "import"
    ADMIN = "admin"


SCOPES_OF_ROLE = {
    Role.AUDITOR: frozenset({Scope.CLAIM, Scope.SUBMIT, Scope.READ}),
    Role.LEAD: frozenset({Scope.CLAIM, Scope.SUBMIT, Scope.READ, Scope.EXPORT}),
    Role.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True)
class User:
    """`simulated`: a program that plays an auditor, marked in every table. `quarantined`: the reason, or None."""

    id: UserId
    name: str
    role: Role
    simulated: bool
    disabled: bool
    quarantined: str | None
    created_at: datetime


@dataclass(frozen=True)
class Session:
    """`secret` goes into the cookie; the database holds its hash alone."""

    secret: str
    user: User
    expires_at: datetime


@dataclass(frozen=True)
class Token:
    """An API token without its secret, which is shown once."""

    id: str
    user: User
    label: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True)
class Limits:
    """`session_s`: life of a session. Failed logins within `window_s` seconds: `per_account`, `per_address` at most."""

    session_s: float = 12 * 3600.0
    window_s: float = 900.0
    per_account: int = 10
    per_address: int = 30


class People:
    """Accounts by name. Calls that name an account raise NotFound where there is none."""

    def __init__(self, database: Database, clock: Clock, limits: Limits | None = None) -> None:
        self.database = database
        self._clock = clock
        self._limits = limits or Limits()
        # What unknown names are checked against, so that they take as long as known ones.
        self._nobody = _HASHER.hash(secrets.token_urlsafe())

    def add(self, name: str, role: Role, password: str | None = None, simulated: bool = False) -> User:
        """A new account. Without a password it can only use tokens or OIDC. Raises BadInput for a name that is taken
        (in any case of letters) or not 1 to 100 visible characters, or a password of less than 12 or over 1,024.

        Simulated accounts, and they alone, are named `simulated-...`.
        """
        name = _checked_name(name)
        if name.startswith(SIMULATED_PREFIX) != simulated:
            wanted = "must begin" if simulated else "must not begin"
            raise BadInput(f"The name {name!r} {wanted} with {SIMULATED_PREFIX!r}, which marks programs: change it.")
        hashed = None if password is None else _hash(password)
        with self.database.write() as connection:
            if not self.database.sqlite:
                connection.execute(sa.text("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE"))
            if connection.execute(sa.select(users.c.id).where(users.c.name_key == _key(name))).first():
                raise BadInput(f"The name {name!r} is taken: choose another.")
            now = self._clock()
            row = {
                "name": name,
                "name_key": _key(name),
                "role": Role(role).value,
                "simulated": simulated,
                "password_hash": hashed,
                "created_at": now,
            }
            user = connection.execute(users.insert().values(row).returning(users.c.id)).scalar_one()
            log(connection, now, "user added", user)
            return _user(_row(connection, user))

    def get(self, name: str) -> User:
        with self.database.read() as connection:
            return _user(_named(connection, name))

    def by_id(self, user: UserId) -> User:
        with self.database.read() as connection:
            return _user(_row(connection, user))

    def all(self) -> list[User]:
        """By name."""
        with self.database.read() as connection:
            return [_user(row) for row in connection.execute(sa.select(users).order_by(users.c.name_key))]

    def disable(self, name: str) -> User:
        """No login any more, sessions and tokens revoked; verdicts stay. Raises NotAllowed for the last admin."""
        with self.database.write() as connection:
            row, now = _named(connection, name, lock=True), self._clock()
            _keep_an_admin(connection, row)
            _revoke(connection, row.id, now)
            tokens = api_tokens.update().where(api_tokens.c.user_id == row.id, api_tokens.c.revoked_at.is_(None))
            connection.execute(tokens.values(revoked_at=now))
            return _set(connection, row.id, now, "user disabled", disabled_at=now)

    def enable(self, name: str) -> User:
        """Login is possible again; sessions and tokens stay revoked."""
        with self.database.write() as connection:
            row = _named(connection, name, lock=True)
            return _set(connection, row.id, self._clock(), "user enabled", disabled_at=None)

    def reset(self, name: str, password: str) -> User:
        """A new password; revokes all sessions and lifts a throttle of the account."""
        hashed = _hash(password)
        with self.database.write() as connection:
            row, now = _named(connection, name, lock=True), self._clock()
            _revoke(connection, row.id, now)
            connection.execute(login_attempts.delete().where(login_attempts.c.account == _account(name)))
            return _set(connection, row.id, now, "password reset", password_hash=hashed)

    def set_role(self, name: str, role: Role) -> User:
        """Raises NotAllowed where no admin would be left."""
        with self.database.write() as connection:
            row = _named(connection, name, lock=True)
            if role is not Role.ADMIN:
                _keep_an_admin(connection, row)
            return _set(connection, row.id, self._clock(), "role changed", role=Role(role).value)

    def quarantine(self, name: str, reason: str) -> User:
        """Mark all verdicts of a person, past and future, as in quarantine. They stay, exports carry the mark, and what
        they answered in open batches is asked of others."""
        with self.database.write() as connection:
            row, now = _named(connection, name, lock=True), self._clock()
            marked = _set(connection, row.id, now, "quarantined", quarantined=reason)
            replacing.ask_others(connection, row.id, now)
        with self.database.write() as connection:
            # By itself: who gives a place back holds the batch while waiting for what the above holds.
            unmark(connection)
        return marked

    def release_quarantine(self, name: str) -> User:
        """Their verdicts count again, and others are asked in their stead no more."""
        with self.database.write() as connection:
            row = _named(connection, name, lock=True)
            replacing.count_again(connection, row.id)
            return _set(connection, row.id, self._clock(), "quarantine ended", quarantined=None)

    def login(self, name: str, password: str, address: str, old_secret: str | None = None) -> Session:
        """A fresh session; `old_secret` (a session from before the login) is revoked. Takes the same time for unknown
        names. Raises Unauthenticated, Throttled.

        The attempt is counted before the password is looked at, so that guessing at once is counted too.
        """
        account, place = _account(name), _network(address)
        attempt = self._count_attempt(account, place)
        with self.database.read() as connection:
            row = connection.execute(sa.select(users).where(users.c.name_key == _key(name))).first()
        usable = row is not None and row.password_hash is not None and row.disabled_at is None
        known = row.password_hash if row is not None and usable else self._nobody
        if not _matches(known, password) or row is None or not usable:
            raise Unauthenticated(_WRONG)
        with self.database.write() as connection:
            # Of the address only this attempt: an account of one's own must not open the way to others'.
            connection.execute(login_attempts.delete().where(login_attempts.c.account == account))
            connection.execute(login_attempts.delete().where(login_attempts.c.id == attempt))
            if _HASHER.check_needs_rehash(row.password_hash):
                same = (users.c.id == row.id, users.c.password_hash == row.password_hash)
                connection.execute(users.update().where(*same).values(password_hash=_HASHER.hash(password)))
            return self._open(connection, row.id, old_secret)

    def open_session(self, user: UserId, old_secret: str | None = None) -> Session:
        """A session without a password, for whom an identity provider vouched."""
        with self.database.write() as connection:
            return self._open(connection, user, old_secret)

    def session(self, secret: str) -> Session:
        """Only reads. Raises Unauthenticated."""
        found = sa.select(sessions.c.user_id, sessions.c.expires_at).where(
            sessions.c.hash == _digest(secret),
            sessions.c.revoked_at.is_(None),
            sessions.c.expires_at > self._clock(),
        )
        with self.database.read() as connection:
            row = connection.execute(found).first()
            if row is None:
                raise Unauthenticated(_NO_SESSION)
            user = _user(_row(connection, row.user_id))
        if user.disabled:
            raise Unauthenticated(_NO_SESSION)
        return Session(secret, user, row.expires_at)

    def logout(self, secret: str) -> None:
        with self.database.write() as connection:
            _revoke_secret(connection, secret, self._clock())

    def revoke_sessions(self, user: UserId) -> int:
        """Log a person out everywhere; gives of how many sessions."""
        with self.database.write() as connection:
            return _revoke(connection, user, self._clock())

    def link_oidc(self, name: str, issuer: str, subject: str) -> User:
        """Let an identity provider vouch for an account. Raises BadInput where the identity is another account's."""
        with self.database.write() as connection:
            row = _named(connection, name, lock=True)
            taken = connection.execute(sa.select(users.c.id).where(*_identity(issuer, subject))).scalar()
            if taken not in (None, row.id):
                raise BadInput("This identity is linked to another account: unlink it there first.")
            return _set(connection, row.id, self._clock(), "identity linked", oidc_issuer=issuer, oidc_subject=subject)

    def by_oidc(self, issuer: str, subject: str) -> User:
        """Raises Unauthenticated where the identity is linked to no enabled account."""
        with self.database.read() as connection:
            row = connection.execute(sa.select(users).where(*_identity(issuer, subject))).first()
        if row is None or row.disabled_at is not None:
            raise Unauthenticated("No account here belongs to this identity: ask an admin to link it.")
        return _user(row)

    def create_token(
        self, name: str, label: str, scopes: Iterable[Scope], life: timedelta = timedelta(days=90)
    ) -> tuple[str, Token]:
        """The secret, shown this once, and the token. Raises BadInput for no scopes, scopes beyond the role, or a life
        that is not positive or over a year."""
        asked = frozenset(Scope(scope) for scope in scopes)
        if not timedelta(0) < life <= _LONGEST_LIFE:
            raise BadInput(f"The life of a token, {life}, is not above 0 and at most a year: correct it.")
        secret = _TOKEN_PREFIX + secrets.token_urlsafe(32)
        with self.database.write() as connection:
            user, now = _user(_named(connection, name, lock=True)), self._clock()
            beyond = asked - SCOPES_OF_ROLE[user.role]
            if beyond or not asked:
                what = ", ".join(sorted(beyond)) or "no scope at all"
                raise BadInput(f"The role {user.role} of {user.name!r} cannot have a token for {what}: choose others.")
            token = Token(secrets.token_hex(8), user, label, asked, now, now + life, None)
            connection.execute(
                api_tokens.insert().values(
                    public_id=token.id,
                    hash=_digest(secret),
                    user_id=user.id,
                    label=label,
                    scopes=" ".join(sorted(asked)),
                    created_at=now,
                    expires_at=token.expires_at,
                )
            )
            log(connection, now, "token made", user.id)
            return secret, token

    def tokens(self, name: str | None = None) -> list[Token]:
        """All tokens, of one person or of everybody, newest first; revoked ones too."""
        found = sa.select(api_tokens).order_by(api_tokens.c.created_at.desc(), api_tokens.c.public_id)
        with self.database.read() as connection:
            if name is not None:
                found = found.where(api_tokens.c.user_id == _named(connection, name).id)
            return [_token(row, _user(_row(connection, row.user_id))) for row in connection.execute(found).all()]

    def revoke_token(self, token_id: str) -> None:
        """Raises NotFound."""
        with self.database.write() as connection:
            now = self._clock()
            mine = api_tokens.c.public_id == token_id
            first = sa.func.coalesce(
                api_tokens.c.revoked_at, sa.bindparam("now", now, type_=api_tokens.c.revoked_at.type)
            )
            if not connection.execute(api_tokens.update().where(mine).values(revoked_at=first)).rowcount:
                raise NotFound(f"There is no token {token_id!r}.")
            log(connection, now, "token revoked")

    def authenticate_token(self, secret: str, scope: Scope) -> User:
        """Only reads. Raises Unauthenticated; NotAllowed for a token without the scope or beyond the owner's role."""
        with self.database.read() as connection:
            row = connection.execute(sa.select(api_tokens).where(api_tokens.c.hash == _digest(secret))).first()
            if row is None or row.revoked_at is not None or row.expires_at <= self._clock():
                raise Unauthenticated(_NO_TOKEN)
            user = _user(_row(connection, row.user_id))
        if user.disabled:
            raise Unauthenticated(_NO_TOKEN)
        # The role may have changed since the token was made.
        if scope not in _token(row, user).scopes & SCOPES_OF_ROLE[user.role]:
            raise NotAllowed(f"This token has no scope {scope}: use one that has.")
        return user

    def _count_attempt(self, account: str, place: str) -> int:
        """Enter an attempt as failed; gives its number. Raises Throttled."""
        limits = self._limits
        with self.database.write() as connection:
            if not self.database.sqlite:
                # Attempts that come at once would not see each other's rows.
                for name in (account, place):
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))))
            now = self._clock()
            since = now - timedelta(seconds=limits.window_s)
            connection.execute(login_attempts.delete().where(login_attempts.c.at <= since))
            for column, value, most in (
                (login_attempts.c.account, account, limits.per_account),
                (login_attempts.c.address, place, limits.per_address),
            ):
                found = sa.select(login_attempts.c.at).where(column == value).order_by(login_attempts.c.at.desc())
                times = connection.execute(found.limit(most)).scalars().all()
                if len(times) >= most:
                    wait = max(1, round((times[-1] - since).total_seconds()))
                    raise Throttled(f"Too many failed logins: wait {wait} seconds, or ask an admin to reset you.", wait)
            row = {"at": now, "account": account, "address": place}
            number: int = connection.execute(
                login_attempts.insert().values(row).returning(login_attempts.c.id)
            ).scalar_one()
            return number

    def _open(self, connection: sa.Connection, user: UserId, old_secret: str | None) -> Session:
        now, secret = self._clock(), secrets.token_urlsafe(32)
        row = connection.execute(sa.select(users).where(users.c.id == user).with_for_update(key_share=True)).first()
        if row is None or row.disabled_at is not None:
            raise Unauthenticated(_WRONG)
        if old_secret is not None:
            _revoke_secret(connection, old_secret, now)
        connection.execute(sessions.delete().where(sessions.c.expires_at <= now))
        until = now + timedelta(seconds=self._limits.session_s)
        row_of = {"hash": _digest(secret), "user_id": user, "created_at": now, "expires_at": until}
        connection.execute(sessions.insert().values(row_of))
        log(connection, now, "logged in", user)
        return Session(secret, _user(row), until)


def _checked_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name.strip())
    # Only what can be seen: two people must not look alike because of a zero-width letter.
    plain = all(letter == " " or unicodedata.category(letter)[0] not in "CZ" for letter in name)
    if not (0 < len(name) <= _LONGEST_NAME and plain):
        raise BadInput(f"The name {name!r} is not 1 to {_LONGEST_NAME} visible characters: choose another.")
    return name


def _key(name: str) -> str:
    """What names are compared by. Surrogates, which no stored name has, are made storable for the comparison."""
    folded = unicodedata.normalize("NFKC", name.strip()).casefold()
    return folded.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _hash(password: str) -> str:
    if len(password) not in _PASSWORD:
        raise BadInput(f"The password has {len(password)} characters: use {_PASSWORD.start} to {_PASSWORD.stop - 1}.")
    return _HASHER.hash(_bytes(password))


def _bytes(secret: str) -> bytes:
    return secret.encode("utf-8", "surrogatepass")


def _matches(hashed: str, password: str) -> bool:
    try:
        # A longer one was never set; hashing it would only cost time.
        return _HASHER.verify(hashed, _bytes(password[: _PASSWORD.stop]))
    except (VerificationError, InvalidHashError):
        return False


def _digest(secret: str) -> str:
    return hashlib.sha256(_bytes(secret)).hexdigest()


def _account(name: str) -> str:
    """A hash: a password typed into the field of the name must not be kept."""
    return _digest(_key(name))


def _network(address: str) -> str:
    """The address, or the /64 network of an IPv6 address: one person has as many of these as they like."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return _digest(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)


def _row(connection: sa.Connection, user: UserId) -> Any:
    row = connection.execute(sa.select(users).where(users.c.id == user)).first()
    if row is None:
        raise NotFound("There is no such account.")
    return row


def _named(connection: sa.Connection, name: str, lock: bool = False) -> Any:
    found = sa.select(users).where(users.c.name_key == _key(name))
    row = connection.execute(found.with_for_update(key_share=True) if lock else found).first()
    if row is None:
        raise NotFound(f"There is no account {name!r}.")
    return row


def _user(row: Any) -> User:
    return User(
        row.id,
        row.name,
        Role(row.role),
        row.simulated,
        row.disabled_at is not None,
        row.quarantined,
        row.created_at,
    )


def _token(row: Any, user: User) -> Token:
    scopes = frozenset(Scope(scope) for scope in row.scopes.split())
    return Token(row.public_id, user, row.label, scopes, row.created_at, row.expires_at, row.revoked_at)


def _set(connection: sa.Connection, user: int, now: datetime, event: str, **values: Any) -> User:
    connection.execute(users.update().where(users.c.id == user).values(**values))
    log(connection, now, event, user)
    return _user(_row(connection, user))


def _identity(issuer: str, subject: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return users.c.oidc_issuer == issuer, users.c.oidc_subject == subject


def _keep_an_admin(connection: sa.Connection, row: Any) -> None:
    admins = sa.select(users.c.id).where(users.c.role == Role.ADMIN.value, users.c.disabled_at.is_(None))
    # Locked in one order, so that two admins who disable each other do not both succeed.
    left = connection.execute(admins.order_by(users.c.id).with_for_update()).scalars().all()
    if list(left) == [row.id]:
        raise NotAllowed(f"{row.name!r} is the last admin: make another one first.")


def _revoke(connection: sa.Connection, user: int, now: datetime) -> int:
    open_ones = (sessions.c.user_id == user, sessions.c.revoked_at.is_(None))
    return connection.execute(sessions.update().where(*open_ones).values(revoked_at=now)).rowcount


def _revoke_secret(connection: sa.Connection, secret: str, now: datetime) -> None:
    mine = (sessions.c.hash == _digest(secret), sessions.c.revoked_at.is_(None))
    connection.execute(sessions.update().where(*mine).values(revoked_at=now))
