"""Objects below one prefix of an S3-compatible bucket, through s3fs; every failure comes out as one sentence.

Credentials, region and endpoint come from the environment alone, as every AWS tool reads them: AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY (or a profile, or the machine's role), AWS_REGION or AWS_DEFAULT_REGION, AWS_ENDPOINT_URL.

Conditional writes (If-None-Match, If-Match) need a server that has them: AWS S3 since November 2024, MinIO, Ceph, R2.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from store.errors import RlaifError, TransientError, UsageError
from store.files import explain_os_errors

SCHEME = "s3://"
PARALLEL = 8
_TIMEOUT_S = 60
_CONNECT_S = 5

_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"})
_REFUSED = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
)
_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
_LOST = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412"})


class ConflictError(Exception):
    """Another writer was quicker: the object is not as the condition of the write says."""


@dataclass(frozen=True)
class Object:
    """`modified` and `now`: the server's clock, so that machines' clocks need not agree."""

    data: bytes
    etag: str
    modified: datetime
    now: datetime


def remote_url(name: Path | str) -> str | None:
    """The bucket's address where `name` is one. A Path of it has lost a slash, and may have been made absolute."""
    parts = Path(name).parts
    if "s3:" not in parts:
        return None
    place = "/".join(parts[parts.index("s3:") + 1 :])
    if not place:
        raise UsageError(f"{str(name)!r} names no bucket: give s3://BUCKET or s3://BUCKET/PREFIX.")
    return SCHEME + place


class Bucket:
    """Keys are relative to the prefix in `url`, such as s3://bucket/prefix."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._bucket, _, self._prefix = url.removeprefix(SCHEME).partition("/")
        self._fs = _filesystem()

    def check(self) -> None:
        """Raises UsageError where the bucket is not there or may not be listed, TransientError where nobody answers."""
        with self._explained("list"):
            self._fs.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def keys(self, under: str = "") -> dict[str, int]:
        """Key -> bytes, of all objects whose key begins with `under`, a folder's name."""
        base = f"{self._bucket}/{self._prefix}".rstrip("/")
        with self._explained("list"):
            found = self._fs.find(f"{base}/{under}".rstrip("/"), detail=True)
        start = len(base) + 1
        return {name[start:]: int(about["size"]) for name, about in found.items() if about["type"] == "file"}

    def read(self, key: str) -> bytes | None:
        found = self.fetch(key)
        return None if found is None else found.data

    def fetch(self, key: str) -> Object | None:
        """The object with what the server says of it; None where there is none."""
        with self._explained("read"):
            try:
                # The body of call_s3 is read in the loop that opened it.
                found: Object = self._fs.loop_call(self._bucket, self._key(key))
                return found
            except FileNotFoundError as error:
                if _code(error) not in _ABSENT:
                    raise
                return None

    def write(self, key: str, data: bytes, *, instead_of: str | None = None, new: bool = False) -> str:
        """Write an object and return its etag. `instead_of`: only where the object has this etag; `new`: only where
        there is none. Raises ConflictError where that is not so."""
        condition = {"IfNoneMatch": "*"} if new else {"IfMatch": instead_of} if instead_of is not None else {}
        with self._explained("write"):
            try:
                answer = self._fs.call_s3("put_object", Bucket=self._bucket, Key=self._key(key), Body=data, **condition)
            except OSError as error:
                absent = instead_of is not None and _code(error) in _ABSENT
                if _code(error) in _LOST or absent:
                    raise ConflictError(key) from error
                raise
        return str(answer["ETag"])

    def upload(self, path: Path, key: str) -> None:
        with self._explained("write"):
            self._fs.put_file(str(path), self._full(key))

    def download(self, key: str, path: Path) -> None:
        """Raises RlaifError where the object is gone."""
        with self._explained("read"), explain_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._fs.get_file(self._full(key), str(path))
            except FileNotFoundError as error:
                raise RlaifError(f"{self.url}/{key} is gone: run again, and it is made again.") from error

    def delete(self, keys: Iterable[str]) -> None:
        """Those that are not there are fine."""
        with self._explained("delete"):
            for key in keys:
                self._fs.call_s3("delete_object", Bucket=self._bucket, Key=self._key(key))

    def upload_all(self, files: Iterable[tuple[Path, str]]) -> None:
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda pair: self.upload(*pair), files))

    def download_all(self, files: Iterable[tuple[str, Path]]) -> None:
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda pair: self.download(*pair), files))

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _full(self, key: str) -> str:
        return f"{self._bucket}/{self._key(key)}"

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (RlaifError, ConflictError):
            raise
        except Exception as error:
            explained = _explain(error, self.url, doing)
            if explained is None:
                raise
            raise explained from error


def _filesystem() -> Any:
    try:
        import s3fs
    except ImportError as error:
        raise UsageError("A workspace in a bucket needs the package s3fs: pip install 'rlaif[s3]'.") from error

    class FileSystem(s3fs.S3FileSystem):  # type: ignore[misc]
        def loop_call(self, bucket: str, key: str) -> Object:
            """An object's body with its headers, which s3fs itself does not hand on."""
            from fsspec.asyn import sync

            async def get() -> Object:
                answer = await self._call_s3("get_object", Bucket=bucket, Key=key)
                async with answer["Body"] as body:
                    data = await body.read()
                date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
                modified = answer["LastModified"]
                return Object(data, answer["ETag"], modified, parsedate_to_datetime(date) if date else modified)

            found: Object = sync(self.loop, get)
            return found

    region = os.environ.get("AWS_REGION")
    return FileSystem(
        client_kwargs={"region_name": region} if region else {},
        config_kwargs={
            "connect_timeout": _CONNECT_S,
            "read_timeout": _TIMEOUT_S,
            "retries": {"max_attempts": 3, "mode": "standard"},
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _code(error: BaseException | None) -> str:
    """The server's code for what went wrong; s3fs keeps it in the cause of its own errors."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def _explain(error: Exception, url: str, doing: str) -> RlaifError | None:
    """One sentence; None for an error of this machine's own files, which is told elsewhere."""
    code, kind = _code(error), type(error.__cause__ or error).__name__
    if code == "NoSuchBucket":
        return UsageError(f"The bucket of {url} does not exist: create it, or correct the name.")
    if code in _REFUSED:
        return UsageError(
            f"The server of {url} refuses the credentials ({code}): set AWS_ACCESS_KEY_ID and its secret."
        )
    if code in _DENIED:
        return UsageError(
            f"Access to {url} is denied ({doing}): give these credentials the rights to list, read, write and delete "
            f"there."
        )
    if code == "RequestTimeTooSkewed":
        return UsageError(f"The server of {url} refuses this machine's clock: set it right.")
    if kind in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound"):
        return UsageError(
            f"There are no credentials for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        )
    if kind in ("InvalidEndpointURL", "ParamValidationError", "InvalidRegionError"):
        return UsageError(f"{url} cannot be reached ({kind}): check the name, AWS_ENDPOINT_URL and AWS_REGION.")
    if not code and isinstance(error, OSError) and error.errno is not None and error.__cause__ is None:
        return None
    where = os.environ.get("AWS_ENDPOINT_URL", "the server")
    return TransientError(
        f"{where} of {url} did not {doing} ({code or kind}): it may be away; nothing is lost, run again later."
    )
