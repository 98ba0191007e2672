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
SMALLEST = 1e-4  # weights below it are left out of the file
ROUNDS = 80  # of L-BFGS, which has converged by then


Sign = tuple[int, str]  # the place of a word, and the name of what is known of it


def hashed(text: str) -> int:
    return zlib.crc32(text.encode()) & (BINS - 1)


@lru_cache(maxsize=20_000)
def of_word(word: str) -> tuple[int, ...]:
    """Return the features of a word: itself, then its pieces of 3 to 5 letters, the two edges marked."""
    edged = f"<{word[:24]}>" if word[0].isalnum() else ""
    return hashed(f"w {word}"), *(hashed(f"c {edged[i : i + n]}") for n in (3, 4, 5) for i in range(len(edged) - n + 1))


@lru_cache(maxsize=10_000)
def of_sign(name: str) -> int:
    return hashed(f"s {name}")


def of_pairs(words: Sequence[str]) -> list[int]:
    """Return the features of each word with the one before it, then of each word with the last but one."""
    near = [hashed(f"p {a} {b}") for a, b in zip(["^", *words], words, strict=False)]
    return near + [hashed(f"k {a} {b}") for a, b in zip(["^", "^", *words], words, strict=False)]


def features(words: Sequence[str], signs: Sequence[Sign] = ()) -> tuple[list[int], list[float]]:
    """Return the features of a whole text and their values, as `Linear` weighs them: for training."""
    found = of_pairs(words) + [of_sign(name) for _, name in signs]
    values = [1.0] * len(found)
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

    def scores(self, words: Sequence[str], signs: Sequence[Sign], stretches: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return the scores [stretches, outputs] of each stretch (start, end) of the words."""
        place = {word: i for i, word in enumerate(dict.fromkeys(words))}
        by_word = np.stack([self.word(word) for word in place])[[place[word] for word in words]]
        by_word = by_word + self.weights[of_pairs(words)].reshape(2, len(words), -1).sum(axis=0)
        if signs:
            places, names = zip(*signs, strict=True)
            np.add.at(by_word, list(places), self.weights[[of_sign(name) for name in names]])
        # sums up to each word: a stretch is a difference of two, so the work grows with the text alone
        sums = np.vstack([np.zeros_like(by_word[:1]), np.cumsum(by_word, axis=0, dtype=np.float64)])
        starts, ends = np.array(stretches).T
        return (sums[ends] - sums[starts]) / length(ends - starts)[:, None] + self.bias


def write(path: Path, model: Linear, **more: np.ndarray) -> None:
    """Save a model, and `more` arrays beside it: 16-bit weights of the features that it uses."""
    used = np.flatnonzero(np.abs(model.weights).max(axis=1) > SMALLEST).astype(np.int32)
    arrays: dict[str, Any] = {"used": used, "weights": model.weights[used].astype(np.float16), "bias": model.bias}
    np.savez_compressed(path, **(arrays | more))  # pyright: ignore[reportArgumentType]


def fit(
    texts: Sequence[tuple[Sequence[str], Sequence[Sign]]],
    targets: np.ndarray,
    ridge: float,
    counts: np.ndarray | None = None,
) -> Linear:
    """Return ridge-penalised logistic regressions of `targets` [texts, outputs] (0 or 1) on words and signs.

    `counts` [texts] says how much each text counts. The same input gives the same weights.
    """
    from scipy.sparse import csr_matrix

    rows = [features(*text) for text in texts]
    used, columns = np.unique(np.concatenate([np.array(found) for found, _ in rows]), return_inverse=True)
    values = np.concatenate([np.array(row) for _, row in rows])
    ends = np.cumsum([0] + [len(found) for found, _ in rows])
    design = csr_matrix((values, columns, ends), shape=(len(texts), len(used)))
    solved = np.stack([logistic(design, target, ridge, counts) for target in targets.T], axis=1)
    whole = np.zeros((BINS, targets.shape[1]), dtype=np.float32)
    whole[used] = solved[:-1]
    return Linear(whole, solved[-1])


def logistic(design: Any, target: np.ndarray, ridge: float, counts: np.ndarray | None = None) -> np.ndarray:
    """Return the weights of the columns of `design` (scipy sparse), then the bias, which is not penalised."""
    from scipy.optimize import minimize

    across = design.T.tocsr()
    sign = np.where(target > 0, 1.0, -1.0)
    each = np.ones(len(target)) if counts is None else counts

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = point[:-1], point[-1]
        margin = sign * (design @ weights + bias)
        pull = -each * sign / (1 + np.exp(np.clip(margin, -30, 30)))
        total = each @ np.logaddexp(0, -margin) + ridge / 2 * (weights @ weights)
        return total, np.append(across @ pull + ridge * weights, pull.sum())

    start = np.zeros(design.shape[1] + 1)
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ROUNDS}).x
