"""Scores with their uncertainty: every metric is a function of sums over rows, so one bootstrap serves them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000  # percentiles of 2,000 resamples differ from those of 20,000 in the third digit
LOWER_IS_BETTER = ("nll", "perplexity")


@dataclass(frozen=True)
class Scored:
    """A metric: `rows` (n, k) holds k numbers a row, and `value` turns sums of them (..., k) into the metric (...)."""

    rows: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]


def measure(scored: Scored, seed: int, base: Scored | None = None) -> dict[str, dict[str, float]]:
    """Return {"score": ...} with value, low, high and n; with `base` on the same rows also "base" and "difference".

    low and high bound 95 %: percentiles over resampled rows (Efron's bootstrap). Adapter and base are resampled
    together, so what the rows have in common cancels in the difference (Koehn, EMNLP 2004). Does NOT cover what another
    data set, prompt or training seed would change.
    """
    n = len(scored.rows)
    weights = _resampled(n, seed)
    drawn = scored.value(weights @ scored.rows)
    found = {"score": {"value": float(scored.value(scored.rows.sum(0))), **_interval(drawn), "n": n}}
    if base is not None:
        assert len(base.rows) == n, "base and adapter were not scored on the same rows"
        drawn_base = base.value(weights @ base.rows)
        found["base"] = {"value": float(base.value(base.rows.sum(0))), **_interval(drawn_base), "n": n}
        difference = found["score"]["value"] - found["base"]["value"]
        found["difference"] = {"difference": difference, **_interval(drawn - drawn_base), "n": n}
    return found


def _resampled(n: int, seed: int) -> np.ndarray:
    """Return how often each of n rows is drawn, (RESAMPLES, n)."""
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    drawn += np.arange(RESAMPLES)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(np.float32)


def _interval(drawn: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}


def choices(gold: Sequence[int], predicted: Sequence[int]) -> dict[str, Scored]:
    """Return accuracy and macro-F1 of predicted options, as sklearn's f1_score(average="macro") defines it."""
    size = max(*gold, *predicted) + 1
    cells = np.eye(size * size, dtype=np.float32)[np.asarray(gold) * size + np.asarray(predicted)]
    correct = np.asarray(gold) == np.asarray(predicted)
    accuracy = np.stack([correct, np.ones(len(gold))], 1).astype(np.float32)
    return {"accuracy": Scored(accuracy, _ratio), "macro_f1": Scored(cells, lambda sums: _macro_f1(sums, size))}


def _macro_f1(sums: np.ndarray, size: int) -> np.ndarray:
    table = sums.reshape(*sums.shape[:-1], size, size)  # (..., gold, predicted)
    named = table.sum(-1) + table.sum(-2)  # twice the true positives, plus the false ones of both kinds
    f1 = 2 * np.diagonal(table, axis1=-2, axis2=-1) / np.maximum(named, 1)
    return f1.sum(-1) / np.maximum((named > 0).sum(-1), 1)  # an option that nobody named is left out


def nll(nats: Sequence[float], tokens: Sequence[int]) -> dict[str, Scored]:
    """Return "nll", nats per token over all tokens, from each row's summed nats and its tokens."""
    return {"nll": Scored(np.stack([nats, tokens], 1), _ratio)}


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> dict[str, Scored]:
    """Return "perplexity", exp of nats per token."""
    return {"perplexity": Scored(np.stack([nats, tokens], 1), lambda sums: np.exp(_ratio(sums)))}


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def bleu(replies: Sequence[str], references: Sequence[str]) -> dict[str, Scored]:
    """Return corpus BLEU, 0 to 100, as sacrebleu counts it (13a tokens, exponential smoothing)."""
    from sacrebleu.metrics.bleu import BLEU

    single = BLEU(effective_order=True)  # only its counts are used; this option keeps it from warning
    parts = [single.corpus_score([a], [[b]]) for a, b in zip(replies, references, strict=True)]
    rows = np.array([[*part.counts, *part.totals, part.sys_len, part.ref_len] for part in parts], dtype=np.float64)

    def value(sums: np.ndarray) -> np.ndarray:
        def one(s: Any) -> float:
            counts = [round(x) for x in s]
            return BLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp").score

        return np.apply_along_axis(one, -1, sums)

    return {"bleu": Scored(rows, value)}


def rouge(replies: Sequence[str], references: Sequence[str]) -> dict[str, Scored]:
    """Return the mean F-measure of ROUGE-1 and ROUGE-L, 0 to 1, as rouge-score counts them, with stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    found = [scorer.score(reference, reply) for reply, reference in zip(replies, references, strict=True)]
    return {
        name: Scored(np.array([[row[kind].fmeasure, 1.0] for row in found]), _ratio)
        for name, kind in (("rouge_1", "rouge1"), ("rouge_l", "rougeL"))
    }
