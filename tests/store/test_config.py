"""Configs: unknown keys refused, errors in one sentence that names key, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from store.config import Config, load, override
from store.errors import UsageError


class Inner(Config):
    rate: float = Field(0.1, gt=0)


class Outer(Config):
    name: str
    inner: Inner = Inner()


def test_overrides_reach_nested_keys(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\n")
    config = load(Outer, tmp_path / "c.yaml", ["inner.rate=0.5", "name=b"])
    assert (config.name, config.inner.rate) == ("b", 0.5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a\ninner: {rat: 1}\n", r"unknown key inner\.rat, known are rate"),
        ("nam: a\n", "name is missing"),
        ("name: a\ninner: {rate: 0}\n", r"inner\.rate = 0: input should be greater than 0"),
        ("name: [\n", r"not valid YAML at line 2"),
        ("- a\n", "must hold a mapping"),
        ("name: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        load(Outer, tmp_path / "c.yaml")


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load(Outer, tmp_path / "none.yaml")


@pytest.mark.parametrize("setting", ["rate", "=3", "a..b=3", "name.x=3", "x=["])
def test_a_wrong_setting_is_named(setting: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        override({"name": "a"}, [setting])
