"""Figures beside their targets, both sides of each ratio, as the benchmarks of training print them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import peers

CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}
"""What a worker may time with. On a machine that others use too, the processor's time of one thread says more."""


def peak_mb(device: str) -> float:
    """The most memory that this process has held, in MB: of the GPU where it computes on one, else resident."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.max_memory_allocated()) / 2**20
    return peers.peak_mb()


@dataclass(frozen=True)
class Line:
    """`ours` and `other` are the two sides, `value` what is compared with the target by `sign`, >= or <=."""

    what: str
    ours: float
    other: float
    value: float
    sign: str
    target: float

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.sign == ">=" else self.value <= self.target

    def __str__(self) -> str:
        verdict = "ok" if self.met else "MISSED"
        sides = f"{self.ours:>10.4g} {self.other:>10.4g}"
        return f"{self.what:<46} {sides} {self.value:>9.3g}   {self.sign} {self.target:<5g} {verdict}"


def show(lines: Sequence[Line]) -> bool:
    """Print the table; whether every target was met."""
    print(f"\n{'':<46} {'ours':>10} {'other':>10} {'figure':>9}   target")
    print(*lines, sep="\n", flush=True)
    return all(line.met for line in lines)
