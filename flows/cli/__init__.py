"""The command line, `rlaif`. Errors come out as one sentence; exit code 2 for a wrong use, 1 for a failure."""

from __future__ import annotations

import sys

import click
from rich.console import Console

from flows.cli.audit import audit
from flows.cli.doctor import doctor
from flows.cli.explain import explain
from flows.cli.judges import judges
from flows.cli.labels import labels
from flows.cli.output import Output
from flows.cli.run import report, run, status
from flows.cli.stage import stage
from store.errors import RlaifError, UsageError, WaitingError
from store.manifest import code_version


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(code_version(), prog_name="rlaif")
def rlaif() -> None:
    """Reinforcement learning from AI feedback: sample, judge, audit, aggregate, train, evaluate, promote.

    A round is one pass of that loop. `rlaif run` makes a whole one; `rlaif stage` runs a single stage on files.
    """


for command in (run, status, report, explain, stage, judges, labels, audit, doctor):
    rlaif.add_command(command)


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
