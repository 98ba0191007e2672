"""What the tests of the page share: opening it in a certain size and look, asking, waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
expect.set_options(timeout=30_000)

SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
LOOKS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]


@contextmanager
def opened(
    browser: Any,
    url: str,
    size: str = "desktop",
    scheme: str = "light",
    *,
    agree: bool = True,
    locale: str = "en-GB",
) -> Iterator[Any]:
    """Open the page as a new visitor, who accepts the note unless `agree` is false."""
    context = browser.new_context(
        viewport=SIZES[size],
        color_scheme=scheme,
        reduced_motion="reduce",  # no finding of axe in the middle of a transition
        locale=locale,
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    try:
        page.goto(url)
        page.locator("#agree").wait_for()
        if agree:
            page.locator("#agree").click()
            expect(page.locator("#agree")).to_be_hidden()
        yield page
    finally:
        context.close()


def send(page: Any, text: str) -> None:
    """Type a question and press Enter."""
    box = page.locator("#message textarea")
    box.fill(text)
    box.press("Enter")


def wait_for_end(page: Any) -> None:
    """Wait until the reply has ended and the next question can be sent."""
    expect(page.locator("#message .submit-button")).to_be_visible()


def ask(page: Any, text: str) -> str:
    """Send a question, wait for the whole answer, and return the conversation as it reads."""
    before = page.locator("#chat .user-row").count()
    send(page, text)
    expect(page.locator("#chat .user-row")).to_have_count(before + 1)
    wait_for_end(page)
    return page.locator("#chat").inner_text()


def replies(page: Any) -> Any:
    """Return the locator of the answers."""
    return page.locator("#chat .bot-row")


def open_tab(page: Any, name: str) -> None:
    """Go to another tab."""
    page.get_by_role("tab", name=name, exact=True).click()
