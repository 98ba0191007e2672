"""What rows say: every data set read in its own columns, and files of one's own, into conversations."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from medchat.errors import UserError
from medchat.prompt import Message, problems, with_passages
from train import clean, corpus
from train.quote import quoted
from train.recipe import Source
from train.tables import FILE_TYPES, Place, Table, place
from train.tables import open_table as open_table

ROOT = Path(__file__).parent.parent
PUBMEDQA_TEST = Path(__file__).parent / "pubmedqa_test_ids.txt"  # the keys of PubMedQA's test_ground_truth.json
PUBMEDQA = "qiaojin/PubMedQA"
TOPICS = "assets/knowledge"  # the built-in knowledge, a topic a row
SHOWN = 10  # problems of one file that are named; the rest is counted

# Kinds of our dialogues whose passages do not hold the answer, or whose answer is more than they say.
QUOTES_NOTHING = {"misfit", "emergency", "harmful", "off_topic", "other_language", "small_talk"}

# Test sets: nothing of them is ever trained on, whatever a recipe says.
EVALUATION_ONLY = {
    "cais/mmlu": "it is a test set",
    "Itaykhealth/K-QA": "it is a test set",
    "medalpaca/medical_meadow_mmmlu": "it is the test set of MMLU",
}


@dataclass(frozen=True)
class Example:
    """One conversation as it was read; a system turn only where the row brought its own.

    `question` and `answer` are what rows are compared by. Rows of one `topic` stay on one side of the split, and
    `split` is the side that the file itself chose ("" leaves it to chance). `terse`: an answer of one word is meant.
    """

    messages: list[Message]
    question: str
    answer: str
    topic: str = ""
    split: str = ""
    last_only: bool = False
    terse: bool = False


Made = Example | str  # a str says why the row leaves
Shape = Callable[[dict[str, Any], Source, Counter], Made | list[Made]]


def _pair(question: str, answer: str, *, topic: str = "", terse: bool = False) -> Example:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Example(messages, question, answer, topic, terse=terse)


# --- one function for each shape of columns ---


def _medquad(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    if source.institutes is not None and row["document_source"] not in source.institutes:
        return "another institute"
    if row["question_type"] == "research":
        return "lists of clinical trials"
    if not row["answer"]:
        return "empty answer"
    answer = clean.medquad_answer(row["answer"], removed, source.max_chars)
    if len(answer) < 80:  # what is left of a template, a table or a list of links
        return "no whole answer left after cleaning"
    return _pair(clean.medquad_question(row["question"]), answer, topic=row["question_focus"].strip().lower())


def _patient_and_doctor(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    question = clean.forum_question(row["Patient"] or row["Description"] or "", removed)
    return _pair(question, clean.cut(clean.forum_answer(row["Doctor"] or "", removed), source.max_chars))


def _forum(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    """ChatDoctor's sets: the instruction is the same in every row and belongs into the system prompt."""
    question = clean.forum_question(row["input"] or "", removed)
    return _pair(question, clean.cut(clean.forum_answer(row["output"] or "", removed), source.max_chars))


def _icliniq(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    question = clean.forum_question(row["input"] or "", removed)
    return _pair(question, clean.cut(clean.forum_answer(row["answer_icliniq"] or "", removed), source.max_chars))


# Instructions that say nothing about the row.
_NO_TASK = re.compile(r"answer this question truthfully|please answer the medical questions", re.I)


def _instruction(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    asked = [clean.plain(row[key] or "", removed) for key in ("instruction", "input")]
    if asked[1] and _NO_TASK.search(asked[0]):
        asked[0] = ""
    answer = clean.cut(clean.plain(row["output"] or "", removed), source.max_chars)
    if source.dataset.startswith(_MEADOW) and clean.WIKI.search(answer):
        return "an unrendered wiki page"
    return _pair("\n\n".join(filter(None, asked)), answer)


def _pubmedqa(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    if is_pubmedqa_test(row):
        return "PubMedQA test question"
    context = row["context"]
    named = zip(context["labels"], context["contexts"], strict=False)
    abstract = "\n".join(f"{label.capitalize()}: {clean.plain(text, removed)}" for label, text in named)
    question = clean.plain(row["question"], removed)
    decision, explanation = row["final_decision"], clean.plain(row["long_answer"] or "", removed)
    explanation = clean.cut(explanation, source.max_chars)
    ask = "" if source.answer == "explanation" else " Answer yes, no or maybe."
    asked = f"{abstract}\n\nQuestion: {question}{ask}"
    answers = {
        "decision": decision,
        "explanation": explanation,
        None: f"{decision.capitalize()}. {explanation}".strip(),
    }
    answer = answers.get(source.answer, answers[None])
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    topic = f"{PUBMEDQA} {row['pubid']}"
    return Example(messages, question, answer, topic, terse=source.answer != "explanation")


def _medqa(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    options = {letter: clean.plain(text, removed) for letter, text in row["options"].items() if text}
    return _choice(clean.plain(row["question"], removed), options, row["answer_idx"])


def _medmcqa(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    options = {letter.upper(): clean.plain(row[f"op{letter}"] or "", removed) for letter in "abcd"}
    if row["cop"] not in range(4):
        return "no right option named"  # the test split hides it
    return _choice(clean.plain(row["question"], removed), options, "ABCD"[row["cop"]])


def _choice(question: str, options: dict[str, str], right: str) -> Made:
    if right not in options:
        return "no right option named"
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    answer = f"{right}. {options[right]}"
    messages = [{"role": "user", "content": f"{question}\n\n{listed}"}, {"role": "assistant", "content": answer}]
    # Compared with its options: "Which of the following is true?" is not one question.
    return Example(messages, f"{question} {' '.join(options.values())}", answer, terse=True)


def _reasoning(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    answer = clean.cut(clean.plain(row["Response"] or "", removed), source.max_chars)
    if not answer:
        return "empty answer"
    trace = clean.plain(row["Complex_CoT"] or "", removed)
    question = clean.plain(row["Question"] or "", removed)
    written = f"<think>\n{trace}\n</think>\n\n{answer}" if source.reasoning and trace else answer
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": written}]
    return Example(messages, question, answer)


def _safety(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    asked, answer = (clean.plain(row[key] or "", removed) for key in ("harmful_medical_request", "safe_response"))
    return _pair(asked, clean.cut(answer, source.max_chars))


def _dialogue(row: dict[str, Any], source: Source, removed: Counter) -> list[Made]:
    """A dialogue with passages: one row per answer, whose question shows the passages as chat.reply would."""
    made: list[Made] = []
    turns, answered = row["messages"], 0
    for i, message in enumerate(turns):
        if message["role"] != "assistant":
            continue
        passages = [found for id in row["passages"][answered] if (found := _passage(id))]
        answered += 1
        asked = with_passages(turns[i - 1]["content"], passages)
        said = " ".join(turn["content"] for turn in turns[:i])
        answer: str | None = message["content"]
        if source.quote and passages and row.get("kind") not in QUOTES_NOTHING:
            answer = quoted(message["content"], [text for _, text in passages])
        if answer is None:
            made.append("its passages do not hold the answer")
            continue
        messages = [*turns[: i - 1], {"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        topic, split = f"dialogue {row['id']}", row.get("split") or "train"
        made.append(Example(messages, said, answer, topic, split, last_only=True))
    return made


def _topic(row: dict[str, Any], source: Source, removed: Counter) -> list[Made]:
    """A topic of the built-in knowledge: a question for each passage that answers one, told in the passage's words.

    Each is shown with what the chat would put before a question that it does not know.
    """
    made: list[Made] = []
    split = "held_out" if row["id"] in _held_out_topics() else "train"
    for key, questions in _knowledge().questions(row["id"]).items():
        if not questions:
            continue
        question = questions[0]
        shown = {passage.id: passage for passage in _knowledge().about(row["id"], question, but=question)}
        if passage := shown.get(f"{row['id']}#{key}"):
            asked = with_passages(question, [(p.title, p.text) for p in shown.values()])
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": passage.text}]
            made.append(Example(messages, question, passage.text, f"topic {row['id']}", split, last_only=True))
        else:
            made.append("the search shows other passages")
    return made


def _own(row: dict[str, Any], source: Source, removed: Counter) -> Made:
    """A row of a person's own columns; its words stay as they are, except for broken unicode and markup."""
    if source.dataset == PUBMEDQA and is_pubmedqa_test(row):
        return "PubMedQA test question"
    columns = source.columns or {"messages": "messages"}
    if "messages" in columns:
        given = row[columns["messages"]]
    else:
        roles = [role for role in ("system", "user", "assistant") if role in columns]
        given = [{"role": role, "content": str(row[columns[role]] or "")} for role in roles]
        given = [turn for turn in given if turn["role"] != "system" or turn["content"]]
    messages = [{"role": turn["role"], "content": clean.plain(turn["content"], removed)} for turn in given]
    messages[-1]["content"] = clean.cut(messages[-1]["content"], source.max_chars)
    said = " ".join(turn["content"] for turn in messages[:-1] if turn["role"] != "system")
    return Example(messages, said, messages[-1]["content"])


@dataclass(frozen=True)
class Known:
    """How a Hub data set is read: its shape, the columns it needs, and its configurations where it has several."""

    shape: Shape
    columns: str
    configs: tuple[str | None, ...] = (None,)


_INSTRUCTION = "instruction input output"
KNOWN = {
    TOPICS: Known(_topic, "id answers"),
    "lavita/MedQuAD": Known(_medquad, "question answer question_focus question_type document_source"),
    "ruslanmv/ai-medical-chatbot": Known(_patient_and_doctor, "Description Patient Doctor"),
    PUBMEDQA: Known(_pubmedqa, "pubid question context long_answer final_decision", ("pqa_labeled",)),
    "lavita/ChatDoctor-HealthCareMagic-100k": Known(_forum, _INSTRUCTION),
    "lavita/ChatDoctor-iCliniq": Known(_icliniq, "input answer_icliniq"),
    "wangrongsheng/GenMedGPT-5k-en": Known(_forum, _INSTRUCTION),
    "tatsu-lab/alpaca": Known(_instruction, _INSTRUCTION),
    "GBaker/MedQA-USMLE-4-options": Known(_medqa, "question options answer_idx"),
    "openlifescienceai/medmcqa": Known(_medmcqa, "question opa opb opc opd cop"),
    "FreedomIntelligence/medical-o1-reasoning-SFT": Known(_reasoning, "Question Complex_CoT Response", ("en",)),
    "AI4LIFE-GROUP/MedSafetyBench": Known(_safety, "harmful_medical_request safe_response", ("gpt4", "llama2")),
}
_MEADOW = "medalpaca/medical_meadow_"  # a family with the same columns


def known(name: str) -> Known | None:
    """Return how the data set `name` is read, None for one that needs a column mapping."""
    return Known(_instruction, _INSTRUCTION) if name.startswith(_MEADOW) else KNOWN.get(name)


@lru_cache(maxsize=1)
def pubmedqa_test() -> frozenset[str]:
    """Return the ids of PubMedQA's 500 official test questions."""
    return frozenset(PUBMEDQA_TEST.read_text(encoding="utf-8").split())


def is_pubmedqa_test(row: dict[str, Any]) -> bool:
    """Tell whether a row of PubMedQA is one of its official test questions."""
    return str(row.get("pubid")) in pubmedqa_test()


def test_texts(row: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return (the question, also with its options, all texts) of a row of an evaluation set, whatever its columns."""
    texts = list(_strings(row))
    question = next((value for key, value in row.items() if key.lower() == "question" and isinstance(value, str)), "")
    options = (
        row.get("options") or row.get("choices") or [row[key] for key in ("opa", "opb", "opc", "opd") if key in row]
    )
    listed = " ".join(_strings(options))
    return [part for part in (question, f"{question} {listed}" if listed else "") if part] or texts[:1], texts


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


@lru_cache(maxsize=1)
def _knowledge() -> Any:
    from medchat.knowledge import open_knowledge

    return open_knowledge("builtin")


@lru_cache(maxsize=1)
def _held_out_topics() -> frozenset[str]:
    """Return the topics that the dialogues hold out."""
    return frozenset(row["topic"] for row in corpus.read() if row["split"] == "held_out" and row["topic"])


def _passage(id: str) -> tuple[str, str] | None:
    """Return (title, text) of "topic/field" of the built-in knowledge, None when it is not there."""
    passage = _knowledge().get(id.replace("/", "#"))
    return (passage.title, passage.text) if passage else None


# --- finding ---


def find(source: Source) -> list[Place]:
    """Return the places of a recipe's source, before any row is read.

    Raises UserError for what may not be trained on, is unknown or absent.
    """
    name = source.dataset
    if reason := EVALUATION_ONLY.get(name):
        raise UserError(f"{name} cannot be trained on: {reason}.", "Take it out of the recipe.")
    if source.config in ("test", "validation"):
        raise UserError(f"{name}: the {source.config} split cannot be trained on.", "Take `config` out.")
    if name.endswith(FILE_TYPES):
        return [Place(name, files=(_own_file(name),))]
    if name == TOPICS:
        return [Place(name, files=tuple(sorted((ROOT / TOPICS).glob("*.jsonl"))))]
    reader = known(name)
    if reader is None and not source.columns:
        near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.5)
        kinds = " or ".join(FILE_TYPES)
        hint = (
            f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(KNOWN)}, {_MEADOW}*; a file ends in {kinds}."
        )
        mapping = "{user: COLUMN, assistant: COLUMN}"
        raise UserError(f"MedChat does not know the data set {name!r}.", f"{hint} Another needs `columns: {mapping}`.")
    configs = (source.config,) if source.config or reader is None else reader.configs
    return list(dict.fromkeys(place(name, config, "train", source.revision) for config in configs))


def _own_file(name: str) -> Path:
    path = Path(name).expanduser()
    path = path if path.is_file() or path.is_absolute() else ROOT / name  # a shipped recipe names files of ours
    if not path.is_file():
        raise UserError(f"There is no file {name}.", f"Check the path; from here it is {Path(name).absolute()}.")
    if not path.stat().st_size:
        raise UserError(f"{name} is empty.", "Put rows into it, or take it out of the recipe.")
    return path


# --- rows to examples ---


@dataclass
class Ledger:
    """What became of a source's rows: how many there were, why some left, and what cleaning took out of the others."""

    rows_in: int = 0
    left: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)


def examples(source: Source, table: Table, ledger: Ledger) -> Iterator[Example]:
    """Yield the cleaned examples of a source, and keep the ledger.

    Raises UserError before the first row for missing columns, and after the last one for broken rows, naming each by
    its line.
    """
    shape = _shape(source, table)
    own = shape in (_own, _dialogue)
    wrong: list[str] = []
    for number, row in table.rows():
        ledger.rows_in += 1
        problem = row if isinstance(row, str) else (_wrong(row, source, shape) if own else "")
        if isinstance(row, str) or problem:
            wrong.append(f"{table.unit} {number} {problem}")
            continue
        made = shape(row, source, ledger.removed)
        for example in made if isinstance(made, list) else [made]:
            reason = example if isinstance(example, str) else _empty(example)
            if isinstance(example, str) or reason:
                ledger.left[reason] += 1
            elif not wrong:
                yield example
    if wrong:
        more = f"\n  - and {len(wrong) - SHOWN:,} more" if len(wrong) > SHOWN else ""
        listed = "\n  - ".join(wrong[:SHOWN]) + more
        raise UserError(f"{source.dataset} has {len(wrong):,} broken row(s):\n  - {listed}\n", "Mend or delete them.")
    if not ledger.rows_in:
        raise UserError(f"{source.dataset} holds no rows.", "Put rows into it, or take it out of the recipe.")


def _shape(source: Source, table: Table) -> Shape:
    """Return the function that reads the source's rows; raises UserError when its columns are not there."""
    reader = None if source.columns else known(source.dataset)
    if reader is not None:
        needed, shape = reader.columns.split(), reader.shape
    elif source.columns:
        roles = set(source.columns)
        if roles != {"messages"} and not {"user", "assistant"} <= roles <= {"system", "user", "assistant"}:
            raise UserError(
                f"{source.dataset}: `columns` names {', '.join(sorted(roles)) or 'nothing'}.",
                "Write {user: COLUMN, assistant: COLUMN}, with system: COLUMN if there is one, or {messages: COLUMN}.",
            )
        needed, shape = list(source.columns.values()), _own
    else:
        needed, shape = ["messages"], _dialogue if "passages" in table.columns else _own
    if missing := [column for column in needed if column not in table.columns]:
        hint = "" if source.columns or reader else " Write `columns: {user: COLUMN, assistant: COLUMN}` in the recipe."
        raise UserError(
            f"{source.dataset} has no column {' and no column '.join(map(repr, missing))}.",
            f"Its columns: {', '.join(map(str, table.columns)) or 'none'}.{hint}",
        )
    return shape


def _wrong(row: dict[str, Any], source: Source, shape: Shape) -> str:
    """Return what is wrong with a row of a person's own file ("" if nothing)."""
    columns = source.columns or {"messages": "messages"}
    if missing := [column for column in columns.values() if column not in row]:
        return f"has no {' and no '.join(map(repr, missing))}"
    if "messages" not in columns:
        kinds = {role: type(row[column]).__name__ for role, column in columns.items() if row[column] is not None}
        return "; ".join(f"holds a {kind} for {role}" for role, kind in kinds.items() if kind in ("list", "dict"))
    messages = row[columns["messages"]]
    if not isinstance(messages, list) or len(messages) < 2:
        return "has no question with an answer in its messages"
    found = problems(messages[:-1])
    last = messages[-1]
    if not isinstance(last, dict) or not isinstance(last.get("content"), str):
        found.append(f'message {len(messages)} is not {{"role": ..., "content": text}}')
    elif last.get("role") != "assistant":
        found.append(f"message {len(messages)} has the role {str(last.get('role'))[:20]!r} where 'assistant' belongs")
    return "; ".join(found or (_wrong_passages(row, messages) if shape is _dialogue else []))


def _wrong_passages(row: dict[str, Any], messages: list[Message]) -> list[str]:
    found = []
    passages = row.get("passages")
    turns = sum(message["role"] == "assistant" for message in messages)
    if not isinstance(passages, list) or len(passages) != turns or not all(isinstance(p, list) for p in passages):
        found.append(f"has not one list of passages for each of its {turns} answers")
    else:
        ids = [id for turn in passages for id in turn]
        found += [f"names the unknown passage {id!r}" for id in ids if not isinstance(id, str) or not _passage(id)]
    if not row.get("id"):
        found.append("has no id")
    if row.get("split", "train") not in ("train", "held_out"):
        found.append(f"has the split {row['split']!r}, not 'train' or 'held_out'")
    return found


def _empty(example: Example) -> str:
    if not example.question.strip() or not all(turn["content"].strip() for turn in example.messages[:-1]):
        return "empty question"
    if not example.answer.strip():
        return "empty answer"
    return "one-word answer" if not example.terse and len(example.answer.split()) < 2 else ""
