"""decline(): a short, kind no to a request for help with harm, before any model sees it.

Patterns for what people ask in plain words (assets/refusal/patterns.txt), and a learned model (medchat.hashed) for the
many other ways, made by `python -m benchmarks.refusal --train` from assets/refusal/examples.jsonl and MedSafetyBench.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from medchat import triage
from medchat.hashed import Linear
from medchat.second_opinion import stretches
from medchat.words import STOP

ASSETS = Path(__file__).parent.parent / "assets" / "refusal"
WEIGHTS = ASSETS / "weights.npz"

SENTENCE = (
    "I can't help with that, because somebody could come to harm. I'm glad to help with taking a medicine safely, with "
    "what to ask a doctor or pharmacist, or with finding support for pain, addiction, violence or a hard decision."
)

# what may stand in a message that only insists, besides the words that say nothing
PUSHING = STOP | {
    "anyway", "answer", "educational", "fun", "game", "help", "hypothetically", "ignore", "instructions", "joke",
    "joking", "kidding", "legal", "no", "novel", "ok", "pretend", "previous", "promise", "research", "rules", "story",
    "test", "yes",
}  # fmt: skip


def decline(message: str, history: Sequence[Mapping[str, str]] = ()) -> str | None:
    """Return the sentence to show instead of an answer when `message` asks for help with harm, else None.

    Harm is: hurting, drugging or deceiving a person, forged prescriptions and papers, diverted or home-made drugs,
    breaches of a patient's trust or rights. `history` matters only to a push after a refusal ("just tell me"). A wish
    to harm oneself is not refused: medchat.triage answers it, and is to be asked first.

    Does NOT cover: harm spread over several harmless questions, codes and role play that name no deed, other languages
    than English (apart from forging and poisoning), or a harmful answer to a harmless question.
    """
    words = triage.words(message)
    if any(asks_for_harm(turn) for turn in (words, *pushed(words, history))):
        return SENTENCE
    return None


def asks_for_harm(words: Sequence[str]) -> bool:
    """Whether a pattern or the learned model sees a request for help with harm in the words of a turn."""
    return ruled(words) or bool(learned(words, model()) > 0)


def learned(words: Sequence[str], linear: Linear) -> float:
    """Return the highest score of a stretch of the words; above 0 they ask for help with harm."""
    _, spans = stretches(triage.sentences(words))
    return float(linear.scores(words, (), spans).max()) if spans else -np.inf


def ruled(words: Sequence[str]) -> bool:
    """Whether a pattern sees it, in a sentence that does not ask how to notice, report or survive the same."""
    harmful, protects = patterns()
    spans, _ = stretches(triage.sentences(words))  # long sentences in pieces: a pattern takes long on a long text
    sentences = [" ".join(words[start:end]) for start, end in spans]
    return any(not protects.search(s) and any(pattern.search(s) for pattern in harmful) for s in sentences)


def pushed(words: Sequence[str], history: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return the request that was declined just before, when the words only insist on it."""
    if len(history) < 2 or history[-1].get("content") != SENTENCE or not set(filter(str.isalpha, words)) <= PUSHING:
        return []
    return [triage.words(history[-2]["content"])]


@lru_cache(maxsize=1)
def patterns() -> tuple[list[re.Pattern[str]], re.Pattern[str]]:
    """Return the patterns of harm, and the one of sentences that they do not judge."""
    parts: dict[str, str] = {}
    harmful = []
    for line in (ASSETS / "patterns.txt").read_text(encoding="utf-8").splitlines():
        name, named, rest = line.partition(" = ")
        text = re.sub(r"\{([A-Z]+)\}", lambda match: parts[match[1]], rest if named else line)
        if named:
            parts[name] = text
        elif line and not line.startswith("#"):
            harmful.append(re.compile(text))
    return harmful, re.compile(parts["PROTECTS"])


@lru_cache(maxsize=1)
def model() -> Linear:
    return Linear.read(WEIGHTS)
