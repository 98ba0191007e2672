"""A small Hub of invented rows: every data set that the recipes name, in its own columns, for DATASETS_MIRROR.

The texts are our own (tests/data/sample_texts.jsonl), plain enough to survive cleaning and different enough not to be
near-duplicates. HealthCareMagic also holds what should not survive: site names and greetings, an empty answer, a
duplicate, and a question of an evaluation set.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.sources import PUBMEDQA_TEST

DOCTOR = "If you are a doctor, please answer the medical questions based on the patient's description."
TRUTHFULLY = "Answer this question truthfully"
EVALUATED = "My uncle keeps bees and was stung eleven times on one hand this morning; how long should he be watched?"

Row = dict[str, Any]


def write_sample_hub(folder: Path) -> Path:
    """Write 20 to 55 rows of every data set under `folder`, as DATASETS_MIRROR expects them; return `folder`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [json.loads(line) for line in (Path(__file__).parent / "data/sample_texts.jsonl").open(encoding="utf-8")]
    topics, errands, studies, refusals = (
        [text for text in texts if text["kind"] == kind] for kind in ("topic", "errand", "study", "refusal")
    )
    tables = _questions(topics) | _conversations(topics) | _evaluations(topics)
    tables |= _papers(studies, topics) | _safety(refusals) | _alpaca(errands)
    for name, rows in tables.items():
        path = folder / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    official = {str(row["pubid"]): row["final_decision"] for row in tables["qiaojin/PubMedQA/pqa_labeled/train"][1::2]}
    (folder / "qiaojin/PubMedQA/test_ground_truth.json").write_text(json.dumps(official))
    return folder


def _conversations(topics: list[Row]) -> dict[str, list[Row]]:
    """Patients who describe and doctors who answer."""
    chats, magic, icliniq, genmed = [], [], [], []
    for t in topics:
        first = f"Hello doctor, {t['complaint']}. It has been going on for a while and I worry. What should I do?"
        second = f"Dear sir, my aunt was told she has {t['name']}. Nobody explained it to her. Can you?"
        chats += [
            {"Description": f"Q. Help with {t['name']}?", "Patient": first, "Doctor": f"Hi. {t['home']} {t['doctor']}"},
            {"Description": f"Q. What is {t['name']}?", "Patient": second, "Doctor": f"{t['what']} {t['signs']}"},
        ]
        question = f"Sir, {t['complaint']}; is it serious, and which check-up do I need?"
        magic.append({"instruction": DOCTOR, "input": question, "output": f"{t['causes']} {t['tests']}"})
        icliniq.append(
            {
                "input": f"Hi doctor, since last week {t['complaint']}. My family laughs. How can I help myself?",
                "answer_icliniq": f"Hello. {t['what']} {t['home']}",
                "answer_chatgpt": f"I am sorry to hear that. {t['doctor']}",
                "answer_chatdoctor": f"Hi, {t['signs']}",
            }
        )
        question = f"Doctor, I think I have {t['name']}. How would you make sure?"
        genmed.append({"instruction": DOCTOR, "input": question, "output": f"{t['signs']} {t['doctor']}"})
    for row in magic[::3]:
        row["output"] = f"Hello, welcome to Chat Doctor. {row['output']} Hope I have answered your query. Chat Doctor."
    magic += [
        dict(magic[1]),
        {"instruction": DOCTOR, "input": "My knee clicks on stairs and nothing hurts, why?", "output": ""},
        {"instruction": DOCTOR, "input": EVALUATED, "output": "Watch him for an hour, and call if he feels faint."},
    ]
    return {
        "ruslanmv/ai-medical-chatbot/data/train": chats,
        "lavita/ChatDoctor-HealthCareMagic-100k/data/train": magic,
        "lavita/ChatDoctor-iCliniq/data/train": icliniq,
        "wangrongsheng/GenMedGPT-5k-en/data/train": genmed,
    }


def _questions(topics: list[Row]) -> dict[str, list[Row]]:
    """Questions with answers in the manner of an encyclopedia, a leaflet and a card, and reasoning and preferences."""
    medquad, wikidoc, leaflets, cards, reasoning, preferences = [], [], [], [], [], []
    institutes = ["NIDDK", "NHLBI", "CDC", "MPlusHealthTopics", "NIHSeniorHealth", "CancerGov", "NINDS", "GARD"]
    for i, t in enumerate(topics):
        name = t["name"].title()
        for kind, question, answer in [
            ("information", f"What is (are) {name} ?", f"Summary : {t['what']} {t['causes']} {t['doctor']}"),
            ("exams and tests", f"How to diagnose {name} ?", f"{t['signs']} {t['tests']} {t['doctor']}"),
        ]:
            medquad.append(
                {
                    "document_id": f"{i:07}_1",
                    "document_source": institutes[i % len(institutes)],
                    "document_url": f"https://example.org/{i}",
                    "question_id": f"{i:07}_1-{len(medquad)}",
                    "question_focus": name,
                    "question_type": kind,
                    "question": question,
                    "answer": answer,
                }
            )
        for table, question, answer in [
            (wikidoc, f"Where does {t['name']} come from?", f"{t['what']} {t['causes']}"),
            (leaflets, f"What are the symptoms of {name}?", f"{t['signs']} {t['home']}"),
            (cards, f"How is {t['name']} usually found?", f"For {t['name']}: {t['tests']}"),
        ]:
            table.append({"instruction": TRUTHFULLY, "input": question, "output": answer})
        reasoning.append(
            {
                "Question": f"Somebody tells you: {t['complaint']}. Which examination comes first, and why not more?",
                "Complex_CoT": f"Let me think. It sounds like {t['name']}. {t['signs']} So what would change the plan?",
                "Response": f"I would think of {t['name']}. {t['tests']} Until then: {t['home']}",
            }
        )
        prompt = f"What is good to know about {t['name']}?"
        preferences.append(
            {
                "prompt_id": f"sample,{i}",
                "prompt": prompt,
                "chosen": _pair(prompt, f"{t['what']} {t['home']} {t['doctor']}"),
                "rejected": _pair(prompt, f"Take any pill against {t['name']}."),
                "label_type": "gpt4",
            }
        )
    return {
        "lavita/MedQuAD/data/train": medquad,
        "medalpaca/medical_meadow_wikidoc/data/train": wikidoc,
        "medalpaca/medical_meadow_wikidoc_patient_information/data/train": leaflets,
        "medalpaca/medical_meadow_medical_flashcards/data/train": cards,
        "FreedomIntelligence/medical-o1-reasoning-SFT/en/train": reasoning,
        "TsinghuaC3I/UltraMedical-Preference/data/train": preferences,
    }


def _evaluations(topics: list[Row]) -> dict[str, list[Row]]:
    """Examinations; they share no sentence with the training sets but EVALUATED."""
    names = [t["name"] for t in topics]
    exams, quiz, mmlu, answers = [], [], [], []
    for i, name in enumerate(names):
        four = [names[(i + j) % len(names)] for j in range(4)]
        exams.append(
            {
                "question": f"Which entry is the one called {name}?",
                "answer": name,
                "options": dict(zip("ABCD", four, strict=True)),
                "meta_info": "step1",
                "answer_idx": "A",
                "metamap_phrases": [name],
            }
        )
        quiz.append(
            {
                "id": f"sample-{i}",
                "question": f"Point at {name}",
                **dict(zip(["opa", "opb", "opc", "opd"], four, strict=True)),
                "cop": 0,
                "choice_type": "single",
                "exp": f"It is {name}.",
                "subject_name": "Medicine",
                "topic_name": name,
            }
        )
        mmlu.append({"question": f"Pick {name}.", "subject": "", "choices": four, "answer": 0})
        answers.append(
            {
                "question": f"Should I fear {name}?" if i else EVALUATED,
                "answer": f"Most people with {name} do well.",
                "must_have": [f"{name} mostly goes well"],
                "nice_to_have": [],
            }
        )
    subjects = ["anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics"]
    return {
        "GBaker/MedQA-USMLE-4-options/data/train": exams[::2],
        "GBaker/MedQA-USMLE-4-options/data/test": exams[1::2],
        "openlifescienceai/medmcqa/data/train": quiz[::2],
        "openlifescienceai/medmcqa/data/validation": quiz[1::2],
        "Itaykhealth/K-QA/data/test": answers,
    } | {f"cais/mmlu/{s}/test": [row | {"subject": s} for row in mmlu] for s in [*subjects, "professional_medicine"]}


def _papers(studies: list[Row], topics: list[Row]) -> dict[str, list[Row]]:
    """PubMedQA: people's labels (every second row bears an id of the official test), and machine-made ones."""
    official = PUBMEDQA_TEST.read_text(encoding="utf-8").split()
    labelled = [
        {
            "pubid": int(official[i]) if i % 2 else 90000 + i,
            "question": study["question"],
            "context": {
                "contexts": [f"We asked what moves {study['measure']}.", f"Two groups; we noted {study['measure']}."],
                "labels": ["BACKGROUND", "METHODS"],
                "meshes": ["Humans"],
            },
            "long_answer": f"{study['finding']} Larger studies should follow.",
            "final_decision": study["decision"],
        }
        for i, study in enumerate(studies)
    ]
    artificial = [
        {
            "pubid": 70000 + i,
            "question": f"Does early advice change the course of {t['name']}?",
            "context": {"contexts": [t["causes"], t["what"]], "labels": ["AIM", "METHODS"], "meshes": ["Adult"]},
            "long_answer": f"{t['tests']} {t['signs']}",
            "final_decision": "yes",
        }
        for i, t in enumerate(topics)
    ]
    return {"qiaojin/PubMedQA/pqa_labeled/train": labelled, "qiaojin/PubMedQA/pqa_artificial/train": artificial}


def _safety(refusals: list[Row]) -> dict[str, list[Row]]:
    """Requests that would harm, each with a kind no; half of them in either configuration."""
    rows = [
        {"category": 1 + i % 9, "harmful_medical_request": row["request"], "safe_response": row["answer"]}
        for i, row in enumerate(refusals)
    ]
    return {f"AI4LIFE-GROUP/MedSafetyBench/{name}/train": rows[i::2] for i, name in enumerate(["gpt4", "llama2"])}


def _alpaca(errands: list[Row]) -> dict[str, list[Row]]:
    """Instructions about anything, some with an input."""
    return {
        "tatsu-lab/alpaca/data/train": [
            {**{key: row[key] for key in ("instruction", "input", "output")}, "text": " ".join(row.values())}
            for row in errands
        ]
    }


def _pair(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
