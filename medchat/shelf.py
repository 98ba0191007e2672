"""Knowledge on disk: MedQuAD, or a person's own folder, cut into passages and indexed with SQLite's FTS5.

The index lives in medchat.files.cache_dir(), opens in milliseconds and needs little memory. FTS5 finds candidates; the
same words and weights as for the built-in topics rank them. A text found here is data: markup and control characters
are taken out, and nothing of it is followed or run.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from threading import RLock
from typing import Any

from medchat.errors import UserError
from medchat.files import cache_dir
from medchat.knowledge import (
    EARLIER,
    MAX_WORDS,
    Knowledge,
    Passage,
    Query,
    elsewhere,
    leans_on_history,
    make_query,
    points_back,
    sentences,
)
from medchat.prompt import Message
from medchat.words import STOP, Speller, stem, words

SUFFIXES = {".md", ".markdown", ".txt", ".pdf"}
MAX_BYTES = 10 << 20  # of one file
MAX_PAGES = 500
MAX_SECONDS = 20  # for the pages of one PDF
VERSION = "2"  # of the layout below and of the way texts are cut and stemmed; another one is built anew
MANY_FILES = 1000  # of more a search does not look for changes each time; it would wait for the disk
CANDIDATES = 40
SATURATION = 2.0
AWAY = 0.3  # what a question loses when all its words belong to other worlds (cooking, computers)
MIN_CONFIDENCE = 0.25  # set on the "tune" half of tests/data/{medquad,off_topic}_questions.jsonl

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE files (path TEXT PRIMARY KEY, mtime INTEGER, size INTEGER, note TEXT);
CREATE TABLE passages (number INTEGER PRIMARY KEY, id TEXT UNIQUE, path TEXT, topic TEXT, title TEXT, text TEXT,
                       source TEXT, url TEXT);
CREATE INDEX passages_path ON passages (path);
CREATE VIRTUAL TABLE stems USING fts5 (names, body, tokenize = 'unicode61', detail = 'column');
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (stems, 'row');
CREATE TABLE spellings (word TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Shelf(Knowledge):
    """Passages in an SQLite file; `refresh` of a folder's shelf brings it up to date."""

    def __init__(self, path: Path, folder: Path | None = None):
        self._lock = RLock()
        self._folder = folder
        self._scan_again = 0.0  # in time.monotonic()
        self._database = _open_database(path)
        self._forget()
        if folder:
            self.refresh()

    def _forget(self) -> None:
        self._known: _Known | None = None
        self._size: int | None = None

    def __len__(self) -> int:
        """Return the number of passages."""
        with self._lock:
            size = self._size
            if size is None:
                size = self._size = int(self._database.execute("SELECT count(*) FROM passages").fetchone()[0])
            return size

    @property
    def report(self) -> Sequence[str]:  # type: ignore[override]
        """What could not be read, one sentence a file."""
        with self._lock:
            rows = self._database.execute("SELECT path, note FROM files WHERE note != '' ORDER BY path").fetchall()
        return [f"{path}: {note}" for path, note in rows]

    def get(self, id: str) -> Passage | None:
        """Return the passage with this id, None when there is none (any longer)."""
        with self._lock:
            row = self._database.execute(f"SELECT {_COLUMNS} FROM passages WHERE id = ?", (id,)).fetchone()
        return Passage(*row, score=1.0) if row else None

    def search(self, question: str, history: Sequence[Message] = (), *, limit: int = 2) -> list[Passage]:
        """Return at most `limit` passages, best first (see Knowledge.search)."""
        with self._lock:
            if self._folder and time.monotonic() >= self._scan_again:
                self.refresh()
            query = self._query(question)
            found = self._find(query)
            earlier = [m["content"] for m in history if m.get("role") == "user"][-2:]
            if earlier and leans_on_history(question) and (not found or points_back(question)):
                for share, text in zip(EARLIER, reversed(earlier), strict=False):
                    query = query.joined(self._query(text), share)
                found = self._find(query)
        passages: list[Passage] = []
        room = MAX_WORDS * limit
        for passage in found:
            size = len(passage.text.split())
            if len(passages) < limit and (size <= room or not passages):
                passages.append(passage)
                room -= size
        return passages

    def _query(self, text: str) -> Query:
        if self._known is None:
            self._known = _Known(self._database)
        return make_query(text, self._known, self._known.nearest)

    def _find(self, query: Query) -> list[Passage]:
        size, known = len(self), self._known
        if not size or known is None:
            return []

        def weight(word: str) -> float:
            count = known.count(word)
            return math.log(1 + (size - count + 0.5) / (count + 0.5))

        groups = [
            (g, max(g.share * v * weight(w) for w, v in g.words.items()))
            for g in query.groups
            if " " not in min(g.words)
        ]
        whole = sum(most for _, most in groups)
        terms = {word for group, _ in groups for word in group.words if known.count(word)}
        if not whole or not terms:
            return []
        # Words of every fifth passage say little and are slow to collect.
        rare = {word for word in terms if known.count(word) <= max(200, size // 20)} or terms
        match = " OR ".join(f'"{word}"' for word in sorted(rare))
        rows = self._database.execute(
            f"SELECT {_COLUMNS}, names, body FROM passages JOIN "
            "(SELECT rowid AS found, names, body FROM stems WHERE stems MATCH ?"
            " ORDER BY bm25(stems, 4.0, 1.0) LIMIT ?) "
            "ON found = number",
            (match, CANDIDATES),
        ).fetchall()
        other = elsewhere()
        ranked = []
        for *row, names, body in rows:
            named, told = names.split(), body.split()
            score = 0.0
            for group, _ in groups:
                best = 0.0
                for word, share in group.words.items():
                    count = 5.0 * named.count(word) + told.count(word)
                    best = max(best, group.share * share * weight(word) * count / (SATURATION + count))
                score += best
            # A long name that the question does not speak of is another topic ("... in children").
            strange = sum(weight(word) for word in set(named) - terms) / (1 + sum(weight(word) for word in set(named)))
            away = (
                sum(most for group, most in groups if min(group.words) in other and min(group.words) not in named)
                / whole
            )
            confidence = score / whole - 0.15 * strange - AWAY * away
            ranked.append((score * (1 - 0.15 * strange), confidence, Passage(*row)))
        ranked.sort(key=lambda item: -item[0])
        return [replace(passage, score=round(c, 3)) for _, c, passage in ranked if c >= MIN_CONFIDENCE][:10]

    def refresh(self) -> None:
        """Read what is new or changed in the folder, and forget what is gone; other files are not opened again."""
        if not self._folder:
            return
        started = time.monotonic()
        with self._lock:
            known = {p: (m, s) for p, m, s in self._database.execute("SELECT path, mtime, size FROM files")}
            found = dict(_files(self._folder))
            gone = [path for path in known if path not in found]
            changed = [path for path, state in found.items() if known.get(path) != state]
            if gone or changed:
                with self._database:
                    for path in [*gone, *(path for path in changed if path in known)]:
                        self._remove(path)
                    for path in changed:
                        self._read(path, *found[path])
                self._forget()
            ended = time.monotonic()
            self._scan_again = ended + 20 * (ended - started) if len(found) > MANY_FILES else ended

    def _remove(self, path: str) -> None:
        self._database.execute("DELETE FROM stems WHERE rowid IN (SELECT number FROM passages WHERE path = ?)", (path,))
        self._database.execute("DELETE FROM passages WHERE path = ?", (path,))
        self._database.execute("DELETE FROM files WHERE path = ?", (path,))

    def _read(self, path: str, mtime: int, size: int) -> None:
        assert self._folder
        try:
            title, text, note = _text_of(self._folder / path, size)
        except Exception as error:  # a broken PDF raises anything; the file is named, and the others are read
            title, text, note = path, "", f"could not be read ({type(error).__name__})."
        count = 0
        for count, (heading, passage) in enumerate(_sections(text, title), 1):
            add(self._database, f"{path}#{count}", path, Path(path).stem, heading, passage, path, "", heading)
        if not count and not note:
            note = "holds no text."
        self._database.execute("INSERT INTO files VALUES (?, ?, ?, ?)", (path, mtime, size, note))


_COLUMNS = "id, topic, title, text, source, url"


class _Known:
    """The stems of an index, with how many passages hold each, and the spelling of its words when one is unknown."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database
        self._counts: dict[str, int] = {}
        self._speller: Speller | None = None

    def count(self, word: str) -> int:
        if word not in self._counts:
            row = self._database.execute("SELECT doc FROM vocabulary WHERE term = ?", (word,)).fetchone()
            self._counts[word] = row[0] if row else 0
        return self._counts[word]

    def __contains__(self, word: str) -> bool:
        return self.count(word) > 0

    def nearest(self, word: str) -> str | None:
        if self._speller is None:
            found = self._database.execute("SELECT word FROM spellings").fetchall()
            self._speller = Speller({**dict.fromkeys(STOP, 1.0), **{word: 1.0 for (word,) in found}})
        return self._speller.nearest(word)


def add(
    database: sqlite3.Connection,
    id: str,
    path: str,
    topic: str,
    title: str,
    text: str,
    source: str,
    url: str,
    names: str,
) -> None:
    """Put one passage into the index; `names` are the words that count most for finding it."""
    row = database.execute(
        "INSERT INTO passages (id, path, topic, title, text, source, url) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (id, path, topic, title, text, source, url),
    )
    named, told = ([w for w in words(part) if w not in STOP] for part in (names, text))
    database.execute(
        "INSERT INTO stems (rowid, names, body) VALUES (?, ?, ?)",
        (row.lastrowid, " ".join(map(stem, named)), " ".join(map(stem, told))),
    )
    database.executemany("INSERT OR IGNORE INTO spellings VALUES (?)", [(w,) for w in {*named, *told} if w.isalpha()])


def open_folder(folder: Path) -> Shelf:
    """Open a person's folder of Markdown, text and PDF files; raises UserError when there is no such folder."""
    if not folder.is_dir():
        raise UserError(
            f"There is no knowledge folder {str(folder)!r}.",
            'Type the path of a folder, "builtin", "medquad" or "none".',
        )
    folder = folder.resolve()
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Shelf(cache_dir() / "knowledge" / f"folder-{name}.sqlite", folder)


def open_medquad() -> Shelf:
    """Open MedQuAD, indexed on first use; raises UserError when it is not here and cannot be loaded from the Hub."""
    path = cache_dir() / "knowledge" / "medquad.sqlite"
    shelf = Shelf(path)
    if not len(shelf):
        _index_medquad(shelf)
    return shelf


def _index_medquad(shelf: Shelf) -> None:
    database, seen = shelf._database, set()
    with shelf._lock, database:
        for number, row in enumerate(_dataset("lavita/MedQuAD")):
            if not row["answer"] or row["answer"] in seen:
                continue
            seen.add(row["answer"])
            question = re.sub(
                r"[\s?]*$", "?", " ".join(row["question"].replace("(are) ", "").replace("(s)", "").split())
            )
            source = _INSTITUTES.get(row["document_source"], row["document_source"] or "MedQuAD")
            for part, text in enumerate(_passages(clean(row["answer"])), 1):
                names = f"{row['question_focus']} {question} {row['question_type'] or ''}"
                focus = row["question_focus"] or question
                add(
                    database,
                    f"medquad-{number}#{part}",
                    "",
                    focus,
                    question,
                    text,
                    source,
                    row["document_url"] or "",
                    names,
                )
    shelf._forget()


_INSTITUTES = {
    "CDC": "Centers for Disease Control and Prevention",
    "CancerGov": "National Cancer Institute",
    "GARD": "Genetic and Rare Diseases Information Center",
    "GHR": "MedlinePlus Genetics",
    "MPlusHealthTopics": "MedlinePlus",
    "NHLBI": "National Heart, Lung, and Blood Institute",
    "NIDDK": "National Institute of Diabetes and Digestive and Kidney Diseases",
    "NINDS": "National Institute of Neurological Disorders and Stroke",
    "NIHSeniorHealth": "NIH SeniorHealth",
}


def _dataset(name: str) -> Any:
    """Return the rows of a Hub data set, from DATASETS_MIRROR/NAME when that folder exists, else from the Hub."""
    mirror = os.environ.get("DATASETS_MIRROR")
    folder = Path(mirror) / name if mirror else None
    try:
        from datasets import load_dataset

        if folder and folder.is_dir():
            files = [str(path) for path in sorted(folder.rglob("*.parquet"))]
            return load_dataset("parquet", data_files=files)["train"]
        return load_dataset(name, split="train")
    except Exception as error:
        raise UserError(
            f"The data set {name} could not be loaded ({type(error).__name__}).",
            f"Check the network, or put its parquet files into DIR/{name} and set DATASETS_MIRROR=DIR.",
        ) from error


def _open_database(path: Path) -> sqlite3.Connection:
    """Open an index, or make an empty one where there is none, or one of another version, or a damaged one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        database = sqlite3.connect(path, check_same_thread=False, timeout=60)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                database.executescript(_SCHEMA)
                with database:
                    database.execute("INSERT INTO meta VALUES ('version', ?)", (VERSION,))
            if database.execute("SELECT value FROM meta WHERE key = 'version'").fetchone() == (VERSION,):
                return database
        except sqlite3.DatabaseError:
            pass
        database.close()
        for part in ("", "-wal", "-shm"):
            Path(f"{path}{part}").unlink(missing_ok=True)
    raise UserError(f"The index {path} cannot be written.", "Set MEDCHAT_CACHE to a folder with room.")


# --- texts to passages ---


def _files(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (path within the folder, (modified, bytes)) of readable kinds; hidden files and links are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES or path.is_symlink():
                continue
            try:
                state = path.stat()
            except OSError:
                continue  # gone since it was listed
            yield path.relative_to(folder).as_posix(), (state.st_mtime_ns, state.st_size)


def _text_of(path: Path, size: int) -> tuple[str, str, str]:
    """Return (title, text, note) of a file; the note says why there is no text."""
    title = re.sub(r"[-_]+", " ", path.stem)
    if size > MAX_BYTES:
        return title, "", f"is larger than {MAX_BYTES >> 20} MB and was skipped."
    if path.suffix.lower() == ".pdf":
        return title, *_pdf_text(path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    strange = sum(1 for c in text[:20_000] if c == "\ufffd" or (ord(c) < 32 and c not in "\n\r\t\f"))
    if "\0" in text or strange > len(text[:20_000]) / 50:
        return title, "", "is not text and was skipped."
    return title, text, ""


def _pdf_text(path: Path) -> tuple[str, str]:
    try:
        import logging

        from pypdf import PdfReader
    except ImportError:
        return "", "is a PDF; type `pip install pypdf` to read it."
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    reader, started, pages = PdfReader(path), time.monotonic(), []
    for number, page in enumerate(reader.pages):
        if number == MAX_PAGES or time.monotonic() - started > MAX_SECONDS:
            return "\n\n".join(pages), f"was read to page {number}; the rest was skipped."
        pages.append(page.extract_text())
    return "\n\n".join(pages), ""


class _Plain(HTMLParser):
    """Collects a page's text without its tags, scripts and styles."""

    def __init__(self):
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag, attrs):
        self._hidden += tag in ("script", "style")
        self.parts.append("\n\n" if tag in ("p", "div", "li", "br", "h1", "h2", "h3", "tr") else " ")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style") and self._hidden > 0
        self.parts.append(" ")

    def handle_data(self, data):
        if not self._hidden:
            self.parts.append(data)


# What chat templates write between turns: an engine would read it as the end of the passage and a new system prompt.
_TURN_MARKS = re.compile(r"<\|[^<>|\n]{0,60}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(start|end)_of_turn>", re.IGNORECASE)


def clean(text: str) -> str:
    """Return a text without HTML tags, comments, scripts, control characters and the turn marks of chat templates."""
    while _TURN_MARKS.search(text):  # taking one out may put another together
        text = _TURN_MARKS.sub("", text)
    if re.search(r"<[a-zA-Z!/]", text):
        parser = _Plain()
        parser.feed(text)
        parser.close()
        text = "".join(parser.parts)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


@dataclass
class _Section:
    heading: str
    text: str


def _sections(text: str, title: str) -> Iterator[tuple[str, str]]:
    """Yield (title, passage): Markdown headings become part of the title, and no passage runs across one."""
    sections = [_Section(title, "")]
    for line in clean(text).split("\n"):
        if heading := re.match(r"#{1,6}\s+(.*\S)", line):
            name = heading.group(1).rstrip("# ")[:120]
            sections.append(_Section(name if name.lower() == title.lower() else f"{title}: {name}", ""))
        else:
            sections[-1].text += line + "\n"
    for section in sections:
        for passage in _passages(section.text):
            yield section.heading, passage


def _passages(text: str, least: int = 60, most: int = 120) -> Iterator[str]:
    """Yield passages of whole sentences, 60 to 150 words where the text is long enough, cut at paragraphs if it can."""
    held: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _short(sentences(" ".join(paragraph.split()))):
            length = len(sentence.split())
            if size and size + length > most and (size >= least or size + length > 150):
                yield " ".join(held)
                held, size = [], 0
            held.append(sentence)
            size += length
        if size >= least:
            yield " ".join(held)
            held, size = [], 0
    if held:
        yield " ".join(held)


def _short(parts: Sequence[str]) -> Iterator[str]:
    """Yield sentences; one of more than 150 words (a table, a list without stops) in pieces of 100."""
    for sentence in parts:
        pieces = sentence.split()
        if len(pieces) <= 150 and len(sentence) <= 2_000:
            yield sentence
            continue
        piece = ""
        for word in pieces:
            if len(piece) + len(word) > 800 or piece.count(" ") >= 99:
                yield piece
                piece = ""
            piece = f"{piece} {word[:200]}".strip()
        if piece:
            yield piece
