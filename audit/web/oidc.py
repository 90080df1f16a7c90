"""Single sign-on by OpenID Connect (extra `oidc`), authorisation code flow with PKCE, through authlib.

An identity signs in only to the account that an admin linked it to: nobody gets an account by signing in.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.starlette_client import OAuth
from fastapi import APIRouter, FastAPI, Request
from joserfc.errors import JoseError
from starlette.concurrency import run_in_threadpool
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import Response

from audit.queue.errors import Unauthenticated
from audit.web.access import Deps, session_cookie
from audit.web.pages.login import signed_in
from audit.web.settings import Oidc, WebSettings
from store.errors import UsageError

_FLOW_S = 600
# authlib speaks through httpx2 where it is installed, else through httpx.
_AWAY = tuple(import_module(name).HTTPError for name in ("httpx", "httpx2") if find_spec(name))


def add_oidc(app: FastAPI, settings: WebSettings, oidc: Oidc) -> None:
    """Adds /login/oidc and /login/oidc/callback. Raises UsageError where the secret's variable is not set."""
    secret = os.environ.get(oidc.secret_env)
    if not secret:
        raise UsageError(f"Sign-on by {oidc.issuer} needs the client's secret: set the variable {oidc.secret_env}.")
    oauth = OAuth()
    oauth.register(
        "provider",
        client_id=oidc.client_id,
        client_secret=secret,
        server_metadata_url=f"{oidc.issuer.rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={"scope": "openid", "code_challenge_method": "S256", "timeout": 10},
    )
    # Holds state, nonce and verifier of a sign-on under way, signed with a key that is derived from the secret.
    app.add_middleware(
        SessionMiddleware,
        secret_key=f"rlaif audit sign-on {secret}",
        session_cookie="audit_sign_on",
        max_age=_FLOW_S,
        same_site="lax",
        https_only=settings.secure,
    )
    router = APIRouter()

    @router.get("/login/oidc")
    async def begin(request: Request) -> Response:
        base = settings.public_url or str(request.base_url)
        try:
            response: Response = await oauth.provider.authorize_redirect(
                request, f"{base.rstrip('/')}/login/oidc/callback"
            )
        except (*_AWAY, OAuthError) as error:
            raise Unauthenticated(f"The sign-on at {oidc.issuer} cannot be reached: sign in by password.") from error
        return response

    @router.get("/login/oidc/callback")
    async def finish(request: Request, deps: Deps) -> Response:
        try:
            token = await oauth.provider.authorize_access_token(request)
        except (*_AWAY, OAuthError, JoseError) as error:
            raise Unauthenticated("The sign-on did not succeed: begin again from the login page.") from error
        claims = token.get("userinfo") or {}
        issuer, subject = str(claims.get("iss", "")), str(claims.get("sub", ""))
        old = request.cookies.get(session_cookie(deps.settings.secure))
        user = await run_in_threadpool(deps.people.by_oidc, issuer, subject)
        session = await run_in_threadpool(deps.people.open_session, user.id, old)
        return signed_in(deps, session, "/")

    app.include_router(router, include_in_schema=False)
