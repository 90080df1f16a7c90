"""Figures about judges, one subject a file; `judges.metrics` is the way in.

Judges are told apart by fingerprint. A figure that cannot be computed (no votes of that kind) is None, never 0. The
intervals are of 95 % and take pairs as independent, unless they say otherwise.
"""

from typing import Any

Figures = dict[str, Any]
"""Names to numbers, None, or further figures: JSON as it stands."""
