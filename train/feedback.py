"""`python -m train feedback --output DIR`: what visitors said, in the formats of TRL's DPO and KTO trainers."""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medchat import feedback, votes
from medchat.database import default_path
from medchat.errors import UserError
from medchat.feedback import Feedback
from medchat.votes import Vote

PREFERENCES, UNPAIRED = "preferences.jsonl", "unpaired.jsonl"

Row = tuple[str, str, dict[str, Any]]  # the file it goes to, what it counts as, the row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, metavar="DIR", help=f"folder for {PREFERENCES} and {UNPAIRED}")
    task.add_argument("--delete", metavar="NUMBER", help="delete what was left under this number of a conversation")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--database", type=Path, metavar="FILE", help=f"the app's (default: {default_path()})")
    source.add_argument("--dataset", default="", metavar="ORG/NAME", help="the app's dataset on the Hub instead")


def run(arguments: argparse.Namespace) -> None:
    """Write or delete, and print the counts."""
    path = arguments.database or default_path()
    if arguments.delete is not None:
        dataset = feedback.open_dataset(arguments.dataset) if arguments.dataset else None
        if arguments.dataset and dataset is None:
            raise UserError(f"Nothing was deleted from {arguments.dataset}.", "See the line above.")
        print(f"deleted here: {feedback.delete(arguments.delete, path, dataset)}")
        return
    counts = export(_from_hub(arguments.dataset) if arguments.dataset else _from_database(path), arguments.output)
    for name, kinds in counts.items():
        told = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items())) or "no rows"
        print(f"{arguments.output / name}: {told}" if name else f"left out: {told}")


def export(source: Iterable[Feedback | Vote], output: Path) -> dict[str, Counter[str]]:
    """Write both files, row by row; return how many rows of which origin each has, under "" what was left out.

    Preferences are {"prompt", "chosen", "rejected"}, unpaired rows {"prompt", "completion", "label"}: lists of
    messages, and a boolean. Raises UserError when a file exists already, or nothing is there to learn from.
    """
    names = (PREFERENCES, UNPAIRED)
    if taken := [str(output / name) for name in names if (output / name).exists()]:
        raise UserError(f"{' and '.join(taken)} would be overwritten.", "Choose another --output.")
    output.mkdir(parents=True, exist_ok=True)
    parts = {name: output / f"{name}.part" for name in names}
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*names, "")}
    try:
        files = {name: part.open("w", encoding="utf-8") for name, part in parts.items()}
        try:
            for said in source:
                for name, kind, row in rows_of_vote(said) if isinstance(said, Vote) else rows_of_feedback(said):
                    counts[name][kind] += 1
                    if name:
                        files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
        finally:
            for file in files.values():
                file.close()
        if not any(counts[name] for name in names):
            raise UserError(
                "There is no feedback to learn from.", "Visitors leave it under an answer: thumb, then Send."
            )
        for name in names:
            if counts[name]:  # an empty file is an error to `load_dataset`
                parts[name].replace(output / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return counts


def rows_of_feedback(said: Feedback) -> Iterator[Row]:
    """Yield a thumb as an unpaired row, and a better answer as a preference over the one that was given."""
    *prompt, answer = said.messages
    yield UNPAIRED, "thumbs up" if said.liked else "thumbs down", _unpaired(prompt, answer["content"], said.liked)
    if said.better:
        yield PREFERENCES, "better answers", _preference(prompt, said.better, answer["content"])


def rows_of_vote(vote: Vote) -> Iterator[Row]:
    """Yield a vote for one answer as a preference, one on both as two unpaired rows; none without texts."""
    prompt = [{"role": "user", "content": vote.question}]
    if not (vote.question and vote.answer_a and vote.answer_b):
        yield "", "votes whose texts were not to be kept", {}
    elif vote.answer_a == vote.answer_b:
        yield "", "votes between equal answers", {}
    elif vote.choice in ("a", "b"):
        better, worse = (vote.answer_a, vote.answer_b) if vote.choice == "a" else (vote.answer_b, vote.answer_a)
        yield PREFERENCES, "votes", _preference(prompt, better, worse)
    else:
        for answer in (vote.answer_a, vote.answer_b):
            yield UNPAIRED, f"votes for {vote.choice}", _unpaired(prompt, answer, vote.choice == "both good")


def _preference(prompt: list[dict[str, str]], chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": _answer(chosen), "rejected": _answer(rejected)}


def _unpaired(prompt: list[dict[str, str]], completion: str, label: bool) -> dict[str, Any]:
    return {"prompt": prompt, "completion": _answer(completion), "label": label}


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _from_database(path: Path) -> Iterator[Feedback | Vote]:
    if not path.is_file():
        raise UserError(f"There is no database at {path}.", "Name it with --database, or the dataset with --dataset.")
    try:
        yield from feedback.rows(path)
        yield from votes.rows(path)
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} could not be read ({error}).", "Is it the app's database, and not in use?") from error


def _from_hub(repo: str) -> Iterator[Feedback]:
    """Yield the rows of the app's dataset, which holds no votes."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", allow_patterns="data/*/*.json"))
    except Exception as error:
        raise UserError(
            f"The dataset {repo} could not be fetched ({type(error).__name__}).",
            "Check its id, HF_TOKEN and the network.",
        ) from error
    for file in sorted(folder.glob("data/*/*.json")):
        try:
            yield feedback.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is no row of feedback ({error}).", "Delete it from the dataset.") from error
