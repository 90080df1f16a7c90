"""`rlaif judges`: which judges there are, what one is, whether it works, and how two differ."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from flows.cli.display import BarProgress
from flows.cli.judge_tables import show_check, show_comparison
from flows.cli.output import Output, write_json
from flows.inspection.rejudge import read_last_round
from judges.backends.base import Subject
from judges.config import Judge, known_judges, load_judge
from judges.modes import Kind
from judges.pairs import Pair, pairs_from_table
from judges.prompts import WELL_KNOWN_SPECIALS
from judges.settings import LOCAL, OpenAISettings
from store.errors import RlaifError, UsageError
from store.resources import PREFIX, resolve
from store.schemas import GOLD, PAIRS
from store.tables import read_table

CALIBRATION = f"{PREFIX}tiny/calibration.parquet"

NEEDS = {"transformers": ("torch", "transformers"), "vllm": ("vllm",), "openai": ("aiohttp",)}
"""Packages that a backend loads when it is opened."""

_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
_seed = click.option("--seed", type=int, default=17, show_default=True, help="Seed of the draw and of sampling judges.")


@click.group()
def judges() -> None:
    """List, show, check and compare judges. A judge is a shipped name, or a folder with a judge.yaml."""


@judges.command("list")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@_json
def list_judges(folders: tuple[Path, ...], as_json: bool) -> None:
    """List the shipped judges, or those in FOLDERS, and what each lacks to be used here."""
    rows = [_row(name) for name in _names(folders)]
    if as_json:
        write_json(rows)
        return
    keys = ("name", "backend", "mode", "model", "missing")
    Output().table(keys, [[row[key] or ("nothing" if key == "missing" else "") for key in keys] for row in rows])


def _names(folders: Iterable[Path]) -> list[str]:
    if not folders:
        return known_judges()
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder: give one that holds judge folders.")
        below = sorted(str(path.parent) for path in folder.glob("*/judge.yaml"))
        own = [str(folder)] if (folder / "judge.yaml").is_file() else []
        if not own and not below:
            raise UsageError(f"{folder} holds no judge: give a folder with a judge.yaml in it, or one level below.")
        found += own or below
    return found


def _row(name: str) -> dict[str, Any]:
    try:
        judge = load_judge(name)
    except RlaifError as error:
        return {"name": name, "backend": None, "mode": None, "model": None, "missing": str(error)}
    members = " then ".join(member.name for member in judge.members)
    return {
        "name": judge.name,
        "backend": judge.settings.backend,
        "mode": judge.settings.mode,
        "model": getattr(judge.settings, "model", None) or members or getattr(judge.settings, "rubric", None),
        "missing": "; ".join(missing(judge)),
    }


def missing(judge: Judge) -> list[str]:
    """What the judge needs and this machine lacks: packages, and variables that hold keys. Servers are not called."""
    lacks: list[str] = []
    for one in judge.asked:
        lacks += [f"package {name}" for name in NEEDS.get(one.settings.backend, ()) if find_spec(name) is None]
        settings = one.settings
        if isinstance(settings, OpenAISettings) and settings.api_key_env and not os.environ.get(settings.api_key_env):
            lacks.append(f"variable {settings.api_key_env}")
        if settings.backend in LOCAL and not Path(one.model).is_dir():
            lacks.append(f"model {one.model} on this machine (loaded from a hub at first use)")
    return list(dict.fromkeys(lacks))


@judges.command()
@click.argument("name")
@click.option(
    "--pairs", "pairs_file", default=CALIBRATION, show_default=True, help="Pairs parquet; its first is shown."
)
@_json
def show(name: str, pairs_file: str, as_json: bool) -> None:
    """Show a judge's settings, fingerprint, principles, price, and its prompt for one pair."""
    judge = load_judge(name)
    pair = pairs_from_table(read_table(resolve(pairs_file), PAIRS))[0]
    shown: dict[str, Any] = {
        "name": judge.name,
        "folder": str(judge.folder),
        "fingerprint": judge.fingerprint,
        "settings": judge.settings.model_dump(mode="json"),
        "members": {member.name: member.fingerprint for member in judge.members},
        "principles": list(judge.principles),
        "missing": missing(judge),
        "pair": pair.pair_id,
        "prompts": {one.name: _prompt(one, pair) for one in judge.asked},
    }
    if as_json:
        write_json(shown)
        return
    out = Output()
    out.line(f"{judge.name} ({judge.folder})")
    out.line(f"fingerprint {judge.fingerprint}")
    out.line(f"missing     {'; '.join(missing(judge)) or 'nothing'}")
    out.heading("Settings")
    settings = {key: value for key, value in shown["settings"].items() if key not in ("name", "price")}
    out.table(("", " "), [(key, _value(value)) for key, value in settings.items()])
    out.heading("Price of a million tokens")
    price = judge.settings.price
    out.line(f"{price.input:g} in, {price.output:g} out" if not judge.members else "its members'")
    for member in judge.members:
        out.line(f"member {member.name} {member.fingerprint}")
    if judge.principles:
        out.heading("Principles")
        for number, principle in enumerate(judge.principles, 1):
            out.line(f"{number}. {principle}")
    for member_name, prompt in shown["prompts"].items():
        out.heading(f"Prompt of {member_name} for the pair {pair.pair_id}, in the order ab")
        out.line(prompt or "none: a program, which scores each response by its rules")


def _prompt(judge: Judge, pair: Pair) -> str:
    responses = (pair.response_a,) if judge.mode.kind == Kind.SINGLE else (pair.response_a, pair.response_b)
    about = pair.prompt_id if judge.mode.kind == Kind.LIST else pair.pair_id
    subject = Subject(pair.prompt, responses, pair.reference, pair.group)
    return judge.render(subject, about, WELL_KNOWN_SPECIALS)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@judges.command()
@click.argument("name")
@click.option(
    "--pairs", "pairs_file", default=CALIBRATION, show_default=True, help="Pairs with known winners, parquet."
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Most pairs to ask about, drawn."
)
@click.option(
    "--canaries",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Attacked pairs for each canary text; 0: none.",
)
@_seed
@_json
def check(name: str, pairs_file: str, limit: int, canaries: int, seed: int, as_json: bool) -> None:
    """Make real calls of a judge: does it work, how fast, how right, how biased, and can a response talk it over?

    Each pair is asked about in both orders. Exit code 1, with one sentence, where the judge cannot be used.
    """
    from judges.check import check_judge, draw

    judge = load_judge(name)
    gold = draw(read_table(resolve(pairs_file), GOLD), limit, seed)
    with BarProgress() as progress:
        found = check_judge(judge, gold, per_canary=canaries, seed=seed, progress=progress)
    if as_json:
        write_json({**found.figures, "problem": found.problem})
    else:
        show_check(Output(), found.figures)
    if found.problem:
        raise RlaifError(found.problem)


@judges.command()
@click.argument("first")
@click.argument("second")
@click.option("--pairs", "pairs_file", help="Pairs parquet, with or without known winners.  [default: the calibration]")
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    help="Also say what changes in its last round with SECOND in FIRST's place.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Most pairs to ask about, drawn; of the round too.")
@click.option("--examples", type=click.IntRange(min=0), default=3, show_default=True, help="Pairs shown that differ.")
@_seed
@_json
def compare(
    first: str,
    second: str,
    pairs_file: str | None,
    workspace: Path | None,
    limit: int | None,
    examples: int,
    seed: int,
    as_json: bool,
) -> None:
    """Ask two judges about the same pairs: where they differ, what they cost, and what a swap would change.

    With a workspace, votes that its last round has are not asked for again, and new ones are kept in it, so that the
    same comparison is free the second time.
    """
    from judges.check import draw
    from judges.compare import ask, compare_votes, refuse_one_judge, refuse_stranger, replaced

    one, other = load_judge(first), load_judge(second)
    refuse_one_judge(one, other)
    last = read_last_round(workspace) if workspace else None
    if last:
        refuse_stranger(one, last.tables)
        seed = last.seed
    source = pairs_file or (last.calibration if last else None) or CALIBRATION
    pairs = draw(_gold_or_pairs(resolve(source)), limit, seed)
    known = last.known if last else []
    with BarProgress() as progress:
        how: dict[str, Any] = {"seed": seed, "shards": last.shards if last else None, "progress": progress}
        answers = [ask(judge, pairs, known, **how) for judge in (one, other)]
        figures = compare_votes(one, answers[0], other, answers[1], pairs, examples=examples)
        if last:
            own = draw(last.tables.pairs, limit, seed)
            new = ask(other, own, known, **how).votes
            gold = last.tables.gold
            gold_votes = None if gold is None else ask(other, gold, known, **how).votes
            figures["round"] = {
                "number": last.number,
                **replaced(last.tables, one, other, new, gold_votes, own),
            }
    if as_json:
        write_json({**figures, "seed": seed, "pairs_file": source})
    else:
        show_comparison(Output(), figures)


def _gold_or_pairs(path: Path) -> Any:
    table = read_table(path, PAIRS)
    return read_table(path, GOLD) if "winner" in table.column_names else table
