"""What a stage's result is a function of, and the key that stands for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from store.config import Config
from store.hashing import hash_json


@dataclass(frozen=True)
class Source:
    """One value of an input: what to open (a path, or a model's name on a hub) and the hash of its content.

    `parts`: what a folder or a judge consists of, name -> hash or short value; they name a later change and are in no
    key. `kind`: what is said to have changed then.
    """

    value: str
    identity: str
    parts: Mapping[str, str] = field(default_factory=dict, compare=False)
    kind: str = field(default="input", compare=False)


@dataclass(frozen=True)
class Recipe:
    """`version`: of the stage's code, raised when its results change. Same key, same result."""

    stage: str
    version: int
    inputs: Mapping[str, list[Source]]
    config: Config
    seed: int

    @property
    def key(self) -> str:
        identities = {
            name: [source.identity for source in sources] for name, sources in sorted(self.inputs.items()) if sources
        }
        return hash_json([self.stage, self.version, identities, self.config.identity(), self.seed])

    @property
    def parts(self) -> dict[str, dict[str, str]]:
        """By identity, as manifests hold them."""
        sources = [source for values in self.inputs.values() for source in values]
        return {source.identity: dict(source.parts) for source in sources if source.parts}
