"""Linear: a model small enough to read a message in a millisecond, over hashed words, pairs and pieces of words."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

BINS = 1 << 18
PIECE = 0.3  # a piece of a word counts less than a word: there are many of them
WINDOW, STEP = 40, 10  # words judged together, so that a sign is not lost in a long text


def hashed(text: str) -> int:
    return zlib.crc32(text.encode()) & (BINS - 1)


@lru_cache(maxsize=20_000)
def of_word(word: str) -> tuple[int, ...]:
    """Return the features of a word: itself, then its pieces of 3 to 5 letters, the two edges marked."""
    edged = f"<{word[:24]}>" if word[0].isalnum() else ""
    return hashed(f"w {word}"), *(hashed(f"c {edged[i : i + n]}") for n in (3, 4, 5) for i in range(len(edged) - n + 1))


def of_pairs(words: Sequence[str]) -> list[int]:
    """Return the feature of each word with the one before it."""
    return [hashed(f"p {a} {b}") for a, b in zip(["^", *words], words, strict=False)]


def features(words: Sequence[str]) -> tuple[list[int], list[float]]:
    """Return the features of a whole text and their values, as `Linear` weighs them: for training."""
    found, values = of_pairs(words), [1.0] * len(words)
    for word in words:
        parts = of_word(word)
        found += parts
        values += [1.0] + [PIECE] * (len(parts) - 1)
    scale = float(length(len(words)))
    return found, [value / scale for value in values]


def length(words: np.ndarray | int) -> np.ndarray:
    """Return what a sum over `words` words is divided by; the 3 keep one or two words from deciding alone."""
    return np.sqrt(np.asarray(words) + 3.0)


class Linear:
    """Weights [BINS, outputs] and biases [outputs], read from an npz file; above 0 means yes."""

    def __init__(self, weights: np.ndarray, bias: np.ndarray):
        self.weights, self.bias = weights.astype(np.float32), bias.astype(np.float32)
        self.word = lru_cache(maxsize=20_000)(self._word)

    @classmethod
    def read(cls, path: Path) -> Linear:
        with np.load(path) as file:
            weights = np.zeros((BINS, len(file["bias"])), dtype=np.float32)
            weights[file["used"]] = file["weights"]
            return cls(weights, file["bias"])

    def _word(self, word: str) -> np.ndarray:
        first, *pieces = of_word(word)
        return self.weights[first] + PIECE * self.weights[pieces].sum(axis=0)

    def scores(self, words: Sequence[str], sentences: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """Return the highest score of any window of the words, and of any of `sentences` (start, end), by output."""
        if not words:
            return self.bias - np.inf
        # sums up to each word: a window is a difference of two, so the work grows with the text alone
        place = {word: i for i, word in enumerate(dict.fromkeys(words))}
        by_word = np.stack([self.word(word) for word in place])[[place[word] for word in words]]
        by_word = by_word + self.weights[of_pairs(words)]
        sums = np.vstack([np.zeros_like(by_word[:1]), np.cumsum(by_word, axis=0, dtype=np.float64)])
        starts = np.arange(0, max(len(words) - WINDOW + STEP, 1), STEP)
        ends = np.minimum(starts + WINDOW, len(words))

        def best(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
            return ((sums[ends] - sums[starts]) / length(ends - starts)[:, None] + self.bias).max(axis=0)

        return np.concatenate([best(starts, ends), *([best(*np.array(sentences).T)] if sentences else [])])


def write(path: Path, model: Linear, **more: np.ndarray) -> None:
    """Save a model, and `more` arrays beside it: 16-bit weights of the features that it uses."""
    used = np.flatnonzero(np.abs(model.weights).max(axis=1) > 1e-4).astype(np.int32)
    np.savez_compressed(path, used=used, weights=model.weights[used].astype(np.float16), bias=model.bias, **more)


def fit(texts: Sequence[Sequence[str]], targets: np.ndarray, *, ridge: float) -> Linear:
    """Return ridge-penalised logistic regressions of `targets` [texts, outputs] (0 or 1): the same every time."""
    from scipy.sparse import csr_matrix

    rows = [features(words) for words in texts]
    used, columns = np.unique(np.concatenate([np.array(found) for found, _ in rows]), return_inverse=True)
    values = np.concatenate([np.array(row) for _, row in rows])
    ends = np.cumsum([0] + [len(found) for found, _ in rows])
    design = csr_matrix((values, columns, ends), shape=(len(texts), len(used)))
    solved = np.stack([logistic(design, target, ridge) for target in targets.T], axis=1)
    whole = np.zeros((BINS, targets.shape[1]), dtype=np.float32)
    whole[used] = solved[:-1]
    return Linear(whole, solved[-1])


def logistic(design: Any, target: np.ndarray, ridge: float, *, rounds: int = 80) -> np.ndarray:
    """Return the weights of the columns of `design` (scipy sparse or an array) and the bias, which goes unpenalised."""
    from scipy.optimize import minimize

    sign, across = np.where(target > 0, 1.0, -1.0), design.T.tocsr() if hasattr(design, "tocsr") else design.T

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = point[:-1], point[-1]
        margin = sign * (design @ weights + bias)
        pull = -sign / (1 + np.exp(np.clip(margin, -30, 30)))
        total = np.logaddexp(0, -margin).sum() + ridge / 2 * (weights @ weights)
        return total, np.append(across @ pull + ridge * weights, pull.sum())

    start = np.zeros(design.shape[1] + 1)
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": rounds}).x
