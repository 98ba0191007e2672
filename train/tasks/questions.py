"""What the task files here call: rows of the Hub or its mirror, each with its prompt, and grading of answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from train import metrics, sources

WORDS = ("yes", "no", "maybe")


def pubmedqa(**where: Any) -> dict[str, Any]:
    """Return the 500 official test questions of PubMedQA's 1,000, asked as train/sources.py asks them in training."""
    found = []
    for row in _rows(**where):
        if str(row["pubid"]) in sources.pubmedqa_test():
            context = row["context"]
            named = zip(context["labels"], context["contexts"], strict=False)
            abstract = "\n".join(f"{label.capitalize()}: {text}" for label, text in named)
            prompt = f"{abstract}\n\nQuestion: {row['question']} Answer yes, no or maybe."
            found.append(row | {"prompt": prompt, "right": WORDS.index(row["final_decision"])})
    return _split(found)


def medqa(**where: Any) -> dict[str, Any]:
    """Return MedQA's questions with their four options."""
    return _split(
        row | _choice(row["question"], [row["options"][letter] for letter in "ABCD"], "ABCD".index(row["answer_idx"]))
        for row in _rows(**where)
    )


def medmcqa(**where: Any) -> dict[str, Any]:
    """Return MedMCQA's questions with their four options."""
    return _split(
        row | _choice(row["question"], [row[f"op{letter}"] for letter in "abcd"], row["cop"]) for row in _rows(**where)
    )


def mmlu(**where: Any) -> dict[str, Any]:
    """Return MMLU's questions with their four options."""
    return _split(row | _choice(row["question"], row["choices"], row["answer"]) for row in _rows(**where))


def _rows(dataset: str, split: str, configs: Sequence[str | None] = (None,), **_: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Hub data set, from DATASETS_MIRROR where it is there. Raises UserError."""
    for config in configs:
        table = sources.open_table(sources.place(dataset, config, split))
        yield from (row for _, row in table.rows() if isinstance(row, dict))


def _choice(question: str, options: Sequence[str], right: int) -> dict[str, Any]:
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=True))
    return {"prompt": f"{question}\n\n{listed}\n\nAnswer with the letter of the right option.", "right": right}


def _split(rows: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(list(rows))}


def graded(row: dict[str, Any], answers: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return a row's accuracy and, for macro-F1, (right option, chosen option); `answers` are log-likelihoods."""
    return _graded(row, [score for score, _ in answers])


def graded_words(row: dict[str, Any], answers: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return the same for PubMedQA, where the likelihoods of "yes" and "Yes" are added up."""
    return _graded(row, np.logaddexp(*np.array([score for score, _ in answers]).reshape(2, 3)))


def _graded(row: dict[str, Any], scores: Sequence[float] | np.ndarray) -> dict[str, Any]:
    chosen = int(np.argmax(scores))
    return {"accuracy": float(chosen == row["right"]), "macro_f1": (row["right"], chosen)}


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """Return the mean over options of F1."""
    scored = metrics.choices(*zip(*pairs, strict=True))["macro_f1"]
    return float(scored.value(scored.rows.sum(0)))
