"""What ran, how long it took, and what made it: the stages, and the provenance of their outputs."""

from __future__ import annotations

from typing import Any

from flows.report.data import Round

_STATES = {
    "finished": "ran",
    "reused": "reused",
    "failed": "failed",
    "unfinished": "unfinished",
    "missing": "missing",
    "off": "switched off",
    "absent": "not run",
}


def stages(round_: Round) -> dict[str, Any]:
    spent = [row.seconds for row in round_.stages if row.seconds is not None and row.state != "reused"]
    longest = max((row.seconds or 0.0 for row in round_.stages), default=0.0)
    peaks = [row.peak_rss_mb for row in round_.stages if row.peak_rss_mb is not None]
    rows = [
        {
            "row": row,
            "state": _STATES[row.state],
            "share": 100 * row.seconds / longest if row.seconds and longest else 0.0,
        }
        for row in round_.stages
    ]
    return {"rows": rows, "seconds": sum(spent) if spent else None, "peak": max(peaks, default=None)}


def provenance(round_: Round) -> dict[str, Any]:
    manifests = round_.manifests.values()
    packages: dict[str, set[str]] = {}
    machines: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in manifest.packages.items():
            packages.setdefault(name, set()).add(version)
        for name, value in manifest.machine.items():
            machines.setdefault(name, set()).add(value)
    return {
        "code": sorted({manifest.code_version for manifest in manifests}),
        "seed": round_.config.get("seed"),
        "packages": {name: ", ".join(sorted(values)) for name, values in sorted(packages.items())},
        "machines": {name: ", ".join(sorted(values)) for name, values in machines.items()},
        "manifests": list(round_.manifests.items()),
    }
