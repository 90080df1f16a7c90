"""Single sign-on against a real provider on this machine, with signed tokens and PKCE."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, RedirectResponse

from audit.web.settings import Oidc
from store.errors import UsageError
from tests.audit.web.world import Visitor, World

pytest.importorskip("authlib", reason="needs the extra oidc: pip install 'rlaif[oidc]'")


class Provider:
    """Says of everybody who comes that it is `subject`."""

    def __init__(self) -> None:
        from joserfc import jwt
        from joserfc.jwk import RSAKey

        key = RSAKey.generate_key(2048, {"kid": "one"})
        self.subject = "person-1"
        self.sign_with = key
        codes: dict[str, dict[str, str]] = {}
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = FastAPI()

        @app.get("/.well-known/openid-configuration")
        def configuration() -> dict[str, Any]:
            return {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
                "id_token_signing_alg_values_supported": ["RS256"],
            }

        @app.get("/keys")
        def keys() -> dict[str, Any]:
            return {"keys": [key.as_dict(private=False)]}

        @app.get("/authorize")
        def authorize(request: Request) -> RedirectResponse:
            asked = dict(request.query_params)
            codes["c0de"] = asked
            return RedirectResponse(f"{asked['redirect_uri']}?code=c0de&state={asked['state']}", 302)

        @app.post("/token")
        async def token(request: Request) -> JSONResponse:
            form = parse_qs((await request.body()).decode())
            asked = codes.pop(form["code"][0])
            digest = hashlib.sha256(form["code_verifier"][0].encode()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
                return JSONResponse({"error": "invalid_grant"}, 400)
            now = int(time.time())
            claims = {"iss": self.url, "sub": self.subject, "aud": asked["client_id"], "nonce": asked["nonce"]}
            header = {"alg": "RS256", "kid": "one"}
            signed = jwt.encode(header, claims | {"iat": now, "exp": now + 60}, self.sign_with)
            return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": signed})

        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True).start()

    def close(self) -> None:
        self._server.should_exit = True


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


def sign_on(server: World, provider: Provider, change: Callable[[str], str] = str) -> tuple[Visitor, Any]:
    visitor = Visitor(server.url)
    away = visitor.get("/login/oidc")
    assert away.status_code == 302
    assert away.headers["location"].startswith(f"{provider.url}/authorize?")
    back = visitor.get(away.headers["location"]).headers["location"]
    parts = urlsplit(change(back))
    return visitor, visitor.get(f"{parts.path}?{parts.query}")


def make(world: Callable[..., World], provider: Provider, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("OIDC_SECRET", "client secret")
    return world(oidc=Oidc(provider.url, "rlaif", "OIDC_SECRET"))


def test_a_linked_person_signs_on(
    world: Callable[..., World], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(world, provider, monkeypatch)
    assert "Sign in with your organisation" in Visitor(server.url).get("/login").text
    server.people.link_oidc("ada", provider.url, "person-1")
    visitor, response = sign_on(server, provider)
    assert (response.status_code, response.headers["location"]) == (303, "/")
    assert "ada" in visitor.get("/").text


def test_nobody_gets_an_account_by_signing_on(
    world: Callable[..., World], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(world, provider, monkeypatch)
    visitor, response = sign_on(server, provider)
    assert response.status_code == 401
    assert visitor.get("/").status_code == 303


def test_a_forged_state_and_a_foreign_signature_are_refused(
    world: Callable[..., World], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    from joserfc.jwk import RSAKey

    server = make(world, provider, monkeypatch)
    server.people.link_oidc("ada", provider.url, "person-1")
    _, forged = sign_on(server, provider, lambda back: back.replace("state=", "state=x"))
    assert forged.status_code == 401
    provider.sign_with = RSAKey.generate_key(2048, {"kid": "one"})
    visitor, foreign = sign_on(server, provider)
    assert foreign.status_code == 401
    assert visitor.get("/").status_code == 303


def test_a_missing_secret_is_named(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OIDC_SECRET", raising=False)
    with pytest.raises(UsageError, match="OIDC_SECRET"):
        world(oidc=Oidc("http://127.0.0.1:1", "rlaif", "OIDC_SECRET"))


def test_a_provider_that_is_away(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OIDC_SECRET", "x")
    server = world(oidc=Oidc("http://127.0.0.1:1", "rlaif", "OIDC_SECRET"))
    response = Visitor(server.url).get("/login/oidc")
    assert response.status_code == 401
    assert "sign in by password" in response.text
