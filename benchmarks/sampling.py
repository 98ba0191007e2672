"""`python -m benchmarks.sampling`: how the embedded model's replies end, repeat themselves and keep to their passages.

Asks held-out questions through `medchat.chat.reply` with passages: the last turns of the corpus' held-out dialogues,
then questions of tests/data/retrieval_questions.jsonl. Counts replies that end by themselves before the length limit,
that repeat themselves, their words, and the share of sentences that no passage supports. `--settings all` repeats it
for each of SETTINGS. Writes benchmarks/results/sampling.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.knowledge import ROOT, questions
from medchat import chat, triage
from medchat.engines import Engine, Sampling
from medchat.engines.llama_cpp import open_llama_cpp
from medchat.knowledge import Knowledge, open_knowledge, sentences, unsupported_sentences
from medchat.prompt import Message
from train import corpus

RESULTS = ROOT / "benchmarks" / "results" / "sampling.json"
SETTINGS = {
    "default": Sampling(),
    "greedy": Sampling(temperature=0),
    "greedy, penalty 1.0": Sampling(temperature=0, repetition_penalty=1.0),
    "temperature 0.3": Sampling(temperature=0.3),
    "temperature 1.0": Sampling(temperature=1.0),
    "min-p 0.05": Sampling(min_p=0.05),
    "min-p 0.4": Sampling(min_p=0.4),
    "penalty 1.0": Sampling(repetition_penalty=1.0),
    "penalty 1.15": Sampling(repetition_penalty=1.15),
}
AT_ONCE = 4  # the engine's slots


def main() -> None:
    """Ask, count, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--settings", choices=("default", "all"), default="default")
    parser.add_argument("--adapter", default="embedded", help="folder or Hub id of another adapter")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    engine, knowledge = open_llama_cpp("embedded", [arguments.adapter]), open_knowledge("builtin")
    asked = list(conversations())[: arguments.questions]
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    for name, sampling in SETTINGS.items():
        if name == "default" or arguments.settings == "all":
            known[name] = {"settings": asdict(sampling), **measure(engine, knowledge, asked, sampling)}
            print(name, json.dumps(known[name]), flush=True)
    arguments.output.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def conversations() -> Iterator[tuple[str, list[Message]]]:
    """Yield (question, what was said before): held-out dialogues first, then questions of their own, shuffled."""
    for row in corpus.read():
        if row["split"] == "held_out":
            yield row["messages"][-2]["content"], row["messages"][:-2]
    more = [row["question"] for row in questions("retrieval_questions.jsonl")]
    random.Random(0).shuffle(more)
    yield from ((question, []) for question in more)


def measure(
    engine: Engine, knowledge: Knowledge, asked: list[tuple[str, list[Message]]], sampling: Sampling
) -> dict[str, Any]:
    """Return the figures of one setting over all questions; the seed is the question's number."""

    def ask(numbered: tuple[int, tuple[str, list[Message]]]) -> tuple[str, str, list[str], int]:
        number, (question, history) = numbered
        text = finish = ""
        piece = None
        for piece in chat.reply(
            engine, question, history, sampling=replace(sampling, seed=number), knowledge=knowledge
        ):
            text += piece.delta.text
            finish = piece.delta.finish_reason or finish
        read = piece.passages if piece else ()
        said = sentences(text) if read else []
        return text, finish, unsupported_sentences(text, read) if read else [], len(said)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = []
        for row in pool.map(ask, enumerate(asked)):
            found.append(row)
            print(f"\r{len(found)} of {len(asked)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    answered = [row for row in found if row[0]]  # in a crisis no model answers
    words = sorted(len(text.split()) for text, *_ in answered)
    return {
        "replies": len(answered),
        "ended_by_themselves": sum(finish == "stop" for _, finish, *_ in answered) / len(answered),
        "repeat_themselves": sum(triage.cut_loop(text) != text for text, *_ in answered),
        "median_words": statistics.median(words),
        "words_10_to_90_percent": [words[len(words) // 10], words[len(words) * 9 // 10]],
        "unsupported_sentences": sum(len(loose) for *_, loose, _ in answered)
        / max(1, sum(count for *_, count in answered)),
    }


if __name__ == "__main__":
    main()
