"""What must never happen on the page: markup that runs, files that leave, a token that shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.conftest import ROOT, free_port, wait_until
from tests.pages import ask, expect, open_tab, opened
from tests.scripted import HOSTILE

CANARY = "hf_canary0123456789abcdefghijklmnop"


@pytest.fixture
def page(browser, page_url):
    """A page that fails the test when anything runs, asks elsewhere, or leaves."""
    with opened(browser, page_url) as page:
        elsewhere = []
        page.on("requestfinished", lambda request: elsewhere.append(request.url))
        page.on("dialog", lambda dialog: elsewhere.append(dialog.message))
        yield page
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked") is None
        assert [url for url in elsewhere if not url.startswith((page_url, "data:", "blob:"))] == []


def test_markup_in_a_message_and_in_an_answer_is_shown_not_run(page):
    ask(page, HOSTILE)
    ask(page, "HOSTILE answer ![spy](https://example.org/spy.png)")
    for link in page.locator("#chat .message a").all():
        assert not (link.get_attribute("href") or "").startswith("javascript:")
    box = page.locator("#chat .bot-row").last.bounding_box()
    covered = page.evaluate(
        "document.elementFromPoint(innerWidth - 5, innerHeight - 5).closest('#chat .message') !== null"
    )
    assert box
    assert not covered  # a fixed box over the whole page stays in its answer


def test_markup_in_a_comparison_is_not_run(page):
    open_tab(page, "Compare")
    page.locator("#question textarea").fill(f"HOSTILE {HOSTILE}")
    page.keyboard.press("Enter")
    expect(page.locator(".vote").first).to_be_enabled()


def test_hostile_history_and_adapter_names_are_answered_with_sentences(page_url):
    client = Client(page_url, verbose=False)
    history = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
    assert client.predict("What is anemia?", history, api_name="/chat")
    for adapter in ("<script>alert(1)</script>", "../../../etc/passwd", "x" * 10_000):
        with pytest.raises(AppError, match="There is no adapter"):
            client.predict("What is anemia?", adapter=adapter, api_name="/chat")


def test_a_hostile_adapter_name_and_notice_are_text_on_the_page():
    from dataclasses import replace

    from medchat.ui.model_tab import _cards
    from tests.scripted import ScriptedEngine

    engine = ScriptedEngine()
    engine.adapters = {HOSTILE: replace(engine.adapters["medchat"], name=HOSTILE, source=HOSTILE, base=HOSTILE)}
    assert "<img" not in _cards(engine)
    assert "<script" not in _cards(engine)


PATHS = [
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=app.py",
    "/gradio_api/file=requirements.txt",
    f"/gradio_api/file={ROOT}/app.py",
    "/gradio_api/file=../../../../etc/passwd",
    "/gradio_api/file=%2e%2e/%2e%2e/etc/passwd",
    "/gradio_api/file=/proc/self/environ",
    "/gradio_api/file=file:///etc/passwd",
    "/static/../../../../etc/passwd",
    "/static/..%2f..%2f..%2fetc/passwd",
    "/assets/..%2f..%2f..%2f..%2fetc/passwd",
    "/svelte/..%2f..%2fetc/passwd",
    "/custom_component/..%2f..%2fetc/x/passwd",
    "/gradio_api/proxy=http://127.0.0.1:9/",
    "/gradio_api/runs",
    "/monitoring",
]


def fetch(request):
    """Return (status, text, headers) of an answer, also of a refusal."""
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(errors="replace"), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, "", error.headers


@pytest.mark.parametrize("path", PATHS)
def test_file_routes_give_nothing_outside_the_app(page_url, path):
    status, body, _ = fetch(page_url + path)
    assert status in (200, 400, 403, 404, 405)
    if status == 200:
        assert "root:" not in body
        assert "def main" not in body
        assert "PATH=" not in body


def test_no_redirect_leads_elsewhere(page_url):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req, fp, code, msg, headers, newurl):
            raise AssertionError(f"leads to {newurl}")

    opener = urllib.request.build_opener(Stay)
    with pytest.raises(urllib.error.HTTPError):
        opener.open(f"{page_url}/gradio_api/file=http://example.org/", timeout=10)


def test_nobody_can_upload_what_is_then_served_as_a_page(page_url):
    boundary = "x0x"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.html"\r\n'
        f"Content-Type: text/html\r\n\r\n<script>window.hacked=1</script>\r\n--{boundary}--\r\n"
    ).encode()
    request = urllib.request.Request(
        f"{page_url}/gradio_api/upload",
        body,
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    status, body, _ = fetch(request)
    if status == 200:
        _, _, headers = fetch(f"{page_url}/gradio_api/file={urllib.parse.quote(json.loads(body)[0])}")
        assert "attachment" in (headers.get("Content-Disposition") or "")
    else:
        assert status in (400, 403, 404, 413)


def test_a_token_in_the_environment_shows_nowhere(browser, tmp_path):
    """HF_TOKEN is set, the model cannot be had, and a request fails: the token is in no log, page or answer."""
    port = free_port()
    log = tmp_path / "log.txt"
    environ = os.environ | {
        "HF_TOKEN": CANARY,
        "MEDCHAT_API_KEY": CANARY,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "MEDCHAT_BASE": "org/private-model-GGUF",
    }
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environ
        )
        try:
            assert wait_until(lambda: _answers(url), 90), log.read_text()
            seen = [
                urllib.request.urlopen(f"{url}{path}").read().decode() for path in ("/", "/config", "/gradio_api/info")
            ]
            client = Client(url, verbose=False)
            seen.append(json.dumps(client.predict(api_name="/models")))
            with pytest.raises(AppError) as error:
                client.predict("hi", adapter="org/x", api_name="/chat")
            seen.append(str(error.value))
            with opened(browser, url) as page:
                expect(page.locator("#notice")).to_contain_text("org/private-model-GGUF")
                seen.append(page.content())
        finally:
            process.terminate()
            process.wait(10)
    seen.append(log.read_text())
    assert not any(CANARY in text for text in seen)


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False
