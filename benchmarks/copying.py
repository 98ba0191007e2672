"""`python -m benchmarks.copying`: what trying copied words in groups gains, on answers that rest on passages.

Asks what one can do oneself ("self_care" in tests/data/rubric_questions.jsonl), with passages and greedily, of an
engine that tries groups and of one that computes each token alone, in turns in one run. Writes
benchmarks/results/copying.json.
"""

from __future__ import annotations

import json
import platform
from typing import Any

from benchmarks.knowledge import ROOT
from medchat import chat
from medchat.engines import Sampling, Stats
from medchat.engines.llama_cpp import open_llama_cpp, usable_cores
from medchat.knowledge import Knowledge, open_knowledge

RESULTS = ROOT / "benchmarks" / "results" / "copying.json"
GREEDY = Sampling(temperature=0)


def main() -> None:
    """Measure, print and write."""
    lines = (ROOT / "tests" / "data" / "rubric_questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [row["turns"][-1] for row in map(json.loads, lines) if row["kind"] == "self_care"]
    knowledge = open_knowledge()
    engines = {
        name: open_llama_cpp("embedded", ["embedded"], grouped=name == "grouped") for name in ("alone", "grouped")
    }
    spent = {name: [0, 0.0] for name in engines}  # tokens, seconds of decoding
    for question in questions:
        for name, engine in engines.items():
            stats = answer(engine, question, knowledge)
            spent[name][0] += stats.completion_tokens
            spent[name][1] += stats.completion_tokens / stats.tokens_per_second
    speed = {name: tokens / seconds for name, (tokens, seconds) in spent.items()}
    figures = {
        "machine": f"{platform.machine()}, {usable_cores()} cores",
        "questions": len(questions),
        "tokens/s, each token alone": round(speed["alone"], 1),
        "tokens/s, copied tokens in groups": round(speed["grouped"], 1),
        "ratio": round(speed["grouped"] / speed["alone"], 2),
    }
    for name, value in figures.items():
        print(f"{name:40} {value}")
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def answer(engine: Any, question: str, knowledge: Knowledge) -> Stats:
    """Return the facts of the reply to a question."""
    pieces = chat.reply(engine, question, sampling=GREEDY, knowledge=knowledge)
    return next(piece.delta.stats for piece in pieces if piece.delta.stats)


if __name__ == "__main__":
    main()
