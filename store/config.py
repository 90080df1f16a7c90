"""Configuration: YAML read with the safe loader, checked by pydantic, unknown keys refused, errors in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from store.errors import UsageError

OPERATIONAL: dict[str, Any] = {"operational": True}
"""`Field(json_schema_extra=OPERATIONAL)`: where and how a stage runs, not what it makes; a database's address, say."""


class Config(BaseModel):
    """Base of every configuration model: immutable, and a misspelt key is an error instead of a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def identity(self) -> dict[str, Any]:
        """The values that results depend on, as JSON: all but the fields marked OPERATIONAL, here and in configs inside
        this one. Keys of stages and manifests hold these alone."""
        return self.model_dump(mode="json", exclude=_operational(self))


def _operational(config: Config) -> dict[str, Any]:
    """The marked fields, as `model_dump` takes them."""
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if field.json_schema_extra is OPERATIONAL:
            found[name] = True
        elif isinstance(value, Config) and (inner := _operational(value)):
            found[name] = inner
    return found


C = TypeVar("C", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises UsageError, with line and column, where the file is missing, malformed or not a mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"The config file {path} does not exist: check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The config file {path} cannot be read ({error}): check the path.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UsageError(f"{path} is not valid YAML{where}: {problem}. Correct it there.") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{path} must hold a mapping of keys to values, not a {type(value).__name__}.")
    return value


def parse(model: type[C], value: dict[str, Any], source: str) -> C:
    """Validate `value` as `model`. Raises UsageError that names every wrong key, its value and what is wanted."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UsageError(f"{source}: " + "; ".join(_problems(error, model))) from error


def load(model: type[C], path: Path, overrides: Iterable[str] = ()) -> C:
    """Read and validate a YAML file, after applying `a.b=c` overrides."""
    return parse(model, override(read_yaml(path), overrides), source=str(path))


def override(value: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Apply settings `a.b=c`; the right side is read as YAML, so `null`, `3` and `[x, y]` mean what they look like."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise UsageError(f"--set {setting!r} is not of the form key=value, such as ppo.updates=10.")
        try:
            new = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting!r}: the value is not valid YAML.") from error
        value = _set(value, keys, new, setting)
    return value


def _set(value: dict[str, Any], keys: list[str], new: Any, setting: str) -> dict[str, Any]:
    head, *rest = keys
    if not rest:
        return {**value, head: new}
    inner = value.get(head)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise UsageError(f"--set {setting!r}: {head} holds {inner!r}, which has no keys of its own.")
    return {**value, head: _set(inner, rest, new, setting)}


def _problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "the config"
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, item["loc"][:-1])
            hint = f", known are {', '.join(sorted(known))}" if known else ""
            lines.append(f"unknown key {name}{hint}")
        elif item["type"] == "missing":
            lines.append(f"{name} is missing: add it")
        else:
            message = item["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:] if not message[:2].isupper() else message
            lines.append(f"{name} = {item['input']!r}: {message}")
    return lines


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = _model_in(field.annotation)
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The configuration model inside an annotation such as `Model | None` or `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None
