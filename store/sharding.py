"""Work in parts: where the parts of a big table are done, and how many at a time. No result depends on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from store.config import Config


class ShardsConfig(Config):
    """Where a big table's parts, the shards, are worked on; the result is the same for any of these."""

    runner: Literal["local", "ray", "dask"] = Field(
        "local", description="threads of this process, or the workers of a Ray or Dask cluster"
    )
    size: Annotated[int, Field(ge=1)] = Field(
        8192, description="pairs a shard, rounded up to a multiple of 256; 2,000 to 20,000 do well"
    )
    workers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="shards at a time; null: all processors, 1 where a judge's model is loaded in this process"
    )
    address: str | None = Field(
        None, description="of the Ray or Dask cluster (ray://..., auto, tcp://...); null starts one on this machine"
    )
    attempts: Annotated[int, Field(ge=1)] = Field(
        4, description="tries of a shard whose worker died, the first included"
    )
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="GPUs that a shard needs; Ray")
