"""The dialogues of assets/corpus, and the checks that they pass."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from medchat.knowledge import TOPICS, open_knowledge
from train import corpus

GOOD: dict[str, Any] = {
    "id": "d9001",
    "topic": "kidney-stones",
    "kind": "explain",
    "split": "train",
    "messages": [
        {"role": "user", "content": "how do they find kidney stones"},
        {
            "role": "assistant",
            "content": "Doctors look for them with a picture, usually a CT scan or an ultrasound, and with tests of "
            "urine and blood. Children and pregnant people get the ultrasound first. What follows depends on where the "
            "stone sits, how big it is and how much it hurts. Fever or shivering with the pain needs care at once.",
        },
    ],
    "passages": [["kidney-stones#treatment"]],
}


@pytest.fixture(scope="module")
def knowledge():
    return open_knowledge()


@pytest.fixture(scope="module")
def medicines():
    return corpus.medicine_names(TOPICS)


def test_a_good_dialogue_has_no_problem(knowledge, medicines):
    assert corpus.problems(GOOD, knowledge, medicines) == []


@pytest.mark.parametrize(
    ("place", "text", "told"),
    [
        ("answer", "Yes.", "1 words, 40 to 150"),
        ("append", " It's important to see a doctor.", "stock phrase"),
        ("append", " Call 555 now.", "the number 555 comes from nowhere"),
        ("append", " Take ibuprofen.", "the medicine 'ibuprofen' comes from nowhere"),
        ("append", " **Drink water.**", "markup"),
        ("append", " And then", "does not end with a whole sentence"),
        ("append", " I am a doctor here.", "the output guard changes it"),
        ("copy", "", "words copied"),
        ("question", "crushing chest pain and sweating right now, what do i do", "triage sees an emergency"),
    ],
)
def test_each_mistake_is_named(knowledge, medicines, place, text, told):
    row = deepcopy(GOOD)
    question, answer = row["messages"]
    if place == "answer":
        answer["content"] = text
    elif place == "append":
        answer["content"] += text
    elif place == "copy":
        answer["content"] = knowledge.get("kidney-stones#treatment").text
    else:
        question["content"] = text
    assert told in "\n".join(corpus.problems(row, knowledge, medicines))


def test_form_names_fields_roles_and_missing_passages(knowledge, medicines):
    row = deepcopy(GOOD)
    row["passages"] = [["kidney-stones#nothing"]]
    assert "no passage 'kidney-stones#nothing'" in corpus.problems(row, knowledge, medicines)[0]
    row["messages"] = row["messages"][:1]
    assert "the roles do not alternate from user to assistant" in corpus.problems(row, knowledge, medicines)
    assert "the fields are" in corpus.problems({"id": "d1"}, knowledge, medicines)[0]


def test_a_crisis_has_no_dialogue_and_an_emergency_is_one(knowledge, medicines):
    row: dict[str, Any] = deepcopy(GOOD) | {"kind": "emergency"}
    assert any("triage sees no emergency" in problem for problem in corpus.problems(row, knowledge, medicines))
    row["messages"][0]["content"] = "i want to end my life"
    assert any("crisis" in problem for problem in corpus.problems(row, knowledge, medicines))


def test_a_held_out_topic_is_neither_subject_nor_passage_of_a_training_dialogue():
    held = deepcopy(GOOD) | {"id": "d9002", "split": "held_out"}
    assert corpus.split_problems([GOOD]) == []
    assert corpus.split_problems([GOOD, held]) == ["topic kidney-stones is held out and trained on"]
    reads = deepcopy(GOOD) | {"topic": "back-pain"}
    assert corpus.split_problems([reads, held]) == ["topic kidney-stones is held out and trained on"]


def test_near_duplicates_and_overlaps_are_found():
    text = GOOD["messages"][1]["content"]
    changed = text.replace("usually a CT scan", "often a CT scan")
    other = "Sleep comes more easily in a dark, quiet and cool room, with the phone left in another one."
    assert [pair[:2] for pair in corpus.near_duplicates([text, other, changed])] == [(0, 2)]
    assert corpus.copied("he said that sleep comes more easily here", other) == "sleep comes more easily"
    outside = ["We think a dark quiet and cool room with the phone off is best."]
    assert corpus.longest_overlap([text, other], outside) == "a dark quiet and cool room with the phone"
    assert corpus.longest_overlap([text], outside) == ""


def test_the_shipped_dialogues_pass(knowledge, medicines):
    rows = corpus.read()
    assert len(rows) >= 3_000
    # the triage reads each turn with its encoder, so only every third dialogue; `python -m train.corpus` reads all
    assert corpus.corpus_problems(rows[::3], knowledge, medicines) == []
    assert sum(len(row["messages"]) > 2 for row in rows) / len(rows) >= 0.24
    assert sum(row["kind"] in corpus.FROM_PASSAGES for row in rows) / len(rows) >= 0.5
