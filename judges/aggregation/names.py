"""What may make labels and what may only look at them, by name; kept light, since every command reads the config."""

from __future__ import annotations

METHOD_NAMES = ("stacked", "weighted", "mean", "majority")
DIAGNOSTICS = ("dawid_skene", "glad", "mace")


def not_a_method(name: str) -> str:
    """Why an unsupervised label model is no method, and what to do."""
    return (
        f"{name} is a diagnostic and cannot make labels, since judges share their errors and it would take their "
        f"agreement for skill: use stacked with gold pairs, or one of {', '.join(METHOD_NAMES[1:])}."
    )
