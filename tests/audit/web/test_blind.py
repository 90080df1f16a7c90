"""Blindness: nothing that an auditor receives tells a gold item from a pair, or what anybody else said."""

from __future__ import annotations

import re
from collections.abc import Callable

from audit.queue.exchange import export_verdicts
from audit.queue.model import Answer, Kind, NewItem
from tests.audit.web.world import Visitor, World, field

SECRETS = ("gold-", "judge-says", "policy-v7", "stratum-x", "hidden-reason", "group-y", "inclusion", "pair-id")


def items() -> list[NewItem]:
    more = {"group": "group-y", "stratum": "stratum-x", "reason": "hidden-reason judge-says policy-v7"}
    texts = ("Which one?", "Same words here.", "Other words here.")
    pair = [NewItem(f"pair-id-{i}", *texts, inclusion_probability=0.25, **more) for i in range(3)]
    gold = [NewItem(f"gold-{i}", *texts, kind=Kind.GOLD, gold_winner="a", **more) for i in range(3)]
    canary = [NewItem("gold-canary", *texts, kind=Kind.CANARY, priority=0, **more)]
    return [*pair, *gold, *canary]


def without_chance(text: str) -> str:
    """The page without what is random in every page of one item anyway: ids, tokens, keys, sides, counts."""
    text = re.sub(r"[0-9a-f]{32,64}", "ID", text)
    text = re.sub(r'(name="(?:token|key|csrf)" value=")[^"]*', r"\1X", text)
    text = re.sub(r'data-expires="\d+"', "", text)
    return text.replace("Other words", "Same words")


def test_all_kinds_of_items_look_alike(world: Callable[..., World]) -> None:
    server = world(items(), overlap=2)
    server.queue.submit(
        (bob := server.user("bob")),
        (c := server.queue.claim(bob)).item.item_id,
        c.token,
        Answer("left"),
        "k",  # type: ignore[union-attr]
    )
    visitor = server.visitor("ada")
    pages, headers, lengths = set(), set(), set()
    for _ in items():
        place = visitor.claim()
        response = visitor.get(place)
        for secret in (*SECRETS, "bob"):
            assert secret not in response.text
            assert secret not in str(response.headers)
        text = re.sub(r"\d+ today · \d+ waiting|<progress[^>]*>", "", response.text)
        pages.add(without_chance(text))
        headers.add(frozenset(set(response.headers) - {"date"}))
        lengths.add(len(re.sub(r'(name="token" value=")[^"]*|data-expires="\d+"', "", text)))
        assert visitor.answer(place).status_code == 303
    assert len(pages) == 1
    assert len(headers) == 1
    assert len(lengths) == 1


def test_ids_are_of_one_shape_and_say_nothing(world: Callable[..., World]) -> None:
    server = world(items())
    visitor = server.visitor("ada")
    seen = []
    for _ in range(4):
        place = visitor.claim()
        seen.append(place)
        visitor.answer(place)
    assert all(re.fullmatch(r"/items/[0-9a-f]{32}", place) for place in seen)
    assert len(set(seen)) == 4


def test_the_api_shows_no_more_than_the_page(world: Callable[..., World]) -> None:
    server = world(items())
    headers = {"Authorization": f"Bearer {server.token('ada', 'claim', 'submit', 'read')}"}
    visitor = Visitor(server.url)
    for _ in range(4):
        claim = visitor.post("/api/v1/claim", headers=headers)
        for secret in SECRETS:
            assert secret not in claim.text
            assert secret not in str(claim.headers)
        item = claim.json()
        body = {"token": item["token"], "key": item["item_id"], "choice": "tie"}
        visitor.post(f"/api/v1/items/{item['item_id']}/submit", headers=headers, json=body)


def test_sides_differ_between_people_and_map_back_to_one_winner(world: Callable[..., World]) -> None:
    pairs = [NewItem(f"p{i}", f"Q{i}?", "the good one", "the bad one") for i in range(10)]
    server = world(pairs, overlap=2)
    lefts: dict[str, list[str]] = {"ada": [], "bob": []}
    for name, sides in lefts.items():
        visitor = server.visitor(name)
        for _ in pairs:
            place = visitor.claim()
            text = visitor.get(place).text
            left = re.search(r'id="left-text">([^<]*)', text)
            assert left
            good_left = left[1] == "the good one"
            sides.append("left" if good_left else "right")
            assert visitor.answer(place, choice=sides[-1]).status_code == 303
    table = export_verdicts(server.database).to_pylist()
    assert len(table) == 20
    assert {row["winner"] for row in table} == {"a"}
    assert {row["shown_left"] for row in table} == {"a", "b"}
    by_person = {name: {row["pair_id"]: row["shown_left"] for row in table if row["auditor"] == name} for name in lefts}
    assert by_person["ada"] != by_person["bob"]


def test_refusals_reveal_nothing_either(world: Callable[..., World]) -> None:
    server = world(items())
    visitor = server.visitor("ada")
    place = visitor.claim()
    visitor.answer(place)
    for response in (visitor.get(place), visitor.answer_again(place), visitor.get("/items/" + "0" * 32)):
        assert response.status_code in (404, 409)
        for secret in SECRETS:
            assert secret not in response.text


def test_an_auditor_finds_no_figures_of_others(world: Callable[..., World]) -> None:
    server = world(items(), overlap=2)
    bob = server.visitor("bob")
    for _ in range(3):
        bob.answer(bob.claim(), comment="bobs words")
    visitor = server.visitor("ada")
    for path in ("/", "/guidelines", "/account", visitor.claim(), "/metrics"):
        text = visitor.get(path).text
        assert "bob" not in text
        assert "gold" not in text
    assert field(visitor.get("/").text, "csrf")
