"""Conversations in a real browser: they outlast browser and server, and nothing of a private one stays anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest

from medchat.seal import open_seal
from medchat.transcript import Transcript, to_json
from tests.conftest import ROOT, free_port, wait_until
from tests.pages import ask, expect, open_tab, opened, replies, send, wait_for_end
from tests.test_page_access import findings, tab_to

SECRET = "a secret of some length"
QUESTION = "What are the symptoms of iron deficiency anemia?"
ANSWER = "causes tiredness"
MARKUP = "<img src=x onerror=\"window.hacked='img'\"><script>window.hacked='js'</script>[x](javascript:hacked=1)"
# Everything that a page can leave in a browser, as text.
STORAGE = """async () => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie,
    (await indexedDB.databases()).map((base) => base.name), await caches.keys()])"""


@pytest.fixture
def page(browser, page_url):
    with opened(browser, page_url) as page:
        yield page


def listed(page):
    """Return the locator of the listed conversations."""
    return page.locator("#talk-list li")


def stored(page):
    """Return the keys of the conversations in the browser's storage."""
    return page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('medchat-talk-'))")


def start_anew(page):
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#chat .user-row")).to_have_count(0)


def choose_file(page, text):
    page.locator("#import-file").set_input_files({"name": "t.json", "mimeType": "application/json", "buffer": text})


def exported(page, name):
    """Press an export button; return the text of the file and its name."""
    with page.expect_download() as caught:
        page.get_by_role("group", name="Export this conversation").get_by_role("button", name=name, exact=True).click()
    return caught.value.path().read_text(encoding="utf-8"), caught.value.suggested_filename


@contextmanager
def same_profile(browser, folder, url):
    """Open the page in a browser of its own that keeps its profile in `folder`; closing it ends the browser."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    path = next(filter(os.path.exists, ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")))
    context = browser.browser_type.launch_persistent_context(folder, executable_path=path, args=flags)
    try:
        page = context.pages[0]
        page.goto(url)
        yield page
    finally:
        context.close()


@contextmanager
def served(engine, port, secret):
    """Run the page on the scripted engine with this secret."""
    from medchat.knowledge import open_knowledge
    from medchat.ui import build_demo, launch_options

    demo = build_demo(engine, open_knowledge("builtin"), seal=open_seal(secret))
    demo.launch(server_port=port, prevent_thread_lock=True, quiet=True, **launch_options())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        demo.close(verbose=False)


@contextmanager
def the_real_app(port, secret):
    """Run `python app.py` with this secret: another process, so that nothing but the secret is shared."""
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env={**os.environ, "MEDCHAT_SECRET": secret},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def answers():
        try:
            return urllib.request.urlopen(url, timeout=5).status == 200
        except OSError:
            return False

    try:
        assert wait_until(answers, 180)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def test_a_conversation_outlasts_the_browser_and_the_server_but_not_another_secret(browser, scripted, tmp_path):
    port, profile = free_port(), tmp_path / "profile"
    with served(scripted, port, SECRET) as url, same_profile(browser, profile, url) as page:
        page.locator("#agree").click()
        expect(page.locator("#agree")).to_be_hidden()
        ask(page, QUESTION)
        expect(listed(page)).to_contain_text(QUESTION)
        assert "anemia" not in page.evaluate(STORAGE)  # encrypted
        assert SECRET not in page.content()
    with served(scripted, port, "not the secret of before") as url, same_profile(browser, profile, url) as page:
        expect(page.locator("#locked")).to_contain_text("1 of your conversations cannot be read")
        ask(page, "What is asthma?")
        expect(listed(page)).to_have_count(1)
        assert len(stored(page)) == 2  # untouched
    with the_real_app(port, SECRET) as url, same_profile(browser, profile, url) as page:
        expect(listed(page)).to_have_count(1)
        listed(page).locator(".open").click()
        expect(replies(page).last).to_contain_text(ANSWER)
        page.locator("#chat details.sources summary").click()
        expect(page.locator("#chat details.sources mark")).to_contain_text("tiredness")
        expect(page.locator("#chat .facts summary")).to_contain_text("ended by itself")
        page.get_by_role("button", name="Delete them").click()
        expect(page.locator("#talk-told")).to_contain_text("They were deleted")
        assert len(stored(page)) == 1


def test_several_are_listed_searched_renamed_switched_and_deleted(page):
    ask(page, QUESTION)
    start_anew(page)
    ask(page, "What is asthma?")
    expect(listed(page)).to_have_count(2)
    expect(listed(page).first.locator("[aria-current=true]")).to_contain_text("What is asthma?")
    page.get_by_role("button", name="Rename: What is asthma?").click()
    page.keyboard.type("Ástma <b>")
    page.keyboard.press("Enter")
    expect(listed(page).first).to_contain_text("Ástma <b>")
    ask(page, "What is anemia?")
    expect(listed(page).first).to_contain_text("Ástma <b>")  # a new answer does not undo it
    search = page.get_by_role("searchbox", name="Search conversations")
    search.fill("astma")
    expect(listed(page)).to_have_count(1)
    search.fill("marble PALACES")  # in the answers
    expect(listed(page)).to_have_count(2)
    search.fill("")
    page.get_by_role("button", name=re.compile("iron deficiency anemia")).first.click()
    expect(replies(page)).to_have_count(1)
    expect(replies(page)).to_contain_text(ANSWER)
    page.get_by_role("button", name="Delete: Ástma <b>").click()
    expect(listed(page)).to_have_count(1)
    assert len(stored(page)) == 1
    page.get_by_role("button", name="Undo", exact=True).last.click()
    expect(listed(page)).to_have_count(2)
    page.reload()
    expect(listed(page)).to_have_count(2)
    page.get_by_text("Export, import, delete").click()
    page.get_by_role("button", name="Delete all", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
    expect(page.locator("#talk-told")).to_contain_text("All conversations were deleted")
    assert stored(page) == []


def test_switching_stops_an_answer_and_keeps_its_question(page, scripted):
    ask(page, QUESTION)
    start_anew(page)
    send(page, "SLOW story")
    assert wait_until(lambda: scripted.computing == 1)
    page.get_by_role("button", name=re.compile("iron deficiency")).first.click()
    expect(replies(page).last).to_contain_text(ANSWER)
    assert wait_until(lambda: scripted.computing == 0)
    wait_for_end(page)
    page.get_by_role("button", name=re.compile("^SLOW story")).click()
    expect(page.locator("#chat .user-row")).to_contain_text("SLOW story")
    expect(page.locator("#chat .user-row")).to_have_count(1)


def test_nothing_of_a_private_conversation_stays(page):
    ask(page, QUESTION)
    expect(listed(page)).to_have_count(1)
    before = page.evaluate("JSON.stringify([Object.keys(localStorage), {...sessionStorage}])")
    page.get_by_role("button", name="Private").click()
    expect(page.locator("#private-note")).to_contain_text("nothing of this conversation is kept")
    assert stored(page) == []  # what was kept of it is gone
    ask(page, "Why is my quaggazorse limping?")
    start_anew(page)
    ask(page, "Is my other quaggazorse well?")
    page.get_by_role("button", name="Where you are").click()
    page.get_by_role("radio", name="Australia").check()
    expect(page.get_by_label("Like", exact=True).locator("visible=true")).to_have_count(0)
    open_tab(page, "Compare")
    expect(page.locator("#answers")).to_be_visible()
    expect(page.locator("#votes")).to_be_hidden()
    open_tab(page, "Chat")
    after = page.evaluate(STORAGE)
    assert "medchat-talk" in before
    assert "medchat-talk" not in after
    assert "region" not in after
    page.get_by_role("button", name="Private").click()  # leaving it
    expect(page.locator("#chat .user-row")).to_have_count(0)
    ask(page, "What is asthma?")
    expect(listed(page)).to_have_count(1)
    for file in (path for path in Path(os.environ["MEDCHAT_CACHE"]).rglob("*") if path.is_file()):
        assert b"quaggazorse" not in file.read_bytes(), file


def test_a_hostile_file_executes_nothing_and_all_that_is_wrong_is_told(page):
    files = page.locator("#talk-files summary")
    files.click()
    wrong = {"format": MARKUP, "version": 2, "title": 5, "messages": [{"role": MARKUP, "content": 7, MARKUP: MARKUP}]}
    choose_file(page, json.dumps(wrong).encode())
    told = page.locator("#talk-told.alarm")
    for part in ('"format" is not', '"version" is not 1', '"title" is not text', "message 1 is not", "unknown fields"):
        expect(told).to_contain_text(part)
    choose_file(page, b"[" * 100_000)
    expect(told).to_contain_text("nested too deeply")
    choose_file(page, b"\xff\xfe\x00" * 99)
    expect(told).to_contain_text("it is not JSON")
    many = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}] * 9_000
    choose_file(page, to_json(Transcript("t", many), date.today()).replace("\n", "").replace("  ", "").encode())
    expect(told).to_contain_text("18,000 messages")
    choose_file(page, b" " * 1_000_001)
    expect(told).to_contain_text("larger than 1 MB")
    assert page.locator("#chat .user-row").count() == 0
    # What is right in form may still hold markup everywhere: it is shown as text.
    source = {"title": MARKUP, "text": MARKUP, "source": MARKUP, "url": "https://example.org/a"}
    texts = dict.fromkeys(("content", "reasoning", "note", "card"), MARKUP)
    answer = {"role": "assistant", **texts, "sources": [source], "facts": {"Seed": MARKUP, "Adapter": MARKUP}}
    choose_file(page, to_json(Transcript(MARKUP, [{"role": "user", "content": MARKUP}, answer]), date.today()).encode())
    expect(page.locator("#chat .facts summary")).to_contain_text("imported, not checked")
    for summary in page.locator("#chat summary").all():
        summary.click()
    live = page.locator("#chat .message-content").locator("script, [onerror], [href^=javascript], .fold img, .note img")
    assert live.count() + page.locator("#history img").count() == 0
    expect(listed(page).locator(".open span")).to_contain_text("<img src=x")
    for name in ("Markdown", "JSON", "HTML"):
        assert "window.hacked" in exported(page, name)[0]
    assert page.evaluate("window.hacked") is None


def test_exports_come_back_and_the_print_view_opens(page):
    ask(page, QUESTION)
    page.get_by_text("Export, import, delete").click()
    text, name = exported(page, "JSON")
    assert name == "medchat-what-are-the-symptoms-of-iron-deficiency.json"
    [_, answer] = json.loads(text)["messages"]
    assert answer["facts"]["Base"] == "script"
    assert re.fullmatch("[0-9a-f]{64}", answer["facts"]["SHA-256"])
    assert answer["sources"][0]["url"].startswith("https://")
    assert "not a doctor" in exported(page, "Markdown")[0]
    page.context.add_init_script("window.print = () => { window.printed = true; }")
    with page.expect_popup() as caught:
        page.get_by_role("button", name="Print", exact=True).click()
    expect(caught.value.get_by_role("heading", name=QUESTION)).to_be_visible()
    caught.value.wait_for_function("window.printed")
    assert findings(caught.value) == []
    caught.value.close()
    start_anew(page)
    choose_file(page, text.encode())
    expect(replies(page).last).to_contain_text(ANSWER)
    expect(listed(page)).to_have_count(2)
    again, _ = exported(page, "JSON")
    assert json.loads(again)["messages"] == json.loads(text)["messages"]


def test_storage_that_is_full_gets_a_sentence_and_the_chat_goes_on(page):
    page.evaluate("""() => { for (let size = 1 << 22; size; size >>= 1)
        try { localStorage.setItem("other" + size, "x".repeat(size)); } catch {} }""")
    assert ANSWER in ask(page, QUESTION)
    expect(page.locator("#talk-told.alarm")).to_contain_text("storage is full")
    assert "sthma" in ask(page, "What is asthma?")


def test_storage_that_is_blocked_gets_a_sentence_and_the_chat_goes_on(page):
    for name in ("localStorage", "sessionStorage"):  # what browsers do where a visitor forbids cookies
        page.context.add_init_script(f"""Object.defineProperty(window, "{name}", {{ configurable: true, get() {{
            throw new DOMException("Access is denied for this document.", "SecurityError"); }} }})""")
    page.reload()
    expect(page.locator("#talk-told")).to_contain_text("does not let the page store anything")
    page.locator("#agree").click()
    assert ANSWER in ask(page, QUESTION)
    start_anew(page)
    listed(page).locator(".open").click()
    expect(replies(page).last).to_contain_text(ANSWER)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_small_phone_it_folds_away_and_axe_finds_nothing(browser, page_url, scheme):
    with opened(browser, page_url, "phone", scheme) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        ask(page, QUESTION)
        expect(page.locator("#talk-count")).to_have_text("1")
        expect(page.locator("#talk-list")).to_be_hidden()
        page.locator("#talks > summary").click()
        page.get_by_text("Export, import, delete").click()
        page.get_by_role("button", name="Rename").click()
        assert findings(page) == []
        page.keyboard.press("Escape")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.get_by_role("button", name="Private").click()
        page.get_by_role("button", name="Delete all", exact=True).click()
        assert findings(page) == []


def test_the_keyboard_alone_manages_conversations(page):
    ask(page, QUESTION)
    expect(listed(page)).to_have_count(1)
    tab_to(page, page.locator("#new-talk"))
    page.keyboard.press("Enter")
    expect(page.locator("#chat .user-row")).to_have_count(0)
    expect(page.locator("#message textarea")).to_be_focused()
    tab_to(page, listed(page).locator(".rename"))
    page.keyboard.press("Enter")
    page.keyboard.type("By keys")
    page.keyboard.press("Enter")
    expect(listed(page)).to_contain_text("By keys")
    tab_to(page, listed(page).locator(".open"))
    page.keyboard.press("Enter")
    expect(replies(page)).to_have_count(1)
    tab_to(page, listed(page).locator(".delete"))
    page.keyboard.press("Enter")
    expect(listed(page)).to_have_count(0)
    expect(page.locator("#chat .user-row")).to_have_count(0)
