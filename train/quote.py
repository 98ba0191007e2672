"""An answer told in the sentences of the passages that it rests on: what a small model can learn without inventing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medchat.knowledge import sentences
from medchat.words import STOP, stem, words

MOST_WORDS = 95
LEAST_WORDS = 20
COVERED = 0.35  # share of the written answer's content words below which the passages do not hold the answer
_STOP = frozenset(stem(word) for word in STOP)
_LEANS = re.compile(r"(It|Its|They|Their|This|These|That|Those|Such|Both|He|She|Then|Also|Instead|But|And|Or)\b")


def quoted(answer: str, passages: Sequence[str]) -> str | None:
    """Return the passages' sentences that say most of what `answer` says, at most 95 words; None when too little.

    The sentences are chosen greedily by the content words that they share with the answer, as extractive
    summarisation finds its training targets (Nallapati et al., arXiv:1611.04230), and keep their order.
    """
    said = [(number, sentence) for number, text in enumerate(passages) for sentence in sentences(text)]
    held = [_content(sentence) for _, sentence in said]
    wanted = _content(answer)
    chosen: set[int] = set()
    found: set[str] = set()
    while len(chosen) < len(said):
        best = max(
            (i for i in range(len(said)) if i not in chosen),
            key=lambda i: len(held[i] & wanted - found) / (len(held[i]) + 3),
        )
        if len(held[best] & wanted - found) < (2 if len(chosen) >= 2 else 1):
            break
        added = _with_what_it_leans_on(best, said)
        if chosen and sum(len(said[i][1].split()) for i in chosen | added) > MOST_WORDS:
            break
        chosen |= added
        found |= set().union(*(held[i] for i in added))
    paragraphs = [" ".join(said[i][1] for i in sorted(chosen) if said[i][0] == n) for n in range(len(passages))]
    text = "\n\n".join(filter(None, paragraphs))
    covers = len(found & wanted) >= COVERED * len(wanted)
    return text if covers and len(text.split()) >= LEAST_WORDS else None


def _content(text: str) -> set[str]:
    return {stem(word) for word in words(text)} - _STOP


def _with_what_it_leans_on(i: int, said: Sequence[tuple[int, str]]) -> set[int]:
    """Return the sentence and those before it that its first word points to ("It ...")."""
    added = {i}
    while i and _LEANS.match(said[i][1]) and said[i - 1][0] == said[i][0]:
        i -= 1
        added.add(i)
    return added
