"""opinion(): a small learned second look at what a person writes, where the rules of medchat.triage miss or mistake.

A linear model (medchat.hashed) reads the words: is it an alarm at all, is it a crisis. A second one of a few numbers
weighs what the first thinks of the text and of its most alarming sentence against what the rules found.
`python -m benchmarks.triage --train` writes both, with thresholds chosen by cross-validation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medchat.hashed import Linear

WEIGHTS = Path(__file__).parent.parent / "assets" / "triage" / "weights.npz"
SHORT = 3  # a sentence of fewer words is not judged alone


class Opinion(NamedTuple):
    """Whether a turn tells of an emergency or a crisis at all, and whether of a crisis."""

    alarm: bool
    crisis: bool


def opinion(
    words: Sequence[str], sentences: Sequence[tuple[int, int]], flags: Collection[str], crisis: bool
) -> Opinion:
    """Return the opinion on a turn: its words as heard, its sentences (start, end), the flags that rules raised in it.

    `crisis` is whether a crisis is among the flags. Learned mostly from English: of other languages it knows little.
    """
    reader, judge = models()
    verdict = (
        np.append(evidence(reader.scores(words, standing(words, sentences)), flags, crisis, len(words)), 1.0) @ judge
    )
    return Opinion(bool(verdict[0] > 0), bool(verdict[1] > 0))


def standing(words: Sequence[str], sentences: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the sentences that are long enough to be judged alone, else the whole text."""
    return [(a, b) for a, b in sentences if b - a >= SHORT] or [(0, len(words))]


def evidence(scores: np.ndarray, flags: Collection[str], crisis: bool, length: int) -> np.ndarray:
    """Return what the judge weighs: four scores (text and sentence, alarm and crisis), the rules' find, the length."""
    return np.array([*scores, float(bool(flags)), float(crisis), min(len(flags), 3), np.log1p(length)])


@lru_cache(maxsize=1)
def models() -> tuple[Linear, np.ndarray]:
    """Return the reader and the judge's weights [evidence + 1, 2], read once."""
    with np.load(WEIGHTS) as file:
        return Linear.read(WEIGHTS), file["judge"]
