"""Work in parts: where the parts of a big table are done, and how many at a time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from store.config import OPERATIONAL, Config


class ShardsConfig(Config):
    """Where a big table's parts, the shards, are worked on; the result is the same for any of these, but for the size
    where a stage says so."""

    runner: Literal["local", "ray", "dask"] = Field(
        "local",
        description="threads of this process, or the workers of a Ray or Dask cluster",
        json_schema_extra=OPERATIONAL,
    )
    size: Annotated[int, Field(ge=1)] = Field(
        8192, description="pairs a shard, rounded up to a multiple of 256; 2,000 to 20,000 do well"
    )
    workers: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="shards at a time; null: all processors, 1 where a model is loaded in this process",
        json_schema_extra=OPERATIONAL,
    )
    address: str | None = Field(
        None,
        description="of the Ray or Dask cluster (ray://..., auto, tcp://...); null starts one on this machine",
        json_schema_extra=OPERATIONAL,
    )
    attempts: Annotated[int, Field(ge=1)] = Field(
        4, description="tries of a shard whose worker died, the first included", json_schema_extra=OPERATIONAL
    )
    gpus: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs that a shard needs; Ray", json_schema_extra=OPERATIONAL
    )

    @field_validator("address")
    @classmethod
    def _of_a_cluster(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("runner") == "local":
            raise ValueError("the runner local has no address: set runner to ray or dask, or remove it")
        return value

    @field_validator("gpus")
    @classmethod
    def _given_by_ray(cls, value: float, info: ValidationInfo) -> float:
        runner = info.data.get("runner", "ray")
        if value and runner != "ray":
            raise ValueError(f"the runner {runner} hands out no GPUs: set runner to ray, or remove gpus")
        return value
