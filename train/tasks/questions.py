"""What the task files here call: rows from the Hub or its mirror, and the grading of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from train import metrics, sources


def load(dataset: str, split: str, configs: Sequence[str | None] = (None,), **metadata: Any) -> dict[str, Any]:
    """Return {"test": rows} of a Hub data set, from DATASETS_MIRROR where it is there. Raises UserError."""
    from datasets import Dataset

    found: list[dict[str, Any]] = []
    for config in configs:
        table = sources.open_table(sources.place(dataset, config, split))
        found += [row for _, row in table.rows() if isinstance(row, dict)]
    return {"test": Dataset.from_list(found)}


def official_pubmedqa(rows: Any) -> Any:
    """Return the 500 official test questions of PubMedQA's 1,000."""
    return rows.filter(lambda row: str(row["pubid"]) in sources.pubmedqa_test())


def graded(row: dict[str, Any], answers: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return a row's accuracy and, for macro-F1, (right option, chosen option); `answers` are log-likelihoods."""
    right: Any = row.get("answer_idx", row.get("cop", row.get("answer")))
    return _graded("ABCD".index(right) if isinstance(right, str) else right, [score for score, _ in answers])


def graded_words(row: dict[str, Any], answers: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return the same for PubMedQA, where the likelihoods of "yes" and "Yes" are added up."""
    scores = np.array([score for score, _ in answers]).reshape(2, 3)
    return _graded(["yes", "no", "maybe"].index(row["final_decision"]), np.logaddexp(*scores))


def _graded(right: int, scores: Sequence[float] | np.ndarray) -> dict[str, Any]:
    chosen = int(np.argmax(scores))
    return {"accuracy": float(chosen == right), "macro_f1": (right, chosen)}


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """Return the mean over options of F1."""
    scored = metrics.choices(*zip(*pairs, strict=True))["macro_f1"]
    return float(scored.value(scored.rows.sum(0)))
