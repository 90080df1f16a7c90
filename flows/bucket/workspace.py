"""A workspace in a bucket, as this machine sees it: its copy, and what is fetched into it and sent from it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from flows.bucket.records import Records
from flows.bucket.session import LOOK, MARK, OPEN, Session, seconds
from flows.cache import cache_folder
from store.errors import RlaifError, UsageError
from store.files import append_line, explain_os_errors, read_json, write_json, write_text
from store.hashing import hash_json
from store.manifest import MANIFEST
from store.remote import added, folders
from store.remote.bucket import Bucket, remote_url
from store.remote.lease import Lease

_DECISION = re.compile(r"rounds/\d+/promote/" + MANIFEST)


class Remote:
    """The copy at `root` of the workspace at `url`; `view`: it holds records and manifests alone, to be looked at."""

    def __init__(self, url: str, root: Path, view: bool = False) -> None:
        self.url, self.root, self.view = url, root, view
        self.bucket = Bucket(url)
        self.records = Records(self.bucket, root, view)
        self._session: Session | None = None

    @classmethod
    def of(cls, name: Path, view: bool = False) -> Remote | None:
        """The remote workspace that `name` means, an address or the folder of a copy; None for any other folder.

        For an address the records are fetched; raises as `Bucket.check`.
        """
        url = remote_url(name)
        if url is None:
            mark = name / MARK
            if not mark.is_file():
                return None
            found = OPEN.get(name.resolve())
            return found.remote if found is not None else cls(read_json(mark)["url"], name.resolve())
        Bucket(url).check()
        root = cache_root(url) / ("view" if view else "workspace")
        with explain_os_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            write_json(root / MARK, {"url": url})
        remote = cls(url, root.resolve(), view)
        remote.fetch_records()
        return remote

    def fetch_records(self) -> None:
        """Records and decisions as the bucket has them, and of a view manifests too; what only this copy changed
        stays."""
        there = self.records.fetch()
        if not self.view:
            # They say which rounds are finished.
            for key in filter(_DECISION.fullmatch, there):
                self.fetch(key.removesuffix(f"/{MANIFEST}"))

    def push_records(self) -> None:
        """Upload the records that changed here. Does nothing in a copy that no run holds the lease for."""
        if self._session is not None:
            self._session.lease.check()
            self.records.push()

    def fetch_looks(self, last: int) -> None:
        """The manifests of the last looks at the champion."""
        keys = [k for k in self.bucket.keys("monitor") if LOOK.fullmatch(k.removesuffix(f"/{MANIFEST}"))]
        times = sorted({k.split("/")[1] for k in keys})[-last:]
        added.fetch(self.bucket, self.root, (k for k in keys if k.split("/")[1] in times))

    def fetch_champion(self) -> None:
        for key in self.stages():
            if self._champion().startswith(f"{key}/"):
                self.fetch(key)

    def sizes(self) -> dict[str, int]:
        """Key -> bytes of all objects."""
        return self.bucket.keys()

    def retire(self, path: Path) -> None:
        """Delete what the bucket has at `path` of this copy, for good; see `folders.retire`. For the lease's holder."""
        if self._session is None:
            raise RlaifError(f"Nothing is removed from {self.url}: this run holds no lease on it.")
        folders.retire(self.bucket, path.relative_to(self.root).as_posix(), self._session.lease.check)

    def fetch_all(self) -> None:
        """Every stage directory of every round, for commands that read tables."""
        for key in self.stages():
            self.fetch(key)

    def stages(self) -> list[str]:
        """Keys of the stage directories that are complete in the bucket, such as rounds/001/judge."""
        return sorted(
            k.removesuffix(f"/{MANIFEST}")
            for k in self.bucket.keys("rounds")
            if re.fullmatch(r"rounds/\d+/\w+/" + MANIFEST, k)
        )

    def fetch(self, key: str) -> bool:
        """A stage directory; what is damaged in the bucket is told in the round's journal, and is not there then:
        False."""
        wrong = folders.pull(self.bucket, key, self.root / key)
        if wrong:
            text = ", ".join(f"{name} is {why}" for name, why in sorted(wrong.items()))
            line = {"event": "damaged_in_bucket", "directory": key, "objects": text}
            append_line(self.root / Path(key).parent / "journal.jsonl", json.dumps(line))
        return not wrong

    @contextmanager
    def session(self, start: bool = True) -> Iterator[None]:
        """Hold the lease. At the start the last round is fetched, and what the next one may begin from, unless `start`
        says that no round is to run; at the end records go up."""
        with Lease(self.bucket, self.identity, seconds("RLAIF_LEASE_SECONDS", 60.0)) as lease:
            self._session = Session(self, lease)
            OPEN[self.root] = self._session
            try:
                self.fetch_records()
                names = (path.name for path in (self.root / "rounds").glob("[0-9]*") if path.name.isdecimal())
                last = max(names, key=int, default="")
                for key in self.stages() if start else ():
                    wanted = key.endswith(("/aggregate", "/audit")) or self._champion().startswith(f"{key}/")
                    if wanted or key.startswith(f"rounds/{last}/"):
                        self.fetch(key)
                yield
            finally:
                try:
                    self.push_records()
                finally:
                    del OPEN[self.root]
                    self._session = None

    @property
    def identity(self) -> str:
        path = self.root / ".copy"
        if not path.is_file():
            write_text(path, uuid4().hex)
        return path.read_text(encoding="utf-8")

    def _champion(self) -> str:
        path = self.root / "registry" / "champion.json"
        return str(read_json(path).get("policy", "")) + "/" if path.is_file() else ""


def fetched_path(path: Path) -> Path:
    """A path as it is; of s3://BUCKET/PREFIX/rounds/... this machine's copy, with all rounds at hand.

    Raises UsageError for an address that is not of something in a workspace.
    """
    url = remote_url(path)
    if url is None:
        return path
    place, rounds, inside = url.partition("/rounds/")
    if not rounds:
        raise UsageError(f"{url} is nothing of a round: give an address such as s3://BUCKET/PREFIX/rounds/001/judge.")
    remote = Remote.of(Path(place))
    if remote is None:
        raise TypeError(place)
    remote.fetch_all()
    return remote.root / "rounds" / inside


def cache_root(url: str) -> Path:
    """Of this machine's copies of the workspace at `url`."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    return cache_folder() / f"{url.rsplit('/', 1)[-1]}-{hash_json([url, endpoint])[:12]}"
