"""`python -m benchmarks.refusal`: how many harmful requests medchat.refusal declines, and how many ordinary ones.

`--train` fits the learned part on every second request of MedSafetyBench's training halves (MIT),
assets/refusal/examples.jsonl, 2,500 questions of MedQuAD and the messages that medchat.triage learns from, and writes
its weights. The measure reads what training never saw: the other half of MedSafetyBench by category, K-QA and 2,000
other MedQuAD questions. The data sets come from DATASETS_MIRROR or the Hub. Prints a table as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.triage import examples, read, said, share
from medchat import hashed, refusal, triage
from medchat.errors import UserError

ASSETS = Path(__file__).parent.parent / "assets" / "refusal"
BENCH = "AI4LIFE-GROUP/MedSafetyBench"
FOLDS = 5
RIDGE = 0.1
QUIET = 0.998  # of ordinary messages, this share must pass in cross-validation
QUIET_HARD = 0.93  # of our own questions that sound like harmful requests
CATEGORIES = {  # the nine principles of medical ethics that the requests of MedSafetyBench offend
    1: "competence", 2: "honesty", 3: "the law and patients' interests", 4: "privacy and consent", 5: "science",
    6: "colleagues", 7: "public health", 8: "money", 9: "fair access",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="fit and write the weights first")
    parser.add_argument("--misses", action="store_true", help="print every example that is judged wrongly")
    args = parser.parse_args()
    result = {"cross_validation": train(misses=args.misses)} if args.train else {}
    print(json.dumps(result | measure(misses=args.misses), indent=2))


def rows_of(name: str, part: str | None = None, split: str = "train") -> Sequence[dict]:
    """Return the rows of a Hub data set, from DATASETS_MIRROR/NAME when that folder exists. Raises UserError."""
    from datasets import load_dataset

    folder = Path(os.environ.get("DATASETS_MIRROR", "")) / name / (part or "")
    try:
        if "DATASETS_MIRROR" in os.environ and folder.is_dir():
            files = [str(path) for path in sorted(folder.rglob("*.parquet"))]
            return load_dataset("parquet", data_files=files, split="train").to_list()
        return load_dataset(name, part, split=split).to_list()
    except Exception as error:
        raise UserError(
            f"The data set {name} could not be loaded ({type(error).__name__}).",
            f"Check the network, or put its parquet files into DIR/{name} and set DATASETS_MIRROR=DIR.",
        ) from error


def harmful(half: int) -> list[tuple[str, int]]:
    """Return (request, category) of every second request of both training halves of MedSafetyBench."""
    rows = [row for part in ("gpt4", "llama2") for row in rows_of(BENCH, part)[half::2]]
    return [(row["harmful_medical_request"], int(row["category"])) for row in rows]


def medquad() -> list[str]:
    """Return the questions of MedQuAD, each once, in an order that is always the same."""
    questions = sorted({row["question"] for row in rows_of("lavita/MedQuAD") if row["question"]})
    return [questions[i] for i in np.random.default_rng(0).permutation(len(questions))]


def train(*, misses: bool) -> dict:
    """Fit the model, set its threshold by cross-validation, write it, and return what it finds by source."""
    items = [(request, True, "MedSafetyBench") for request, _ in harmful(0)]
    for example in read(ASSETS / "examples.jsonl"):
        items.append((example["text"], example["refuse"], "our requests" if example["refuse"] else "our questions"))
    items += [(question, False, "MedQuAD") for question in medquad()[:2500]]
    # what the harmful messages of the triage get is a card: neither yes nor no
    items += [(said(item), False, "triage") for item in examples() if item.get("flag") != "harm_others"]
    texts = [(triage.words(text), ()) for text, _, _ in items]
    wanted = np.array([[refuse] for _, refuse, _ in items], dtype=float)
    sources = np.array([source for _, _, source in items])
    fold = np.random.default_rng(0).permutation(len(items)) % FOLDS
    scores = np.zeros(len(items))
    for k in range(FOLDS):
        seen = [texts[i] for i in np.flatnonzero(fold != k)]
        model = hashed.fit(seen, wanted[fold != k], RIDGE)
        for i in np.flatnonzero(fold == k):
            scores[i] = refusal.learned(texts[i][0], model)
    # our own questions are written to be hard to tell from harm, and people rarely write such
    threshold = max(
        float(np.quantile(scores[(wanted[:, 0] == 0) & (sources != "our questions")], QUIET)),
        float(np.quantile(scores[sources == "our questions"], QUIET_HARD)),
    )
    model = hashed.fit(texts, wanted, RIDGE)
    model.bias -= threshold
    hashed.write(refusal.WEIGHTS, model)
    refusal.model.cache_clear()
    declined = np.array(
        [score > threshold or refusal.ruled(words) for score, (words, _) in zip(scores, texts, strict=True)]
    )
    if misses:
        for i in np.flatnonzero(declined != (wanted[:, 0] > 0)):
            print(f"{sources[i]} {scores[i] - threshold:.2f} {'refused' if declined[i] else 'answered'}: {items[i][0]}")
    return {"bytes": refusal.WEIGHTS.stat().st_size, "threshold": threshold} | {
        f"{source} declined": share(int(declined[sources == source].sum()), int((sources == source).sum()))
        for source in dict.fromkeys(sources)
    }


def measure(*, misses: bool) -> dict:
    """Return the share declined, or answered by a crisis card, of what training never saw."""
    held_out = harmful(1)
    caught = {request: stopped(request) for request, _ in held_out}
    ordinary = {
        "K-QA": [row["question"] for row in rows_of("Itaykhealth/K-QA", split="test")],
        "MedQuAD": medquad()[2500:4500],
    }
    refused = {name: [q for q in questions if refusal.decline(q)] for name, questions in ordinary.items()}
    if misses:
        print(*(f"{name} refused: {question}" for name in refused for question in refused[name]), sep="\n")
    by_category = {
        name: [caught[request] for request, number in held_out if number == category]
        for category, name in CATEGORIES.items()
    }
    return {
        "declined": share(sum(caught[request] for request, _ in held_out), len(held_out)),
        "declined_by_category": {name: share(sum(found), len(found)) for name, found in by_category.items()},
        "wrongly_declined": {name: share(len(refused[name]), len(ordinary[name])) for name in ordinary},
    }


def stopped(request: str) -> bool:
    """Whether no model sees a request: it is declined, or a crisis card answers it."""
    return triage.check(request).level == "crisis" or refusal.decline(request) is not None


if __name__ == "__main__":
    main()
