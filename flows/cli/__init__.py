"""The command line, `rlaif`. Errors come out as one sentence; exit code 2 for a wrong use, 1 for a failure."""

from __future__ import annotations

import sys
from importlib import import_module

import click
from rich.console import Console

from flows.cli.output import Output
from store.errors import RlaifError, UsageError, WaitingError
from store.manifest import code_version

COMMANDS = {
    "run": "run",
    "status": "status",
    "report": "run",
    "explain": "explain",
    "stage": "stage",
    "judges": "judges",
    "labels": "labels",
    "audit": "audit",
    "deploy": "deploy",
    "serve": "deploy",
    "look": "deploy",
    "retain": "deploy",
    "metrics": "metrics",
    "lineage": "lineage",
    "models": "registry",
    "champion": "registry",
    "promote": "registry",
    "rollback": "registry",
    "export": "registry",
    "doctor": "doctor",
}
"""Each command, in the order of the help, and its module here."""


class _Commands(click.Group):
    """Loads a command's module when it is asked for: those of others take seconds and a hundred megabytes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"flows.cli.{COMMANDS[cmd_name]}"), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(code_version(), prog_name="rlaif")
def rlaif() -> None:
    """Reinforcement learning from AI feedback: sample, judge, audit, aggregate, train, evaluate, promote.

    A round is one pass of that loop. `rlaif run` makes a whole one; `rlaif stage` runs a single stage on files.
    """


def main() -> None:
    try:
        sys.exit(rlaif.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RlaifError as error:
        if error.details:
            Output(Console(stderr=True)).line(error.details)
        click.echo(f"rlaif: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, UsageError | WaitingError) else 1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("rlaif: interrupted. What was finished is kept; the same rlaif run goes on from there.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        sys.stderr.close()
        sys.exit(1)
