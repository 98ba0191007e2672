"""`python -m benchmarks.citations`: whether every citation of real replies resolves and quotes its passage verbatim.

Asks the embedded model questions of tests/data/retrieval_questions.jsonl, as a visitor would, and checks each reply: a
number in it ("[1]") names one of its passages, that passage is in the index under its id, word for word and with a
source, and every quoted sentence stands in it. Writes the engine's figures to benchmarks/results/citations.json.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks.knowledge import ROOT, questions
from medchat import chat
from medchat.engines import Engine, Sampling
from medchat.knowledge import Knowledge, Passage, cite, open_knowledge

RESULTS = ROOT / "benchmarks" / "results" / "citations.json"


def main() -> int:
    """Run the replies, print what is wrong, write the figures; the exit code is 1 when a citation fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.citations")
    parser.add_argument("--engine", choices=("llama_cpp", "transformers"), default="llama_cpp")
    parser.add_argument("--n", type=int, default=300, help="replies (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=200, help="of a reply (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of questions and of the replies")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    sampling = Sampling(max_tokens=arguments.max_tokens, seed=arguments.seed)
    figures = replies(open_model(arguments.engine), open_knowledge(), arguments.n, sampling)
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    known[arguments.engine] = figures
    arguments.output.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({arguments.engine: figures}, indent=2, ensure_ascii=False))
    return 1 if figures["wrong"] else 0


def open_model(engine: str) -> Engine:
    """Return the embedded base with its adapter on one of the two engines."""
    if engine == "transformers":
        from medchat.engines.transformers import open_transformers

        return open_transformers("embedded", ["embedded"])
    from medchat.engines.llama_cpp import open_llama_cpp

    return open_llama_cpp("embedded", ["embedded"])


def replies(engine: Engine, knowledge: Knowledge, number: int, sampling: Sampling) -> dict:
    """Return counts over `number` replies, the seed one higher for each, and a line for everything that is wrong."""
    seed = sampling.seed or 0
    asked = [row["question"] for row in questions("retrieval_questions.jsonl")]
    random.Random(seed).shuffle(asked)
    counts = dict.fromkeys(("replies", "with_passages", "with_citations", "citations", "quotes"), 0)
    wrong: list[str] = []
    started = time.perf_counter()

    def ask(i: int) -> tuple[str, chat.Reply]:
        question = asked[i % len(asked)]
        *_, last = chat.reply(engine, question, sampling=replace(sampling, seed=seed + i), knowledge=knowledge)
        return question, last

    with ThreadPoolExecutor(engine.slots) as pool:
        for question, last in pool.map(ask, range(number)):
            if last.final is None:
                wrong.append(f"{question}: the reply has no end")
            text = last.final or ""
            numbers = [int(n) for n in re.findall(r"\[(\d+)\]", text)]
            quotes = cite(re.sub(r" ?\[\d+\]", "", text), last.passages)  # the numbers hide where sentences end
            wrong += [f"{question}: {fault}" for fault in faults(numbers, quotes, last.passages, knowledge)]
            counts["replies"] += 1
            counts["with_passages"] += bool(last.passages)
            counts["with_citations"] += bool(numbers)
            counts["citations"] += len(numbers)
            counts["quotes"] += len(quotes)
            print(f"\r{counts['replies']} of {number} replies", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        **counts,
        "wrong": wrong,
        "seed": seed,
        "max_tokens": sampling.max_tokens,
        "seconds": round(time.perf_counter() - started, 1),
    }


def faults(
    numbers: list[int], quotes: list[tuple[int, str]], passages: tuple[Passage, ...], knowledge: Knowledge
) -> list[str]:
    """Return what is wrong with one reply's citations: its numbers, its passages against the index, its quotes."""
    found = [f"[{n}] names no passage" for n in numbers if not 1 <= n <= len(passages)]
    found += [f"[{n}] quotes nothing" for n in sorted(set(numbers) - {quoted for quoted, _ in quotes})]
    for passage in passages:
        held = knowledge.get(passage.id)
        if held is None:
            found.append(f"{passage.id} does not resolve")
        elif (held.text, held.title, held.url) != (passage.text, passage.title, passage.url) or not held.url:
            found.append(f"{passage.id} is not what the index holds")
    for n, quote in quotes:
        held = knowledge.get(passages[n - 1].id)
        if held is None or quote not in held.text:
            found.append(f"[{n}] quotes what its passage does not say: {quote}")
    return found


if __name__ == "__main__":
    sys.exit(main())
