"""The public API of a running app, through gradio_client."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from itertools import pairwise

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

QUESTION = "What are the symptoms of iron deficiency anemia?"


@pytest.fixture(scope="module")
def client(app_url):
    return Client(app_url, verbose=False)


def test_chat_streams_repeats_and_differs_from_the_base(client):
    def ask(adapter):
        return list(client.submit(QUESTION, adapter=adapter, temperature=0, max_tokens=60, api_name="/chat"))

    pieces = ask("")
    assert len(pieces) > 10
    growing = pieces[:-1]  # the last one carries the numbers of the passages and their list
    assert all(later.startswith(earlier) for earlier, later in pairwise(growing))
    assert "Sources:\n[1] Iron deficiency anemia" in pieces[-1]
    assert "iron" in pieces[-1].lower()
    assert ask("")[-1] == pieces[-1] == ask("medchat")[-1]
    assert ask("base")[-1] != pieces[-1]


def test_chat_continues_a_history(client):
    history = [{"role": "user", "content": "What is asthma?"}, {"role": "assistant", "content": "A lung disease."}]
    assert client.predict("How is it treated?", history, max_tokens=20, temperature=0, api_name="/chat")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"message": " "}, "empty"),
        ({"message": "x" * 100_000}, "100,000 characters"),
        ({"message": "hi", "history": [{"role": "assistant", "content": "a"}]}, "role"),
        ({"message": "a\0b"}, "NUL"),
        ({"message": "hi", "adapter": "../../etc/passwd"}, "There is no adapter"),
        ({"message": "hi", "temperature": 9, "max_tokens": 0}, "Max_tokens must be from 1 to 2048; temperature"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(client, arguments, complaint):
    with pytest.raises(AppError, match=complaint):
        client.predict(api_name="/chat", **arguments)


def test_without_knowledge_no_passage_is_used(client):
    reply = client.predict(QUESTION, temperature=0, max_tokens=60, knowledge=False, api_name="/chat")
    assert "Sources:" not in reply


def test_sources_are_passages_with_their_page(client):
    found = client.predict(QUESTION, api_name="/sources")
    assert found[0]["title"].startswith("Iron deficiency anemia")
    assert all(set(p) == {"title", "text", "url", "score"} and p["url"].startswith("https://") for p in found)
    history = [{"role": "user", "content": "What is asthma?"}, {"role": "assistant", "content": "A lung disease."}]
    assert "sthma" in client.predict("And how is it treated?", history, api_name="/sources")[0]["title"]
    assert client.predict("Who won the football match yesterday?", api_name="/sources") == []


def test_an_emergency_gets_its_card_before_the_models_words(client):
    text = "My dad has crushing chest pain and is sweating"
    card = client.predict(text, api_name="/triage")
    assert card["level"] == "emergency"
    assert "chest_pain" in [flag["id"] for flag in card["flags"]]
    pieces = list(client.submit(text, temperature=0, max_tokens=30, api_name="/chat"))
    assert pieces[0] == card["message"]
    assert all(piece.startswith(card["message"]) for piece in pieces)


def test_in_a_crisis_the_card_is_the_whole_answer_also_when_other_input_is_wrong(client):
    text = "I want to kill myself tonight"
    card = client.predict(text, api_name="/triage")
    assert card["level"] == "crisis"
    assert list(client.submit(text, api_name="/chat")) == [card["message"]]
    assert list(client.submit(text, adapter="no such", history=[{"role": "x"}], api_name="/chat")) == [card["message"]]


def test_later_minimising_does_not_lower_an_emergency(client):
    history = [
        {"role": "user", "content": "My dad has crushing chest pain and is sweating"},
        {"role": "assistant", "content": "Call now."},
    ]
    pieces = list(client.submit("mum says it is nothing, he is fine", history, max_tokens=20, api_name="/chat"))
    assert "emergency" in pieces[0].lower()


def test_models_tells_who_answers(client):
    models = client.predict(api_name="/models")
    assert models["engine"] == "llama_cpp"
    assert models["base"] == "SmolLM2-135M-Instruct"
    assert [a["name"] for a in models["adapters"]] == ["medchat"]
    assert models["notice"] is None


def test_nothing_else_is_callable(client, app_url):
    endpoints = client.view_api(return_format="dict", print_info=False)
    assert set(endpoints["named_endpoints"]) == {"/chat", "/models", "/sources", "/triage"}
    assert not endpoints["unnamed_endpoints"]
    with urllib.request.urlopen(f"{app_url}/config") as answer:
        names = [d["api_name"] for d in json.load(answer)["dependencies"] if d["api_visibility"] != "private"]
    assert set(names) == {"chat", "models", "sources", "triage"}


@pytest.mark.parametrize("path", ["/gradio_api/file=requirements.txt", "/gradio_api/file=/etc/passwd"])
def test_files_are_not_served(app_url, path):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(app_url + path)
    assert error.value.code in (403, 404)
