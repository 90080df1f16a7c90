"""Accessible (axe finds no violation of WCAG 2.2 A and AA), usable on a phone, in light and dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from audit.queue.model import Answer
from audit.web.services import JudgeRow
from tests.audit.web.conftest import Person
from tests.audit.web.judged import rows
from tests.audit.web.world import World, pairs

pytestmark = pytest.mark.slow
Open = Callable[..., Person]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


def violations(page: Any) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: pip install 'rlaif[test]'")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = axe.Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}}).response["violations"]
    return [
        f"{one['id']}: {node['html'][:160]} {node['failureSummary'][:300]}" for one in found for node in one["nodes"]
    ]


def busy(world: Callable[..., World]) -> World:
    table: list[JudgeRow] = rows()
    server = world(pairs(6), overlap=2, judges=lambda: table)
    for name, choice in (("ada", "left"), ("bob", "tie"), ("ada", "right"), ("bob", "left")):
        claim = server.queue.claim(server.user(name))
        assert claim is not None
        said = Answer(choice, 4, ("wrong",), (), "Because.", 12.0)
        server.queue.submit(server.user(name), claim.item.item_id, claim.token, said, "k" + choice)
        server.clock.forward(20)
    server.token("root", "read")
    return server


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desk", "phone"])
def test_no_page_violates_wcag(world: Callable[..., World], person: Open, scheme: str, device: str) -> None:
    server = busy(world)
    context = {"color_scheme": scheme, "bypass_csp": True, **(PHONE if device == "phone" else {})}
    root = person(server.url, **context)
    root.expect(404)
    root.page.goto("/login")
    found = {"/login": violations(root.page)}
    root.login("root")
    for path in (
        "/",
        "/account",
        "/guidelines",
        "/lead",
        "/disputes",
        "/judges",
        "/batches",
        "/users",
        "/tokens",
        "/none",
    ):
        root.page.goto(path)
        found[path] = violations(root.page)
        assert not root.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"), (
            path
        )
    root.page.goto("/disputes")
    root.page.click("td a")
    found["case"] = violations(root.page)
    ada = person(server.url, "ada", **context).start()
    found["review"] = violations(ada.page)
    ada.page.check("#choice-left", force=True)
    ada.page.check("[name=left_flaws][value=wrong]", force=True)
    ada.page.check("[name=confidence][value='3']", force=True)
    ada.page.click("summary:has-text('Skip')")
    found["answered"] = violations(ada.page)
    ada.page.keyboard.press("Escape")
    ada.page.keyboard.press("?")
    found["help"] = violations(ada.page)
    assert [f"{path}: {fault}" for path, faults in found.items() for fault in faults] == []


def test_the_whole_review_works_by_thumb(world: Callable[..., World], person: Open) -> None:
    server = world(pairs(2))
    ada = person(server.url, "ada", **PHONE).start()
    page = ada.page
    assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    for target in ("label:has(#choice-left)", "label:has(#choice-right)", "[data-save]"):
        box = page.locator(target).bounding_box()
        assert box["height"] >= 24
        assert box["y"] + box["height"] <= 844  # within the screen, without scrolling
    at = page.url
    page.locator(".chip").first.tap()
    page.locator("label:has(#choice-right)").tap()
    page.locator("[data-save]").tap()
    page.wait_for_function("before => location.href !== before", arg=at)
    assert server.queue.progress(server.user("ada")).answered == 1
