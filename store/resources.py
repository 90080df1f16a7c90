"""Where the shipped data lies: `configs/` and `datasets/`, in a checkout or inside the installed wheel.

Data is not importable on purpose: the import name `datasets` belongs to Hugging Face's library.
"""

from __future__ import annotations

from pathlib import Path

from store.errors import UsageError

_HERE = Path(__file__).resolve().parent
_WHEEL = _HERE / "shipped"
ROOT = _WHEEL if _WHEEL.is_dir() else _HERE.parent
CONFIGS = ROOT / "configs"
DATASETS = ROOT / "datasets"

PREFIX = "shipped:"


def resolve(name: str, base: Path | None = None) -> Path:
    """The path that a config means: `shipped:tiny/...` is below the shipped datasets, others are relative to `base`.

    Raises UsageError where nothing is there.
    """
    if name.startswith(PREFIX):
        path = DATASETS / name.removeprefix(PREFIX)
    else:
        path = Path(name).expanduser()
        if not path.is_absolute():
            path = (base or Path.cwd()) / path
    if not path.exists():
        raise UsageError(f"{name!r} means {path}, which does not exist: correct the path.")
    return path


def is_local(name: str) -> bool:
    """Whether a model's name is a path here (shipped or on disk) and not a name on a model hub."""
    return name.startswith((PREFIX, "/", "./", "../", "~"))
