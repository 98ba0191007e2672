"""Hub data sets -> messages, cleaned and split by topic."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medchat.errors import UserError
from medchat.prompt import SYSTEM, Message
from train.recipe import Recipe, Source

Row = tuple[str, list[Message]]  # (topic, messages)

# Sentences that speak of a web page or a printed leaflet, which a chat cannot show.
_BOILERPLATE = re.compile(
    r"https?:|www\.|click|this (?:page|site|web|summary|booklet|fact sheet)|these resources|for more information"
    r"|see the |video|\(see|watch |NIDDK|NHLBI|MedlinePlus|NIHSeniorHealth|\bNCI\b|\bPDQ\b|clinical trial",
    re.IGNORECASE,
)
_PRONUNCIATION = re.compile(r"\s*\((?=[^)]*[A-Z]{2})(?=[^)]*-)[A-Za-z\- ,;]+\)")  # "(HI-po-TEN-shun)"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def load_rows(recipe: Recipe) -> tuple[list[list[Message]], list[list[Message]]]:
    """Return (train, held out) conversations; no topic stands in both. The same recipe gives the same lists."""
    rows: list[Row] = []
    for source in recipe.data:
        found = list(_medquad(source))
        random.Random(recipe.seed).shuffle(found)
        rows += found[: source.rows]
    if not rows:
        raise UserError("No row of the recipe's data survived cleaning.", "Check `institutes` and `max_chars`.")
    topics = sorted({topic for topic, _ in rows})
    random.Random(recipe.seed).shuffle(topics)
    held_topics: set[str] = set()
    held: list[Row] = []
    for topic in topics:
        if len(held) >= recipe.held_out:
            break
        held_topics.add(topic)
        held += [row for row in rows if row[0] == topic]
    train = [row for row in rows if row[0] not in held_topics]
    if not train:
        raise UserError(f"held_out={recipe.held_out} leaves no row to train on.", "Type a smaller number.")
    system: Message = {"role": "system", "content": recipe.system or SYSTEM}
    return [[system, *m] for _, m in train], [[system, *m] for _, m in held[: recipe.held_out]]


def _medquad(source: Source) -> Iterator[Row]:
    seen = set()
    for row in _dataset(source.dataset):
        if source.institutes is not None and row["document_source"] not in source.institutes:
            continue
        if row["question_type"] == "research" or not row["answer"]:
            continue
        question = clean_question(row["question"])
        answer = clean_answer(row["answer"], source.max_chars)
        if len(answer) < 80 or (question, answer) in seen:
            continue
        seen.add((question, answer))
        yield (
            row["question_focus"].strip().lower(),
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        )


def clean_question(text: str) -> str:
    """Return a MedQuAD question as a person would type it: "What is (are) Cataract ?" -> "What is Cataract?"."""
    text = " ".join(text.replace("(are) ", "").replace("(s)", "").split())
    text = re.sub(r"\s*\?[\s?]*$", "?", text)
    text = re.sub(r"^Do you have information about (.*)$", r"What should I know about \1?", text)
    return text[:1].upper() + text[1:]


def clean_answer(text: str, max_chars: int | None = None) -> str:
    """Return an answer as plain sentences: lists joined, pronunciations and page talk out, cut at a sentence end.

    Returns "" when no whole sentence fits into `max_chars` characters.
    """
    sentences: list[str] = []
    text = _PRONUNCIATION.sub("", text.removeprefix("Summary : "))
    for block in _joined_lists(text):
        sentences += _SENTENCE_END.split(block)
    kept = ""
    for sentence in sentences:
        if not sentence.endswith((".", "!", "?")) or _BOILERPLATE.search(sentence) or sentence in kept:
            continue
        if max_chars is not None and len(kept) + 1 + len(sentence) > max_chars:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def _joined_lists(text: str) -> Iterator[str]:
    """Yield paragraphs; bullet lines after a colon are joined with semicolons into one sentence."""
    lines = [line.strip() for line in re.split(r"\n|\s{2,}(?=- )|\s{3,}", text) if line.strip()]
    items: list[str] = []
    lead = ""
    for line in lines:
        bare = line.removeprefix("-").strip()
        if lead and (line.startswith("-") or len(bare) < 100):
            items.append(bare.rstrip(".;,"))
            continue
        if lead and items:
            yield f"{lead} {'; '.join(items)}."
        lead, items = ("", [])
        if bare.endswith(":"):
            lead = bare
        else:
            yield bare
    if lead and items:
        yield f"{lead} {'; '.join(items)}."


def _dataset(name: str) -> Any:
    """Return the rows of a Hub data set, from DATASETS_MIRROR/NAME when that folder exists, else from the Hub."""
    from datasets import load_dataset

    mirror = os.environ.get("DATASETS_MIRROR")
    folder = Path(mirror) / name if mirror else None
    try:
        if folder and folder.is_dir():
            return load_dataset("parquet", data_files=[str(path) for path in sorted(folder.rglob("*.parquet"))])[
                "train"
            ]
        return load_dataset(name, split="train")
    except Exception as error:
        raise UserError(
            f"The data set {name} could not be loaded ({type(error).__name__}).",
            f"Check the network, or put its parquet files into DIR/{name} and set DATASETS_MIRROR=DIR.",
        ) from error
