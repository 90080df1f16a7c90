"""Headers, origins, forms, cookies, sizes, hosts: what the server turns away before anything else happens."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable

import httpx
import pytest

from audit.queue.people import Limits
from audit.web.settings import WebSettings
from store.errors import UsageError
from tests.audit.web.world import PASSWORD, Visitor, World, field, pairs

GET_ROUTES = [
    "/", "/login", "/account", "/guidelines", "/lead", "/disputes", "/judges", "/batches", "/users", "/tokens",
    "/healthz", "/metrics", "/api/v1/openapi.json", "/static/app.css", "/nowhere",
]  # fmt: skip


@pytest.mark.parametrize("path", GET_ROUTES)
def test_every_answer_carries_the_headers(world: Callable[..., World], path: str) -> None:
    visitor = world(pairs(1)).visitor("root")
    for response in (
        visitor.get(path),
        visitor.post(path),
        visitor.post(path, headers={"Origin": "http://evil.example"}),
    ):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert "server" not in response.headers
        assert "etag" not in response.headers or path.startswith("/static")
        if not path.startswith("/static"):
            assert response.headers["cache-control"] == "no-store"


def dump(world: World) -> list[str]:
    with sqlite3.connect(world.path) as connection:
        return list(connection.iterdump())


def test_reading_never_writes(world: Callable[..., World]) -> None:
    server = world(pairs(3), overlap=2)
    visitor = server.visitor("root")
    place = visitor.claim()
    token = server.token("root", "claim", "submit", "read", "export", "import", "admin")
    visitor.get("/api/v1/openapi.json")
    before = dump(server)
    paths = {route.path for route in server.app.routes if "GET" in getattr(route, "methods", ())}  # type: ignore[attr-defined]
    item = place.removeprefix("/items/")
    for path in sorted(paths):
        real = path.replace("{item_id}", item).replace("{batch_id}", server.batch)
        for _ in range(2):
            response = visitor.get(real, headers={"Authorization": f"Bearer {token}"} if "/api/" in path else {})
            assert response.status_code in (200, 303, 403, 404), real
        assert visitor.head(real).status_code < 500
    assert dump(server) == before


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", "https://{host}"])
def test_posts_of_foreign_origin_are_refused(world: Callable[..., World], origin: str | None) -> None:
    server = world(pairs(1))
    visitor = server.visitor("ada")
    headers = {} if origin is None else {"Origin": origin.format(host=server.url.removeprefix("http://"))}
    csrf = visitor.csrf()
    before = dump(server)
    for path in ("/claim", "/login", "/logout", "/undo", "/items/x/answer", "/users"):
        assert visitor.post(path, data={"csrf": csrf}, headers=headers).status_code == 403, path
    assert dump(server) == before


def test_a_form_needs_the_token_of_its_session(world: Callable[..., World]) -> None:
    server = world(pairs(1))
    ada, bob = server.visitor("ada"), server.visitor("bob")
    before = dump(server)
    for csrf in ("", "x", bob.csrf(), "\ud800".encode("utf-8", "replace").decode()):
        assert ada.submit("/claim", csrf).status_code == 403
    assert dump(server) == before
    assert ada.submit("/claim").status_code == 303


def test_login_cannot_be_forged(world: Callable[..., World]) -> None:
    server = world()
    mine, other = Visitor(server.url), Visitor(server.url)
    assert other.submit("/login", mine.csrf("/login"), name="ada", password=PASSWORD).status_code == 403
    assert mine.submit("/login", "", name="ada", password=PASSWORD).status_code == 403
    mine.cookies.clear()
    assert mine.submit("/login", other.csrf("/login"), name="ada", password=PASSWORD).status_code == 403
    assert "audit_session" not in mine.cookies


def test_the_session_cookie_and_its_rotation(world: Callable[..., World]) -> None:
    server = world()
    visitor = Visitor(server.url)
    visitor.cookies.set("audit_session", "chosen-by-somebody-else", domain="127.0.0.1", path="/")
    response = visitor.login("ada")
    assert response.status_code == 303
    cookie = next(line for line in response.headers.get_list("set-cookie") if line.startswith("audit_session="))
    assert "chosen-by-somebody-else" not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie
    first = cookie.split(";")[0].split("=")[1]
    again = Visitor(server.url)
    again.cookies.set("audit_session", first)
    assert again.get("/").status_code == 200
    visitor = server.visitor("ada")
    secret = visitor.cookies["audit_session"]
    assert visitor.submit("/logout").status_code == 303
    stolen = Visitor(server.url)
    stolen.cookies.set("audit_session", secret)
    assert stolen.get("/").headers["location"] == "/login"


def test_behind_https_cookies_are_secure_and_bound_to_the_host(world: Callable[..., World]) -> None:
    server = world(public_url="https://audit.example.org")
    headers = {"Host": "audit.example.org", "Origin": "https://audit.example.org"}
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/login").status_code == 400
        page = client.get("/login", headers=headers)
        assert "max-age" in page.headers["strict-transport-security"]
        cookie = page.headers["set-cookie"]
        assert cookie.startswith("__Host-audit-form=")
        assert "Secure" in cookie
        data = {"csrf": field(page.text, "csrf"), "name": "ada", "password": PASSWORD}
        headers["Cookie"] = cookie.split(";")[0]
        response = client.post("/login", data=data, headers=headers)
        assert response.status_code == 303
        assert any(
            line.startswith("__Host-audit=") and "Secure" in line for line in response.headers.get_list("set-cookie")
        )


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_login_leads_nowhere_else(world: Callable[..., World], target: str) -> None:
    server = world()
    visitor = Visitor(server.url)
    page = visitor.get("/login", params={"next": target})
    assert target not in page.text
    response = visitor.login("ada", next=target)
    assert response.headers["location"] == "/"


def test_wrong_and_unknown_names_look_the_same_and_are_throttled(world: Callable[..., World]) -> None:
    server = world(limits=Limits(per_account=3, per_address=100))
    visitor = Visitor(server.url)
    wrong, unknown = visitor.login("ada", "no"), visitor.login("nobody", "no")
    assert wrong.status_code == unknown.status_code == 401
    same = [page.text.replace("ada", "").replace("nobody", "") for page in (wrong, unknown)]
    assert same[0] == same[1]
    statuses = [visitor.login("ada", "no").status_code for _ in range(4)]
    assert statuses[-1] == 429
    refused = visitor.login("ada")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    server.clock.forward(1000)
    assert visitor.login("ada").status_code == 303


def test_one_address_is_throttled_over_all_names(world: Callable[..., World]) -> None:
    server = world(limits=Limits(per_account=100, per_address=4))
    visitor = Visitor(server.url)
    assert [visitor.login(f"name{i}", "no").status_code for i in range(6)][-1] == 429


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1@evil.example", "127.0.0.1.evil.example", ""]
)
def test_another_host_name_gets_nothing(world: Callable[..., World], host: str) -> None:
    server = world()
    assert httpx.get(f"{server.url}/login", headers={"Host": host}).status_code == 400


def test_too_large_bodies(world: Callable[..., World]) -> None:
    server = world(pairs(1), body_bytes=10_000, import_bytes=20_000)
    visitor = server.visitor("ada")
    csrf = visitor.csrf()
    headers = {"Origin": server.url, "Content-Type": "application/x-www-form-urlencoded"}
    body = f"csrf={csrf}&comment={'x' * 20_000}".encode()
    assert visitor.post("/claim", content=body, headers=headers).status_code == 413
    chunks = (body[i : i + 1000] for i in range(0, len(body), 1000))
    assert visitor.post("/claim", content=chunks, headers=headers).status_code == 413
    api = {"Authorization": f"Bearer {server.token('root', 'import', 'claim')}", "Content-Type": "application/json"}
    for content in (b"[" + b" " * 30_000, (b" " * 1000 for _ in range(30))):
        refused = visitor.post("/api/v1/batches", content=content, headers=api)
        assert refused.status_code == 413
        assert refused.json()["code"] == "too_large"
    inside = visitor.post("/api/v1/batches", content=b" " * 15_000, headers=api)
    assert inside.status_code == 422


def test_many_fields_and_files_are_refused(world: Callable[..., World]) -> None:
    server = world(pairs(1))
    visitor = server.visitor("ada")
    csrf, origin = visitor.csrf(), {"Origin": server.url}
    many = visitor.post("/claim", data={"csrf": csrf} | {f"f{i}": "x" for i in range(500)}, headers=origin)
    assert many.status_code == 400
    upload = visitor.post("/claim", data={"csrf": csrf}, files={"comment": ("x.txt", b"x")}, headers=origin)
    assert upload.status_code == 400
    assert server.queue.progress(server.user("ada")).held == 0


@pytest.mark.parametrize(
    "path",
    ["/static/../settings.py", "/static/%2e%2e/settings.py", "/static//etc/passwd", "/static/..%2f..%2fpyproject.toml"],
)
def test_no_path_leads_out_of_the_static_folder(world: Callable[..., World], path: str) -> None:
    server = world()
    with httpx.Client() as client:
        request = client.build_request("GET", server.url)
        request.url = request.url.copy_with(raw_path=path.encode())
        assert client.send(request).status_code == 404


def test_the_log_has_one_line_a_request_without_content_or_secrets(
    world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    server = world(pairs(1))
    secret = server.token("ada", "claim")
    with caplog.at_level(logging.INFO, "rlaif.audit"):
        logging.getLogger("rlaif.audit").propagate = True
        visitor = server.visitor("ada")
        place = visitor.claim()
        visitor.answer(place, comment="a private remark")
        visitor.get("/nowhere?password=hunter2")
        visitor.get("/api/v1/items", headers={"Authorization": f"Bearer {secret}"})
    lines = [json.loads(record.message) for record in caplog.records if record.name == "rlaif.audit.requests"]
    routes = [(line["method"], line["route"], line["status"]) for line in lines]
    assert ("POST", "/items/{item_id}/answer", 303) in routes
    assert ("GET", "unmatched", 404) in routes
    assert ("GET", "/api/v1/items", 200) in routes
    assert {line["user"] for line in lines if line["route"] == "/api/v1/items"} == {server.user("ada")}
    text = caplog.text
    for private in ("private remark", "hunter2", secret, visitor.cookies["audit_session"], PASSWORD, place, "Question"):
        assert private not in text


def test_health_and_metrics(world: Callable[..., World]) -> None:
    server = world(pairs(3))
    visitor = server.visitor("ada")
    visitor.claim()
    assert visitor.get("/healthz").json() == {"status": "ok"}
    text = visitor.get("/metrics").text
    assert 'rlaif_audit_places{state="open"} 2.0' in text
    assert 'rlaif_audit_places{state="held"} 1.0' in text
    assert 'route="/claim",status="303"' in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "0.0.0.0"},
        {"public_url": "audit.example.org"},
        {"public_url": "https://a.example/x"},
        {"webhook_url": "file:///etc/passwd"},
    ],
)
def test_settings_that_cannot_be_right(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        WebSettings("sqlite:///x.db", **wrong)  # type: ignore[arg-type]
