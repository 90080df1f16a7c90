"""Tokens that a form must carry, bound to the browser's secret cookie.

The token is a keyed hash of the cookie, which no other site can read: nothing is stored, and a restart of the server
invalidates no open form. Before login a random cookie takes the session's place, so that nobody can be logged in to an
account that is not their own.
"""

from __future__ import annotations

import hashlib
import hmac


def csrf_token(secret: str) -> str:
    return hmac.new(secret.encode(), b"rlaif audit form", hashlib.sha256).hexdigest()


def csrf_matches(secret: str, given: str) -> bool:
    return hmac.compare_digest(csrf_token(secret).encode(), given.encode("utf-8", "replace"))


def local_path(target: str | None, default: str = "/") -> str:
    """`target` if it leads to a page of this server, else `default`: no login link can lead elsewhere.

    Browsers read a backslash as a slash and drop control characters, so neither may occur.
    """
    if target is None or not target.startswith("/") or target.startswith("//") or len(target) > 500:
        return default
    if any(character == "\\" or ord(character) < 0x21 or ord(character) == 0x7F for character in target):
        return default
    return target
