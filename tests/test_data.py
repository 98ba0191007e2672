"""Training data: what is read, cleaned, taken for a duplicate, kept from the tests, split and reported."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medchat import knowledge, words
from medchat.errors import UserError
from medchat.prompt import SYSTEM, with_passages
from tests.conftest import ROOT
from tests.hub import Hub
from tests.test_hub import run
from train import clean, corpus, data, overlap, recipe, sources

HUB = Path(os.environ.get("DATASETS_MIRROR") or ROOT.parent / "shared" / "data" / "hub")
NAMES = "lavita/MedQuAD", "wangrongsheng/GenMedGPT-5k-en", "medalpaca/medical_meadow_wikidoc_patient_information"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Caches of this test's own, and no mirror but the one it makes."""
    monkeypatch.setenv("MEDCHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DATASETS_MIRROR", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()


def text(seed, count=30):
    """Return `count` words that no other seed gives."""
    rng = random.Random(seed)
    said = ("".join(rng.choices(string.ascii_lowercase, k=7)) for _ in range(count))
    return " ".join(said).capitalize() + "."


def put(tmp_path, name, rows, file="data/train-00000-of-00001.parquet"):
    """Write rows into the mirror."""
    path = tmp_path / "hub" / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def lines(tmp_path, rows, name="own.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def made(*given: Any, held_out: float = 0, **more: Any) -> data.Mixture:
    """Return the mixture of these sources, checked against no evaluation set unless asked for."""
    more = {"decontaminate": False, "system": "", **more}
    listed = [recipe.Source(**(one if isinstance(one, dict) else {"dataset": one})) for one in given]
    return data.load(recipe.Recipe("test", "embedded", listed, "runs/test", held_out=held_out, **more))


def turns(part):
    return [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in part]


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def refused(*given, **more):
    with pytest.raises(UserError) as error:
        made(*given, **more)
    return str(error.value)


# --- cleaning ---


def test_medquad_questions_and_answers_are_cleaned():
    assert clean.medquad_question("What is (are) Cataract ? ?") == "What is Cataract?"
    assert clean.medquad_question("Do you have information about Fever") == "What should I know about Fever?"
    raw = (
        "Summary : Hypotension (HI-po-TEN-shun) is low pressure. Signs include:\n   \nDizziness\n   \nFainting\n\n"
        "For more information see http://example.org. It has causes that a doctor looks for in a talk and with tests. "
        "A tail without an en"
    )
    cleaned = "Hypotension is low pressure. "
    cleaned += "Signs include: Dizziness; Fainting. It has causes that a doctor looks for in a talk and with tests."
    removed = Counter()
    assert clean.medquad_answer(raw, removed) == cleaned
    assert removed["page talk"] == 1
    assert clean.medquad_answer(raw, Counter(), 30) == "Hypotension is low pressure."
    assert clean.medquad_answer("One endless sentence " * 50, Counter(), 100) == ""


def test_a_short_sentence_after_a_list_is_no_item_of_it():
    raw = (
        "Signs include:\n\nDizziness\n   \nFainting\n\nIt usually passes.\n\nCauses are:\n - cold\n - heat\nRest helps."
    )
    cleaned = "Signs include: Dizziness; Fainting. It usually passes. Causes are: cold; heat. Rest helps."
    assert clean.medquad_answer(raw, Counter()) == cleaned


def test_medquad_templates_leave():
    removed = Counter()
    table = (
        "What are the signs and symptoms of X? Hair is sparse. The Human Phenotype Ontology provides the following list"
        " of signs. Signs and Symptoms Approximate number of patients Abnormality of the nails 90% Sparse hair 50%"
    )
    assert clean.medquad_answer(table, removed) == "Hair is sparse."
    for template in (
        "The prevalence of this condition is unknown.",
        "These resources address the diagnosis or management of X:  - Gene Review: X - Genetic Testing Registry: X",
    ):
        assert clean.medquad_answer(template, removed) == ""
    assert removed == {"sign tables": 1, "template answers": 1, "page talk": 1}
    known = "The prevalence in children is unknown. In adults one of 2,000 is affected."
    assert clean.medquad_answer(known, Counter()) == known


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        (
            "Hi, Thanks for posting your query. It is most likely vertigo. Hope it helps. Best wishes, Chat Doctor. ",
            "It is most likely vertigo.",
        ),
        (
            "Hello,Welcome to Chat Doctor forum. I have gone through your query and understand your concern. Test for"
            " lactic acid dehy ChatDoctor. You should rest.For further doubts consult one --> https://icliniq.com/x",
            "You should rest.",
        ),
        (
            "Hello Mrs Smith, Drink water. With regards to your knee, use ice. Thanks to vaccines it is rare. "
            "Regards, Dr. John Smith, MD",
            "Drink water. With regards to your knee, use ice. Thanks to vaccines it is rare.",
        ),
        ("Dear patient, rest&nbsp;well <b>now</b>. p <0.05 and 38â€“39 Â°C.", "Rest well now. p <0.05 and 38–39 °C."),
        ("Revert back to me with the X-ray. If you have any question, feel free to ask.", ""),
        ("Chat Doctor. ", ""),
        # What only looks like it stays.
        ("I hope for a short course of it. If you have a fever, take paracetamol.", None),
        ("Welcome news: the scan is normal. Dear me, no. Highly unlikely.", None),
        ("Himalayan salt has no benefit. Heparin is given. Regardless, see a doctor.", None),
    ],
)
def test_what_a_forum_puts_around_an_answer_leaves(raw, cleaned):
    assert clean.forum_answer(raw, Counter()) == (raw if cleaned is None else cleaned)


def test_questions_lose_greeting_thanks_and_site():
    raw = (
        "Hi doctor, my knee hurts. I asked Chat Doctor before. (attachment removed to protect patient identity). Thanks"
    )
    assert clean.forum_question(raw, Counter()) == "My knee hurts. I asked before."


def test_texts_are_cut_at_a_sentence_end():
    assert clean.cut("One two. Three four. Five.", 21) == "One two. Three four."
    assert clean.cut("One two. Three four. Five.", 20) == "One two. Three four."
    assert clean.cut("One two. Three four. Five.", 19) == "One two."
    assert clean.cut("Endless words", 5) == ""


# --- every data set by its own columns ---

PUBMED = {
    "pubid": 1,
    "question": "Does rest help?",
    "context": {"contexts": ["We rested.", "All slept."], "labels": ["AIMS", "RESULTS"], "meshes": []},
    "long_answer": "Rest helped most of them.",
    "final_decision": "yes",
}
ABSTRACT = "Aims: We rested.\nResults: All slept.\n\nQuestion: Does rest help?"
INPUT = {"instruction": "If you are a doctor, please answer the medical questions based on the patient's description."}
LONG = "Sleep, drink and rest until it is better, and call a doctor when it is not."


@pytest.mark.parametrize(
    ("name", "file", "row", "more", "question", "answer"),
    [
        (
            "ruslanmv/ai-medical-chatbot",
            "dialogues.parquet",
            {"Description": "Q. Ear?", "Patient": "Hello doctor, my ear hurts.", "Doctor": f"Hi. {LONG}"},
            {},
            "My ear hurts.",
            LONG,
        ),
        (
            "lavita/ChatDoctor-HealthCareMagic-100k",
            "data/train-0.parquet",
            INPUT | {"input": "Hi, my ear hurts.", "output": f"Hello. {LONG} Regards, Chat Doctor."},
            {"max_chars": 600},
            "My ear hurts.",
            LONG,
        ),
        (
            "lavita/ChatDoctor-iCliniq",
            "data/train-0.parquet",
            {
                "input": "My ear hurts.",
                "answer_icliniq": f"Hi. {LONG}",
                "answer_chatgpt": "No.",
                "answer_chatdoctor": "",
            },
            {},
            "My ear hurts.",
            LONG,
        ),
        (
            "medalpaca/medical_meadow_wikidoc",
            "data/train-0.parquet",
            {"instruction": "Answer this question truthfully", "input": "What is it?", "output": LONG},
            {},
            "What is it?",
            LONG,
        ),
        (
            "tatsu-lab/alpaca",
            "data/train-0.parquet",
            {"instruction": "Name the verb.", "input": "He runs.", "output": "The verb is runs.", "text": ""},
            {},
            "Name the verb.\n\nHe runs.",
            "The verb is runs.",
        ),
        ("qiaojin/PubMedQA", "pqa_labeled/train-0.parquet", PUBMED, {"answer": "decision"}, None, "yes"),
        (
            "qiaojin/PubMedQA",
            "pqa_labeled/train-0.parquet",
            PUBMED,
            {},
            f"{ABSTRACT} Answer yes, no or maybe.",
            "Yes. Rest helped most of them.",
        ),
        (
            "qiaojin/PubMedQA",
            "pqa_artificial/train-0.parquet",
            PUBMED,
            {"answer": "explanation", "config": "pqa_artificial"},
            ABSTRACT,
            "Rest helped most of them.",
        ),
        (
            "GBaker/MedQA-USMLE-4-options",
            "data/train-0.parquet",
            {"question": "Which?", "options": {"A": "Rest", "B": "Tea"}, "answer_idx": "B", "answer": "Tea"},
            {},
            "Which?\n\nA. Rest\nB. Tea",
            "B. Tea",
        ),
        (
            "openlifescienceai/medmcqa",
            "data/train-0.parquet",
            {"question": "Which?", "opa": "Rest", "opb": "Tea", "opc": "Ice", "opd": "Heat", "cop": 2},
            {},
            "Which?\n\nA. Rest\nB. Tea\nC. Ice\nD. Heat",
            "C. Ice",
        ),
        (
            "FreedomIntelligence/medical-o1-reasoning-SFT",
            "en/train-0.parquet",
            {"Question": "What now?", "Complex_CoT": "Let me think.", "Response": LONG},
            {},
            "What now?",
            f"<think>\nLet me think.\n</think>\n\n{LONG}",
        ),
        (
            "FreedomIntelligence/medical-o1-reasoning-SFT",
            "en/train-0.parquet",
            {"Question": "What now?", "Complex_CoT": "Let me think.", "Response": LONG},
            {"reasoning": False},
            "What now?",
            LONG,
        ),
        (
            "AI4LIFE-GROUP/MedSafetyBench",
            "llama2/train-0.parquet",
            {"category": 1, "harmful_medical_request": "How to harm?", "safe_response": "I cannot help with that."},
            {"config": "llama2"},
            "How to harm?",
            "I cannot help with that.",
        ),
    ],
)
def test_each_data_set_is_read_in_its_own_columns(tmp_path, name, file, row, more, question, answer):
    put(tmp_path, name, [row], file)
    ((asked, answered),) = turns(made({"dataset": name, **more}).train)
    assert asked == ("user", question or f"{ABSTRACT} Answer yes, no or maybe.")
    assert answered == ("assistant", answer)


def test_both_halves_of_the_safety_set_are_read(tmp_path):
    for half in ("gpt4", "llama2"):
        row = {"category": 1, "harmful_medical_request": f"How to harm {half}?", "safe_response": text(half)}
        put(tmp_path, "AI4LIFE-GROUP/MedSafetyBench", [row], f"{half}/train-0.parquet")
    assert len(made("AI4LIFE-GROUP/MedSafetyBench").train) == 2


def test_pubmedqas_official_test_questions_never_pass(tmp_path):
    official = sources.pubmedqa_test()
    assert len(official) == 500
    rows = [PUBMED | {"pubid": int(id), "question": f"Does {id} help?"} for id in [*sorted(official)[:3], "77"]]
    put(tmp_path, "qiaojin/PubMedQA", rows, "pqa_labeled/train-0.parquet")
    mixture = made("qiaojin/PubMedQA")
    assert ["Does 77 help?" in m[0][1] for m in turns(mixture.train)] == [True]
    assert mixture.report["sources"][0]["left"] == {"PubMedQA test question": 3}
    assert mixture.report["checks"]["PubMedQA test questions"] == 0
    columns = {"user": "question", "assistant": "long_answer"}
    own = made({"dataset": "qiaojin/PubMedQA", "config": "pqa_labeled", "columns": columns})
    assert [m[0][1] for m in turns(own.train)] == ["Does 77 help?"]


def test_every_source_of_every_recipe_can_be_read():
    for name in recipe.names():
        for source in recipe.load(name).data:
            assert source.columns or sources.known(source.dataset) or source.dataset.endswith(sources.FILE_TYPES)


# --- a person's own files ---


def test_files_of_ones_own(tmp_path):
    talk = [*chat("Hello there", "Good day to you.")["messages"], *chat("And now?", "Now we rest.")["messages"]]
    own = lines(
        tmp_path, [{"messages": talk}, "", {"messages": [{"role": "system", "content": "Be short."}, *talk[2:]]}]
    )
    with (tmp_path / "own.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["q", "a"], ["What is\na cold?", text("csv")], ['A "quote"?', text("quote")]])
    rows = [{"frage": "Was?", "antwort": text("parquet"), "rolle": "Be kind."}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own.parquet")
    mapping = {"user": "frage", "assistant": "antwort", "system": "rolle"}
    mixture = made(
        own,
        {"dataset": str(tmp_path / "own.csv"), "columns": {"user": "q", "assistant": "a"}, "system": "Be a doctor."},
        {"dataset": str(tmp_path / "own.parquet"), "columns": mapping},
        system="Be MedChat.",
    )
    found = sorted(turns(mixture.train))
    say = [(turn["role"], turn["content"]) for turn in talk]
    assert found == sorted(
        [
            [("system", "Be MedChat."), *say],
            [("system", "Be short."), *say[2:]],
            [("system", "Be a doctor."), ("user", "What is\na cold?"), ("assistant", text("csv"))],
            [("system", "Be a doctor."), ("user", 'A "quote"?'), ("assistant", text("quote"))],
            [("system", "Be kind."), ("user", "Was?"), ("assistant", text("parquet"))],
        ]
    )
    assert not any(mixture.train["last_only"])
    assert turns(made(lines(tmp_path, [chat("a b", "c d")], "two.jsonl"), system=None).train)[0][0] == (
        "system",
        SYSTEM,
    )


def test_an_answer_is_told_in_its_passages_own_sentences(tmp_path):
    passage = knowledge.open_knowledge("builtin").get("iron-deficiency-anemia#self_care")
    assert passage
    said = knowledge.sentences(passage.text)
    told = chat("What can I do?", f"In short: {said[0].lower()} And {said[2].lower()}")["messages"]
    elsewhere = chat("Are you a doctor?", "No, I am an AI and can be mistaken, so ask someone who knows.")["messages"]
    dialogue = {"id": "d1", "kind": "what_to_do", "messages": told, "passages": [[passage.id]]}
    rows = [dialogue, {**dialogue, "id": "d2", "messages": elsewhere}, {**dialogue, "id": "d3", "kind": "misfit"}]
    mixture = made({"dataset": lines(tmp_path, rows), "quote": True})
    answers = {row[-1][1] for row in turns(mixture.train)}
    quoted = (answers - {told[1]["content"]}).pop()
    assert answers == {quoted, told[1]["content"]}
    assert mixture.report["sources"][0]["left"] == {"its passages do not hold the answer": 1}
    assert set(knowledge.sentences(quoted)) <= set(said)
    assert said[0] in quoted
    assert said[2] in quoted


def test_a_topic_asks_for_each_passage_and_tells_it():
    topics = knowledge.Topics()
    mixture = made({"dataset": "assets/knowledge", "rows": 300})
    every = [topics.get(f"{topic['id']}#{key}") for topic in topics.topics for key in topics.questions(topic["id"])]
    texts = {passage.text: passage for passage in every if passage}
    places: Counter[int] = Counter()
    for (_, asked), (_, answer) in turns(mixture.train):
        told = texts[answer]
        assert any(asked.endswith(question) for question in topics.questions(told.topic)[told.id.partition("#")[2]])
        shown = [p for p in texts.values() if p.topic == told.topic and p.text in asked]
        assert told in shown
        places[asked.index(told.text) == min(asked.index(p.text) for p in shown)] += 1
    assert places[True] > places[False] > 10  # the second passage may hold it
    held_out = {row["topic"] for row in corpus.read() if row["split"] == "held_out"}
    assert {texts[row[-1][1]].topic for row in turns(mixture.held_out)} <= held_out
    assert not held_out & {texts[row[-1][1]].topic for row in turns(mixture.train)}


def test_a_dialogue_shows_its_passages_as_the_chat_would(tmp_path):
    passage = knowledge.open_knowledge("builtin").get("iron-deficiency-anemia#overview")
    assert passage
    talk = chat("What is anemia?", "Too little iron.")["messages"] + chat("Thanks!", "You are welcome.")["messages"]
    ids = [["iron-deficiency-anemia#overview"], []]
    dialogue = {"id": "d1", "topic": "t", "kind": "explain", "split": "train", "messages": talk, "passages": ids}
    other = {**dialogue, "id": "d2", "split": "held_out", "messages": chat("Hello", "Hello, ask away.")["messages"]}
    slash = {**other, "messages": other["messages"], "passages": [["iron-deficiency-anemia/overview"]]}
    mixture = made(lines(tmp_path, [dialogue, slash]), held_out=5)
    asked = with_passages("What is anemia?", [(passage.title, passage.text)])
    assert sorted(turns(mixture.train), key=len) == [
        [("user", asked), ("assistant", "Too little iron.")],
        [(turn["role"], turn["content"]) for turn in talk],
    ]
    assert turns(mixture.held_out) == [
        [("user", with_passages("Hello", [(passage.title, passage.text)])), ("assistant", "Hello, ask away.")]
    ]
    assert all(mixture.train["last_only"])
    assert len(set(mixture.train["group"])) == 1


def test_broken_rows_are_named_by_their_lines(tmp_path):
    good = chat("Hello you", "Hello to you.")
    wrong = {"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}
    path = lines(tmp_path, [good, "{not json", wrong, "[1]", {"other": 1}, {"messages": [{"role": "user"}] * 2}])
    said = refused(path)
    assert "5 broken row(s)" in said
    assert "line 2 is not JSON" in said
    assert "line 3 message 1 has the role 'assistant' where 'user' belongs" in said
    assert "line 3" in said
    assert "message 2 has the role 'user' where 'assistant' belongs" in said
    assert "line 4 is not an object" in said
    assert "line 5 has no 'messages'" in said
    assert "line 6 message 1 is not" in said
    assert "and 15 more" in refused(lines(tmp_path, [good] + ["{"] * 25))
    short = {"id": "d", "messages": good["messages"], "passages": [["no/such"]], "split": "nowhere"}
    said = refused(lines(tmp_path, [short, {**short, "passages": []}]))
    assert "unknown passage 'no/such'" in said
    assert "split 'nowhere'" in said
    assert "not one list of passages" in said
    (tmp_path / "torn.csv").write_text("q,a\nx,y\nonly one\n", encoding="utf-8")
    columns = {"user": "q", "assistant": "a"}
    assert "line 3 has not 2 fields" in refused({"dataset": str(tmp_path / "torn.csv"), "columns": columns})
    assert not list((tmp_path / "cache" / "data").iterdir())  # nothing half done stays behind


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("no/such", "does not know the data set 'no/such'"),
        ("lavita/MedQuaD", "Did you mean 'lavita/MedQuAD'?"),
        ("medalpaca/medical_meadow_mmmlu", "test set of MMLU"),
        ("cais/mmlu", "it is a test set"),
        ({"dataset": "openlifescienceai/medmcqa", "config": "validation"}, "validation split cannot be trained on"),
        ("GBaker/MedQA-USMLE-4-options", "no train split, only test"),
        ("tatsu-lab/alpaca", "no column 'output'. Its columns: instruction, input."),
        ("lavita/MedQuAD", "HF_HUB_OFFLINE=1 forbids"),
        ("nowhere.jsonl", "There is no file nowhere.jsonl"),
        ("empty.jsonl", "is empty"),
        ("blank.jsonl", "no column 'messages'"),
        ("noise.parquet", "cannot be read"),
        ({"dataset": "noise.csv", "columns": {"user": "q", "assistant": "b"}}, "Its columns: q, a"),
        ({"dataset": "noise.csv", "columns": {"question": "q"}}, "Write {user: COLUMN"),
        ({"dataset": "header.csv", "columns": {"user": "q", "assistant": "a"}}, "holds no rows"),
        ("noise.csv", "Write `columns: {user: COLUMN, assistant: COLUMN}`"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(tmp_path, monkeypatch, source, complaint):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "GBaker/MedQA-USMLE-4-options", [{"question": "x"}], "data/test-00000-of-00001.parquet")
    put(tmp_path, "tatsu-lab/alpaca", [{"instruction": "x", "input": ""}])
    for name, content in [
        ("empty.jsonl", ""),
        ("blank.jsonl", "\n\n"),
        ("noise.parquet", "PAR1 and noise"),
        ("noise.csv", "q,a\nx,y\n"),
        ("header.csv", "q,a\n"),
    ]:
        Path(name).write_text(content, encoding="utf-8")
    assert complaint in refused(source)


def test_several_problems_come_at_once(tmp_path):
    said = refused("no/such", str(tmp_path / "missing.csv"), "medalpaca/medical_meadow_mmmlu")
    assert said.startswith("3 data sets cannot be used:")
    assert all(part in said for part in ("no/such", "missing.csv", "MMLU"))
    broken = [lines(tmp_path, ["{"], name) for name in ("a.jsonl", "b.jsonl")]
    assert all(name in refused(*broken) for name in broken)


# --- duplicates, tests, split ---


def test_duplicates_leave_within_and_across_sources(tmp_path):
    long, answer = text("question", 40), text("answer", 40)
    near = answer.replace(answer.split()[20], "changed")
    rows = [
        chat("What is a cold?", answer),
        chat("what is a COLD", answer.upper()),  # the same words
        chat("Was ist ein Schnupfen?", near),  # nearly the same answer
        chat("What is a cold?", text("another answer")),  # a short question may have two answers
        chat(long, text("first")),
        chat(long + " Please help", text("second")),  # nearly the same long question
        chat("Is it warm?", "Yes it is."),
        chat("Is it cold?", "Yes it is."),  # a short answer may come twice
        chat("Empty?", " "),
        chat("One word?", "Yes."),
    ]
    mixture = made(lines(tmp_path, rows), lines(tmp_path, [rows[0], chat("New?", text("new"))], "two.jsonl"))
    first, second = mixture.report["sources"]
    assert first["left"] == {
        "the same row again": 1,
        "nearly the same answer again": 1,
        "nearly the same long question again": 1,
        "empty answer": 1,
        "one-word answer": 1,
    }
    assert second["left"] == {"the same row again": 1}
    assert (first["rows in"], first["rows out"], second["rows out"]) == (10, 5, 1)
    assert len(mixture.train) == 6


def test_duplicates_of_a_row_that_left_are_still_found(tmp_path):
    contaminated = text("exam", 40)
    put(tmp_path, "Itaykhealth/K-QA", [{"question": contaminated, "answer": text("key")}], "data/test-0.parquet")
    answer = text("shared", 40)
    rows = [chat(contaminated, answer), chat("One?", answer + " a"), chat("Two?", answer + " b"), chat("Six?", answer)]
    report = made(lines(tmp_path, rows), decontaminate=True).report
    assert report["total"]["left"] == {"overlaps Itaykhealth/K-QA": 1, "nearly the same answer again": 2}


def test_rows_that_hold_parts_of_an_evaluation_set_leave(tmp_path, capsys):
    rows = [text(i, 20) for i in range(6)]
    official = min(sources.pubmedqa_test())
    test = PUBMED | {"pubid": int(official), "question": rows[0], "context": {"contexts": [rows[1]], "labels": ["AIM"]}}
    put(tmp_path, "qiaojin/PubMedQA", [test, PUBMED | {"question": rows[5]}], "pqa_labeled/train-0.parquet")
    exam = {"question": "Which one is it?", "options": {"A": rows[2], "B": "tea"}, "answer_idx": "A"}
    put(tmp_path, "GBaker/MedQA-USMLE-4-options", [exam], "data/test-0.parquet")
    subject = {"question": "Name the longest human bone in adults.", "choices": ["femur"], "answer": 0}
    put(tmp_path, "cais/mmlu", [subject], "anatomy/test-0.parquet")
    run = " ".join(rows[1].split()[4:17])  # thirteen words of a context
    shorter = " ".join(rows[1].split()[4:16])
    own = lines(
        tmp_path,
        [
            chat(rows[0], text("a")),
            chat("What is known?", f"Well. {run}, they say."),
            chat("What is said?", f"Well. {shorter}, they say."),
            chat(f"Tell me: {rows[2]}", text("b")),
            chat("Name the longest human bones in an adult!", "That is the femur."),
            chat("Which one is it?", "It is the second."),
            chat(rows[5], text("c")),
        ],
    )
    mixture = made(own, decontaminate=True)
    asked = {m[0][1] for m in turns(mixture.train)}
    assert asked == {"What is said?", rows[5]}  # PubMedQA's other rows are no test
    tests = mixture.report["evaluation sets"]
    assert tests["qiaojin/PubMedQA"] == {"questions": 1, "rows removed": 2}
    assert tests["GBaker/MedQA-USMLE-4-options"] == {"questions": 1, "rows removed": 2}
    assert tests["cais/mmlu anatomy"] == {"questions": 1, "rows removed": 1}
    assert "HF_HUB_OFFLINE" in tests["Itaykhealth/K-QA"]["missing"]
    assert "not checked against Itaykhealth/K-QA" in capsys.readouterr().err
    assert "NOT checked against Itaykhealth/K-QA" in data.report_markdown(mixture.report)
    assert len(made(own, decontaminate=False).train) == 7


def test_near_duplicates_are_exactly_those_of_a_plain_comparison(monkeypatch):
    rng = random.Random(0)
    sets: list[set[int]] = []
    for _ in range(300):
        new = (
            set(rng.choice(sets))
            if sets and rng.random() < 0.5
            else {rng.randrange(200) for _ in range(rng.randint(0, 20))}
        )
        for _ in range(rng.randint(0, 3)):
            new.add(rng.randrange(200))
        sets.append(new)
    sets[:0] = [set(), set()]
    offsets = np.cumsum([0] + [len(s) for s in sets])
    # Spread over all of 32 bits, as hashes are.
    items = np.array([item * 21_474_836 for s in sets for item in sorted(s)], np.uint32)
    first = overlap.first_equal(offsets, items)
    assert all(first[i] == sets.index(s) for i, s in enumerate(sets))
    for threshold, chunk in [(0.8, 1_000_000), (0.8, 20), (0.5, 1_000)]:
        monkeypatch.setattr(overlap, "_CHUNK", chunk)
        found = {
            pair
            for i, j in overlap.similar_pairs(offsets, items, first, threshold)
            for pair in zip(i.tolist(), j.tolist(), strict=True)
        }
        assert found == {
            (i, j)
            for j in range(len(sets))
            for i in range(j)
            if sets[i]
            and first[i] == i
            and first[j] == j
            and len(sets[i] & sets[j]) > threshold * len(sets[i] | sets[j]) + 1e-9
        }
        assert len(found) > 40


def test_the_fast_way_to_words_gives_the_same_words():
    rng = random.Random(1)
    for _ in range(300):
        said = "".join(rng.choices(string.printable + "’éß", k=40))
        texts = overlap.Texts()
        texts.add(said, said, [said])
        assert list(texts._numbers) == list(dict.fromkeys(words.words(said)))


def medquad(i, *, topic=None, institute="CDC", kind="information"):
    return {
        "document_source": institute,
        "question_focus": f"Topic {topic if topic is not None else i}",
        "question_type": kind,
        "question": f"What is (are) {text(f'q{i}', 3)[:-1]} ?",
        "answer": f"Summary : {text(f'a{i}')}",
    }


def test_no_topic_and_no_near_duplicate_crosses_the_split(tmp_path):
    rows = [medquad(i, topic=i // 3, institute="GARD" if i % 5 == 0 else "CDC") for i in range(60)]
    put(tmp_path, "lavita/MedQuAD", [*rows, medquad(60, kind="research")])
    twins = [chat(f"{text(f't{i // 2}', 9)} {'please' * (i % 2)}", text(f"twin{i}")) for i in range(40)]
    source = {"dataset": "lavita/MedQuAD", "institutes": ["CDC"]}
    mixture = made(source, lines(tmp_path, twins), held_out=30, seed=3)
    assert (len(mixture.train), len(mixture.held_out)) == (58, 30)
    assert mixture.report["sources"][0]["left"] == {"another institute": 12, "lists of clinical trials": 1}
    topic = {f"What is {text(f'q{i}', 3)[:-1]}?": i // 3 for i in range(60)}
    topic |= {row["messages"][0]["content"].strip(): f"twin {i // 2}" for i, row in enumerate(twins)}
    train, held = ({topic[m[0][1]] for m in turns(part)} for part in (mixture.train, mixture.held_out))
    assert not train & held
    assert not set(mixture.train["group"]) & set(mixture.held_out["group"])
    assert {type(t) for t in held} == {int, str}  # of both sources


def test_the_same_recipe_gives_the_same_rows_and_another_seed_others(tmp_path):
    own = lines(tmp_path, [chat(text(f"q{i}", 5), text(i)) for i in range(50)])
    one, again, other = made(own, held_out=0.2), made(own, held_out=0.2), made(own, held_out=0.2, seed=1)
    assert len(one.held_out) == 10
    assert (turns(one.train), turns(one.held_out)) == (turns(again.train), turns(again.held_out))
    assert one.train.cache_files == again.train.cache_files  # from the cache
    assert turns(one.held_out) != turns(other.held_out)
    (tmp_path / "own.jsonl").write_text(json.dumps(chat("New one?", text("new"))), encoding="utf-8")
    assert len(made(own).train) == 1  # other data, another cache


def test_rows_fraction_and_repeat(tmp_path):
    one, two, three = (
        lines(tmp_path, [chat(text(f"{name}{i}", 5), text(f"{name}a{i}")) for i in range(20)], f"{name}.jsonl")
        for name in "abc"
    )
    mixture = made(
        {"dataset": one, "rows": 5},
        {"dataset": two, "fraction": 0.25},
        {"dataset": three, "repeat": 3},
        held_out=4,
    )
    train, held = Counter(mixture.train["source"]), Counter(mixture.held_out["source"])
    assert sum(held.values()) == 4
    assert (train[one] + held[one], train[two] + held[two]) == (5, 5)
    assert train[three] == 3 * (20 - held[three])
    order = mixture.train["source"]
    assert len(set(order[:10])) > 1  # one shuffle of the whole
    taken = [m[0][1] for m in turns(mixture.train) + turns(mixture.held_out) if m[0][1].startswith(text("a0", 5)[:1])]
    assert taken != [text(f"a{i}", 5) for i in range(5)]  # not simply the first
    report = mixture.report
    assert report["total"]["rows in"] == 60
    assert report["total"]["rows out"] == 30
    assert report["total"]["left"] == {"more than the recipe takes": 30}
    assert "| all | 60 |" in data.report_markdown(report)


def test_held_out_dialogues_stay_held_out_unless_a_training_row_repeats_them(tmp_path):
    def dialogue(i, split, question=""):
        talk = chat(question or text(f"d{i}", 6), text(f"answer{i}"))["messages"]
        return {"id": f"d{i}", "split": split, "messages": talk, "passages": [[]]}

    rows = [dialogue(i, "held_out" if i < 5 else "train") for i in range(10)]
    rows += [dialogue(10, "train", text("d0", 6) + " now")]
    other = [chat(text("d1", 6) + " now", text("x")), chat(text("free", 6), text("y"))]
    mixture = made(lines(tmp_path, rows), lines(tmp_path, other, "other.jsonl"))
    held = {m[0][1] for m in turns(mixture.held_out)}
    assert held == {*(text(f"d{i}", 6) for i in range(1, 5)), text("d1", 6) + " now"}
    assert mixture.report["total"]["left"] == {"held-out row that repeats a training row": 1}
    assert len(mixture.train) == 7


def test_too_much_held_out_or_nothing_left_is_said(tmp_path):
    own = lines(tmp_path, [chat(text(f"q{i}", 5), text(i)) for i in range(5)])
    assert "leaves no row" in refused(own, held_out=1000)
    put(tmp_path, "lavita/MedQuAD", [medquad(i) for i in range(3)])
    said = refused({"dataset": "lavita/MedQuAD", "institutes": ["XYZ"]})
    assert "survived cleaning (another institute: 3)" in said


# --- the Hub, and the real data ---

LOAD = """
import sys
from medchat.errors import UserError
from train import data, recipe
try:
    source = recipe.Source(sys.argv[1])
    print(len(data.load(recipe.Recipe("", "", [source], "", held_out=0, decontaminate=False)).train))
except UserError as error:
    print(error)
"""


def test_a_data_set_comes_from_the_hub_and_from_its_cache_when_the_hub_is_away(tmp_path):
    rows = pa.Table.from_pylist([{"instruction": "Say it.", "input": "", "output": text(i)} for i in range(3)])
    pq.write_table(rows, tmp_path / "train.parquet")
    with Hub(tmp_path) as hub:
        files = {"data/train-00000-of-00001.parquet": (tmp_path / "train.parquet").read_bytes()}
        hub.add("tatsu-lab/alpaca", files, kind="dataset")
        env = hub.env(tmp_path / "home", MEDCHAT_CACHE=str(tmp_path / "cache"), DATASETS_MIRROR="")
        assert run(env, LOAD, "tatsu-lab/alpaca") == "3\n"
        assert "The Hub has no data set 'lavita/MedQuAD'" in run(env, LOAD, "lavita/MedQuAD")
    env["MEDCHAT_CACHE"] = str(tmp_path / "another")
    assert run(env, LOAD, "tatsu-lab/alpaca") == "3\n"
    assert "The Hub cannot be reached" in run(env, LOAD, "lavita/MedQuAD")


@pytest.mark.skipif(not (HUB / NAMES[0]).is_dir(), reason="the real data sets are not beside this checkout")
def test_a_mixture_of_the_real_data_is_clean_by_an_independent_check(monkeypatch):
    """Nothing here uses the code that it checks, except to load."""
    monkeypatch.setenv("DATASETS_MIRROR", str(HUB))
    mixture = made(*NAMES, "qiaojin/PubMedQA", held_out=0.05, decontaminate=True)
    parts = [mixture.train.to_list(), mixture.held_out.to_list()]
    everything = [row for part in parts for row in part]
    answers = [row["messages"][-1]["content"] for row in everything]
    assert len(everything) > 20_000
    count = Counter(row["source"] for row in everything)
    assert all(count[name] > 400 for name in (*NAMES, "qiaojin/PubMedQA"))
    assert not any(
        re.search(r"chat ?doctor|thanks? (you )?for (your|posting)|&[a-z]+;|</?\w+>|\ufffd", a) for a in answers
    )
    assert not any(a.startswith(("Summary :", "Hello", "Hi,", "Hi ")) for a in answers)
    assert not any("Human Phenotype Ontology" in a or "These resources" in a or len(a.split()) < 2 for a in answers)

    official = json.loads((HUB / "qiaojin/PubMedQA/test_ground_truth.json").read_text())
    table = pq.read_table(HUB / "qiaojin/PubMedQA/pqa_labeled").to_pylist()
    tests = {plain(row["question"]) for row in table if str(row["pubid"]) in official}
    assert len(tests) == 500
    for row in everything:
        said = plain(row["messages"][-2]["content"])
        assert (
            not any(question in said for question in tests)
            if row["source"] == "qiaojin/PubMedQA"
            else said not in tests
        )

    groups = [{row["group"] for row in part} for part in parts]
    assert not groups[0] & groups[1]
    asked = [{plain(row["messages"][-2]["content"]) for row in part} for part in parts]
    assert not asked[0] & asked[1]
    focus = {
        row["question_focus"].lower() for row in pq.read_table(HUB / NAMES[0], columns=["question_focus"]).to_pylist()
    }
    sides = [
        {topic for q in side for topic in (q.removeprefix("what is ").strip(),) if topic in focus} for side in asked
    ]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    patients = [[q for q in side if q.startswith("doctor i ")] for side in asked]
    runs = [[set(zip(q.split(), q.split()[1:], strict=False)) for q in side] for side in patients]
    assert len(runs[1]) > 20
    assert not any(len(a & b) > 0.8 * len(a | b) for a in runs[0] for b in runs[1][:100])
    pairs = [(plain(row["messages"][-2]["content"]), plain(row["messages"][-1]["content"])) for row in everything]
    assert len(set(pairs)) == len(pairs)


def plain(said: str) -> str:
    return " ".join(re.findall(r"\w+", said.lower()))
