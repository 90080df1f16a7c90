"""Where things come from: the graph of a policy, its hashes, and the folder that is exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from flows.cli import rlaif
from flows.policies.export import export
from flows.policies.lineage import digest, lineage, verify
from flows.specs import ROUND
from flows.workspace import Workspace
from store.errors import RlaifError, UsageError
from store.hashing import hash_path
from store.resources import CONFIGS, DATASETS
from tests.flows.fake_round import finished, next_round


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    space, _ = finished(tmp_path_factory.mktemp("lineage") / "w")
    next_round(space)
    return space.root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "moved"))


def stage(root: Path, name: str, number: int = 1) -> Path:
    return root / "rounds" / f"{number:03d}" / name


def call(*arguments: str) -> Result:
    return CliRunner().invoke(rlaif, arguments)


def test_a_policy_leads_back_to_prompts_judges_and_base_model(original: Path) -> None:
    graph = lineage(stage(original, "ppo") / "policy")
    stages = {n["stage"] for n in graph["nodes"].values() if n["kind"] == "stage"}
    assert stages == set(ROUND) - {"evaluate", "promote"}
    sources = {n["path"] for n in graph["nodes"].values() if n["kind"] == "source"}
    assert {str(DATASETS / "tiny" / name) for name in ("prompts.parquet", "models/base")} <= sources
    assert str(CONFIGS / "judges" / "tiny-good") in sources
    assert graph["sha256"] == hash_path(stage(original, "ppo") / "policy")
    node = graph["nodes"][graph["root"]]
    assert {"seed", "started_at", "code_version", "packages", "machine", "config"} <= node.keys()
    assert {e["state"] for n in graph["nodes"].values() for e in n.get("inputs", [])} == {"as it was"}


def test_a_second_round_leads_back_through_the_first(original: Path) -> None:
    graph = lineage(stage(original, "ppo", 2) / "policy")
    assert str(stage(original, "ppo", 1)) in graph["nodes"]
    assert str(stage(original, "aggregate", 1)) in graph["nodes"]  # its preferences were trained on again
    assert str(stage(original, "sft", 1)) in graph["nodes"]


def test_a_file_is_as_good_as_a_folder(original: Path) -> None:
    graph = lineage(stage(original, "judge") / "votes.parquet")
    assert graph["file"] == "votes.parquet"
    assert {n["stage"] for n in graph["nodes"].values() if n["kind"] == "stage"} == {"sft", "sample", "judge"}


def test_a_moved_workspace_has_the_same_lineage(original: Path, root: Path) -> None:
    one, two = (lineage(stage(place, "ppo", 2) / "policy") for place in (original, root))
    assert digest(one) == digest(two)
    assert str(stage(root, "sample")) in two["nodes"]
    assert verify(two) == {}


def test_damage_is_found_wherever_it_is(root: Path) -> None:
    (stage(root, "judge") / "votes.parquet").write_bytes(b"PAR1")
    wrong = verify(lineage(stage(root, "ppo") / "policy"))
    assert list(wrong) == [str(stage(root, "judge"))]
    assert wrong[str(stage(root, "judge"))][0].startswith("output votes.parquet is damaged")
    done = call("lineage", str(stage(root, "ppo") / "policy"), "--verify")
    assert isinstance(done.exception, RlaifError)
    assert "votes.parquet is damaged" in str(done.exception)
    assert "!!" in done.stdout


def test_an_input_that_was_made_again_shows(tmp_path: Path) -> None:
    root = finished(tmp_path / "w")[0].root
    path = stage(root, "sample") / "manifest.json"
    value = json.loads(path.read_text())
    value["outputs"]["rollouts.parquet"]["sha256"] = "0" * 64
    path.write_text(json.dumps(value))
    graph = lineage(stage(root, "judge"))
    edges = {e["name"]: e["state"] for e in graph["nodes"][graph["root"]]["inputs"]}
    assert edges["rollouts"] == "made again since, with another content"
    assert edges["prompts"] == "as it was"
    assert any("rollouts.parquet: made again since" in text for text in verify(graph)[graph["root"]])


def test_a_changed_judge_shows(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CONFIGS / "judges" / "tiny-good", tmp_path / "tiny-good"))
    space, _ = finished(tmp_path / "w", f"judges=[{folder}]")
    graph = lineage(stage(space.root, "judge"))
    assert verify(graph) == {}
    prompt = folder / "prompt.jinja"
    prompt.write_text(prompt.read_text() + "!")
    assert [reasons for name, reasons in verify(graph).items() if str(folder) in name] == [["changed since"]]
    shutil.rmtree(folder)
    assert ["missing"] in verify(graph).values()


@pytest.mark.parametrize("name", ["nowhere", "rounds/001/journal.jsonl", "rounds"])
def test_what_no_stage_made_is_refused(original: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"does not exist|is in no finished stage"):
        lineage(original / name)


def test_the_tree_is_printed_and_the_json_is_whole(original: Path) -> None:
    done = call("lineage", str(stage(original, "ppo") / "policy"), "--verify")
    assert done.exit_code == 0, done.exception
    for text in ("ppo 001/ppo", "seed ", "tiny-good", "models/base", "Every hash is as recorded.", "sft (above)"):
        assert text in done.stdout
    value = json.loads(call("lineage", str(stage(original, "ppo")), "--json", "--verify").stdout)
    assert value["wrong"] == {}
    assert len(value["digest"]) == 64


def test_the_champion_is_exported_with_card_and_lineage(original: Path, tmp_path: Path) -> None:
    done = call("export", str(tmp_path / "out"), "--workspace", str(original))
    assert done.exit_code == 0, done.exception
    out = tmp_path / "out"
    policy = stage(original, "ppo", 2) / "policy"
    assert (out / "model.safetensors").read_bytes() == (policy / "model.safetensors").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "lineage.json",
        "model.safetensors",
    ]
    graph = lineage(out)
    assert digest(graph) == digest(lineage(policy))
    assert verify(graph) == {}
    (out / "model.safetensors").write_text("others")
    (text,) = verify(graph)[str(out)]
    assert text.startswith("model.safetensors is damaged: its sha256 is")


def test_the_card_says_what_a_user_must_know(original: Path, tmp_path: Path) -> None:
    space = Workspace.existing(original)
    champion = space.champion()
    assert champion is not None
    text = (export(champion, tmp_path / "out") / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "transformers"
    for part in (
        "**Intended use:**",
        "| win rate over the reference | 0.700 | 0.600 to 0.800 | 100 |",
        "| win rate, animals | 0.700 | 0.500 to 0.900 | 50 |",
        "95 % interval",
        "3 of them identical",
        "Judge: `tiny-good`, fingerprint `",
        "Data: `prompts.parquet`, sha256 `",
        "Base model: `base`",
        "KL budget of PPO: 10.0 nats; the kept update has 1.500",
        "lower bound of the win rate: 0.600, bar 0.5: passed",
        "1 preferences, 0 of them decided by programs that play auditors",
        "## Limits",
        digest(lineage(Path(champion["policy"]))),
    ):
        assert part in text, part
    assert text.count("Judge: `tiny-good`") == 1
    assert "`tiny-evaluator` (fingerprint `" in text
    assert "it was trained with other judges" in text


def test_the_card_does_not_hide_that_its_judges_trained_it(tmp_path: Path) -> None:
    space, _ = finished(tmp_path / "w", "evaluation_judges=[tiny-good, tiny-evaluator]")
    champion = space.champion()
    assert champion is not None
    text = (export(champion, tmp_path / "out") / "README.md").read_text()
    assert "**`tiny-good` had a part in its training too**" in text


def test_the_card_of_an_overridden_promotion_says_so(root: Path, tmp_path: Path) -> None:
    from flows.policies.candidates import candidate

    space = Workspace.existing(root)
    space.registry.promote(candidate(space, "1", None), "as a test", "to see the card", "mo")
    champion = space.champion()
    assert champion is not None
    text = (export(champion, tmp_path / "out") / "README.md").read_text()
    assert "promoted by a person" in text
    assert "Promoted although its checks did not pass**, because: to see the card" in text


def test_an_export_overwrites_nothing_and_leaves_nothing_half(root: Path, tmp_path: Path) -> None:
    space = Workspace.existing(root)
    champion = space.champion()
    assert champion is not None
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        export(champion, tmp_path / "out")
    (Path(champion["policy"]) / "model.safetensors").write_text("others")
    with pytest.raises(RlaifError, match="is not what was promoted"):
        export(champion, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "out"]


def test_without_a_champion_a_round_is_to_be_named(tmp_path: Path) -> None:
    low = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    space, _ = finished(tmp_path / "w", win_rate=low)
    done = call("export", str(tmp_path / "out"), "--workspace", str(space.root))
    assert isinstance(done.exception, UsageError)
    assert "has no champion: name a round with --round" in str(done.exception)
    done = call("export", str(tmp_path / "out"), "--workspace", str(space.root), "--round", "1")
    assert done.exit_code == 0, done.exception
    assert "not promoted" in (tmp_path / "out" / "README.md").read_text()


def test_mlflow_registers_the_export(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: pip install 'rlaif[track]'")
    pytest.importorskip("mlflow.store.model_registry.sqlalchemy_store", reason="needs mlflow with its database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    arguments = ["--workspace", str(original), "--mlflow", "polite"]
    assert call("export", str(tmp_path / "one"), "--round", "1", *arguments).exit_code == 0
    done = call("export", str(tmp_path / "two"), *arguments)
    assert "MLflow: polite version 2" in done.stdout, done.exception
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("polite", "champion")
    assert version.version in (2, "2")
    assert version.source == (tmp_path / "two").resolve().as_uri()
    assert version.tags["rlaif.round"] == "2"
    assert version.tags["rlaif.lineage"] == digest(lineage(tmp_path / "two"))
    assert version.description.startswith("---")


def test_without_mlflow_nothing_is_written(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = call("export", str(tmp_path / "out"), "--workspace", str(original), "--mlflow", "polite")
    assert isinstance(done.exception, UsageError)
    assert "rlaif[track]" in str(done.exception)
    assert not (tmp_path / "out").exists()
