"""Where shards are worked on. A runner does one shard and waits for it; it is called from several threads at once.

A worker that dies takes nothing with it but the shard it was at, which is given to another. Ray and Dask are asked
directly and not through Prefect's task runners: every stage runs without Prefect, on the same files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from flows.shards.exchange import Answer
from store.errors import TransientError, UsageError
from store.sharding import ShardsConfig

S = TypeVar("S")
Run = Callable[[S], Answer]
"""Does a shard, which is some data, and gives what came of it."""


def workers_of(config: ShardsConfig, loads_models: bool) -> int:
    """Shards at a time. `loads_models`: a model would be loaded in the worker's process."""
    if config.workers is not None:
        return config.workers
    return 1 if loads_models and config.runner == "local" else os.cpu_count() or 1


@contextmanager
def open_runner(config: ShardsConfig, workers: int, work: Run[S], close: Callable[[], None]) -> Iterator[Run[S]]:
    """Yield what has `work` done on a shard, wherever that is.

    `work`: a function at the top of a module, by whose name other machines find it. What it keeps from shard to shard,
    `close` closes in this process; workers of a cluster keep it until they end. Raises UsageError where a package is
    missing, TransientError where a cluster is.
    """
    if config.runner == "local":
        try:
            yield work
        finally:
            close()
        return
    runner = {"ray": _ray, "dask": _dask}[config.runner]
    with runner(config, workers, work) as run:
        yield run


@contextmanager
def _ray(config: ShardsConfig, workers: int, work: Run[S]) -> Iterator[Run[S]]:
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise UsageError("shards.runner is ray, which is not installed: pip install 'rlaif[ray]'.") from error
    # A cluster may be ours from before, as in a notebook: then it stays.
    ours = not ray.is_initialized()
    if ours:
        started: dict[str, Any] = {"num_cpus": workers} if config.address is None else {"address": config.address}
        try:
            ray.init(log_to_driver=False, include_dashboard=False, logging_level="error", **started)
        except (RayError, ConnectionError, RuntimeError, TimeoutError) as error:
            raise TransientError(
                f"The Ray cluster {config.address} does not answer: start it, or correct the address."
            ) from error
    # Ray itself gives a task whose worker or machine died to another one. By default it would end a worker that has a
    # GPU after each task, and with it the model that the next shard needs.
    task = ray.remote(num_cpus=1, num_gpus=config.gpus, max_retries=config.attempts - 1, max_calls=0)(work)

    def run(shard: S) -> Answer:
        try:
            answer: Answer = ray.get(task.remote(shard))
        except RayTaskError:
            raise  # our own mistake: not a matter of the cluster
        except RayError as error:
            raise _lost(config, error) from error
        return answer

    try:
        yield run
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _dask(config: ShardsConfig, workers: int, work: Run[S]) -> Iterator[Run[S]]:
    try:
        import distributed
    except ImportError as error:
        raise UsageError("shards.runner is dask, which is not installed: pip install 'rlaif[dask]'.") from error
    try:
        if config.address is None:
            cluster: Any = distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
            )
            client = distributed.Client(cluster)
        else:
            cluster, client = None, distributed.Client(config.address, timeout="20s")
    except (OSError, TimeoutError, ValueError) as error:
        raise TransientError(
            f"The Dask cluster {config.address} does not answer: start it, or correct the address."
        ) from error

    def run(shard: S) -> Answer:
        for attempt in range(config.attempts):
            future = client.submit(work, shard, pure=False)
            try:
                answer: Answer = future.result()
            except (distributed.KilledWorker, distributed.CancelledError) as error:
                if attempt + 1 == config.attempts:
                    raise _lost(config, error) from error
            else:
                return answer
        raise AssertionError("unreachable")

    try:
        yield run
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def _lost(config: ShardsConfig, error: BaseException) -> TransientError:
    return TransientError(
        f"A shard lost its {config.runner} worker {config.attempts} times ({type(error).__name__}), often for want of "
        f"memory: finished shards are kept; give workers more, or lower shards.size, and run again."
    )
