"""What visitors choose to leave, votes and feedback, in one SQLite file that any tool can read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medchat.files import cache_dir

WAIT = 5.0  # seconds, for another process that is writing

# One step a version; PRAGMA user_version counts those done. A step that was published is never changed.
MIGRATIONS = (
    # "IF NOT EXISTS": files from before versions were counted hold this table already
    "CREATE TABLE IF NOT EXISTS votes (time REAL, base TEXT, adapter_a TEXT, adapter_b TEXT, choice TEXT, "
    "blind INTEGER, seed INTEGER, question TEXT, answer_a TEXT, answer_b TEXT)",
    "CREATE TABLE feedback (id TEXT PRIMARY KEY, time REAL, conversation TEXT, messages TEXT, liked INTEGER, "
    "reasons TEXT, better TEXT, adapter TEXT, base TEXT, seed INTEGER)",
    "CREATE INDEX feedback_conversation ON feedback (conversation)",
    "ALTER TABLE votes ADD COLUMN conversation TEXT DEFAULT ''",
)


def default_path() -> Path:
    """Return where the database is: votes.sqlite, named after what came first, in the user's cache folder."""
    return cache_dir() / "votes.sqlite"


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database, brought to the newest version, for one transaction.

    Raises sqlite3.Error or OSError when it cannot be opened or written, or when a newer MedChat wrote it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
    try:
        _migrate(database)
        database.execute("BEGIN")
        yield database
        database.execute("COMMIT")
    finally:
        database.close()  # which rolls back what is not committed


def _migrate(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise sqlite3.DatabaseError("it was written by a newer MedChat")
    if version == len(MIGRATIONS):
        return  # nothing is written, so that a file that can only be read is read
    database.execute("BEGIN IMMEDIATE")
    (version,) = database.execute("PRAGMA user_version").fetchone()  # another process may have been first
    for number, step in enumerate(MIGRATIONS[version:], version + 1):
        database.execute(step)
        database.execute(f"PRAGMA user_version = {number}")
    database.execute("COMMIT")
