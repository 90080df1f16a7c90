"""The mirror: unfinished work of a running stage, copied to the bucket now and then, so that another machine goes on.

What a stage keeps while it runs (shards of a journal, checkpoints) lies in a hidden folder beside its final one. A
snapshot of it is a set of objects named by their content and an index, written last: whoever restores it gets the
files of one moment. A kill of the machine loses what came after the last snapshot, and no more.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store.errors import RlaifError
from store.files import explain_os_errors, remove
from store.hashing import hash_file
from store.remote.bucket import Bucket

_INDEX = "index.json"
_MARK = ".key"
_WHOLE = 64 * 2**20
"""Files up to this size are read at once, so that one that grows meanwhile is stored as it was at one moment."""

_PASSING = (".tmp", ".trash")


class Mirror:
    """Of `folder` under `key`; a context manager that makes a snapshot every `interval_s`, and one at the end.

    `origin`: names this machine's copy of the workspace. `allowed`: raises where this machine may not write any more.
    """

    def __init__(
        self, bucket: Bucket, key: str, folder: Path, origin: str, interval_s: float, allowed: Callable[[], None]
    ) -> None:
        self._bucket, self._key, self._folder, self._origin = bucket, key, folder, origin
        self._interval_s, self._allowed = interval_s, allowed
        self._sent: set[str] = set()
        self._last: dict[str, tuple[int, int, str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self.problem: str | None = None
        """Why the last snapshot was not made."""

    def __enter__(self) -> Mirror:
        # What an earlier machine left is used again, or deleted with the first snapshot.
        self._sent = {name.removeprefix(f"{self._key}/") for name in self._bucket.keys(self._key)} - {_INDEX}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._try()

    def drop(self) -> None:
        """The stage is complete: its unfinished state is of no use any more."""
        self._bucket.delete([f"{self._key}/{_INDEX}"])
        self._bucket.delete(list(self._bucket.keys(self._key)))

    def restore(self) -> bool:
        """Bring the folder to the last snapshot where another machine made it; says whether it did.

        Shards of a journal that are here are kept beside: rows are addressed by content, so none counts twice.
        """
        data = self._bucket.read(f"{self._key}/{_INDEX}")
        index: dict[str, Any] = json.loads(data) if data else {}
        files: dict[str, str] = index.get("files", {})
        if not files or (index.get("origin") == self._origin and self._folder.is_dir()):
            return False
        beside = self._folder.with_name(f"{self._folder.name}.restored")
        remove(beside) if beside.exists() else None
        with explain_os_errors(beside):
            wanted = [(f"{self._key}/{sha256}", beside / name) for name, sha256 in files.items()]
            try:
                self._bucket.download_all(wanted)
            except RlaifError:
                if self._bucket.read(f"{self._key}/{_INDEX}") == data:
                    raise
                return self.restore()  # a newer snapshot replaced it meanwhile
            if any(hash_file(path) != files[path.relative_to(beside).as_posix()] for _, path in wanted):
                remove(beside)
                return False
            if self._folder.is_dir():
                if _text(self._folder / _MARK) == _text(beside / _MARK):
                    self._keep_rows(beside)
                remove(self._folder)
            beside.replace(self._folder)
        return True

    def snapshot(self) -> bool:
        """Store the folder as it is now; says whether a whole one was made. The folder may change meanwhile: then the
        next one is tried later."""
        before = self._listing()
        if not before or before == {name: (size, changed) for name, (size, changed, _) in self._last.items()}:
            return bool(before)
        found: dict[str, tuple[int, int, str]] = {}
        try:
            for name, stat in before.items():
                known = self._last.get(name)
                sha256 = known[2] if known is not None and known[:2] == stat else self._send(self._folder / name)
                found[name] = (*stat, sha256)
        except FileNotFoundError:
            return False
        grown = {name for name in before if name.endswith(".jsonl")}
        after = self._listing()
        if any(after.get(name) != stat for name, stat in before.items() if name not in grown):
            return False
        self._allowed()
        files = {name: sha256 for name, (_, _, sha256) in found.items()}
        index = {"origin": self._origin, "files": files}
        self._bucket.write(f"{self._key}/{_INDEX}", json.dumps(index).encode())
        stale = self._sent - set(files.values())
        self._bucket.delete(f"{self._key}/{sha256}" for sha256 in stale)
        self._sent -= stale
        self._last = found
        return True

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._try()

    def _try(self) -> None:
        """A snapshot is a precaution: where it fails the stage goes on, and `problem` says why."""
        try:
            self.snapshot()
            self.problem = None
        except (RlaifError, OSError) as error:
            self.problem = str(error)

    def _send(self, path: Path) -> str:
        if path.stat().st_size <= _WHOLE:
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 not in self._sent:
                self._bucket.write(f"{self._key}/{sha256}", data)
        else:
            sha256 = hash_file(path)
            if sha256 not in self._sent:
                self._bucket.upload(path, f"{self._key}/{sha256}")
        self._sent.add(sha256)
        return sha256

    def _listing(self) -> dict[str, tuple[int, int]]:
        """Name -> size and time of change; what is being written beside is left out."""
        found = {}
        try:
            for path in sorted(self._folder.rglob("*")):
                name = path.relative_to(self._folder)
                if path.is_file() and not any(part.endswith(_PASSING) for part in name.parts):
                    stat = path.stat()
                    found[name.as_posix()] = (stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:
            return {}
        return found

    def _keep_rows(self, beside: Path) -> None:
        for path in self._folder.rglob("*.jsonl"):
            target = beside / path.relative_to(self._folder)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
            elif hash_file(target) != (own := hash_file(path)):
                path.replace(target.with_name(f"{path.stem}-{own[:8]}.jsonl"))


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
