"""What the web server is told: where the queue lies, where people reach it, and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from store.errors import UsageError


@dataclass(frozen=True)
class Oidc:
    """Single sign-on by OpenID Connect (extra `oidc`). The secret is read from the named environment variable."""

    issuer: str
    client_id: str
    secret_env: str
    label: str = "Sign in with your organisation"


@dataclass(frozen=True)
class WebSettings:
    """Raises UsageError where the address that people use cannot be known or is no origin."""

    database_url: str
    host: str = "127.0.0.1"
    port: int = 8321
    """0 picks a free one."""
    public_url: str | None = None
    """Where people reach the server, such as https://audit.example.org. Needed unless it listens on this machine only:
    requests that name another host, or come from another origin, are refused."""
    trusted_proxy: str | None = None
    """Address of the reverse proxy whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    title: str = "Audit"
    body_bytes: int = 1 << 20
    """Largest body of a page or an API call; beyond it 413."""
    import_bytes: int = 64 << 20
    """Largest body of an import of pairs."""
    webhook_url: str | None = None
    """Called with a JSON body, once a batch, when the batch reaches its quota."""
    webhook_secret_env: str = "RLAIF_AUDIT_WEBHOOK_SECRET"  # noqa: S105 - a variable's name
    """Environment variable with the key that signs webhook calls; unsigned where it is not set."""
    oidc: Oidc | None = None
    tls_cert: Path | None = None
    """Certificate chain (PEM) to serve https without a proxy; needs `tls_key` and an https public_url."""
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        self._check_tls()
        if self.webhook_url is not None:
            hook = urlsplit(self.webhook_url)
            if hook.scheme not in ("http", "https") or not hook.hostname or hook.username or hook.password:
                raise UsageError(
                    f"webhook_url {self.webhook_url!r} is no http(s) address without a password: correct it."
                )
        if self.public_url is None:
            if not is_loopback(self.host):
                raise UsageError(
                    f"The server would listen on {self.host}, but it does not know the address that people use: give "
                    "public_url, such as https://audit.example.org."
                )
            return
        parts = urlsplit(self.public_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise UsageError(
                f"public_url {self.public_url!r} is no origin: write it as https://audit.example.org, without a path."
            )

    def _check_tls(self) -> None:
        if self.tls_cert is None and self.tls_key is None:
            return
        if self.tls_cert is None or self.tls_key is None:
            raise UsageError("To serve https, tls_cert and tls_key are needed both: give the one that is missing.")
        for path in (self.tls_cert, self.tls_key):
            if not path.is_file():
                raise UsageError(f"The file {path} does not exist: check the path of the certificate and its key.")
        if not (self.public_url or "").startswith("https://"):
            raise UsageError("To serve https, give public_url as people type it, such as https://audit.example.org.")

    @property
    def secure(self) -> bool:
        """Whether browsers reach the server over https, so that cookies must not travel over http."""
        return self.public_url is not None and urlsplit(self.public_url).scheme == "https"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
