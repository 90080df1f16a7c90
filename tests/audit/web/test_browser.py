"""The review page in real browsers, two contexts as two auditors. Console errors and policy violations fail a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from audit.queue.exchange import export_verdicts
from audit.queue.model import Answer, NewItem
from audit.queue.queue import Rules
from tests.audit.web.conftest import Person
from tests.audit.web.world import World, pairs

pytestmark = pytest.mark.slow
Open = Callable[..., Person]


def verdicts(server: World) -> list[dict[str, Any]]:
    return export_verdicts(server.database).to_pylist()


def moved_on(page: Any, before: str) -> None:
    page.wait_for_function("before => !location.href.endsWith(before)", arg=before.rsplit("/", 1)[1])


def keys(page: Any, *names: str) -> None:
    for name in names:
        page.keyboard.press(name)


def test_two_auditors_work_by_keyboard_alone(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(3), overlap=2)
    ada, bob = person(server.url, "ada").start(), person(server.url, "bob").start()
    for who in (ada, bob):
        for turn, choice in enumerate(("ArrowLeft", "ArrowRight", "t")):
            at = who.page.url
            keys(who.page, choice, "4", "q", "l", "c")
            who.page.keyboard.type(f"remark {turn}")
            keys(who.page, "Escape", "Enter")
            moved_on(who.page, at)
        who.page.wait_for_selector("text=Nothing to review")
    rows = verdicts(server)
    assert len(rows) == 6
    assert {row["comment"] for row in rows} == {"remark 0", "remark 1", "remark 2"}
    assert all(len(row["flaws"]) == 2 for row in rows)
    assert all(0 <= row["seconds"] < 60 for row in rows)
    pairs_of = {row["pair_id"]: set() for row in rows}
    for row in rows:
        pairs_of[row["pair_id"]].add(row["auditor"])
    assert set(map(frozenset, pairs_of.values())) == {frozenset({"ada", "bob"})}


def test_a_choice_pressed_twice_is_saved_and_a_held_key_is_not(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(2))
    page = person(server.url, "ada").start().page
    at = page.url
    page.keyboard.down("ArrowLeft")
    page.keyboard.down("ArrowLeft")  # the key repeats while it is held
    assert page.is_checked("#choice-left")
    page.keyboard.up("ArrowLeft")
    assert page.url == at
    page.keyboard.press("ArrowLeft")
    moved_on(page, at)
    assert len(verdicts(server)) == 1


def test_the_next_pair_is_there_before_it_is_asked_for(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(3))
    page = person(server.url, "ada").start().page
    page.wait_for_timeout(600)
    assert server.queue.progress(server.user("ada")).held == 2
    fetched: list[str] = []
    at = page.url
    keys(page, "t")
    page.on("request", lambda request: fetched.append(f"{request.method} {request.url}"))
    keys(page, "Enter")
    moved_on(page, at)
    assert fetched[0].startswith("POST")
    assert not [line for line in fetched if line == f"GET {page.url}"]
    page.reload()
    assert page.is_visible("#review")


def test_undo_gives_the_answer_back(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(3))
    page = person(server.url, "ada").start().page
    first = page.url
    keys(page, "ArrowRight", "2", "q")
    page.fill("#comment", "first thought")
    page.keyboard.press("Control+Enter")
    moved_on(page, first)
    page.keyboard.press("z")
    page.wait_for_selector("text=Taken back.")
    assert page.url.startswith(first)
    assert page.is_checked("#choice-right")
    assert page.is_checked("[name=confidence][value='2']")
    assert page.is_checked("[name=left_flaws][value=wrong]")
    assert page.input_value("#comment") == "first thought"
    keys(page, "ArrowLeft", "Enter")
    page.wait_for_function("() => document.querySelector('#comment') && !document.querySelector('#comment').value")
    rows = verdicts(server)
    assert len(rows) == 3
    replaced = {row["supersedes"] for row in rows}
    assert len([row for row in rows if row["verdict_id"] not in replaced]) == 1


def test_a_late_answer_is_refused_and_the_text_stays(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(2), rules=Rules(lease_s=60, held=1))
    ada = person(server.url, "ada").start()
    ada.expect(409)
    ada.page.fill("#comment", "long thoughts")
    ada.page.keyboard.press("Escape")
    ada.page.keyboard.press("ArrowLeft")
    server.clock.forward(120)
    at = ada.page.url
    with ada.page.expect_response("**/answer") as got:
        ada.page.keyboard.press("Enter")
    assert got.value.status == 409
    ada.page.wait_for_selector("text=Not saved.")
    assert ada.page.input_value("#comment") == "long thoughts"
    assert verdicts(server) == []
    ada.page.keyboard.press("Enter")  # it is free still, so it was claimed again: saving once more is enough
    moved_on(ada.page, at)
    (row,) = verdicts(server)
    assert row["comment"] == "long thoughts"


def test_a_late_answer_to_a_pair_that_somebody_else_answered(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(1), rules=Rules(lease_s=60))
    ada = person(server.url, "ada").start()
    ada.expect(409)
    ada.page.fill("#comment", "too slow")
    ada.page.click("label:has(#choice-tie)")
    server.clock.forward(120)
    bob = server.user("bob")
    claim = server.queue.claim(bob)
    assert claim is not None
    server.queue.submit(bob, claim.item.item_id, claim.token, Answer("left"), "k")
    ada.page.click("[data-save]")
    ada.page.wait_for_selector("text=Not saved.")
    assert ada.page.input_value("#comment") == "too slow"
    assert [row["auditor"] for row in verdicts(server)] == ["bob"]
    ada.page.click("text=Go on with the next pair")
    ada.page.wait_for_selector("text=Nothing to review")


def test_a_double_click_and_two_tabs_give_one_verdict(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(4))
    ada = person(server.url, "ada").start()
    ada.expect(409)
    first = ada.page.url
    stale = ada.tab()
    stale.goto(first)
    ada.page.keyboard.press("ArrowLeft")
    ada.page.dblclick("[data-save]")
    moved_on(ada.page, first)
    assert len(verdicts(server)) == 1
    stale.fill("#comment", "from the other tab")
    stale.keyboard.press("Escape")
    stale.keyboard.press("ArrowRight")
    stale.click("[data-save]")
    stale.wait_for_selector("text=You answered this item already")
    assert stale.input_value("#comment") == "from the other tab"
    assert len(verdicts(server)) == 1


def test_what_is_typed_survives_a_reload_and_a_server_that_is_away(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(2))
    ada = person(server.url, "ada").start()
    page = ada.page
    page.fill("#comment", "keep me")
    keys(page, "Escape", "ArrowRight", "3", "w")
    page.reload()
    assert page.input_value("#comment") == "keep me"
    assert page.is_checked("#choice-right")
    assert page.is_checked("[name=left_flaws][value=incomplete]")
    page.wait_for_timeout(500)
    ada.context.set_offline(True)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=No connection.")
    ada.context.set_offline(False)
    ada.faults = [fault for fault in ada.faults if "ERR_INTERNET_DISCONNECTED" not in fault]
    at = page.url
    page.keyboard.press("Enter")
    moved_on(page, at)
    assert [row["comment"] for row in verdicts(server)] == ["keep me"]
    kept = page.evaluate("Object.keys(localStorage).filter(key => localStorage[key].includes('keep me'))")
    assert kept == []


def test_a_session_that_ended_loses_nothing(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(2))
    ada = person(server.url, "ada").start()
    ada.expect(401)
    page, at = ada.page, ada.page.url
    page.wait_for_timeout(400)
    page.fill("#comment", "still here")
    keys(page, "Escape", "t")
    server.people.revoke_sessions(server.user("ada"))
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Your session has ended")
    assert page.input_value("#comment") == "still here"
    ada.login("ada")
    page.goto(at)
    assert page.input_value("#comment") == "still here"
    page.click("[data-save]")
    moved_on(page, at)
    assert [row["comment"] for row in verdicts(server)] == ["still here"]


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)> {{ 7*7 }} ${7*7} </textarea></form>"
    "<a href='javascript:alert(4)'>x</a> \u202egnp.exe\u202c zero\u200bwidth nul\x00 lone\ud800 <!-- ]]> &lt;b&gt;"
)


def test_hostile_text_is_inert_visible_and_unchanged(world: Callable[..., World], person: Open) -> None:
    item = NewItem("p1", HOSTILE, f"A {HOSTILE}", f"B {HOSTILE}", group=HOSTILE.replace("\x00", "")[:50])
    server = world([item], overlap=2)
    ada = person(server.url, "ada").start()
    shown = ada.page.inner_text(".prompt .text")
    for sign in ("<script>alert(1)</script>", "{{ 7*7 }}", "U+202E", "U+200B", "U+0000", "U+D800", "</textarea>"):
        assert sign in shown
    assert ada.page.locator(".text script, .text img, .text svg, .text a").count() == 0
    ada.page.keyboard.press("v")
    ada.page.wait_for_selector("#left-text mark")
    ada.page.fill("#comment", "<b>mine</b></textarea><script>alert(5)</script> \u202ex")
    ada.page.reload()
    assert ada.page.input_value("#comment").startswith("<b>mine</b></textarea>")
    at = ada.page.url
    keys(ada.page, "ArrowLeft", "Enter")
    moved_on(ada.page, at)
    claim = server.queue.claim(server.user("bob"))
    assert claim is not None
    assert claim.item.prompt == HOSTILE
    server.queue.submit(
        server.user("bob"), claim.item.item_id, claim.token, Answer("tie", comment="<img src=x onerror=alert(6)>"), "k"
    )
    assert "<b>mine</b></textarea><script>alert(5)</script> \u202ex" in {row["comment"] for row in verdicts(server)}
    lena = person(server.url, "lena")
    lena.page.goto("/disputes")
    lena.page.click("td a")
    assert "<script>alert(5)</script> U+202Ex" in lena.page.inner_text("main")


def test_right_to_left_code_and_a_megabyte(world: Callable[..., World], person: Open) -> None:
    arabic = "السلام عليكم، هذه إجابة.\nAn English line."
    code = "```py\nif x:\n    y = '<b>'\n```\n"
    long = "A word and another. " * 55_000
    server = world([NewItem("p1", arabic, code, arabic, priority=9), NewItem("p2", "Long?", long, f"{long}!")])
    ada = person(server.url, "ada").start()
    assert ada.page.eval_on_selector(".prompt .text", "e => getComputedStyle(e).direction") == "rtl"
    assert ada.page.inner_text(".fence").strip() == code.strip()
    at = ada.page.url
    keys(ada.page, "t", "Enter")
    moved_on(ada.page, at)
    ada.page.wait_for_function("() => document.querySelector('#left-text').textContent.length > 1e6")
    assert not ada.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    ada.page.keyboard.press("v")
    ada.page.wait_for_selector("mark")
    keys(ada.page, "t", "Enter")
    ada.page.wait_for_selector("text=Nothing to review")


def test_keys_can_be_turned_off_and_typing_is_no_command(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(2))
    page = person(server.url, "ada").start().page
    page.fill("#comment", "")
    page.focus("#comment")
    page.keyboard.type("qzxt left")
    assert page.input_value("#comment") == "qzxt left"
    assert page.locator("#review :checked").count() == 0
    keys(page, "Escape", "?")
    page.wait_for_selector("dialog[open]")
    page.uncheck("[data-shortcuts]")
    page.click("dialog button")
    keys(page, "t", "q")
    assert page.locator("#review :checked").count() == 0
    page.reload()
    keys(page, "t")
    assert page.locator("#review :checked").count() == 0
    assert verdicts(server) == []


def test_skip_and_put_back_by_keyboard(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(2))
    page = person(server.url, "ada").start().page
    at = page.url
    keys(page, "x", "2")
    moved_on(page, at)
    page.wait_for_selector("text=Skipped.")
    assert server.queue.progress(server.user("ada")).skipped == 1
    keys(page, "x")
    page.click("text=Put it back and stop")
    page.wait_for_selector("dl.figures")
    assert server.queue.progress(server.user("ada")).held == 0


def test_the_lease_is_kept_while_somebody_reads(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(1), rules=Rules(lease_s=20, held=1))
    page = person(server.url, "ada").start().page
    with page.expect_response("**/heartbeat", timeout=15_000) as beat:
        pass
    assert beat.value.status == 200


def test_all_of_it_works_without_a_script(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(3))
    ada = person(server.url, "ada", java_script_enabled=False)
    page = ada.page
    page.click("main button.primary")
    page.fill("#comment", "by hand")
    page.check("[name=left_flaws][value=wrong]", force=True)
    page.click("text=Differences")
    assert page.input_value("#comment") == "by hand"
    assert page.locator("mark").count() == 2
    page.check("#choice-right", force=True)
    page.click("[data-save]")
    page.wait_for_selector("text=Saved.")
    page.click("button:has-text('Undo')")
    page.wait_for_selector("text=Taken back.")
    assert page.is_checked("#choice-right")
    page.check("#choice-left", force=True)
    page.click("[data-save]")
    page.click("summary:has-text('Skip')")
    page.click("text=I cannot tell")
    page.wait_for_selector("text=Skipped.")
    page.fill("#comment", "late words")
    page.check("#choice-left", force=True)
    server.clock.forward(3600)
    ada.expect(409)
    page.click("[data-save]")
    page.wait_for_selector("text=Not saved.")
    assert page.input_value("#comment") == "late words"
    assert page.is_checked("#choice-left")
    page.click("[data-save]")
    page.wait_for_selector("text=Nothing to review")
    assert "late words" in {row["comment"] for row in verdicts(server)}
    page.click("summary:has-text('ada')")
    page.click("text=Sign out")
    page.wait_for_selector("h1:has-text('Sign in')")
