"""`rlaif stage NAME`: one stage on files, without Prefect and without a workspace.

The commands are made from the table of stages: each input is an option, and so is each plain field of its config.
"""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from flows.cli.display import BarProgress
from flows.plan import Step
from flows.processes.execute import run_step
from flows.processes.ranks import is_many
from flows.processes.worker import execute
from flows.specs import STAGES, StageSpec
from flows.telemetry.figures import flatten
from store.config import override, parse, read_yaml


@click.group()
def stage() -> None:
    """Run one stage on files. The output folder is written whole or not at all; done again, it is left as it is."""


def _plain_type(annotation: Any) -> click.ParamType[Any] | None:
    """The option type of a config field, or None for a field that only --set or --config can give."""
    if get_origin(annotation) in (Union, UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        return _plain_type(inner[0]) if len(inner) == 1 else None
    if get_origin(annotation) is Literal:
        return click.Choice([str(choice) for choice in get_args(annotation)])
    kinds: dict[Any, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, str: click.STRING, bool: click.BOOL}
    return kinds.get(annotation) if isinstance(annotation, type) else _annotated(annotation, kinds)


def _annotated(annotation: Any, kinds: dict[Any, click.ParamType[Any]]) -> click.ParamType[Any] | None:
    arguments = get_args(annotation)
    return kinds.get(arguments[0]) if arguments and hasattr(annotation, "__metadata__") else None


def _field_option(name: str, field: FieldInfo) -> click.Option | None:
    kind = _plain_type(field.annotation)
    if kind is None:
        return None
    shown = f"{field.description or ''} [default: {field.default}]".strip()
    return click.Option([f"--{name.replace('_', '-')}", name], type=kind, default=None, help=shown)


def _command(spec: StageSpec) -> click.Command:
    inputs = [
        click.Option(
            [f"--{item.name.replace('_', '-')}", f"input_{item.name}"],
            help=item.help + (" (optional)" if not item.required else ""),
            required=item.required,
            multiple=item.many,
            metavar="PATH",
        )
        for item in spec.inputs
    ]
    taken = {item.name for item in spec.inputs} | {"seed", "out", "config", "set"}
    fields = [
        option
        for name, field in spec.config.model_fields.items()
        if name not in taken and name != "enabled" and (option := _field_option(name, field))
    ]
    common = [
        click.Option(["--out"], required=True, type=click.Path(path_type=Path), help="Folder to write."),
        click.Option(["--seed"], type=int, default=17, show_default=True, help="Seed of everything random."),
        click.Option(["--config"], type=click.Path(path_type=Path), help=f"YAML with the keys of section {spec.name}."),
        click.Option(["--set", "settings"], multiple=True, metavar="KEY=VALUE", help="Set any config key, a.b=c."),
    ]

    def call(out: Path, seed: int, config: Path | None, settings: tuple[str, ...], **given: Any) -> None:
        values = read_yaml(config) if config else {}
        for option in fields:
            name = str(option.name)
            if given[name] is not None:
                values[name] = given[name]
        values = override(values, settings)
        files = {item.name: _listed(given[f"input_{item.name}"]) for item in spec.inputs}
        _run(spec, files, values, seed, out)

    return click.Command(
        spec.name, callback=call, params=[*inputs, *common, *fields], help=spec.help, short_help=spec.help
    )


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _run(spec: StageSpec, inputs: dict[str, list[str]], config: dict[str, Any], seed: int, out: Path) -> None:
    with BarProgress() as progress:
        if is_many(spec.name, config):
            step = Step(spec.name, inputs, parse(spec.config, config, source=f"config of stage {spec.name}"), seed, out)
            outcome = run_step(step, out.parent / "logs", progress)
        else:
            outcome = execute(spec.name, inputs, config, seed, out, progress)
    state = "was complete already" if outcome.reused else f"took {outcome.manifest.seconds:.1f} s"
    click.echo(f"{spec.name} {state}: {out}")
    for name, value in flatten(outcome.manifest.metrics).items():
        click.echo(f"  {name}: {value}")


for _spec in STAGES.values():
    stage.add_command(_command(_spec))
