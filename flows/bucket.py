"""A workspace in a bucket, `s3://BUCKET/PREFIX`: this machine's copy of it, and how the two are kept alike.

Stages run on local files, as in a folder. Before a stage its inputs are fetched, after it its outputs are uploaded, the
manifest last; meanwhile its unfinished work is mirrored. The bucket is what counts: a stage directory that is complete
there replaces the one here. Records (configs, journals, the registry, reports) go both ways. Only the holder of the
lease writes; but looks at the champion and askings of anchors, which are only ever added, need none.

The copy lies below $RLAIF_CACHE, or the user's cache directory; it may be deleted between runs. Seconds after which a
dead machine's lease ends: $RLAIF_LEASE_SECONDS (60); between two mirrored snapshots: $RLAIF_MIRROR_SECONDS (30).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from store.errors import RlaifError, UsageError
from store.files import append_line, atomic_write, explain_os_errors, read_json, write_json, write_text
from store.hashing import hash_json
from store.manifest import MANIFEST, REDO
from store.remote import added, folders
from store.remote.bucket import Bucket, remote_url
from store.remote.lease import Lease
from store.remote.mirror import Mirror

if TYPE_CHECKING:
    from flows.plan import Step
    from flows.processes.watchdog import Limits
    from store.stage import Outcome, Progress

_MARK = ".bucket.json"
_SYNCED = ".synced.json"
_RECORD = re.compile(
    r"rounds/\d+/(round\.yaml|round\.json|journal\.jsonl|report\.html)|registry/(?:[^./][^/]*/)*[^./][^/]*"
)
_ADDED = re.compile(r"anchors/(?:[^./][^/]*/)*[^./][^/]*")
_DECISION = re.compile(r"rounds/\d+/promote/" + MANIFEST)
_LOOK = re.compile(r"monitor/(\d+T\d+Z)/\w+")
MIRROR = ".mirror"
"""Folder of a round in the bucket that holds unfinished work."""
_SHOWN = re.compile(r"rounds/\d+/[a-z]+/[a-z_]+\.json")
"""What `status` and `lineage` read of stages: manifests and small results."""

# Reports are last: a round with one is finished, and then all else must be there.
_ORDER = ("registry/history", "registry/", "round.yaml", "round.json", "journal.jsonl", "report.html")


class Remote:
    """The copy at `root` of the workspace at `url`; `view`: it holds records and manifests alone, to be looked at."""

    def __init__(self, url: str, root: Path, view: bool = False) -> None:
        self.url, self.root, self.view = url, root, view
        self.bucket = Bucket(url)
        self._session: Session | None = None

    @classmethod
    def of(cls, name: Path, view: bool = False) -> Remote | None:
        """The remote workspace that `name` means, an address or the folder of a copy; None for any other folder.

        For an address the records are fetched; raises as `Bucket.check`.
        """
        url = remote_url(name)
        if url is None:
            mark = name / _MARK
            if not mark.is_file():
                return None
            found = _OPEN.get(name.resolve())
            return found if found is not None else cls(read_json(mark)["url"], name.resolve())
        remote = cls(url, cache_root(url) / ("view" if view else "workspace"), view)
        remote.bucket.check()
        with explain_os_errors(remote.root):
            remote.root.mkdir(parents=True, exist_ok=True)
            remote.root = remote.root.resolve()
            write_json(remote.root / _MARK, {"url": url})
        remote.fetch_records()
        return remote

    def fetch_records(self) -> None:
        """Records and decisions as the bucket has them, and of a view manifests too; what only this copy changed
        stays."""
        there = self.bucket.keys()
        wanted = [k for k in there if _RECORD.fullmatch(k) or (self.view and _SHOWN.fullmatch(k))]
        base = self._synced()
        for key in wanted:
            there_data = self.bucket.read(key)
            if there_data is None:
                continue
            here = self.root / key
            data = there_data
            if here.is_file() and not self.view:
                data = _merged(key, here.read_bytes(), there_data, base.get(key))
            if not (here.is_file() and here.read_bytes() == data):
                with atomic_write(here) as beside:
                    beside.write_bytes(data)
            base[key] = _sha256(there_data)
        if self.view:
            gone = [p for p in self.root.rglob("*.*") if p.is_file() and not p.name.startswith(".")]
            for path in gone:
                if path.relative_to(self.root).as_posix() not in there:
                    path.unlink()
        else:
            added.fetch(self.bucket, self.root, filter(_ADDED.fullmatch, there))
            # They say which rounds are finished.
            for key in filter(_DECISION.fullmatch, there):
                self.fetch(key.removesuffix(f"/{MANIFEST}"))
        write_json(self.root / _SYNCED, base)

    def push_records(self) -> None:
        """Upload the records that changed here. Does nothing in a copy that no run holds the lease for."""
        if self._session is None:
            return
        self._session.lease.check()
        self.push_added()
        base = self._synced()
        found = [p for p in self.root.rglob("*") if _RECORD.fullmatch(p.relative_to(self.root).as_posix())]
        keys = {path.relative_to(self.root).as_posix(): path for path in found if path.is_file()}
        for key in sorted(keys, key=_rank):
            data = keys[key].read_bytes()
            if base.get(key) != _sha256(data):
                self.bucket.write(key, data)
                base[key] = _sha256(data)
        write_json(self.root / _SYNCED, base)

    def push_added(self) -> None:
        """Upload what commands added beside a round: askings of anchors."""
        found = (path.relative_to(self.root).as_posix() for path in (self.root / "anchors").rglob("*.parquet"))
        added.push(self.bucket, self.root, sorted(filter(_ADDED.fullmatch, found)))

    def fetch_looks(self, last: int) -> None:
        """The manifests of the last looks at the champion."""
        keys = [k for k in self.bucket.keys("monitor") if _LOOK.fullmatch(k.removesuffix(f"/{MANIFEST}"))]
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
        with Lease(self.bucket, self.identity, _seconds("RLAIF_LEASE_SECONDS", 60.0)) as lease:
            self._session = Session(self, lease)
            _OPEN[self.root] = self
            try:
                self.fetch_records()
                last = max((path.name for path in (self.root / "rounds").glob("[0-9]*")), default="")
                for key in self.stages() if start else ():
                    wanted = key.endswith(("/aggregate", "/audit")) or self._champion().startswith(f"{key}/")
                    if wanted or key.startswith(f"rounds/{last}/"):
                        self.fetch(key)
                yield
            finally:
                try:
                    self.push_records()
                finally:
                    del _OPEN[self.root]
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

    def _synced(self) -> dict[str, str]:
        path = self.root / _SYNCED
        value: dict[str, str] = read_json(path) if path.is_file() else {}
        return value


_OPEN: dict[Path, Remote] = {}
"""Root of a copy -> its workspace, while this process holds the lease."""


class Session:
    """A run on a workspace in a bucket: what is done around each of its stages."""

    def __init__(self, remote: Remote, lease: Lease) -> None:
        self.remote, self.lease = remote, lease

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Fetch before, mirror meanwhile, upload after. Raises TransientError where the bucket is away."""
        remote, out = self.remote, step.out
        self.lease.check()
        _refuse_local_queue(step, remote.root)
        key = out.relative_to(remote.root).as_posix()
        for name in set(self._inputs(step)):
            remote.fetch(name)
        whole = remote.fetch(key)
        place = f"{out.parent.relative_to(remote.root).as_posix()}/{MIRROR}/{out.name}"
        partial = out.with_name(f".{out.name}.partial")
        interval = _seconds("RLAIF_MIRROR_SECONDS", 30.0)
        mirror = Mirror(remote.bucket, place, partial, remote.identity, interval, self.lease.check)
        if (out / REDO).is_file() or not whole:
            folders.withdraw(remote.bucket, key)
            mirror.drop()
        else:
            mirror.restore()
        remote.push_records()
        try:
            with mirror:
                yield
        finally:
            if mirror.problem is not None:
                line = {"event": "not_mirrored", "directory": key, "error": mirror.problem}
                append_line(out.parent / "journal.jsonl", json.dumps(line))
        folders.push(remote.bucket, key, out, self.lease.check)
        mirror.drop()
        remote.push_records()

    def _inputs(self, step: Step) -> Iterator[str]:
        """Keys of the stage directories that inputs lie in."""
        root = self.remote.root
        for value in (value for values in step.inputs.values() for value in values):
            path = Path(value)
            if path.is_absolute() and path.is_relative_to(root / "rounds"):
                yield "/".join(path.relative_to(root).parts[:3])


class _Run(Protocol):
    def __call__(self, step: Step, logs: Path, progress: Progress = ..., limits: Limits = ...) -> Outcome: ...


def carried(run: _Run) -> _Run:
    """`run_step` of a workspace in a folder as it is; in a bucket with all that goes around it.

    A look has a folder that nobody else writes to, so that it is made without the lease, also beside a round.
    """

    @functools.wraps(run)
    def wrapped(step: Step, *arguments: Any, **named: Any) -> Outcome:
        root = next((parent for parent in step.out.parents if (parent / _MARK).is_file()), None)
        if root is None:
            return run(step, *arguments, **named)
        key = step.out.relative_to(root).as_posix()
        if _LOOK.fullmatch(key):
            outcome = run(step, *arguments, **named)
            folders.push(Bucket(read_json(root / _MARK)["url"]), key, outcome.folder)
            return outcome
        remote = _OPEN.get(root.resolve())
        if remote is None or remote._session is None:
            raise RlaifError(f"{root} is a copy of a bucket, and this run holds no lease on it: use rlaif run.")
        with remote._session.around(step):
            return run(step, *arguments, **named)

    return wrapped


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
    given = os.environ.get("RLAIF_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    return base.expanduser() / f"{url.rsplit('/', 1)[-1]}-{hash_json([url, endpoint])[:12]}"


def _refuse_local_queue(step: Step, root: Path) -> None:
    """The audit queue's database cannot lie in a bucket, and one in this machine's copy would be seen by nobody."""
    config = step.config
    database = getattr(config, "database", None)
    if getattr(config, "mode", None) == "people" and database and Path(str(database)).is_relative_to(root):
        raise UsageError(
            "The audit queue of a workspace in a bucket needs a database of its own: set audit.database_env to the "
            "variable with the address of a PostgreSQL, or audit.inbox to a folder."
        )


def _merged(key: str, here: bytes, there: bytes, base: str | None) -> bytes:
    """What a record becomes that both sides have; `base`: the hash of what both had when they were last alike."""
    if base == _sha256(there):
        return here
    if base == _sha256(here) or not key.endswith(".jsonl"):
        return there
    lines = there.splitlines()
    known = set(lines)
    return b"\n".join([*lines, *(line for line in here.splitlines() if line not in known)]) + b"\n"


def _rank(key: str) -> int:
    return next((number for number, part in enumerate(_ORDER) if part in key), len(_ORDER))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{variable} = {text!r} is no number of seconds above 0: correct it.")
    return value
