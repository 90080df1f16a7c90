"""Accounts, logins, sessions, tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from audit.queue.database import Database
from audit.queue.errors import BadInput, NotAllowed, NotFound, Throttled, Unauthenticated
from audit.queue.model import Role
from audit.queue.people import SCOPES_OF_ROLE, Limits, People, Scope
from tests.audit.queue.helpers import FakeClock

PASSWORD = "correct horse battery"


def everything(database: Database) -> str:
    with database.read() as connection:
        tables = ["users", "sessions", "api_tokens", "login_attempts", "events"]
        return repr([connection.execute(sa.text(f"SELECT * FROM {name}")).all() for name in tables])


def test_passwords_are_argon2_and_no_secret_is_stored(people: People, database: Database) -> None:
    people.add("Ann", Role.ADMIN, PASSWORD)
    session = people.login("ann", PASSWORD, "10.0.0.1")  # names in any case of letters
    secret, _ = people.create_token("Ann", "script", [Scope.EXPORT])
    with pytest.raises(Unauthenticated):
        people.login("my password by mistake", PASSWORD, "10.0.0.1")
    stored = everything(database)
    assert "$argon2id$" in stored
    for hidden in (PASSWORD, session.secret, secret, secret[6:], "my password by mistake"):
        assert hidden not in stored


def test_login_rotates_and_logout_revokes(people: People, clock: FakeClock) -> None:
    user = people.add("Ann", Role.AUDITOR, PASSWORD)
    first = people.login("Ann", PASSWORD, "a")
    second = people.login("Ann", PASSWORD, "a", old_secret=first.secret)
    assert first.secret != second.secret
    with pytest.raises(Unauthenticated):
        people.session(first.secret)
    assert people.session(second.secret).user == user
    people.logout(second.secret)
    with pytest.raises(Unauthenticated):
        people.session(second.secret)
    third = people.open_session(user.id)
    clock.jump(12 * 3600)
    with pytest.raises(Unauthenticated):
        people.session(third.secret)


@pytest.mark.parametrize("change", ["disable", "reset", "revoke"])
def test_sessions_and_tokens_end_with_the_account(people: People, change: str) -> None:
    people.add("Root", Role.ADMIN, PASSWORD)
    user = people.add("Ann", Role.AUDITOR, PASSWORD)
    session = people.login("Ann", PASSWORD, "a")
    secret, _ = people.create_token("Ann", "script", [Scope.READ])
    if change == "disable":
        people.disable("Ann")
        with pytest.raises(Unauthenticated):
            people.authenticate_token(secret, Scope.READ)
        with pytest.raises(Unauthenticated):
            people.login("Ann", PASSWORD, "a")
        people.enable("Ann")
    elif change == "reset":
        people.reset("Ann", PASSWORD + "2")
        with pytest.raises(Unauthenticated):
            people.login("Ann", PASSWORD, "a")
    else:
        assert people.revoke_sessions(user.id) == 1
    with pytest.raises(Unauthenticated):
        people.session(session.secret)


def test_unknown_wrong_disabled_and_passwordless_look_and_cost_the_same(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal work instead of a measured time: one argon2 verification each, over a hash of the same parameters."""
    people.add("Ann", Role.AUDITOR, PASSWORD)
    people.add("Bob", Role.AUDITOR, PASSWORD)
    people.add("Oidc", Role.AUDITOR)
    people.disable("Bob")
    seen: list[str] = []
    real = people_module().PasswordHasher.verify

    def verify(self: Any, hashed: str, password: bytes) -> Any:
        seen.append(hashed.rsplit("$", 2)[0])
        return real(self, hashed, password)

    monkeypatch.setattr(people_module().PasswordHasher, "verify", verify)
    said = set()
    for name, password in (("Ann", "wrong"), ("Nobody", PASSWORD), ("Bob", PASSWORD), ("Oidc", ""), ("\ud800", "\0")):
        with pytest.raises(Unauthenticated) as caught:
            people.login(name, password, "a")
        said.add(str(caught.value))
    assert len(said) == 1
    assert len(seen) == 5
    assert len(set(seen)) == 1


def people_module() -> Any:
    from audit.queue import people

    return people


def test_throttle_per_account_and_per_address(database: Database, clock: FakeClock) -> None:
    people = People(database, clock, Limits(per_account=3, per_address=5, window_s=100))
    people.add("Ann", Role.AUDITOR, PASSWORD)
    people.add("Bob", Role.AUDITOR, PASSWORD)
    for number in range(3):
        with pytest.raises(Unauthenticated):
            people.login("Ann", "wrong", f"10.0.0.{number}")
        clock.jump(10)
    with pytest.raises(Throttled) as caught:  # the right password too: guessing must gain nothing
        people.login("ANN", PASSWORD, "10.0.0.9")
    assert caught.value.retry_after == 70
    people.login("Bob", PASSWORD, "10.0.0.9")
    clock.jump(70)
    people.login("Ann", PASSWORD, "10.0.0.9")
    # One network of IPv6 is one place, whatever the names; logging in oneself in between does not clear it.
    for number in range(5):
        with pytest.raises(Unauthenticated):
            people.login(f"guess {number}", "wrong", f"2001:db8::{number}")
        if number < 4:
            people.login("Bob", PASSWORD, "2001:db8::b")
    with pytest.raises(Throttled):
        people.login("Bob", PASSWORD, "2001:db8::b")
    people.login("Bob", PASSWORD, "2001:db8:0:1::b")


def test_reset_lifts_the_accounts_throttle(database: Database, clock: FakeClock) -> None:
    people = People(database, clock, Limits(per_account=1))
    people.add("Ann", Role.AUDITOR, PASSWORD)
    with pytest.raises(Unauthenticated):
        people.login("Ann", "wrong", "a")
    people.reset("Ann", PASSWORD)
    people.login("Ann", PASSWORD, "a")


def test_tokens_have_scopes_an_end_and_no_more_than_the_role(people: People, clock: FakeClock) -> None:
    people.add("Ann", Role.AUDITOR)
    secret, token = people.create_token("Ann", "\0 <script>", [Scope.CLAIM, Scope.SUBMIT], timedelta(days=1))
    assert people.authenticate_token(secret, Scope.CLAIM).name == "Ann"
    with pytest.raises(NotAllowed):
        people.authenticate_token(secret, Scope.READ)
    assert people.tokens("Ann") == people.tokens() == [token]
    for wrong in (secret[:-1], "", "\0", "\ud800"):
        with pytest.raises(Unauthenticated):
            people.authenticate_token(wrong, Scope.CLAIM)
    clock.jump(24 * 3600)
    with pytest.raises(Unauthenticated):
        people.authenticate_token(secret, Scope.CLAIM)
    for scopes, life in (
        ([Scope.EXPORT], timedelta(days=1)),
        ([], timedelta(days=1)),
        ([Scope.READ], timedelta(0)),
        ([Scope.READ], timedelta(days=400)),
    ):
        with pytest.raises(BadInput):
            people.create_token("Ann", "x", scopes, life)


def test_token_follows_the_role_and_is_revocable(people: People) -> None:
    people.add("Ann", Role.LEAD)
    secret, token = people.create_token("Ann", "export", SCOPES_OF_ROLE[Role.LEAD])
    people.authenticate_token(secret, Scope.EXPORT)
    people.set_role("Ann", Role.AUDITOR)
    with pytest.raises(NotAllowed):
        people.authenticate_token(secret, Scope.EXPORT)
    people.authenticate_token(secret, Scope.READ)
    people.revoke_token(token.id)
    first = people.tokens()[0].revoked_at
    people.revoke_token(token.id)
    assert people.tokens()[0].revoked_at == first is not None
    with pytest.raises(Unauthenticated):
        people.authenticate_token(secret, Scope.READ)
    with pytest.raises(NotFound):
        people.revoke_token("\0")


@pytest.mark.parametrize(
    "name", ["", " ", "x" * 101, "a\0b", "a\nb", "a\u200bb", "\u202eevil", "\ud800", "ANN", "Ａnn"]
)
def test_names_that_deceive_are_refused(people: People, name: str) -> None:
    people.add("Ann", Role.AUDITOR)
    with pytest.raises(BadInput):
        people.add(name, Role.AUDITOR)


@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 1025])
def test_bad_passwords_are_refused(people: People, password: str) -> None:
    with pytest.raises(BadInput):
        people.add("Ann", Role.AUDITOR, password)
    assert people.all() == []


def test_simulated_people_are_named_so(people: People) -> None:
    assert people.add("simulated-troll", Role.AUDITOR, simulated=True).simulated
    for name, simulated in (("simulated-x", False), ("x", True)):
        with pytest.raises(BadInput):
            people.add(name, Role.AUDITOR, simulated=simulated)


def test_the_last_admin_stays(people: People) -> None:
    people.add("Ann", Role.ADMIN)
    for change in (lambda: people.disable("Ann"), lambda: people.set_role("Ann", Role.LEAD)):
        with pytest.raises(NotAllowed):
            change()
    people.add("Bob", Role.ADMIN)
    people.disable("Ann")
    with pytest.raises(NotAllowed):
        people.disable("Bob")
    with pytest.raises(NotFound):
        people.disable("Nobody")


def test_identity_providers_vouch_for_linked_accounts(people: People) -> None:
    ann = people.add("Ann", Role.AUDITOR)
    people.add("Bob", Role.AUDITOR)
    with pytest.raises(Unauthenticated):
        people.by_oidc("https://id.example", "1")
    people.link_oidc("Ann", "https://id.example", "1")
    assert people.by_oidc("https://id.example", "1") == ann
    with pytest.raises(BadInput):
        people.link_oidc("Bob", "https://id.example", "1")
    people.disable("Ann")
    with pytest.raises(Unauthenticated):
        people.by_oidc("https://id.example", "1")
    with pytest.raises(Unauthenticated):
        people.open_session(ann.id)
