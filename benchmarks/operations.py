"""Operations: what kills, orchestration and scale cost. `python benchmarks/operations.py chaos|overhead|shards ...`

chaos     a round killed at many random instants ends byte for byte as one that was left alone
overhead  a round under Prefect against the same stages one after the other
shards    a million synthetic pairs through shards

Each is a script of its own beside this one, `operations_NAME.py`, with options of its own (`--help`).
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    here = Path(__file__).resolve().parent
    known = sorted(path.stem.removeprefix("operations_") for path in here.glob("operations_*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else f"Name one of {', '.join(known)}.")
    name = sys.argv.pop(1)
    # Each part is also run from a copy of the tree: its own modules come first, whatever is installed.
    sys.path.insert(0, str(here.parent))
    runpy.run_path(str(here / f"operations_{name}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
