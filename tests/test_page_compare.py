"""The Compare, Adapters and About tabs in a real browser, and the votes that they leave."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from medchat import votes
from medchat.ui.about_tab import find_results, results_html
from tests.conftest import wait_until
from tests.pages import expect, open_tab, opened

QUESTION = "What helps against heartburn?"


@pytest.fixture
def page(browser, page_url):
    with opened(browser, page_url) as page:
        open_tab(page, "Compare")
        yield page


def compare(page, question=QUESTION):
    page.locator("#question textarea").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".vote").first).to_be_enabled()


def rows():
    with sqlite3.connect(Path(os.environ["MEDCHAT_CACHE"]) / "votes.sqlite") as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM votes ORDER BY time")]


def test_blind_names_come_after_the_vote_which_is_stored_without_texts(page):
    compare(page)
    heads = page.locator(".side-head")
    assert "medchat" not in heads.first.inner_text() + heads.last.inner_text()
    page.get_by_role("button", name="A is better").click()
    expect(page.locator("#tally")).to_contain_text("Thank you")
    named = {heads.first.locator("b").inner_text(), heads.last.locator("b").inner_text()}
    assert named == {"medchat", "base"}
    vote = rows()[-1]
    assert {vote["adapter_a"], vote["adapter_b"]} == named
    assert vote["adapter_a"] == heads.first.locator("b").inner_text()
    assert (vote["choice"], vote["blind"], vote["base"]) == ("a", 1, "script")
    assert vote["question"] == vote["answer_a"] == ""
    expect(page.get_by_role("button", name="B is better")).to_be_disabled()


def test_named_and_kept_with_texts_when_the_visitor_says_so(page):
    page.get_by_label("Blind").uncheck()
    page.locator("#left").get_by_role("radio", name="base").check()
    page.locator("#right").get_by_role("radio", name="second").check()
    page.get_by_label("Keep the question").check()
    compare(page)
    heads = page.locator(".side-head b")
    assert [head.inner_text() for head in heads.all()] == ["base", "second"]
    page.locator("#question textarea").fill("something else by now")
    page.get_by_role("button", name="Both are bad").click()
    expect(page.locator("#tally")).to_contain_text("Thank you")
    vote = rows()[-1]
    assert vote["question"] == QUESTION
    assert vote["answer_a"].isupper()  # the base answers in capitals
    assert "(second)" in vote["answer_b"]


def test_both_stream_at_once_and_stop_ends_both(page, scripted):
    page.locator("#question textarea").fill("LONG story")
    page.keyboard.press("Enter")
    assert wait_until(lambda: scripted.computing == 2)
    for side in "ab":
        expect(page.locator(f"#answer-{side}")).to_contain_text("goes", ignore_case=True)
    page.keyboard.press("Escape")
    assert wait_until(lambda: scripted.computing == 0)
    expect(page.locator("#compare-status")).to_contain_text("Stopped")
    compare(page)


def test_a_crisis_shows_its_card_and_no_answers(page):
    page.locator("#question textarea").fill("I want to kill myself")
    page.keyboard.press("Enter")
    expect(page.locator("#compare-card .card.crisis")).to_be_visible()
    expect(page.locator("#compare-status")).to_contain_text("See the card")
    assert page.locator("#answer-a").inner_text().strip() == ""


def test_adapters_tell_their_facts_and_prove_themselves(page):
    open_tab(page, "Adapters")
    card = page.locator(".adapter").first
    for fact in ("medchat", "embedded", "script", "SmolLM2-135M", "Rank", "MB", "SHA-256"):
        expect(card).to_contain_text(fact)
    page.locator("#prove").click()
    expect(page.locator("#proof")).to_contain_text("Yes.")
    expect(page.locator("#proof mark")).to_have_count(2)


def test_about_says_what_it_is_and_draws_results(page):
    open_tab(page, "About")
    about = page.locator("#about")
    for text in ("What it is not:", "SmolLM2", "MedQuAD, CC BY 4.0", "Measured"):
        expect(about).to_contain_text(text)


def test_results_are_drawn_with_their_intervals_and_broken_files_left_out(tmp_path):
    (tmp_path / "results.json").write_text(
        '{"base": "B", "adapter": "runs/<b>mine</b>", "tasks": '
        '{"pubmedqa": {"accuracy": {"value": 0.55, "low": 0.5, "high": 0.6, "n": 500}}}}'
    )
    (tmp_path / "results-base.json").write_text(
        '{"base": "B", "adapter": null, "tasks": {"pubmedqa": {"accuracy": {"value": 0.4, "n": 500}}}}'
    )
    (tmp_path / "results-broken.json").write_text("{")
    drawn = results_html(find_results(tmp_path))
    assert drawn.count("<tr>") == 3
    assert "0.5 to 0.6" in drawn
    assert "<b>mine" not in drawn


def test_votes_count_wins_and_refuse_other_choices(tmp_path):
    path = tmp_path / "votes.sqlite"
    assert votes.tally(path) == {}
    for choice in ("a", "a", "b", "both good"):
        votes.add(votes.Vote("base model", "medchat", "base", choice, True, 1), path)
    assert votes.tally(path) == {"medchat": 2, "base": 1}
    with pytest.raises(ValueError, match="both bad"):
        votes.add(votes.Vote("base model", "medchat", "base", "c", True, 1), path)
