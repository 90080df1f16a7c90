"""Every route, for all who may not use it, and on items that are not theirs. A route not in the table fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from audit.queue.model import Role
from audit.queue.people import Scope
from tests.audit.web.world import Visitor, World, pairs

ANYBODY = None
PAGES: dict[tuple[str, str], Role | None] = {
    ("GET", "/login"): ANYBODY,
    ("POST", "/login"): ANYBODY,
    ("GET", "/healthz"): ANYBODY,
    ("GET", "/metrics"): ANYBODY,
    ("GET", "/api/v1/openapi.json"): ANYBODY,
    ("GET", "/"): Role.AUDITOR,
    ("POST", "/logout"): Role.AUDITOR,
    ("GET", "/account"): Role.AUDITOR,
    ("POST", "/account/password"): Role.AUDITOR,
    ("POST", "/account/sessions"): Role.AUDITOR,
    ("POST", "/claim"): Role.AUDITOR,
    ("POST", "/preload"): Role.AUDITOR,
    ("POST", "/undo"): Role.AUDITOR,
    ("GET", "/items/{item_id}"): Role.AUDITOR,
    ("POST", "/items/{item_id}/look"): Role.AUDITOR,
    ("POST", "/items/{item_id}/reclaim"): Role.AUDITOR,
    ("POST", "/items/{item_id}/heartbeat"): Role.AUDITOR,
    ("POST", "/items/{item_id}/answer"): Role.AUDITOR,
    ("POST", "/items/{item_id}/skip"): Role.AUDITOR,
    ("POST", "/items/{item_id}/release"): Role.AUDITOR,
    ("GET", "/guidelines"): Role.AUDITOR,
    ("GET", "/guidelines/{batch_id}"): Role.AUDITOR,
    ("GET", "/lead"): Role.LEAD,
    ("POST", "/lead/quarantine"): Role.LEAD,
    ("GET", "/disputes"): Role.LEAD,
    ("GET", "/disputes/{item_id}"): Role.LEAD,
    ("POST", "/disputes/{item_id}"): Role.LEAD,
    ("POST", "/disputes/{item_id}/requeue"): Role.LEAD,
    ("GET", "/judges"): Role.LEAD,
    ("GET", "/batches"): Role.LEAD,
    ("POST", "/batches/{batch_id}/close"): Role.LEAD,
    ("GET", "/users"): Role.ADMIN,
    ("POST", "/users"): Role.ADMIN,
    ("POST", "/users/{action}"): Role.ADMIN,
    ("GET", "/tokens"): Role.ADMIN,
    ("POST", "/tokens"): Role.ADMIN,
    ("POST", "/tokens/revoke"): Role.ADMIN,
}
API: dict[tuple[str, str], Scope] = {
    ("POST", "/api/v1/claim"): Scope.CLAIM,
    ("GET", "/api/v1/items"): Scope.CLAIM,
    ("GET", "/api/v1/items/{item_id}"): Scope.CLAIM,
    ("POST", "/api/v1/items/{item_id}/reclaim"): Scope.CLAIM,
    ("POST", "/api/v1/items/{item_id}/heartbeat"): Scope.CLAIM,
    ("POST", "/api/v1/items/{item_id}/release"): Scope.CLAIM,
    ("POST", "/api/v1/items/{item_id}/submit"): Scope.SUBMIT,
    ("POST", "/api/v1/items/{item_id}/skip"): Scope.SUBMIT,
    ("POST", "/api/v1/undo"): Scope.SUBMIT,
    ("GET", "/api/v1/progress"): Scope.READ,
    ("GET", "/api/v1/batches"): Scope.EXPORT,
    ("GET", "/api/v1/batches/{batch_id}"): Scope.EXPORT,
    ("GET", "/api/v1/verdicts.parquet"): Scope.EXPORT,
    ("GET", "/api/v1/verdicts.csv"): Scope.EXPORT,
    ("POST", "/api/v1/batches"): Scope.IMPORT,
    ("POST", "/api/v1/batches/parquet"): Scope.IMPORT,
    ("POST", "/api/v1/batches/{batch_id}/close"): Scope.IMPORT,
    ("GET", "/api/v1/webhook"): Scope.ADMIN,
}
NAMES = {None: None, Role.AUDITOR: "ada", Role.LEAD: "lena", Role.ADMIN: "root"}


def real(path: str, item: str, batch: str) -> str:
    return path.replace("{item_id}", item).replace("{batch_id}", batch).replace("{action}", "disable")


def ask(visitor: Visitor, method: str, path: str, csrf: str) -> int:
    if method == "GET":
        return visitor.get(path).status_code
    return visitor.submit(path, csrf, name="bob", token="1", key="k", choice="left", reason="cannot_tell").status_code


def test_the_table_has_every_route(world: Callable[..., World]) -> None:
    routes = {
        (method, route.path)
        for route in world().app.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    }
    assert routes == set(PAGES) | set(API)


@pytest.mark.parametrize("role", [None, Role.AUDITOR, Role.LEAD, Role.ADMIN])
def test_pages_by_role(world: Callable[..., World], role: Role | None) -> None:
    server = world(pairs(4))
    item = server.queue.claim(server.user("bob")).item.item_id  # type: ignore[union-attr]
    name = NAMES[role]
    for (method, path), least in PAGES.items():
        if path in ("/logout", "/account/sessions"):
            continue
        if least is None or (role is not None and role.at_least(least)):
            continue
        visitor = Visitor(server.url) if name is None else server.visitor(name)
        csrf = visitor.csrf("/login" if name is None else "/")
        status = ask(visitor, method, real(path, item, server.batch), csrf)
        if role is None:
            assert status == (303 if method == "GET" else 401), (method, path)
        else:
            assert status == 403, (method, path)
    assert not server.people.get("bob").disabled
    assert server.people.get("bob").quarantined is None
    assert server.queue.batch_progress(server.batch).closed_at is None
    assert server.queue.view(server.user("bob"), item).item.item_id == item


@pytest.mark.parametrize("name", ["ada", "lena", "root"])
def test_a_foreign_item_is_as_unknown_as_one_that_never_was(world: Callable[..., World], name: str) -> None:
    server = world(pairs(4))
    held = server.queue.claim(server.user("bob"))
    assert held is not None
    visitor = server.visitor(name)
    csrf = visitor.csrf()
    token = {"Authorization": f"Bearer {server.token(name, 'claim', 'submit', 'read')}"}
    for item in (held.item.item_id, "0" * 32):
        for method, path in PAGES:
            if path.startswith("/items/"):
                assert ask(visitor, method, real(path, item, ""), csrf) == 404, path
        for method, path in API:
            if "/items/{item_id}" in path:
                body = {"token": held.token}
                if path.endswith("submit"):
                    body |= {"key": "k", "choice": "left"}  # type: ignore[dict-item]
                if path.endswith("skip"):
                    body |= {"key": "k", "reason": "no"}  # type: ignore[dict-item]
                response = visitor.request(method, real(path, item, ""), json=body, headers=token)
                assert response.status_code == 404, path
                assert item not in response.text
    for path in ("/api/v1/undo",):
        assert visitor.post(path, json={"key": "k", "item_id": held.item.item_id}, headers=token).status_code in (
            404,
            409,
        )
    assert server.queue.view(server.user("bob"), held.item.item_id).token == held.token


def test_the_api_takes_scoped_tokens_and_no_cookies(world: Callable[..., World]) -> None:
    server = world(pairs(4))
    visitor = server.visitor("root")
    by_scope = {scope: server.token("root", scope) for scope in Scope}
    weak = server.token("ada", "claim", "submit", "read")
    for (method, path), scope in API.items():
        address = real(path, "0" * 32, server.batch)
        body = {"json": {"token": 1, "key": "k", "choice": "left", "reason": "no"}} if method == "POST" else {}
        none = visitor.request(method, address, **body)
        assert none.status_code == 401, path
        assert none.headers["www-authenticate"] == "Bearer"
        forged = visitor.request(method, address, headers={"Authorization": "Bearer abc"}, **body)
        assert forged.status_code == 401
        for other, secret in by_scope.items():
            if other is not scope:
                got = visitor.request(method, address, headers={"Authorization": f"Bearer {secret}"}, **body)
                assert got.status_code == 403, (path, other)
        if scope in (Scope.EXPORT, Scope.IMPORT, Scope.ADMIN):
            assert (
                visitor.request(method, address, headers={"Authorization": f"Bearer {weak}"}, **body).status_code == 403
            )
    assert server.queue.batch_progress(server.batch).closed_at is None


def test_a_revoked_token_an_ended_one_and_a_disabled_owner(world: Callable[..., World]) -> None:
    server = world(pairs(4))
    visitor = Visitor(server.url)

    def status(secret: str) -> int:
        return visitor.get("/api/v1/progress", headers={"Authorization": f"Bearer {secret}"}).status_code

    first, second, third = (server.token(name, "read") for name in ("ada", "bob", "lena"))
    assert [status(secret) for secret in (first, second, third)] == [200, 200, 200]
    (token,) = server.people.tokens("ada")
    root = server.visitor("root")
    assert root.submit("/tokens/revoke", id=token.id).status_code == 303
    assert root.submit("/users/disable", name="bob").status_code == 303
    assert [status(secret) for secret in (first, second, third)] == [401, 401, 200]
    server.clock.forward(91 * 86400)
    assert status(third) == 401


def test_a_disabled_person_is_out_at_once(world: Callable[..., World]) -> None:
    server = world(pairs(4))
    ada = server.visitor("ada")
    place = ada.claim()
    server.people.disable("ada")
    assert ada.get(place).status_code == 303
    assert ada.login("ada").status_code == 401


def test_only_an_admin_judges_an_admin(world: Callable[..., World]) -> None:
    server = world()
    lead = server.visitor("lena")
    assert lead.submit("/lead/quarantine", name="root", reason="x").status_code == 422
    assert lead.submit("/lead/quarantine", name="ada", reason="").status_code == 422
    assert lead.submit("/lead/quarantine", name="ada", reason="always left").status_code == 303
    assert server.people.get("ada").quarantined == "always left"
    assert lead.submit("/lead/quarantine", name="ada", lift="yes").status_code == 303
    assert server.people.get("ada").quarantined is None
