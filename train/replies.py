"""Greedy replies of an adapter, token by token, from a process of their own: `push` compares two of these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

from medchat.engines import Engine, Sampling
from medchat.errors import UserError
from train.merge import conversation

QUESTIONS = (
    "What are the early signs of iron deficiency?",
    "How is high blood pressure treated?",
    "Hello, who are you?",
)
GREEDY = Sampling(max_tokens=32, temperature=0)


def replies(base: str, source: str, quant: str) -> list[dict[str, Any]]:
    """Return {"tokens": their texts, "finish_reason"} for each question, from the engine that serves such a base."""
    engine = _open(base, source, quant)
    (adapter,) = engine.adapters.values()
    found = []
    for question in QUESTIONS:
        messages = conversation(adapter, question)
        deltas = list(engine.stream(messages, adapter=adapter.name, sampling=GREEDY, cancel=Event()))
        tokens = [delta.text for delta in deltas if delta.text]
        found.append({"tokens": tokens, "finish_reason": deltas[-1].finish_reason})
    return found


def in_fresh_process(base: str, source: str, quant: str, caches: Path | None = None) -> list[dict[str, Any]]:
    """Return `replies` from a new process, which fetches and converts anew into `caches`; raises UserError."""
    env = dict(os.environ)
    if caches:
        env |= {"HF_HUB_CACHE": str(caches / "hub"), "MEDCHAT_CACHE": str(caches / "medchat")}
    done = subprocess.run(
        [sys.executable, "-m", "train.replies", base, source, quant],
        cwd=Path(__file__).parent.parent,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"The replies of {source} could not be computed: {last}", "Mend this and run push again.")
    return json.loads(done.stdout.splitlines()[-1])


def _open(base: str, source: str, quant: str) -> Engine:
    if base.endswith(".gguf"):
        from medchat.engines.llama_cpp import open_llama_cpp

        return open_llama_cpp(base, [source])
    from medchat.engines.transformers import open_transformers

    return open_transformers(base, [source], quant=quant)


if __name__ == "__main__":
    try:
        print(json.dumps(replies(*sys.argv[1:])))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
