"""The page for everybody: nothing serious found by axe, a name for every control, all of it with the keyboard alone."""

from __future__ import annotations

import pytest

from tests.pages import LOOKS, ask, expect, open_tab, opened, send, wait_for_end

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

UNNAMED = """() => [...document.querySelectorAll('button, input, textarea, select, a[href], summary, [role=button]')]
    .filter((e) => e.offsetParent !== null && e.checkVisibility() && !(
        e.getAttribute('aria-label') || e.innerText?.trim() || e.title || e.labels?.[0]?.innerText.trim() || e.alt))
    .map((e) => e.outerHTML.slice(0, 200))"""


def findings(page):
    """Return axe's serious and critical findings as text."""
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {[node['html'][:160] for node in v['nodes'][:4]]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_axe_finds_nothing_serious_and_every_control_has_a_name(browser, page_url, size, scheme):
    with opened(browser, page_url, size, scheme, agree=False) as page:
        found = {"welcome": findings(page)}
        page.locator("#agree").click()
        expect(page.locator("#agree")).to_be_hidden()
        page.get_by_role("button", name="Fine control").click()
        page.get_by_role("button", name="Where you are").click()
        ask(page, "THINK my husband has crushing chest pain and cant breathe")
        ask(page, "What are the symptoms of iron deficiency anemia?")
        for summary in page.locator("#chat summary").all():
            summary.click()
        found["chat"] = findings(page) + page.evaluate(UNNAMED)
        open_tab(page, "Compare")
        page.locator("#question textarea").fill("my husband has crushing chest pain and cant breathe")
        page.keyboard.press("Enter")
        expect(page.locator(".vote").first).to_be_enabled()
        found["compare"] = findings(page) + page.evaluate(UNNAMED)
        open_tab(page, "Adapters")
        page.locator("#prove").click()
        expect(page.locator("#proof mark").first).to_be_visible()
        found["adapters"] = findings(page) + page.evaluate(UNNAMED)
        open_tab(page, "About")
        found["about"] = findings(page) + page.evaluate(UNNAMED)
    assert not any(found.values()), found


def tab_to(page, locator, most=60):
    """Press Tab until an element within `locator` has the focus."""
    for _ in range(most):
        if locator.evaluate("element => element.contains(document.activeElement)"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab never reaches {locator}")


def test_the_keyboard_alone_completes_a_chat_a_change_of_adapter_and_a_comparison(browser, page_url):
    with opened(browser, page_url, agree=False) as page:
        tab_to(page, page.locator("#agree"))
        page.keyboard.press("Enter")
        expect(page.locator("#consent")).to_be_hidden()
        page.keyboard.type("What is anemia?")  # the focus went to the question
        page.keyboard.press("Enter")
        expect(page.locator("#chat .facts")).to_contain_text("medchat")
        wait_for_end(page)
        tab_to(page, page.locator("#adapter"))
        page.keyboard.press("ArrowDown")
        expect(page.locator("#adapter").get_by_role("radio", name="second")).to_be_checked()
        page.keyboard.press("/")
        page.keyboard.type("What is asthma?")
        page.keyboard.press("Enter")
        expect(page.locator("#chat .facts").last).to_contain_text("second")
        wait_for_end(page)
        tab_to(page, page.locator("#chat .option").first)
        page.keyboard.press("Enter")
        expect(page.locator("#chat .user-row")).to_have_count(3)
        wait_for_end(page)
        tab_to(page, page.get_by_role("tab", name="Chat"))
        tab_to(page, page.get_by_role("tab", name="Compare"))
        page.keyboard.press("Enter")
        page.keyboard.press("/")
        page.keyboard.type("What is a migraine?")
        page.keyboard.press("Enter")
        vote = page.get_by_role("button", name="Both are good")
        expect(vote).to_be_enabled()
        tab_to(page, vote)
        page.keyboard.press("Enter")
        expect(page.locator("#tally")).to_contain_text("Thank you")


def test_the_focus_is_visible_and_motion_stops_where_it_is_unwanted(browser, page_url):
    with opened(browser, page_url) as page:
        page.emulate_media(reduced_motion="reduce")
        tab_to(page, page.locator("#adapter"))
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid"
        moving = page.evaluate(
            "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).animationName !== 'none').length"
        )
        assert moving == 0


def test_what_is_read_aloud(browser, page_url):
    """The log is silent while it is rewritten word by word; status and cards speak."""
    with opened(browser, page_url) as page:
        expect(page.locator("#status")).to_have_attribute("role", "status")
        send(page, "my husband has crushing chest pain and cant breathe")
        expect(page.get_by_role("log")).to_have_attribute("aria-live", "off")
        expect(page.get_by_role("alert").first).to_be_visible()
        wait_for_end(page)
        for paragraph in page.locator("#chat .message-content .prose > p").all():
            assert paragraph.get_attribute("dir") == "auto"
