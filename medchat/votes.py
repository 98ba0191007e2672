"""Votes of the Compare tab: one small SQLite file, which `python -m train` or any other tool can read."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from medchat.files import cache_dir

CHOICES = ("a", "b", "both good", "both bad")


@dataclass(frozen=True)
class Vote:
    """One judgement: which of two answers to a question was better.

    `adapter_a` and `adapter_b` are names, "base" for none; `choice` is one of CHOICES. Question and answers are ""
    unless the visitor allowed them to be kept.
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


def default_path() -> Path:
    """Return where votes are kept: votes.sqlite in the user's cache folder."""
    return cache_dir() / "votes.sqlite"


def add(vote: Vote, path: Path | None = None) -> None:
    """Store a vote. Raises ValueError for another choice than CHOICES, sqlite3.Error when it cannot be written."""
    if vote.choice not in CHOICES:
        raise ValueError(f"{vote.choice!r} is none of {', '.join(CHOICES)}")
    names = ", ".join(["time", *(field.name for field in fields(Vote))])
    marks = ", ".join("?" * (len(fields(Vote)) + 1))
    with _open(path or default_path()) as database:
        database.execute(f"INSERT INTO votes ({names}) VALUES ({marks})", (time.time(), *astuple(vote)))


def tally(path: Path | None = None) -> dict[str, int]:
    """Return how often each adapter was called the better one; {} without votes."""
    path = path or default_path()
    if not path.is_file():
        return {}
    with _open(path) as database:
        rows = database.execute(
            "SELECT CASE choice WHEN 'a' THEN adapter_a ELSE adapter_b END AS winner, COUNT(*) FROM votes "
            "WHERE choice IN ('a', 'b') GROUP BY winner ORDER BY 2 DESC"
        )
        return dict(rows.fetchall())


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=5)
    try:
        with database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS votes (time REAL, base TEXT, adapter_a TEXT, adapter_b TEXT, choice TEXT, "
                "blind INTEGER, seed INTEGER, question TEXT, answer_a TEXT, answer_b TEXT)"
            )
            yield database
    finally:
        database.close()
