"""`python -m benchmarks.replies`: replies to the 100 fixed questions, at default settings, for a person to judge.

Every question goes to the default adapter and to the bare base, with and without passages, through
`medchat.chat.reply`. Writes benchmarks/results/replies.jsonl, one line a question and way; with `--judged FILE` it
counts a judged copy of that file by way and kind instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from medchat import chat
from medchat.engines import Sampling
from medchat.engines.llama_cpp import open_llama_cpp
from medchat.knowledge import open_knowledge

ROOT = Path(__file__).parent.parent
QUESTIONS = ROOT / "tests" / "data" / "rubric_questions.jsonl"
OUTPUT = ROOT / "benchmarks" / "results" / "replies.jsonl"
WAYS = [("adapter", True), ("adapter", False), ("base", True), ("base", False)]


def main() -> None:
    """Write the replies, or count the judgements."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--adapter", default="embedded", help="folder or Hub id of another adapter")
    arguments.add_argument("--output", type=Path, default=OUTPUT)
    arguments.add_argument("--judged", type=Path, help="a copy of the output with `acceptable` and `why` in each line")
    chosen = arguments.parse_args()
    if chosen.judged:
        count(chosen.judged)
        return
    engine = open_llama_cpp("embedded", [chosen.adapter])
    knowledge = open_knowledge("builtin")
    rows = []
    with chosen.output.open("w", encoding="utf-8") as file:
        for number, line in enumerate(QUESTIONS.open(encoding="utf-8"), 1):
            question = json.loads(line)
            for adapter, passages in WAYS:
                row = {**question, "adapter": adapter, "passages": passages}
                row |= answer(engine, question["turns"], adapter, knowledge if passages else None, seed=number)
                rows.append(row)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(f"\r{number} questions", end="", flush=True)
    print()
    for adapter, passages in WAYS:
        these = [row for row in rows if (row["adapter"], row["passages"]) == (adapter, passages)]
        ended = sum(row["ended"] == "stop" for row in these) / len(these)
        words = statistics.median(len(row["reply"].split()) for row in these)
        print(f"{adapter:8} {'with' if passages else 'without':8} passages: {ended:.2f} end, median {words:.0f} words")


def answer(engine: Any, turns: list[str], adapter: str, knowledge: Any, *, seed: int) -> dict[str, Any]:
    """Return the last reply of a conversation, what it was given to read and why it ended."""
    history: list[dict[str, str]] = []
    text, ended, titles, card = "", "", [], "none"
    for turn in turns:
        text = ""
        pieces = chat.reply(
            engine,
            turn,
            history,
            adapter="" if adapter == "adapter" else "base",
            sampling=Sampling(seed=seed),
            knowledge=knowledge,
        )
        for piece in pieces:
            text += piece.delta.text
            ended = piece.delta.finish_reason or ended
            text = text if piece.final is None else piece.final
            titles, card = [passage.title for passage in piece.passages], piece.assessment.level
        history += [{"role": "user", "content": turn}, {"role": "assistant", "content": text}]
    return {"reply": text, "ended": ended, "read": titles, "card": card}


def count(path: Path) -> None:
    """Print the share of acceptable replies of each way, and by kind of question."""
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    for adapter, passages in WAYS:
        these = [row for row in rows if (row["adapter"], row["passages"]) == (adapter, passages)]
        good, all_ = (Counter(r["kind"] for r in these if r["acceptable"] or every) for every in (False, True))
        print(f"{adapter:8} {'with' if passages else 'without':8} passages: {good.total()} of {all_.total()}", end="  ")
        print(", ".join(f"{kind} {good[kind]}/{all_[kind]}" for kind in all_))


if __name__ == "__main__":
    main()
