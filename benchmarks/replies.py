"""`python -m benchmarks.replies`: replies to the 100 fixed questions, at default settings, for a person to judge.

Every question is asked with and without passages, through `medchat.chat.reply`: of the default adapter, or of another
(`--adapter DIR --name first`), or of the bare base (`--name base`). Writes benchmarks/results/replies.jsonl, one line a
question and way; lines of other names stay. With `--judged FILE` it counts a judged copy of that file instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medchat import chat
from medchat.engines import Sampling
from medchat.engines.llama_cpp import open_llama_cpp
from medchat.knowledge import open_knowledge

ROOT = Path(__file__).parent.parent
QUESTIONS = ROOT / "tests" / "data" / "rubric_questions.jsonl"
OUTPUT = ROOT / "benchmarks" / "results" / "replies.jsonl"
AT_ONCE = 4  # the engine's slots


def main() -> None:
    """Write the replies, or count the judgements."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replies")
    parser.add_argument("--adapter", default="embedded", help="folder or Hub id of another adapter")
    parser.add_argument("--name", default="adapter", help='how its lines are named; "base" asks the bare base')
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--judged", type=Path, help="a copy of the output with `acceptable` and `why` in each line")
    chosen = parser.parse_args()
    if chosen.judged:
        count(chosen.judged)
        return
    engine, knowledge = open_llama_cpp("embedded", [chosen.adapter]), open_knowledge("builtin")
    questions = [json.loads(line) for line in QUESTIONS.open(encoding="utf-8")]
    asked = [(number, question, passages) for number, question in enumerate(questions, 1) for passages in (True, False)]

    def ask(job: tuple[int, dict[str, Any], bool]) -> dict[str, Any]:
        number, question, passages = job
        row = {**question, "adapter": chosen.name, "passages": passages}
        return row | answer(engine, question["turns"], chosen.name, knowledge if passages else None, seed=number)

    rows = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for row in pool.map(ask, asked):
            rows.append(row)
            print(f"\r{len(rows)} of {len(asked)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    kept = [json.loads(line) for line in chosen.output.open(encoding="utf-8")] if chosen.output.exists() else []
    kept = [row for row in kept if row["adapter"] != chosen.name] + rows
    chosen.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    for passages in (True, False):
        these = [row for row in rows if row["passages"] is passages]
        ended = sum(row["ended"] == "stop" for row in these) / len(these)
        words = statistics.median(len(row["reply"].split()) for row in these)
        print(f"{chosen.name:8} {_with(passages)}: {ended:.2f} end by themselves, median {words:.0f} words")


def _with(passages: bool) -> str:
    return "with passages" if passages else "without passages"


def answer(engine: Any, turns: list[str], name: str, knowledge: Any, *, seed: int) -> dict[str, Any]:
    """Return the last reply of a conversation, what it was given to read and why it ended."""
    history: list[dict[str, str]] = []
    text, ended, titles, card = "", "", [], "none"
    for turn in turns:
        text = ""
        pieces = chat.reply(
            engine,
            turn,
            history,
            adapter="base" if name == "base" else "",
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
    for name, passages in dict.fromkeys((row["adapter"], row["passages"]) for row in rows):
        these = [row for row in rows if (row["adapter"], row["passages"]) == (name, passages)]
        good, all_ = (Counter(r["kind"] for r in these if r["acceptable"] or every) for every in (False, True))
        print(f"{name:8} {_with(passages)}: {good.total()} of {all_.total()}", end="  ")
        print(", ".join(f"{kind} {good[kind]}/{all_[kind]}" for kind in all_))


if __name__ == "__main__":
    main()
