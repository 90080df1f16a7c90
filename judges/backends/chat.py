"""Calls to one server that speaks OpenAI's chat completions, and what its answers and failures mean.

The HTTP client is aiohttp: of those in common use it takes the least of the processor for each call, by far where
hundreds are in flight. Redirects are not followed and no cookies are kept: a key goes to the configured address only.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from judges.backends.limits import retry_after
from judges.backends.reply import CallError, Completion, read_completion
from judges.settings import OpenAISettings
from store.errors import RlaifError, UsageError

_AGAIN = frozenset({408, 409, 425, 429})
_MOST_BYTES = 16 * 2**20
# Servers such as uvicorn drop a connection that was idle for 5 s: a call that is sent just then is lost.
_IDLE_S = 4.0
_HEALTH_S = 5.0


class ChatServer:
    """Use within one event loop: `await open()`, `await complete(...)`, `await close()`. `address`: up to and with /v1.

    Raises UsageError where the key's environment variable is not set. The key is in no message and no repr.
    """

    def __init__(self, judge: str, model: str, settings: OpenAISettings, address: str) -> None:
        self._judge, self._model, self._settings, self._address = judge, model, settings, address
        self._key = _key(judge, settings.api_key_env)
        self._echoes = {self._key, quote(self._key, safe=""), json.dumps(self._key)[1:-1]} - {""}
        self._url = address.rstrip("/") + "/chat/completions"
        self._models = address.rstrip("/") + "/models"
        self._proxy = _proxy(self._url)
        self._session: aiohttp.ClientSession
        self.reached = asyncio.Event()
        """Set once the server has answered a call otherwise than by refusing them all, or was too slow to."""

    async def open(self) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "rlaif"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            # Connections are kept for all calls in flight.
            connector=aiohttp.TCPConnector(limit=self._settings.concurrency, keepalive_timeout=_IDLE_S),
            # Of the whole call: a server that sends a byte now and then would otherwise hold it for ever.
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def complete(self, payload: dict[str, Any]) -> Completion:
        """One call. Raises CallError for what concerns this call, RlaifError for what every call would meet."""
        data = json.dumps(payload).encode()
        try:
            async with self._session.post(self._url, data=data, proxy=self._proxy, allow_redirects=False) as response:
                status, headers, text = response.status, response.headers, self.clean(await _text(response))
        except TimeoutError:
            self.reached.set()
            raise CallError(f"no answer within {self._settings.timeout_s:g} s", again=True, away=True) from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise UsageError(
                f"{self._who} offers no trusted certificate ({type(error).__name__}): check base_url, or make its "
                f"certificate known by the environment variable SSL_CERT_FILE."
            ) from None
        except aiohttp.InvalidURL:
            raise UsageError(f"Judge {self._judge}: base_url {self._address!r} is no address.") from None
        except (aiohttp.ClientError, OSError) as error:
            # Only the kind: the message of an error may quote headers or what the server sent.
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
            kind = "broken answer" if isinstance(error, aiohttp.ClientPayloadError) else "no connection"
            raise CallError(f"{kind}: {self._address} ({reason})", again=True, away=True) from None
        failure = None if status == 200 else self._refusal(status, text, retry_after(headers))
        if isinstance(failure, RlaifError):
            raise failure
        self.reached.set()
        if failure is not None:
            raise failure
        return read_completion(text)

    async def healthy(self) -> bool:
        """Whether the server answers at all: a list of its models costs nothing. Some have none and say so, which is an
        answer too."""
        timeout = aiohttp.ClientTimeout(total=min(_HEALTH_S, self._settings.timeout_s))
        try:
            async with self._session.get(
                self._models, proxy=self._proxy, allow_redirects=False, timeout=timeout
            ) as response:
                return response.status < 500
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    def clean(self, text: str) -> str:
        """Text that may be stored: without the key, which a server may echo, and without lone surrogates or NUL."""
        for echo in self._echoes:
            text = text.replace(echo, "[key]")
        return text if text.isascii() and "\0" not in text else _storable(text)

    @property
    def _who(self) -> str:
        return f"Judge {self._judge}: the server {self._address}"

    def _refusal(self, status: int, text: str, after: float | None) -> RlaifError | CallError:
        """What a status other than 200 means: RlaifError where every further call would meet the same."""
        who, said = self._who, self.clean(_said(text))[:200]
        if status in (401, 403):
            variable = self._settings.api_key_env
            remedy = f"check the key in ${variable}" if variable else "set api_key_env to the variable with the key"
            return UsageError(f"{who} refused the call ({status}): {remedy}.")
        if status == 404:
            return UsageError(f"{who} answers 404 for the model {self._model!r}: check model and base_url.")
        if 300 <= status < 400:
            return UsageError(f"{who} answers {status}, it has moved: set base_url to its new address.")
        if status == 402 or (status == 429 and "insufficient_quota" in text):
            return RlaifError(f"{who} says that the account is exhausted ({said}): top it up and run again.")
        away = status >= 500
        return CallError(f"status {status}: {said}", again=status in _AGAIN or away, after=after, away=away)


async def _text(response: aiohttp.ClientResponse) -> str:
    parts, size = [], 0
    while part := await response.content.readany():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise CallError(f"the server's answer is longer than {_MOST_BYTES >> 20} MiB", again=False)
    return b"".join(parts).decode("utf-8", "replace")


def _said(text: str) -> str:
    """The message of an error as most servers send it, else the text as it came."""
    try:
        error = json.loads(text)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        return text
    return message if isinstance(message, str) else text


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _key(judge: str, variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"Judge {judge} needs a key: set the environment variable {variable}.")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(f"Judge {judge}: what the environment variable {variable} holds is no key: set it again.")
    return key


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this address (http_proxy, https_proxy, no_proxy)."""
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)
