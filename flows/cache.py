"""Where this machine keeps what can be fetched or made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """RLAIF_CACHE, or `rlaif` in the user's own cache. It may not exist yet."""
    given = os.environ.get("RLAIF_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"
    return base.expanduser()
