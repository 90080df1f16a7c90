"""`rlaif metrics`: a workspace's figures for Prometheus."""

from __future__ import annotations

from pathlib import Path

import click
from prometheus_client import generate_latest

from flows.cli.options import workspace_option
from flows.telemetry.metrics import ROUNDS, registry, serve, write_textfile
from store.errors import UsageError


@click.command()
@workspace_option
@click.option("--port", type=click.IntRange(0, 65535), help="Serve /metrics on this port until interrupted.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--textfile", type=click.Path(path_type=Path), help="Write this file (*.prom) and end.")
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True, help="Rounds to tell, the last.")
def metrics(workspace: Path, port: int | None, host: str, textfile: Path | None, rounds: int) -> None:
    """Figures of rounds, stages, judges and champion for Prometheus: served, as a file, or printed."""
    if port is not None and textfile is not None:
        raise UsageError("Give --port or --textfile, not both.")
    if textfile is not None:
        click.echo(write_textfile(workspace, textfile, rounds))
    elif port is not None:
        server, thread = serve(workspace, port, host, rounds)
        click.echo(f"http://{host}:{server.server_port}/metrics", err=True)
        thread.join()
    else:
        click.echo(generate_latest(registry(workspace, rounds)).decode(), nl=False)
