"""The Chat tab in a real browser: ask, stop, retry, undo, edit, copy, follow up; what an answer rests on; limits."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from gradio_client import Client

from tests.conftest import wait_until
from tests.pages import LOOKS, ask, expect, opened, replies, send, wait_for_end
from tests.scripted import INVENTED

ANEMIA = "What are the symptoms of iron deficiency anemia?"


@pytest.fixture
def page(browser, page_url):
    with opened(browser, page_url, "phone") as page:
        yield page


def test_the_real_app_answers(browser, app_url):
    with opened(browser, app_url) as page:
        expect(page.locator("#status")).to_contain_text("medchat on SmolLM2-135M-Instruct")
        send(page, "How can I sleep better?")
        expect(page.locator("#chat .facts summary")).to_contain_text(re.compile(r"\d+ tokens"), timeout=90_000)
        expect(replies(page).last.locator(".prose").first).to_contain_text(re.compile(r"\w+ \w+"))


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_a_question_is_answered_and_nothing_scrolls_sideways(browser, page_url, size, scheme):
    with opened(browser, page_url, size, scheme) as page:
        assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
        expect(page.locator("#header")).to_contain_text("AI · not a doctor")
        expect(page.locator("#disclaimer")).to_contain_text("not a doctor")
        assert "anemia" in ask(page, ANEMIA)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.locator("#message textarea").input_value() == ""
        for tab in ("Compare", "Adapters", "About"):
            page.get_by_role("tab", name=tab, exact=True).click()
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab


def test_consent_comes_first_once_and_is_remembered(browser, page_url):
    with opened(browser, page_url, agree=False) as page:
        expect(page.locator("#consent")).to_contain_text("not a doctor")
        send(page, ANEMIA)
        expect(page.get_by_text("accept it first")).to_be_visible()
        assert page.locator("#message textarea").input_value() == ANEMIA
        assert page.locator("#chat .user-row").count() == 0
        page.locator("#agree").click()
        expect(page.locator("#agree")).to_be_hidden()
        page.keyboard.press("Enter")  # the focus is back in the box, the question still there
        expect(page.locator("#chat .facts")).to_be_visible()
        page.reload()
        expect(page.locator("#status")).to_contain_text("medchat on script")
        page.wait_for_timeout(500)
        expect(page.locator("#agree")).to_be_hidden()


def test_danger_gets_its_card_even_before_consent(browser, page_url):
    with opened(browser, page_url, agree=False) as page:
        send(page, "my husband has crushing chest pain and cant breathe")
        expect(page.locator("#chat .card.emergency")).to_be_visible()
        expect(page.locator("#chat .note")).to_contain_text("accept the note")
        assert page.locator("#chat .facts").count() == 0


def test_cards_are_alerts_above_the_reply_and_a_crisis_is_only_its_card(page):
    ask(page, "my husband has crushing chest pain and cant breathe")
    card = page.get_by_role("alert").filter(has=page.get_by_role("heading", name="This may be an emergency"))
    expect(card).to_contain_text("Call 999 now")  # the browser speaks British English
    reply = replies(page).last
    assert reply.inner_text().index("999") < reply.inner_text().index(INVENTED)
    ask(page, "I want to kill myself")
    card = page.get_by_role("alert").filter(has=page.get_by_role("heading", name="You matter"))
    expect(card).to_contain_text("116 123")
    assert INVENTED not in replies(page).last.inner_text()
    assert replies(page).last.locator(".facts").count() == 0


def test_the_card_stays_the_same_element_while_the_reply_streams(page):
    send(page, "my husband has crushing chest pain and cant breathe LONG")
    card = page.locator("#chat .card")
    card.evaluate("element => { element.dataset.seen = 'yes' }")
    expect(replies(page).last).to_contain_text("and on it goes. and on it goes.")
    assert card.get_attribute("data-seen") == "yes"  # else readers would speak it again with every word
    page.keyboard.press("Escape")
    wait_for_end(page)


def test_another_country_changes_the_numbers_on_the_cards_and_is_remembered(page):
    ask(page, "my husband has crushing chest pain and cant breathe")
    page.locator("#chat a.elsewhere").click()
    page.get_by_role("radio", name="Australia").check()
    expect(page.locator("#chat .card")).to_contain_text("Call 000 now")
    page.reload()
    page.get_by_role("button", name="Where you are").click()
    expect(page.get_by_role("radio", name="Australia")).to_be_checked()


def test_the_answer_shows_what_it_rests_on_and_what_nothing_supports(page):
    ask(page, ANEMIA)
    answer = replies(page).last
    cited = answer.get_by_role("link", name="Passage 1")
    doubted = answer.get_by_role("link", name="No passage supports this sentence")
    expect(doubted).to_have_count(1)
    cited.first.click()
    panel = answer.locator("details.sources")
    expect(panel.locator("mark")).to_contain_text("tiredness")
    expect(panel.locator("a").first).to_have_attribute(
        "href", "https://www.nhlbi.nih.gov/health/anemia/iron-deficiency-anemia"
    )


def test_an_answer_that_rests_on_nothing_says_so(page):
    ask(page, "Who won the football match yesterday?")
    expect(page.locator("#chat .rest")).to_contain_text("rests on nothing")
    page.get_by_label("Answer from the knowledge base").uncheck()
    ask(page, ANEMIA)
    expect(page.locator("#chat .rest").last).to_contain_text("knowledge base is off")


def test_facts_of_the_reply_and_the_context_gauge(page):
    ask(page, ANEMIA)
    page.locator("#chat .facts summary").click()
    facts = page.locator("#chat .facts").inner_text()
    for name in ("Adapter", "Base", "Length", "Speed", "First word", "Seed", "End"):
        assert name in facts
    assert "ended by itself" in facts
    meter = page.get_by_role("meter", name="Context used")
    assert 0 < int(meter.get_attribute("aria-valuenow")) < 100
    for _ in range(3):
        ask(page, "word " * 500)
    expect(page.locator("#status")).to_contain_text("no longer fit")


def test_reasoning_is_folded(page):
    ask(page, "THINK what is anemia?")
    folded = page.locator("#chat details", has_text="Reasoning")
    expect(folded).not_to_have_attribute("open", "")
    folded.locator("summary").click()
    expect(folded).to_contain_text("First I weigh it.")


def test_examples_by_theme_and_follow_ups_are_one_click(page):
    page.locator("#themes").get_by_text("Tests").click()
    page.get_by_role("button", name="What happens in an MRI scan?").click()
    expect(page.locator("#chat .facts")).to_be_visible()
    wait_for_end(page)
    page.locator("#chat .option").first.click()
    expect(page.locator("#chat .facts")).to_have_count(2)
    expect(page.locator("#chat .user-row").last).to_contain_text("MRI scan")


def test_retry_undo_and_edit(page):
    ask(page, "What is anemia?")
    facts = page.locator("#chat .facts dl")
    drawn = facts.text_content()
    page.get_by_label("Retry").last.click()
    expect(facts).not_to_have_text(drawn)  # another seed
    wait_for_end(page)
    assert replies(page).count() == 1
    ask(page, "And a second question?")
    page.get_by_label("Edit").first.click()
    page.locator("#chat textarea").fill("What is asthma?")
    page.get_by_label("Submit").click()
    expect(page.locator("#chat .user-row")).to_have_count(1)
    expect(replies(page).last).to_contain_text("sthma")
    wait_for_end(page)
    page.get_by_label("Undo").last.click()
    expect(page.locator("#message textarea")).to_have_value("What is asthma?")
    assert page.locator("#chat .user-row").count() == 0


def test_copies_read_as_on_the_page_and_carry_the_disclaimer(page):
    ask(page, ANEMIA)
    page.get_by_label("Copy message").last.click()
    expect(page.locator("button.copied")).to_have_count(1)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "[1]" in copied
    assert "<details" not in copied
    assert "not a doctor" in copied
    page.get_by_label("Copy conversation").click()
    page.wait_for_timeout(200)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("You:")
    assert "MedChat (AI, not a doctor):" in copied


@pytest.mark.parametrize("when", ["first token", "mid-reply", "retry", "edit", "closed tab"])
def test_stop_ends_the_computation(browser, page_url, scripted, when):
    with opened(browser, page_url) as page:
        if when in ("retry", "edit"):
            ask(page, "What is anemia?")
        if when == "edit":
            page.get_by_label("Edit").first.click()
            page.locator("#chat textarea").fill("LONG story")
            page.get_by_label("Submit").click()
        elif when == "retry":
            page.get_by_label("Edit").first.click()
            page.locator("#chat textarea").fill("LONG story")
            page.get_by_label("Submit").click()
            expect(replies(page).last).to_contain_text("and on it goes.")
            page.keyboard.press("Escape")
            expect(page.locator("#status")).to_contain_text("Stopped")
            page.get_by_label("Retry").last.click()
        else:
            send(page, "SLOW start" if when == "first token" else "LONG story")
        assert wait_until(lambda: scripted.computing == 1)
        if when == "closed tab":
            page.close()
        else:
            if when != "first token":
                expect(replies(page).last).to_contain_text("and on it goes.")
            page.get_by_label("Stop").click()
            expect(page.locator("#status")).to_contain_text("Stopped")
        assert wait_until(lambda: scripted.computing == 0)
        if when == "first token":
            expect(page.locator("#chat .note")).to_contain_text("Stopped before the first word")
        if when != "closed tab":
            assert "anemia" in ask(page, "What is anemia?")


def test_keys_enter_shift_enter_and_slash(page):
    box = page.locator("#message textarea")
    box.fill("one")
    box.press("Shift+Enter")
    page.keyboard.type("two")
    assert box.input_value() == "one\ntwo"
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("/")
    expect(box).to_be_focused()
    assert box.input_value() == "one\ntwo"


def test_too_long_a_message_stays_in_the_box_with_a_sentence(page):
    send(page, "x" * 100_000)
    expect(page.get_by_text("100,000 characters")).to_be_visible()
    assert len(page.locator("#message textarea").input_value()) == 100_000


def test_an_engine_that_fails_leaves_a_sentence_and_the_next_question_works(page):
    ask(page, "FAIL please")
    expect(page.locator("#chat .note")).to_contain_text("Please send the message again.")
    assert "sthma" in ask(page, "What is asthma?")


def test_the_line_tells_its_place_and_overload_is_answered_at_once(browser, page_url, scripted):
    """Four places are taken and two may wait: one more hears so at once; who leaves makes room."""
    stop = threading.Event()
    with ThreadPoolExecutor(2) as pool, opened(browser, page_url) as page, opened(browser, page_url) as late:
        try:
            pool.submit(_occupy, page_url, stop, 4)
            assert wait_until(lambda: scripted.computing == 4)
            send(page, "How can I sleep better?")
            expect(page.locator("#status")).to_contain_text("Number 1 in line, about")
            pool.submit(_occupy, page_url, stop, 1)
            page.wait_for_timeout(1500)
            send(late, "How is asthma treated?")
            expect(late.locator("#chat .note")).to_contain_text("waiting already. Please try again")
            send(late, "my husband has crushing chest pain and cant breathe")
            expect(late.locator("#chat .card")).to_be_visible()  # never waits, never refused
        finally:
            stop.set()
        expect(page.locator("#chat .facts")).to_be_visible()


def _occupy(url: str, stop: threading.Event, count: int) -> None:
    client = Client(url, verbose=False)
    jobs = [client.submit("SLOW question", api_name="/chat") for _ in range(count)]
    stop.wait(60)
    for job in jobs:
        job.cancel()
