"""opinion(): a small learned second look at what a person writes, where the rules of medchat.triage miss or mistake.

A reader (medchat.hashed) scores words and concepts: is it an alarm at all, is it a crisis. A judge of ten numbers
weighs, for each sentence and each stretch of up to 40 words that ends with one, the reader's scores of the stretch and
of its most alarming sentence against what the rules found in it. The most alarming stretch decides; a part counts a
little less than the whole, yet words added to a clear alarm do not talk it down. `python -m benchmarks.triage --train`
writes both, the thresholds chosen by cross-validation.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medchat.hashed import Linear, Sign, length

WEIGHTS = Path(__file__).parent.parent / "assets" / "triage" / "weights.npz"
WINDOW, STEP = 40, 10  # words of a stretch; a longer sentence is cut every 10 words
MOST = 3  # rules found in a stretch, more count as three


class Heard(NamedTuple):
    """A turn as the rules heard it: its words, with "~" in a sentence that they pass over, and the concepts in them.

    `found` are the flags (the last word of the place, the flag) that rules raise, `sentences` their (start, end), and
    `language` is what most of its common words belong to, "" if that is not clear.
    """

    words: list[str]
    signs: list[Sign]
    found: list[Sign]
    sentences: list[tuple[int, int]]
    language: str


class Opinion(NamedTuple):
    """Whether a turn tells of an emergency or a crisis at all, and whether of a crisis."""

    alarm: bool
    crisis: bool


def opinion(heard: Heard, crises: frozenset[str]) -> Opinion:
    """Return the opinion on a turn; `crises` are the flags that are one.

    Learned mostly from English: of other languages it knows little.
    """
    reader, judge = models()
    alarm, crisis = verdicts(evidence(heard, crises, reader), judge).max(axis=0) > 0
    return Opinion(bool(alarm or crisis), bool(crisis))


def verdicts(seen: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Return the judge's scores [stretches, 2] for the evidence [stretches, 10]; above 0 means yes."""
    return seen @ judge[:-1] + judge[-1]


def stretches(sentences: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (start, end) of the sentences, long ones cut, and of the stretches that end with each of them.

    Words added at the end of a text add to both and change nothing in them but the last, unfinished sentence.
    """
    parts = [
        (max(start, cut - WINDOW), cut) for start, end in sentences for cut in [*range(start + WINDOW, end, STEP), end]
    ]
    starts, longer = [start for start, _ in sentences], []
    for start, end in parts:
        i = bisect_left(starts, end - WINDOW)
        longer.append((min(start, starts[i]) if i < len(starts) else start, end))
    return parts, longer


def evidence(heard: Heard, crises: frozenset[str], reader: Linear) -> np.ndarray:
    """Return what the judge weighs [stretches, 10]: four scores, what rules found (four), length, beginning."""
    parts, longer = stretches(heard.sentences)
    scores = reader.scores(heard.words, heard.signs, [*parts, *longer])
    alone, together = scores[: len(parts)], scores[len(parts) :]
    starts, rows = [start for start, _ in parts], []

    def add(span: tuple[int, int], score: np.ndarray, best: np.ndarray, partial: bool) -> None:
        start, end = span
        flags = {flag for place, flag in heard.found if start <= place < end}
        # a rule's find weighs more where little else is said
        found = (bool(flags), bool(flags & crises), min(len(flags), MOST), bool(flags) / length(end - start))
        rows.append([*score, *best, *found, np.log1p(end - start), partial])

    for i, span in enumerate(longer):
        inside = alone[bisect_left(starts, span[0]) : i + 1]
        # a beginning of the text and a sentence alone are only part of what is said
        add(span, together[i], inside.max(axis=0), span[0] == 0 and i + 1 < len(longer))
        if parts[i] != span:
            add(parts[i], alone[i], alone[i], True)
    return np.array(rows, dtype=np.float64)


@lru_cache(maxsize=1)
def models() -> tuple[Linear, np.ndarray]:
    """Return the reader and the judge's weights [11, 2], the bias last; read once."""
    with np.load(WEIGHTS) as file:
        return Linear.read(WEIGHTS), file["judge"]
