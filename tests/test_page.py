"""The page in a real browser: chat, stop, retry, errors, at desktop and phone size."""

from __future__ import annotations

import os
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

if not CHROMIUM and os.environ.get("CI"):
    pytest.fail("CI must test the page: install chromium", pytrace=False)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt install chromium")

expect = playwright.expect
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def browser():
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


def open_page(browser, app_url, size):
    page = browser.new_page(viewport=SIZES[size])
    page.set_default_timeout(30_000)
    page.goto(app_url)
    page.wait_for_selector("#message textarea")
    return page


@pytest.fixture
def page(browser, app_url):
    """The page on a phone, where things are tightest."""
    page = open_page(browser, app_url, "phone")
    yield page
    page.close()


@pytest.fixture(params=SIZES)
def any_page(request, browser, app_url):
    """The page on a phone and on a desktop screen."""
    page = open_page(browser, app_url, request.param)
    yield page
    page.close()


def send(page, text):
    box = page.locator("#message textarea")
    box.fill(text)
    box.press("Enter")


def replies(page):
    return page.locator("#chat .message.bot")


def wait_for_end(page):
    expect(page.locator("#status")).to_contain_text("tokens/s", timeout=60_000)
    expect(page.locator("#message .submit-button")).to_be_visible()


def test_a_question_is_answered_and_retried(any_page):
    page = any_page
    expect(page.locator("#disclaimer")).to_contain_text("not a doctor")
    expect(page.locator("#status")).to_contain_text("medchat on SmolLM2-135M-Instruct")
    send(page, "How can I sleep better?")
    wait_for_end(page)
    assert len(replies(page).last.inner_text()) > 20
    assert page.locator("#message textarea").input_value() == ""
    page.get_by_label("Retry").last.click()
    expect(page.locator("#status")).to_contain_text("Thinking again")
    wait_for_end(page)
    assert replies(page).count() == 1


def test_stop_ends_the_reply_and_the_next_question_works(page):
    page.get_by_text("Settings").click()
    page.get_by_role("radio", name="base").check()
    send(page, "Write a very long list of everything that is good for health.")
    expect(replies(page).last).to_contain_text("a", timeout=30_000)
    page.locator("#message .stop-button").click()
    expect(page.locator("#status")).to_contain_text("stopped")
    page.wait_for_timeout(300)  # for what was on its way
    partial = replies(page).last.inner_text()
    page.wait_for_timeout(700)
    assert replies(page).last.inner_text() == partial
    send(page, "Hello")
    wait_for_end(page)


def test_an_example_is_one_click(page):
    page.get_by_text("How is asthma treated?").click()
    wait_for_end(page)
    assert "asthma" in page.locator("#chat").inner_text().lower()


def test_too_long_a_message_stays_in_the_box_with_a_sentence(page):
    send(page, "x" * 100_000)
    expect(page.get_by_text("100,000 characters")).to_be_visible()
    assert len(page.locator("#message textarea").input_value()) == 100_000


def test_an_answer_shows_its_passages_and_their_pages(page):
    send(page, "What are the symptoms of iron deficiency anemia?")
    wait_for_end(page)
    sources = page.locator("#sources details")
    expect(sources.first).to_contain_text("Iron deficiency anemia")
    sources.first.locator("summary").click()
    expect(sources.first.locator("a")).to_have_attribute(
        "href", "https://www.nhlbi.nih.gov/health/anemia/iron-deficiency-anemia"
    )


def test_an_emergency_shows_its_card_above_the_reply_and_a_crisis_only_the_card(page):
    send(page, "my husband has crushing chest pain and cant breathe")
    expect(page.locator("#chat blockquote")).to_be_visible(timeout=10_000)
    wait_for_end(page)
    cards = page.locator("#chat blockquote").count()
    send(page, "I want to kill myself")
    expect(page.locator("#chat blockquote")).to_have_count(cards + 1)
    expect(page.locator("#message .submit-button")).to_be_visible()
    assert "988" in page.locator("#chat blockquote").last.inner_text()


def test_markup_in_a_message_is_shown_not_run(page):
    send(page, "<img src=x onerror=\"document.title='run'\"> <script>document.title='run'</script> hello")
    wait_for_end(page)
    assert page.title() == "MedChat"


def test_nothing_scrolls_sideways(any_page):
    page = any_page
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
