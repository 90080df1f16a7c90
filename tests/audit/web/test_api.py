"""The JSON API: what people do, by programs; items in, verdicts out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.queue.model import FLAWS, Kind
from audit.web.api.models import FlawName
from audit.web.pages.review import FLAW_LABELS
from store.schemas import VERDICTS
from store.tables import conform
from tests.audit.web.world import World, pairs

ALL = ("claim", "submit", "read", "export", "import", "admin")


def client(server: World, name: str = "root", *scopes: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {server.token(name, *(scopes or ALL))}"}
    return httpx.Client(base_url=f"{server.url}/api/v1", headers=headers, timeout=30)


def test_a_program_audits_like_a_person(world: Callable[..., World]) -> None:
    server = world(pairs(3))
    api = client(server, "ada", "claim", "submit", "read")
    first = api.post("/claim").json()
    assert api.post("/claim").json()["item_id"] == first["item_id"]
    assert [item["item_id"] for item in api.get("/items").json()["items"]] == [first["item_id"]]
    assert api.get(f"/items/{first['item_id']}").json()["prompt"] == first["prompt"]
    place = f"/items/{first['item_id']}"
    assert (
        api.post(f"{place}/heartbeat", json={"token": first["token"]}).json()["expires_at"] > first["expires_at"][:10]
    )
    said = {
        "token": first["token"],
        "key": "k1",
        "choice": "left",
        "confidence": 4,
        "flaws_right": ["wrong"],
        "seconds": 3,
    }
    receipt = api.post(f"{place}/submit", json=said)
    assert receipt.status_code == 200
    again = api.post(f"{place}/submit", json=said).json()
    assert again == receipt.json() | {"repeated": True}
    other = api.post(f"{place}/submit", json=said | {"choice": "right"})
    assert (other.status_code, other.json()["code"]) == (409, "key_reused")
    back = api.post("/undo", json={"key": "u1"}).json()
    assert back["previous"]["choice"] == "left"
    said |= {"token": back["token"], "key": "k2", "choice": "tie"}
    assert api.post(f"{place}/submit", json=said).status_code == 200
    second = api.post("/claim").json()
    skip = {"token": second["token"], "key": "k3", "reason": "no idea"}
    assert api.post(f"/items/{second['item_id']}/skip", json=skip).status_code == 200
    third = api.post("/claim").json()
    assert api.post(f"/items/{third['item_id']}/release", json={"token": third["token"]}).status_code == 204
    progress = api.get("/progress").json()
    assert (progress["answered"], progress["skipped"], progress["held"]) == (1, 1, 0)


def test_an_empty_queue_is_no_error(world: Callable[..., World]) -> None:
    response = client(world(), "ada", "claim").post("/claim")
    assert (response.status_code, response.content) == (204, b"")


def test_a_late_answer_is_refused_and_can_be_given_again(world: Callable[..., World]) -> None:
    server = world(pairs(1))
    api = client(server, "ada", "claim", "submit")
    item = api.post("/claim").json()
    server.clock.forward(3600)
    said = {"token": item["token"], "key": "k", "choice": "left"}
    late = api.post(f"/items/{item['item_id']}/submit", json=said)
    assert (late.status_code, late.json()["code"]) == (409, "lease_expired")
    assert api.get(f"/items/{item['item_id']}").status_code == 409
    held = api.post(f"/items/{item['item_id']}/reclaim").json()
    assert (held["left"], held["right"]) == (item["left"], item["right"])
    assert api.post(f"/items/{item['item_id']}/submit", json=said | {"token": held["token"]}).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"choice": "a"},
        {"confidence": 6},
        {"confidence": True},
        {"flaws_left": ["ugly"]},
        {"seconds": -1},
        {"seconds": "NaN"},
        {"comment": "x" * 20_001},
        {"key": ""},
        {"key": "schlüssel"},
        {"token": "1"},
        {"unknown": 1},
    ],
)
def test_answers_that_cannot_be_right(world: Callable[..., World], wrong: dict[str, Any]) -> None:
    server = world(pairs(1))
    api = client(server, "ada", "claim", "submit")
    item = api.post("/claim").json()
    said = {"token": item["token"], "key": "k", "choice": "left"} | wrong
    response = api.post(f"/items/{item['item_id']}/submit", json=said)
    assert response.status_code == 422
    assert response.json()["code"] in ("invalid", "bad_input")
    assert server.queue.progress(server.user("ada")).answered == 0


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"token":1e999}', b"\xff\xfe", b"[" * 5000, b'{"a":' * 3000]
)
def test_bodies_that_are_no_json_object(world: Callable[..., World], body: bytes) -> None:
    server = world(pairs(1))
    api = client(server, "ada", "claim", "submit")
    item = api.post("/claim").json()
    response = api.post(f"/items/{item['item_id']}/submit", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert set(response.json()) == {"status", "code", "detail"}


def test_hostile_text_comes_through_unchanged(world: Callable[..., World]) -> None:
    server = world()
    text = "<script> \u202e \u200b \x00 \ud800 {{7*7}} =cmd()"
    body = {"name": "b", "items": [{"pair_id": "p", "prompt": text, "response_a": text, "response_b": text + "!"}]}
    api = client(server)
    made = api.post("/batches", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert made.status_code == 201, made.text
    item = api.post("/claim").json()
    assert item["prompt"] == text
    said = {"token": item["token"], "key": "k", "choice": "left", "comment": text}
    sent = api.post(
        f"/items/{item['item_id']}/submit", content=json.dumps(said), headers={"Content-Type": "application/json"}
    )
    assert sent.status_code == 200, sent.text
    assert api.post("/undo", json={"key": "u"}).json()["previous"]["comment"] == text


def test_import_json_and_parquet_export_parquet_and_csv(world: Callable[..., World], tmp_path: Path) -> None:
    server = world()
    api = client(server)
    gold = {"pair_id": "g", "prompt": "G?", "response_a": "1", "response_b": "2", "kind": "gold", "gold_winner": "a"}
    pair = {"pair_id": "=1+1", "prompt": "P?", "response_a": "1", "response_b": "2", "inclusion_probability": 0.5}
    body = {"name": "json", "items": [gold, pair], "guidelines": {"version": "7", "text": "Read."}, "quota": 0.5}
    made = api.post("/batches", json=body)
    assert made.status_code == 201
    assert api.post("/batches", json=body).json() == made.json()
    assert api.post("/batches", json=body | {"overlap": 2}).status_code == 422
    table = pa.table({"prompt": ["Q?"], "chosen": ["good"], "rejected": ["bad"]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    content = (tmp_path / "pairs.parquet").read_bytes()
    parquet = {"Content-Type": "application/vnd.apache.parquet"}
    other = api.post("/batches/parquet", params={"name": "table"}, content=content, headers=parquet)
    assert other.status_code == 201, other.text
    assert api.post("/batches/parquet", params={"name": "x"}, content=b"no", headers=parquet).status_code == 422
    typed = api.post("/batches/parquet", params={"name": "x"}, content=content, headers={"Content-Type": "text/plain"})
    assert typed.status_code == 415
    assert [batch["name"] for batch in api.get("/batches").json()["batches"]] == ["table", "json"]
    while (claimed := api.post("/claim")).status_code == 200:
        item = claimed.json()
        said = {"token": item["token"], "key": item["item_id"], "choice": "left", "comment": "=HYPERLINK(1)"}
        assert api.post(f"/items/{item['item_id']}/submit", json=said).status_code == 200
    rows = pq.read_table(io.BytesIO(api.get("/verdicts.parquet").content))
    assert conform(rows, VERDICTS, "export").num_rows == 3
    chance = {row["pair_id"]: row["inclusion_probability"] for row in rows.to_pylist()}
    assert chance["=1+1"] == 0.5
    export = api.get("/verdicts.csv", params={"batch_id": made.json()["batch_id"]})
    assert export.headers["content-type"].startswith("text/csv")
    assert "attachment" in export.headers["content-disposition"]
    lines = list(csv.reader(io.StringIO(export.text)))
    assert len(lines) == 3
    assert not [cell for line in lines for cell in line if cell[:1] in "=+-@\t\r" and cell]
    assert api.get("/verdicts.csv", params={"batch_id": "0" * 16}).status_code == 404
    progress = api.get(f"/batches/{made.json()['batch_id']}").json()
    assert (progress["pairs"], progress["pairs_complete"], progress["quota"]) == (1, 1, 0.5)
    assert api.post(f"/batches/{made.json()['batch_id']}/close").status_code == 204
    assert api.get(f"/batches/{made.json()['batch_id']}").json()["closed_at"]


def test_a_simulated_auditor_is_marked_in_the_export(world: Callable[..., World]) -> None:
    server = world(pairs(1))
    from audit.queue.model import Role

    server.people.add("simulated-oracle", Role.AUDITOR, simulated=True)
    api = client(server, "simulated-oracle", "claim", "submit")
    item = api.post("/claim").json()
    api.post(f"/items/{item['item_id']}/submit", json={"token": item["token"], "key": "k", "choice": "tie"})
    (row,) = pq.read_table(io.BytesIO(client(server).get("/verdicts.parquet").content)).to_pylist()
    assert row["simulated"]


def test_no_key_of_the_api_names_what_people_must_not_see(world: Callable[..., World]) -> None:
    server = world(pairs(2, kind=Kind.CANARY))
    item = client(server, "ada", "claim").post("/claim").json()
    assert set(item) == {
        "item_id", "batch_id", "prompt", "left", "right", "guidelines_version", "constitution_version", "token",
        "expires_at", "previous",
    }  # fmt: skip


def test_flaws_have_a_label_and_a_place_in_the_description() -> None:
    assert set(get_args(FlawName)) == set(FLAWS) == set(FLAW_LABELS)
