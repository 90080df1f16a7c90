"""`rlaif lineage`: where a file or a model comes from, as a tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from flows.bucket import fetched_path
from flows.cli.output import Output, write_json
from flows.policies.lineage import Graph, digest, verify
from flows.policies.lineage import lineage as trace
from flows.report.text import plain
from store.errors import RlaifError


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--verify", "check", is_flag=True, help="Check every hash; exit code 1 where one is not as recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
def lineage(path: Path, check: bool, as_json: bool) -> None:
    """Show where PATH comes from: stages, seeds, hashes, back to prompts, judges and base model.

    PATH is a file or folder of a round's stage, such as rounds/001/ppo/policy, or a model that rlaif export wrote;
    of a workspace in a bucket s3://BUCKET/PREFIX/rounds/001/ppo/policy.
    """
    graph = trace(fetched_path(path))
    wrong = verify(graph) if check else None
    if as_json:
        write_json({**graph, "digest": digest(graph), **({} if wrong is None else {"wrong": wrong})})
    else:
        _console().print(_tree(graph, wrong or {}))
        output = Output()
        output.line(f"lineage {digest(graph)}")
        if wrong == {}:
            output.line("Every hash is as recorded.")
    if wrong:
        first, reasons = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RlaifError(f"{first}: {reasons[0]}{more}. Run rlaif run to make damaged outputs again.")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _tree(graph: Graph, wrong: dict[str, list[str]]) -> Tree:
    title = graph["root"] if not graph.get("file") else f"{graph['root']}/{graph['file']}"
    tree = Tree(Text(plain(f"{title}  {graph['sha256'][:12]}"), style="bold"))
    seen: set[str] = set()

    def add(branch: Tree, name: str, label: str) -> None:
        node = graph["nodes"][name]
        text = Text(plain(label) + plain(_told(node)))
        for problem in wrong.get(name, []):
            text.append(plain(f"  !! {problem}"), style="red")
        if name in seen and node["kind"] == "stage":
            branch.add(Text(plain(f"{label}{node['stage']} (above)"), style="dim"))
            return
        seen.add(name)
        twig = branch.add(text)
        for edge in node.get("inputs", []):
            add(twig, edge["from"], f"{edge['name']}: ")

    add(tree, graph["root"], "")
    return tree


def _told(node: dict[str, Any]) -> str:
    if node["kind"] == "source":
        return f"{node['what']} {node['path']}  {node['sha256'][:12]}"
    where = "/".join(Path(node["path"]).parts[-2:])
    version = node["code_version"]
    return (
        f"{node['stage']} {where}  seed {node['seed']}, {node['started_at']}, {node['seconds']:.0f} s, code {version}"
    )
