"""The page's languages: the files, what the server takes from them, and the page in a browser of each."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from medchat import triage
from medchat.chat import ChatError, Reply
from medchat.engines import Delta
from medchat.knowledge import open_knowledge
from medchat.line import Busy
from medchat.ui import conversation as talk
from medchat.ui import language
from medchat.ui.chat_tab import EXAMPLES
from medchat.ui.feedback_panel import judgement
from tests.pages import ask, expect, opened
from tests.scripted import ScriptedEngine

WORDS = language.words()
LOCALES = {"es": "es-MX", "fr": "fr-FR", "de": "de-DE", "pt": "pt-BR", "hi": "hi-IN", "ar": "ar", "zh": "zh-CN"}
CARDS = json.loads((triage.TABLES / "cards.json").read_text(encoding="utf-8"))


def flat(name):
    return {f"{group}/{key}": text for group, texts in WORDS[name].items() for key, text in texts.items()}


def placeholders(text):
    return set(re.findall(r"{(\w+)}", text))


@pytest.mark.parametrize("name", language.LANGUAGES)
def test_files_have_the_same_keys_and_placeholders_and_nothing_empty(name):
    english, texts = flat("en"), flat(name)
    assert texts.keys() == english.keys()
    assert not [key for key, text in texts.items() if not text.strip()]
    assert not [key for key, text in texts.items() if placeholders(text) != placeholders(english[key])]
    assert not [key for key, text in texts.items() if text.count("**") != english[key].count("**")]
    assert not [key for key, text in texts.items() if '"' in text and key.startswith("history/")]  # in attributes
    if name != "en":
        same = [key for key, text in texts.items() if text == english[key]]
        assert len(same) < len(english) / 10, same


def test_every_example_and_country_has_its_word():
    for theme, questions in EXAMPLES.items():
        assert {theme, *questions} <= WORDS["en"]["examples"].keys()
    assert all(f"country_{code}" in WORDS["en"]["page"] for code in ("", *triage.REGIONS))


def test_what_is_about_danger_and_doubt_is_said_in_every_language():
    for name in language.LANGUAGES:
        page = WORDS[name]["page"]
        assert page["consent"].count("**") == 4  # the warning, and the emergency number, stand out
        assert "MedChat" in page["disclaimer"]
        card = CARDS[name]
        for level in ("emergency", "crisis"):
            assert "{emergency}" in card[level]
            assert card[level].startswith("### ")
        assert "{crisis}" in card["crisis"]


@pytest.mark.parametrize(
    ("header", "name"),
    [("de-AT,de;q=0.9,en;q=0.8", "de"), ("zh-HK", "zh"), ("PT-br", "pt"), ("nl,de", "en"), ("", "en"), (";;,", "en")],
)
def test_the_browsers_first_language_counts(header, name):
    assert language.of(SimpleNamespace(headers={"accept-language": header})) == name  # type: ignore[arg-type]
    assert language.of(None) == "en"


def test_errors_are_told_in_the_language_with_their_figures():
    long = ChatError(
        "Your message has 9,000 characters; 8,000 are possible.", "Please shorten it, or split it into several."
    )
    assert language.told("de", long).startswith("Ihre Nachricht hat 9.000 Zeichen; möglich sind 8.000.")
    busy = Busy("All places are taken, and 3 questions are waiting already.", "Please try again in a minute.")
    assert "3" in language.told("ar", busy)
    assert language.told("ar", busy) != str(busy)
    assert language.told("zh", ChatError("Never seen.", "Do this.")) == "Never seen. Do this."


def test_figures_are_written_as_in_the_language():
    assert [language.number(name, 2000.5, 1) for name in ("en", "hi", "ar", "zh")] == ["2,000.5"] * 4
    assert [language.number(name, 2000.5, 1) for name in ("de", "es", "pt")] == ["2.000,5"] * 3
    assert language.number("fr", 2000.5, 1) == "2\u202f000,5"
    assert [language.percent(name, 0.124) for name in ("en", "de")] == ["12%", "12\u00a0%"]


def test_follow_ups_are_labelled_in_the_language_and_asked_in_english():
    topics = open_knowledge("builtin")
    found = topics.search("What is gout?", limit=1)
    options = talk.follow_ups(topics, found, "de")
    assert options[0] == {"label": "Wann Sie Hilfe brauchen", "value": "Gout: when to get help?"}
    assert language.heading("de", "another heading") == "Another heading"


def test_the_bare_base_is_told_in_the_language_and_judged_by_its_english_name():
    none = triage.check("What is gout?")
    report = talk.report(
        ScriptedEngine(), Reply(Delta("", "stop"), none), searched=False, seed=1, follow_up=[], lang="de"
    )
    assert "keiner" in report["content"]
    history = [{"role": "user", "content": "What is gout?"}, *talk.answer("A disease."), report]
    judged = judgement(history, 1, "number", True)
    assert judged is not None
    assert judged.adapter == "none"


@pytest.mark.parametrize("name", LOCALES)
def test_a_card_comes_in_the_readers_language_with_english_below(name):
    for text, level in (("crushing chest pain", "emergency"), ("I want to kill myself", "crisis")):
        found = triage.check(text, language=name)
        titles = [CARDS[code][level].split("\n")[0] for code in (name, "en")]
        assert found.level == level
        assert found.message.startswith(titles[0])
        assert 0 < found.message.index("\n---\n") < found.message.index(titles[1])
        assert "{" not in found.message
    # what was recognised in another language than English stays in it alone
    own = triage.check("ich will mich umbringen", language=name)
    assert own.message == triage.check("ich will mich umbringen").message


def test_the_groups_of_a_telephone_number_keep_their_order_from_right_to_left():
    for region, number in (("AU", "13 11 14"), ("UK", "116 123"), (None, "116 123")):
        arabic = triage.check("I want to kill myself", region=region, language="ar").message.split("\n---\n")[0]
        assert f"\u2066{number}\u2069" in arabic


@pytest.mark.parametrize("name", LOCALES)
def test_the_page_speaks_the_browsers_language(browser, page_url, name):
    texts = WORDS[name]
    with opened(browser, page_url, "phone", agree=False, locale=LOCALES[name]) as page:
        assert page.evaluate("document.documentElement.lang").startswith(name)
        direction = page.evaluate("getComputedStyle(document.querySelector('#consent p')).direction")
        assert direction == ("rtl" if name == "ar" else "ltr")
        expect(page.locator("#welcome h2")).to_have_text(texts["page"]["welcome"].split("\n")[0].removeprefix("## "))
        expect(page.locator("#consent")).to_contain_text(texts["page"]["consent"].split("**")[1])
        expect(page.locator("#english-only")).to_be_visible()
        expect(page.locator("#header")).to_contain_text(texts["page"]["not_a_doctor"])
        expect(page.locator("#examples")).to_contain_text(texts["examples"]["How can I sleep better?"])
        expect(page.locator("#message textarea")).to_have_attribute("placeholder", texts["page"]["ask"])
        expect(page.locator("#talks > summary")).to_contain_text(texts["history"]["conversations"])
        page.get_by_role("button", name=texts["page"]["agree"]).click()
        page.locator("#examples button").first.click()
        expect(page.locator("#chat .facts summary")).to_contain_text(texts["server"]["ended_stop"])
        expect(page.locator("#chat .user-row")).to_contain_text("How can I sleep better?")  # asked in English
        expect(page.locator("#status")).to_contain_text(texts["server"]["done"])
        ask(page, "I want to kill myself")
        title = CARDS[name]["crisis"].split("\n")[0].removeprefix("### ")
        expect(page.get_by_role("alert").get_by_role("heading").first).to_have_text(title)
        expect(page.get_by_role("alert").get_by_role("heading").first).to_be_in_viewport()
        for tab in ("compare", "adapters", "about"):
            page.get_by_role("tab", name=texts["page"][tab], exact=True).click()
            panel = page.get_by_role("tabpanel").filter(visible=True)
            expect(panel.get_by_role("heading").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab
        expect(page.locator("#about")).to_contain_text(texts["server"]["about"].split("\n")[0].removeprefix("## "))
        assert "__i18n__" not in page.locator("body").inner_text()


def test_arabic_is_mirrored_and_english_in_it_is_not(browser, page_url):
    with opened(browser, page_url, "phone", locale="ar") as page:
        assert page.evaluate("document.documentElement.dir") == "rtl"
        logo, label = page.locator("#header svg").bounding_box(), page.locator("#header .label").bounding_box()
        assert logo["x"] > label["x"]
        ask(page, "How can I sleep better?")
        answer = page.locator("#chat .bot-row .prose > p").first
        assert answer.evaluate("element => getComputedStyle(element).direction") == "ltr"
        facts = page.locator("#chat .facts")
        assert facts.evaluate("element => getComputedStyle(element).direction") == "rtl"
        row, asked = page.locator("#chat .bot-row").bounding_box(), page.locator("#chat .user.message").bounding_box()
        assert asked["x"] - row["x"] < 20  # what the visitor asked stands on the left
        tabs = page.locator("#tabs [role=tab]").filter(visible=True)
        assert tabs.first.bounding_box()["x"] > tabs.nth(1).bounding_box()["x"]


def test_another_language_gets_english(browser, page_url):
    with opened(browser, page_url, "phone", agree=False, locale="nl-NL") as page:
        expect(page.locator("#agree")).to_have_text(WORDS["en"]["page"]["agree"])
        assert page.evaluate("document.documentElement.lang") == "en"
