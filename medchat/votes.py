"""Votes of the Compare tab, in the database of medchat.database; `python -m train feedback` learns from them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from medchat.database import default_path, opened
from medchat.scrub import scrub_all

CHOICES = ("a", "b", "both good", "both bad")


@dataclass(frozen=True)
class Vote:
    """One judgement: which of two answers to a question was better.

    `adapter_a` and `adapter_b` are names, "base" for none; `choice` is one of CHOICES. Question and answers are ""
    unless the visitor allowed them to be kept; then `conversation` is the number by which they can be deleted.
    """

    base: str
    adapter_a: str
    adapter_b: str
    choice: str
    blind: bool
    seed: int
    question: str = ""
    answer_a: str = ""
    answer_b: str = ""
    conversation: str = ""


def add(vote: Vote, path: Path | None = None) -> None:
    """Store a vote, its texts scrubbed.

    Raises ValueError for another choice than CHOICES, sqlite3.Error when it cannot be written.
    """
    if vote.choice not in CHOICES:
        raise ValueError(f"{vote.choice!r} is none of {', '.join(CHOICES)}")
    question, answer_a, answer_b = scrub_all([vote.question, vote.answer_a, vote.answer_b])
    vote = replace(vote, question=question, answer_a=answer_a, answer_b=answer_b)
    names = ", ".join(["time", *(field.name for field in fields(Vote))])
    marks = ", ".join("?" * (len(fields(Vote)) + 1))
    with opened(path or default_path()) as database:
        database.execute(f"INSERT INTO votes ({names}) VALUES ({marks})", (time.time(), *astuple(vote)))


def tally(path: Path | None = None) -> dict[str, int]:
    """Return how often each adapter was called the better one; {} without votes."""
    path = path or default_path()
    if not path.is_file():
        return {}
    with opened(path) as database:
        rows = database.execute(
            "SELECT CASE choice WHEN 'a' THEN adapter_a ELSE adapter_b END AS winner, COUNT(*) FROM votes "
            "WHERE choice IN ('a', 'b') GROUP BY winner ORDER BY 2 DESC"
        )
        return dict(rows.fetchall())


def rows(path: Path) -> Iterator[Vote]:
    """Yield the votes, oldest first, one at a time. Raises sqlite3.Error when they cannot be read."""
    with opened(path) as database:
        for values in database.execute(f"SELECT {', '.join(f.name for f in fields(Vote))} FROM votes ORDER BY rowid"):
            yield Vote(*values)
