"""Judging and sampling of big tables in shards: on threads, Ray or Dask, a task a shard and never a task a row."""
