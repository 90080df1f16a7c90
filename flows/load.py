"""Find and read a round's config: a file, or the name of a shipped one; its relative paths are made absolute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.config import RoundConfig
from flows.specs import check_model
from judges.config import load_judge
from rlhf.config import ConstraintTerm
from store.config import override, parse, read_yaml
from store.errors import UsageError
from store.resources import CONFIGS, PREFIX, resolve

_FILES = ("prompts", "demonstrations", "calibration")
_NAMES = ("policy", "oracle")
_LISTS = ("judges", "evaluation_judges", "judge_checks", "probe_judges", "constraints")


def find_config(name: str) -> Path:
    """A path as it is; otherwise a shipped config, `demo` and `demo.yaml` alike."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = CONFIGS / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent.name in ("", "configs") and shipped.is_file():
        return shipped
    known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
    raise UsageError(f"The config {name!r} is neither a file nor shipped: give a path, or one of {known}.")


def load_round(name: str, settings: Sequence[str] = ()) -> RoundConfig:
    """The validated config. Every file, model and judge it names is checked to be there, before anything runs."""
    path = find_config(name)
    value = override(read_yaml(path), settings)
    config = parse(RoundConfig, _absolute(value, path.resolve().parent), source=str(path))
    check_references(config)
    return config


def change(config: RoundConfig, settings: Sequence[str]) -> RoundConfig:
    """The config with `--set` settings applied."""
    value = override(config.model_dump(mode="json"), settings)
    changed = parse(RoundConfig, _absolute(value, Path.cwd()), source="--set")
    check_references(changed)
    return changed


def _absolute(value: dict[str, Any], base: Path) -> dict[str, Any]:
    """Paths relative to the config file become absolute. A name that is no path (a hub's, a shipped judge's) stays."""

    def fix(name: Any) -> Any:
        if not isinstance(name, str) or name.startswith(PREFIX):
            return name
        for root in (base, Path.cwd()):
            candidate = (root / Path(name).expanduser()).resolve()
            if candidate.exists() and (candidate.is_file() or _is_folder_of_ours(candidate)):
                return str(candidate)
        return name

    fixed = dict(value)
    for key in (*_FILES, *_NAMES):
        if key in fixed:
            fixed[key] = fix(fixed[key])
    for key in _LISTS:
        if isinstance(fixed.get(key), list):
            fixed[key] = [fix(name) for name in fixed[key]]
    return fixed


def _is_folder_of_ours(path: Path) -> bool:
    return (path / "config.json").is_file() or (path / "judge.yaml").is_file()


def check_references(config: RoundConfig) -> None:
    """Refuse a config that names a file, model or judge that is not there: now, not an hour into the round."""
    for key in _FILES:
        if (name := getattr(config, key)) is not None:
            resolve(name)
    for name in config.judge_checks:
        resolve(name)
    check_model(config.policy)
    oracle = [config.oracle] if config.oracle else []
    for judge in [*config.judges, *config.evaluation_judges, *config.probe_judges, *oracle]:
        load_judge(judge)
    known = {load_judge(judge).name for judge in config.constraints}
    for term in config.ppo.terms:
        if isinstance(term, ConstraintTerm) and term.judge not in known:
            raise UsageError(
                f"The reward term {term.name!r} of ppo.terms asks the judge {term.judge!r}, which constraints does not "
                "name: add its folder there."
            )
    if config.audit.mode == "simulated" and config.oracle is None:
        raise UsageError(
            "audit.mode is simulated but no oracle is named: set oracle to a program judge, or audit.mode=off."
        )
