"""What a finished round came to, as people see it at its end."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_result(value: dict[str, Any]) -> None:
    metrics = value["metrics"]
    table = Table(title=f"Round {value['round']}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")

    def row(name: str, text: str | None) -> None:
        table.add_row(name, text if text is not None else "-")

    def number(key: str, digits: int = 3) -> str | None:
        figure = metrics[key]
        return None if figure is None else f"{figure:.{digits}f}"

    row("expected reward, reference", number("expected_reward_reference"))
    row("expected reward, policy", number("expected_reward_policy"))
    if metrics["win_rate"] is not None:
        interval = f"[{metrics['win_rate_low']:.3f}, {metrics['win_rate_high']:.3f}]"
        row("win rate over the reference", f"{metrics['win_rate']:.3f} {interval.replace('[', chr(92) + '[')}")
    row("KL to the reference (nats)", number("kl", 2))
    row("reward model accuracy", number("reward_model_accuracy"))
    for judge, accuracy in metrics["judge_accuracy"].items():
        row(f"judge {judge}, right on gold", None if accuracy is None else f"{accuracy:.3f}")
    votes = metrics["votes"] or {}
    row("votes", ", ".join(f"{count} {name}" for name, count in votes.items()) or None)
    row("promoted", "yes" if metrics["promoted"] else "no")
    row("seconds", number("seconds", 0))
    row("peak memory (MiB)", number("peak_rss_mb", 0))
    console = Console(width=max(Console().width, 100))
    console.print(table)
    console.print(f"{metrics['promotion_reason']}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Report: {value['report']}", highlight=False, markup=False, soft_wrap=True)
