"""opinion(): a small learned second look at what a person writes, for phrasings that no rule of medchat.triage knows.

Two logistic regressions over hashed words, pairs of words and pieces of words: is it an alarm at all, is it a crisis.
`python -m benchmarks.triage --train` writes the weights, its thresholds included. It only adds, never withdraws.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

WEIGHTS = Path(__file__).parent.parent / "assets" / "triage" / "weights.npz"
BINS = 1 << 16
PIECE = 0.3  # a piece of a word counts less than a word: there are many of them
WINDOW, STEP = 40, 10  # words judged together, so that a sign is not lost in a long text


def opinion(turns: Sequence[Sequence[str]]) -> Literal["none", "emergency", "crisis"]:
    """Return "crisis", "emergency" or "none" for the words (medchat.triage.words) of the user's turns."""
    scores = [margins(tokens, *model()) for tokens in turns if tokens]
    alarm, crisis = np.max(scores, axis=0) if scores else (-1.0, -1.0)
    return "crisis" if crisis > 0 else "emergency" if alarm > 0 else "none"


@lru_cache(maxsize=1)
def model() -> tuple[np.ndarray, np.ndarray]:
    """Return the weights [BINS, 2] and the biases [2] of (alarm, crisis), read once."""
    with np.load(WEIGHTS) as file:
        return file["weights"].astype(np.float32), file["bias"].astype(np.float32)


def hashed(text: str) -> int:
    return zlib.crc32(text.encode()) & (BINS - 1)


@lru_cache(maxsize=20_000)
def pieces(word: str) -> tuple[int, ...]:
    """Return the features of the pieces of 3 to 5 letters of a word, its two edges marked."""
    edged = f"<{word[:24]}>" if word[0].isalnum() else ""
    return tuple(hashed(f"c {edged[i : i + n]}") for n in (3, 4, 5) for i in range(len(edged) - n + 1))


def features(tokens: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (feature, value, place of the word) of everything in a turn's words, ordered by place."""
    found: list[int] = []
    values: list[float] = []
    places: list[int] = []
    for i, token in enumerate(tokens):
        parts = pieces(token)
        found += (hashed(f"w {token}"), hashed(f"p {tokens[i - 1] if i else '^'} {token}"), *parts)
        values += (1.0, 1.0, *(PIECE,) * len(parts))
        places += (i,) * (2 + len(parts))
    return np.array(found), np.array(values, dtype=np.float32), np.array(places)


def length(words: np.ndarray | int) -> np.ndarray:
    """Return what a sum over `words` words is divided by; the 3 keep one or two words from deciding alone."""
    return np.sqrt(np.asarray(words) + 3.0)


def margins(tokens: Sequence[str], weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the highest (alarm, crisis) score of any window of a turn's words; above 0 means yes."""
    found, values, places = features(tokens)
    firsts = np.flatnonzero(np.diff(places, prepend=-1))
    by_word = np.add.reduceat(weights[found] * values[:, None], firsts, axis=0)
    # sums up to each word: a window is a difference of two, so the work grows with the text alone
    sums = np.vstack([np.zeros((1, 2)), np.cumsum(by_word, axis=0, dtype=np.float64)])
    starts = np.arange(0, max(len(tokens) - WINDOW + STEP, 1), STEP)
    ends = np.minimum(starts + WINDOW, len(tokens))
    return ((sums[ends] - sums[starts]) / length(ends - starts)[:, None] + bias).max(axis=0)
