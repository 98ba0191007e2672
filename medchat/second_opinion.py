"""opinion(): a small learned second look at what a person writes, where the rules of medchat.triage miss or mistake.

A reader (medchat.hashed) scores words and concepts: is it an alarm at all, is it a crisis. A judge of eleven numbers
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
READABLE = 0.25  # the share of words in a stretch that must be words, or it is gibberish
MOST = 3  # rules found in a stretch, more count as three


class Heard(NamedTuple):
    """A turn as the rules heard it: its words, with "~" in a sentence that they pass over, and the concepts in them.

    `found` are the flags (the last word of the place, the flag) that rules raise, `sentences` their (start, end), and
    `language` is what most of its common words belong to ("" if that is not clear), `readable` which words are any.
    """

    words: list[str]
    signs: list[Sign]
    found: list[Sign]
    sentences: list[tuple[int, int]]
    language: str
    readable: list[bool]


class Opinion(NamedTuple):
    """Whether a turn tells of an emergency or a crisis at all, and whether of a crisis."""

    alarm: bool
    crisis: bool


def opinion(heard: Heard, crises: frozenset[str]) -> Opinion:
    """Return the opinion on a turn; `crises` are the flags that are one.

    Learned mostly from English: of other languages it knows little.
    """
    reader, judge = models()
    alarm, crisis = verdicts(evidence(heard, crises, reader), judge).max(axis=0, initial=-np.inf) > 0
    return Opinion(bool(alarm or crisis), bool(crisis))


def verdicts(seen: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Return the judge's scores [stretches, 2] for the evidence [stretches, 11]; above 0 means yes."""
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
    """Return what the judge weighs [stretches, 11]: four scores, what rules found (four), length, which part."""
    parts, longer = stretches(heard.sentences)
    firsts = [start for start, _ in parts]
    scores = reader.scores(heard.words, heard.signs, [*longer, *parts])
    alone = scores[len(longer) :]
    best = [alone[bisect_left(firsts, start) : i + 1].max(axis=0) for i, (start, _) in enumerate(longer)]
    starts, ends = np.array([*longer, *parts]).T
    inside = [(starts <= place) & (place < ends) for place, _ in heard.found]
    rules = np.sum(inside, axis=0) if inside else np.zeros(len(starts))
    crisis = np.any(
        [here for here, (_, flag) in zip(inside, heard.found, strict=True) if flag in crises] or [rules < 0], 0
    )
    seen = np.column_stack(
        [
            scores,
            np.concatenate([np.array(best), alone]),
            rules > 0,
            crisis,
            np.minimum(rules, MOST),
            (rules > 0) / length(ends - starts),  # a rule's find weighs more where little else is said
            np.log1p(ends - starts),
            (starts == 0) & (ends < ends[len(longer) - 1]) & (np.arange(len(starts)) < len(longer)),
            np.arange(len(starts)) >= len(longer),
        ]
    ).astype(np.float64)
    sums = np.append(0, np.cumsum(heard.readable))
    whole = [True] * len(longer) + [span != stretch for span, stretch in zip(parts, longer, strict=True)]
    return seen[np.array(whole) & (sums[ends] - sums[starts] >= READABLE * (ends - starts))]


@lru_cache(maxsize=1)
def models() -> tuple[Linear, np.ndarray]:
    """Return the reader and the judge's weights [12, 2], the bias last; read once."""
    with np.load(WEIGHTS) as file:
        return Linear.read(WEIGHTS), file["judge"]
