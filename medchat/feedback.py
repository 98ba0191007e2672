"""What visitors say about answers, if they allow it: scrubbed, stored here, and copied to a private dataset.

One row is one judged answer with the conversation that led to it. `python -m train feedback` makes training data of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medchat.database import default_path, opened
from medchat.errors import UserError
from medchat.files import cache_dir
from medchat.prompt import Message
from medchat.scrub import scrub_all

if TYPE_CHECKING:
    from huggingface_hub import CommitScheduler

# As stored -> as shown. What is stored stays the same in every language of the page.
GOOD = {"correct": "Correct", "clear": "Easy to understand", "complete": "Nothing is missing", "kind": "Kind"}
BAD = {
    "wrong": "Wrong",
    "unsafe": "Could do harm",
    "off topic": "Does not answer the question",
    "unclear": "Hard to understand",
    "incomplete": "Something is missing",
    "unkind": "Unkind",
}
LONGEST = 8_000  # characters of a better answer, as of a message
EVERY = 5  # minutes between two commits to the dataset
PATIENCE = 30  # seconds that a deletion waits for the Hub

log = logging.getLogger("medchat")


@dataclass(frozen=True)
class Feedback:
    """One judgement: `messages` ends with the judged answer; `better` is "" or what it should have been.

    `adapter` is a name, "none" for the bare base; `conversation` is the number by which a visitor can have it deleted.
    """

    conversation: str
    messages: list[Message]
    liked: bool
    reasons: tuple[str, ...] = ()
    better: str = ""
    adapter: str = ""
    base: str = ""
    seed: int = 0


def new_conversation() -> str:
    """Return a number that nobody can guess, since whoever knows it can delete."""
    return uuid.uuid4().hex


def problems(feedback: Feedback) -> list[str]:
    """Return all that is wrong with a judgement, as parts of a sentence."""
    found = []
    if [m["role"] for m in feedback.messages[-2:]] != ["user", "assistant"]:
        found.append("the conversation does not end with a question and its answer")
    if len(feedback.better) > LONGEST:
        found.append(f"the better answer has {len(feedback.better):,} characters, {LONGEST:,} are possible")
    if unknown := [reason for reason in feedback.reasons if reason not in (GOOD if feedback.liked else BAD)]:
        found.append(f"unknown reasons: {', '.join(unknown)}")
    return found


def scrubbed(feedback: Feedback) -> Feedback:
    """Return a judgement with what tells who somebody is replaced in every text."""
    *texts, better = scrub_all([*(m["content"] for m in feedback.messages), feedback.better.strip()])
    messages = [{"role": m["role"], "content": text} for m, text in zip(feedback.messages, texts, strict=True)]
    return replace(feedback, messages=messages, better="" if better == texts[-1].strip() else better)


def add(feedback: Feedback, path: Path | None = None, dataset: Dataset | None = None) -> None:
    """Store a judgement, scrubbed, in place of an earlier one of the same answer; `dataset` gets a copy.

    Raises UserError with a sentence for the visitor when it is wrong, or when the database cannot be written.
    """
    if found := problems(feedback):
        raise UserError(f"Not stored: {'; '.join(found)}.", "Please correct that and send again.")
    row = scrubbed(feedback)
    said = json.dumps([row.conversation, row.messages], ensure_ascii=False)
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    values = {**asdict(row), "messages": json.dumps(row.messages, ensure_ascii=False),
              "reasons": json.dumps(row.reasons), "id": key, "time": time.time()}  # fmt: skip
    with _writing() as where, opened(path or where) as database:
        names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
        database.execute(f"INSERT OR REPLACE INTO feedback ({names}) VALUES ({marks})", values)
    if dataset:
        dataset.add(key, row)


def delete(conversation: str, path: Path | None = None, dataset: Dataset | None = None) -> int:
    """Delete what a conversation left, votes included, here and in `dataset`; return how many rows were here.

    Raises UserError with a sentence for the visitor when the database or the dataset cannot be changed.
    """
    count = 0
    with _writing() as where, opened(path or where) as database:
        database.execute("PRAGMA secure_delete = ON")  # overwritten with zeros, not only unlinked
        for table in ("feedback", "votes"):
            count += database.execute(f"DELETE FROM {table} WHERE conversation = ?", [conversation]).rowcount
    if dataset:
        dataset.delete(conversation)
    return count


def rows(path: Path) -> Iterator[Feedback]:
    """Yield what is stored, oldest first, one row at a time. Raises sqlite3.Error when it cannot be read."""
    names = [field.name for field in fields(Feedback)]
    with opened(path) as database:
        for values in database.execute(f"SELECT {', '.join(names)} FROM feedback ORDER BY rowid"):
            yield from_json(dict(zip(names, values, strict=True)))


def from_json(row: dict[str, Any]) -> Feedback:
    """Return a row of the database or of the dataset as Feedback; raises KeyError, TypeError and ValueError."""
    row = {field.name: row[field.name] for field in fields(Feedback)}
    for name in ("messages", "reasons"):
        if isinstance(row[name], str):
            row[name] = json.loads(row[name])
    return Feedback(**{**row, "liked": bool(row["liked"]), "reasons": tuple(row["reasons"])})


@contextmanager
def _writing() -> Iterator[Path]:
    """Give the default database; turn the failure to write one into a sentence for the visitor."""
    try:
        yield default_path()
    except (sqlite3.Error, OSError) as error:
        log.error("feedback database: %s", error)
        if "locked" in str(error) or "busy" in str(error):
            fix = "Another program is writing. Please send again in a moment; what you typed stays here."
        else:
            fix = "Please tell whoever runs this page; what you typed stays here."
        raise UserError("The database for feedback could not be written, and nothing was stored.", fix) from error


# --- the copy on the Hub ---


class Dataset:
    """A private dataset on the Hub: one file a judgement, data/CONVERSATION/ID.json, so that each can be deleted.

    Rows wait in a folder for the next commit, also across a restart, and leave it once they are on the Hub.
    """

    def __init__(self, repo: str, scheduler: CommitScheduler):
        self.repo, self._scheduler = repo, scheduler

    def add(self, key: str, row: Feedback) -> None:
        """Put a row where the next commit takes it from; that this fails is logged, since the row is stored already."""
        file = self._scheduler.folder_path / "data" / row.conversation / f"{key}.json"
        try:
            with self._scheduler.lock:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(asdict(row), ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            log.error("not queued for %s: %s", self.repo, error)

    def delete(self, conversation: str) -> None:
        """Delete a conversation's rows, and the history that holds them. Raises UserError when the Hub refuses."""
        api = self._scheduler.api

        def forget() -> None:
            with self._scheduler.lock:
                for file in (self._scheduler.folder_path / "data" / conversation).glob("*.json"):
                    file.unlink()
            tree = api.list_repo_files(self.repo, repo_type="dataset")
            if any(name.startswith(f"data/{conversation}/") for name in tree):
                api.delete_folder(f"data/{conversation}", self.repo, repo_type="dataset", commit_message="On request")
                api.super_squash_history(self.repo, repo_type="dataset")

        try:
            api.run_as_future(forget).result(PATIENCE)  # in the queue of the commits, so behind one that runs
        except Exception as error:
            log.error("not deleted from %s: %s", self.repo, error)
            raise UserError(
                "It is deleted on this machine, but the dataset on the Hub could not be reached.",
                f"Please try again, or ask whoever runs this page to delete conversation {conversation}.",
            ) from error

    def commit(self) -> None:
        """Commit now what waits; it otherwise happens every EVERY minutes and when the app ends."""
        self._scheduler.trigger().result()


def open_dataset(repo: str) -> Dataset | None:
    """Return the private dataset `repo` for feedback, made where needed, or None; a sentence in the log says why."""
    if not repo:
        return None
    from huggingface_hub import CommitScheduler, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    class Outbox(CommitScheduler):
        def push_to_hub(self) -> Any:
            done = super().push_to_hub()
            with self.lock:
                for file, modified in self.last_uploaded.items():
                    if file.is_file() and file.stat().st_mtime == modified:  # else a newer judgement came
                        file.unlink()
                self.last_uploaded.clear()
            return done

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        api.auth_check(repo, repo_type="dataset", write=True)  # create_repo is content with a dataset it may only read
        if not api.repo_info(repo, repo_type="dataset").private:
            why = "it is public, and what visitors write must not be; make it private on the Hub"
        else:
            folder = cache_dir() / "feedback" / repo
            return Dataset(repo, Outbox(repo_id=repo, repo_type="dataset", folder_path=folder, every=EVERY, hf_api=api))
    except (HfHubHTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = "the Hub cannot be reached" if status is None else "HF_TOKEN has no right to write it"
        if isinstance(error, ValueError):
            why = "that is no id of the form ORG/NAME"
    log.warning("Feedback stays on this machine: the dataset %s is not used, since %s.", repo, why)
    return None
