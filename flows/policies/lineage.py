"""Where a file, a stage or a model comes from: back through manifests to prompts, judges and base model.

A lineage is a graph as JSON: `root`, and `nodes` by name. A node is a stage directory with what made it, or something
that no stage made (`kind` source): a file, a judge, a model on a hub. Edges name the input, and the content hash that
went in then; `state` says where what lies there now is something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.specs import STAGES
from store.errors import RlaifError, UsageError
from store.files import read_json
from store.hashing import hash_file, hash_json, hash_parts, hash_path
from store.manifest import MANIFEST, Manifest, damages, read_manifest
from store.recipe import Source

Node = dict[str, Any]
Graph = dict[str, Any]

LINEAGE = "lineage.json"
"""File in an exported model that holds its lineage."""


def lineage(path: Path) -> Graph:
    """The graph of a file or folder in a stage's directory, of that directory, or of an exported model.

    Raises UsageError for a path that no stage made.
    """
    path = path.resolve()
    if (path / LINEAGE).is_file():
        graph: Graph = read_json(path / LINEAGE)
        return {**graph, "exported": str(path)}
    folder = stage_folder(path)
    if not path.exists() or folder is None:
        raise UsageError(
            f"{path} {'is in no finished stage' if path.exists() else 'does not exist'}: give a file or folder of a "
            f"round's stage, or an exported model."
        )
    nodes: dict[str, Node] = {}
    _add(folder, nodes)
    inside = path.relative_to(folder).as_posix()
    return {"root": str(folder), "file": None if inside == "." else inside, "sha256": hash_path(path), "nodes": nodes}


def digest(graph: Graph) -> str:
    """Hash of what went in anywhere and how: the same for two copies of a workspace, and for the same round again."""
    return hash_json(
        sorted(
            [n["stage"], n["key"]] if n["kind"] == "stage" else ["source", n["sha256"]] for n in graph["nodes"].values()
        )
    )


def stage_folder(path: Path) -> Path | None:
    """The finished stage directory that `path` is, or lies in."""
    return next((folder for folder in (path, *path.parents[:4]) if read_manifest(folder) is not None), None)


def _add(folder: Path, nodes: dict[str, Node]) -> None:
    name = str(folder)
    manifest = read_manifest(folder)
    if name in nodes or manifest is None:
        return
    node = nodes[name] = _stage_node(folder, manifest)
    for input_name, given in manifest.inputs.items():
        for one in given:
            node["inputs"].append(_edge(folder, manifest, input_name, one, nodes))


def _stage_node(folder: Path, manifest: Manifest) -> Node:
    return {
        "kind": "stage",
        "stage": manifest.stage,
        "stage_version": manifest.stage_version,
        "path": str(folder),
        "key": manifest.key,
        "seed": manifest.seed,
        "started_at": manifest.started_at,
        "seconds": manifest.seconds,
        "code_version": manifest.code_version,
        "packages": manifest.packages,
        "machine": manifest.machine,
        "config": manifest.config,
        "outputs": {name: output.sha256 for name, output in manifest.outputs.items()},
        "inputs": [],
    }


def _edge(folder: Path, manifest: Manifest, name: str, given: Mapping[str, str], nodes: dict[str, Node]) -> Node:
    path = _found(given, folder)
    identity = given["identity"]
    maker = stage_folder(path) if path.is_absolute() else None
    if maker is not None and maker != folder:
        _add(maker, nodes)
        now = _recorded_hash(path, maker)
        state = "as it was" if now == identity else "made again since, with another content"
        return {"name": name, "sha256": identity, "from": str(maker), "path": str(path), "state": state}
    source = f"{given['value']} {identity[:12]}"
    nodes[source] = {
        "kind": "source",
        "what": _kind(manifest.stage, name, path),
        "path": given["value"],
        "sha256": identity,
        "parts": manifest.parts.get(identity, {}),
    }
    return {"name": name, "sha256": identity, "from": source, "path": given["value"], "state": "as it was"}


def _source_of(stage: str, name: str) -> Callable[[str], Source] | None:
    """How a stage reads an input; None for one of a stage or an input that this version does not know."""
    spec = STAGES.get(stage)
    return next((item.source for item in spec.inputs if item.name == name), None) if spec else None


_JUDGE, _MODEL = _source_of("judge", "judge"), _source_of("sample", "policy")


def _kind(stage: str, name: str, path: Path) -> str:
    source = _source_of(stage, name)
    if source is _JUDGE:
        return "judge"
    if source is _MODEL:
        return "model" if path.exists() else "model on a hub"
    return "file"


def _found(given: Mapping[str, str], folder: Path) -> Path:
    """Where an input is now. Workspaces may be moved or copied, and manifests keep the path of then: a file of this
    workspace goes first, but the one with the content that went in before any other."""
    path = Path(given["value"])
    places = [path]
    if "rounds" in path.parts:
        tail = path.parts[len(path.parts) - path.parts[::-1].index("rounds") :]
        places.insert(0, folder.parent.parent.joinpath(*tail))
    there = [place for place in places if place.is_absolute() and place.exists()]
    same = (
        place for place in there if (maker := stage_folder(place)) and _recorded_hash(place, maker) == given["identity"]
    )
    return next(same, there[0] if there else path)


def _recorded_hash(path: Path, maker: Path) -> str | None:
    """The content hash of a stage's output by its manifest: nothing is read."""
    manifest = read_manifest(maker)
    if manifest is None:
        return None
    inside = path.relative_to(maker).as_posix()
    if inside in manifest.outputs:
        return manifest.outputs[inside].sha256
    prefix = "" if inside == "." else f"{inside}/"
    parts = {n.removeprefix(prefix): o.sha256 for n, o in manifest.outputs.items() if n.startswith(prefix)}
    return hash_parts(parts) if parts else None


def verify(graph: Graph) -> dict[str, list[str]]:
    """Node -> what is wrong: outputs that are not what their manifest says, sources and inputs that are not what went
    in. Empty where all is as it was. Of an exported model its own files are checked, and those of rounds that are
    here."""
    wrong: dict[str, list[str]] = {}
    if "exported" in graph:
        folder = Path(graph["exported"])
        bad = [f"{n} is {w}" for n, w in _changed_files(folder, graph["files"])]
        wrong |= {str(folder): bad} if bad else {}
    for name, node in graph["nodes"].items():
        found = list(_wrong(node))
        if found:
            wrong[name] = found
    return wrong


def _changed_files(folder: Path, files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            yield name, "missing"
        elif (found := hash_file(path)) != wanted:
            yield name, f"damaged: its sha256 is {found[:12]}... instead of {wanted[:12]}..."


def _wrong(node: Node) -> Iterator[str]:
    path = Path(node["path"])
    if node["kind"] == "source":
        yield from _changed_source(node, path)
        return
    manifest = read_manifest(path)
    if manifest is None:
        if path.exists():
            yield f"its {MANIFEST} is gone"
        return
    if manifest.key != node["key"]:
        yield "made again since, from something else"
    for name, damage in damages(path, manifest).items():
        yield f"output {name} is {damage}"
    for edge in node["inputs"]:
        if edge["state"] != "as it was":
            yield f"input {edge['name']} {Path(edge['path']).name}: {edge['state']}"


def _changed_source(node: Node, path: Path) -> Iterator[str]:
    if not path.is_absolute():
        return  # a name on a hub: nothing of it is here
    if not path.exists():
        yield "missing"
        return
    try:
        now = _JUDGE(str(path)).identity if _JUDGE and node["what"] == "judge" else hash_path(path)
    except RlaifError as error:
        yield str(error)
        return
    if now != node["sha256"]:
        yield "changed since"
