"""The lead's, ML ops' and admin's pages, and one's own account."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from audit.queue.exchange import export_verdicts
from audit.queue.model import Answer
from store.errors import RlaifError
from tests.audit.web.judged import rows
from tests.audit.web.world import PASSWORD, Visitor, World, field, pairs


def disagree(server: World) -> None:
    """ada and bob answer one pair, each for another response."""
    for name, winner in (("ada", "First"), ("bob", "Second")):
        claim = server.queue.claim(server.user(name))
        assert claim is not None
        choice = "left" if claim.item.left.startswith(winner) else "right"
        said = Answer(choice, 4, ("wrong",), (), f"{name} says so", 9.0)
        server.queue.submit(server.user(name), claim.item.item_id, claim.token, said, "k")


def test_a_lead_sees_a_dispute_and_settles_it(world: Callable[..., World]) -> None:
    server = world(pairs(1), overlap=2)
    disagree(server)
    lead = server.visitor("lena")
    listed = lead.get("/disputes").text
    place = re.search(r'href="(/disputes/[0-9a-f]+)"', listed)
    assert place
    page = lead.get(place[1]).text
    assert "ada says so" in page
    assert "bob says so" in page
    fields = {"csrf": field(page, "csrf"), "key": field(page, "key"), "comment": "The second is right."}
    refused = lead.submit(place[1], **fields)
    assert refused.status_code == 422
    assert "The second is right." in refused.text
    for _ in range(2):  # a double click
        assert lead.submit(place[1], choice="left", **fields).status_code == 303
    table = export_verdicts(server.database).to_pylist()
    assert [row["auditor"] for row in table] == ["ada", "bob", "lena"]
    assert "people agree" in lead.get("/disputes").text.lower()
    assert place[1] in lead.get("/disputes?settled=yes").text


def test_a_lead_asks_one_more_person(world: Callable[..., World]) -> None:
    server = world(pairs(1), overlap=2)
    disagree(server)
    lead = server.visitor("lena")
    place = re.search(r'href="(/disputes/[0-9a-f]+)"', lead.get("/disputes").text)
    assert place
    assert lead.submit(f"{place[1]}/requeue").status_code == 303
    assert server.queue.claim(server.user("root")) is not None


def test_the_work_page_has_the_figures(world: Callable[..., World]) -> None:
    server = world(pairs(1), overlap=2)
    disagree(server)
    text = server.visitor("lena").get("/lead", params={"batch": server.batch}).text
    assert "ada" in text
    assert "0 %" in text  # agreement
    assert server.visitor("lena").get("/lead", params={"batch": "none"}).status_code == 404


def test_the_judges_page(world: Callable[..., World]) -> None:
    text = html.unescape(world(judges=rows).visitor("lena").get("/judges").text)
    for cell in ("86.8 %", "77.0 % to 93.0 %", "86.0 %", "± 5.9 %", "71.0 %", "tiny-new"):
        assert cell in text


def test_the_judges_page_without_a_table_and_with_a_broken_one(world: Callable[..., World]) -> None:
    def broken() -> list[object]:
        raise RlaifError("The votes file is gone: run the judge stage again.")

    assert "without votes" in world().visitor("lena").get("/judges").text
    assert "The votes file is gone" in world(judges=broken).visitor("lena").get("/judges").text


def test_an_admin_adds_people_and_hands_out_passwords_once(world: Callable[..., World]) -> None:
    server = world()
    root = server.visitor("root")
    made = root.submit("/users", name="grace", role="auditor")
    password = re.search(r'class="secret">([^<]+)', made.text)
    assert password
    assert password[1] not in root.get("/users").text
    assert Visitor(server.url).login("grace", password[1]).status_code == 303
    assert root.submit("/users", name="grace", role="auditor").status_code == 422
    assert root.submit("/users", name="x", role="king").status_code == 422
    again = re.search(r'class="secret">([^<]+)', root.submit("/users/reset", name="grace").text)
    assert again
    assert again[1] != password[1]
    assert Visitor(server.url).login("grace", password[1]).status_code == 401
    assert root.submit("/users/role", name="grace", role="lead").status_code == 303
    assert server.people.get("grace").role == "lead"
    assert root.submit("/users/disable", name="root").status_code == 422
    assert root.submit("/users/explode", name="grace").status_code == 422


def test_an_admin_makes_a_token_that_is_shown_once(world: Callable[..., World]) -> None:
    server = world()
    root = server.visitor("root")
    made = root.submit("/tokens", name="ada", label="loop", days="30", scopes="read")
    secret = re.search(r'class="secret">([^<]+)', made.text)
    assert secret
    assert secret[1] not in root.get("/tokens").text
    headers = {"Authorization": f"Bearer {secret[1]}"}
    assert Visitor(server.url).get("/api/v1/progress", headers=headers).status_code == 200
    beyond = root.submit("/tokens", name="ada", label="loop", days="30", scopes="admin")
    assert beyond.status_code == 422
    assert root.submit("/tokens", name="ada", label="loop", days="x", scopes="read").status_code == 422


def test_changing_the_password_asks_for_the_present_one_and_ends_other_sessions(world: Callable[..., World]) -> None:
    server = world()
    here, elsewhere = server.visitor("ada"), server.visitor("ada")
    new = "another good long sentence"
    assert here.submit("/account/password", present="wrong", new=new, again=new).status_code == 401
    assert here.submit("/account/password", present=PASSWORD, new=new, again="other").status_code == 422
    assert here.submit("/account/password", present=PASSWORD, new="short", again="short").status_code == 422
    assert here.submit("/account/password", present=PASSWORD, new=new, again=new).status_code == 303
    assert here.get("/").status_code == 200
    assert elsewhere.get("/").status_code == 303
    assert Visitor(server.url).login("ada", new).status_code == 303


def test_guidelines_are_versioned_and_inert(world: Callable[..., World]) -> None:
    from audit.queue.model import Guidelines

    text = "# Rules\n<script>alert(1)</script> ![x](http://evil.example/x.png) [y](javascript:alert(2)) {{7*7}}"
    server = world(pairs(1), guidelines=Guidelines("v<9>", text))
    visitor = server.visitor("ada")
    page = visitor.get(visitor.claim() and f"/guidelines/{server.batch}").text
    assert "v&lt;9&gt;" in page
    assert "<script>alert" not in page
    assert '<img src="http' not in page
    assert 'href="javascript' not in page
    assert "{{7*7}}" in page
    assert visitor.get("/guidelines/none").status_code == 404
