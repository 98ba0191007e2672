"""Thumbs in a real browser: what Send stores, what is refused, deletion, and a form that loses nothing."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from medchat import database, feedback
from tests.pages import ask, expect, opened
from train.feedback import rows_of_feedback

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

ANEMIA = "What are the symptoms of iron deficiency anemia?"


@pytest.fixture
def page(browser, page_url):
    with opened(browser, page_url) as page:
        yield page


def stored():
    path = Path(os.environ["MEDCHAT_CACHE"]) / "votes.sqlite"
    return list(feedback.rows(path)) if path.is_file() else []


def thumb(page, name):
    page.locator("#chat").get_by_role("button", name=name, exact=True).last.click()
    expect(page.locator("#feedback")).to_be_visible()


def send(page):
    page.locator("#send-feedback").click()
    return page.locator("#feedback-told")


def test_a_thumb_with_reasons_and_a_better_answer_reaches_the_training_data(page):
    before = len(stored())
    ask(page, f"My name is Anna Schmidt, call 020 7946 0958. {ANEMIA}")
    thumb(page, "Dislike")
    expect(page.locator("#reasons")).to_contain_text("What was wrong?")
    page.get_by_label("Something is missing").check()
    page.locator("#better textarea").fill("Tiredness and pale skin; take 65 mg of iron only if told so.")
    expect(send(page)).to_contain_text("tick the box")
    assert len(stored()) == before
    page.get_by_label("Store this conversation").check()
    expect(send(page)).to_contain_text("Thank you")
    *_, said = stored()
    assert (said.liked, said.reasons, said.adapter, said.base) == (False, ("incomplete",), "medchat", "script")
    assert said.messages[0]["content"] == f"My name is [name], call [phone]. {ANEMIA}"
    assert said.messages[1]["content"]
    assert "[1]" not in said.messages[1]["content"]  # marks are the page's, not the model's
    assert str(said.seed) in page.locator("#chat .facts dl").last.text_content()
    (_, _, unpaired), (_, _, preference) = rows_of_feedback(said)
    assert unpaired == {"prompt": said.messages[:1], "completion": said.messages[1:], "label": False}
    assert preference["chosen"][0]["content"].startswith("Tiredness and pale skin; take 65 mg")
    assert said.conversation in page.locator("#feedback-told").inner_text()


def test_consent_is_remembered_and_what_was_sent_can_be_deleted(page):
    ask(page, ANEMIA)
    thumb(page, "Like")
    expect(page.locator("#reasons")).to_contain_text("What was good?")
    page.get_by_label("Store this conversation").check()
    expect(send(page)).to_contain_text("Thank you")
    number = stored()[-1].conversation
    page.reload()
    ask(page, ANEMIA)
    thumb(page, "Like")
    expect(page.get_by_label("Store this conversation")).to_be_checked()
    expect(send(page)).to_contain_text("Thank you")
    assert stored()[-1].conversation != number  # a new page is a new conversation
    page.locator("#delete-feedback").click()
    expect(page.locator("#feedback-told")).to_contain_text("1 judgement was deleted")
    assert stored()[-1].conversation == number
    page.locator("#delete-feedback").click()
    expect(page.locator("#feedback-told")).to_contain_text("Nothing is stored")


def test_a_database_that_is_taken_loses_nothing_of_the_form(page, monkeypatch):
    ask(page, ANEMIA)
    thumb(page, "Dislike")
    page.get_by_role("checkbox", name="Wrong").check()
    page.locator("#better textarea").fill("Something better.")
    page.get_by_label("Store this conversation").check()
    count = len(stored())
    monkeypatch.setattr(database, "WAIT", 0.05)
    with database.opened(database.default_path()) as other:
        other.execute("DELETE FROM feedback WHERE id = ''")  # holds the lock until the block ends
        expect(send(page)).to_contain_text("Another program is writing")
    assert page.locator("#better textarea").input_value() == "Something better."
    expect(page.get_by_role("checkbox", name="Wrong")).to_be_checked()
    expect(send(page)).to_contain_text("Thank you")
    assert len(stored()) == count + 1
    with sqlite3.connect(database.default_path()) as file:
        assert file.execute("SELECT better FROM feedback ORDER BY rowid DESC").fetchone() == ("Something better.",)


def test_only_answers_of_the_model_can_be_judged_and_the_panel_closes(page):
    ask(page, ANEMIA)
    thumb(page, "Like")
    expect(page.locator("#reasons input").first).to_be_focused()
    found = axe.Axe().run(page, context="#feedback").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    page.locator("#close-feedback").click()
    expect(page.locator("#feedback")).to_be_hidden()
    ask(page, "I want to kill myself")
    page.locator("#chat").get_by_role("button", name="Like", exact=True).last.click()
    expect(page.get_by_text("Only a finished answer")).to_be_visible()
    expect(page.locator("#feedback")).to_be_hidden()


def test_feedback_adds_nothing_to_the_api(page_url):
    from gradio_client import Client

    found = Client(page_url, verbose=False).view_api(return_format="dict")
    assert isinstance(found, dict)
    assert sorted(found["named_endpoints"]) == ["/chat", "/models", "/sources", "/triage"]
