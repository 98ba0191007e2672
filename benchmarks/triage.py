"""`python -m benchmarks.triage`: how many emergencies and crises medchat.triage recognises, and its false alarms.

Reads tests/data/triage_bank.jsonl (or --bank FILE): {"text" or "turns", "level", "flag", "kind", "lang", "split"}.
`--ordinary FILE` adds ordinary questions, one a line, none of which should raise anything. Prints a table as JSON.

`--train` fits medchat.second_opinion on the tune half, the phrasings of tests/data/triage_phrases.jsonl and
assets/triage/train.jsonl and ordinary questions (a minute), prints what five-fold cross-validation finds, and writes
the weights. The words that it learns from pass the spelling tables, so train again after a change of the tables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from medchat import second_opinion, triage

ASSETS = Path(__file__).parent.parent / "assets"
DATA = Path(__file__).parent.parent / "tests" / "data"
BANK = DATA / "triage_bank.jsonl"
FOLDS = 5
RIDGE = 0.1  # the penalty on the squared weights
QUIET = 0.99  # of near misses and ordinary questions, this share must stay silent in cross-validation
CONSTANT = 0.3  # the square of the constant feature that carries the bias


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("tune", "test"), help="only this half of the bank (default: all of it)")
    parser.add_argument("--bank", type=Path, default=BANK)
    parser.add_argument("--ordinary", type=Path, help="ordinary questions, one a line")
    parser.add_argument("--misses", action="store_true", help="print every item that is judged wrongly")
    parser.add_argument("--train", action="store_true", help="fit and write the weights of the second opinion")
    args = parser.parse_args()
    if args.train:
        print(json.dumps(train(), indent=2))
        return
    items = read(args.bank)
    items = [item for item in items if args.split in (None, item["split"])]
    result = measure(items, misses=args.misses)
    if args.ordinary:
        questions = args.ordinary.read_text(encoding="utf-8").splitlines()
        alarms = [question for question in questions if triage.check(question).level != "none"]
        result["false_alarms_ordinary"] = share(len(alarms), len(questions))
        if args.misses:
            print(*(f"ordinary: {question}" for question in alarms), sep="\n")
    print(json.dumps(result, indent=2))


def read(path: Path) -> list[dict]:
    """Return the objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def conversation(item: dict) -> list[dict[str, str]]:
    """Return a bank item as a chat's messages."""
    return [{"role": "user", "content": turn} for turn in item.get("turns") or [item["text"]]]


def measure(items: Sequence[dict], *, misses: bool = False) -> dict:
    """Return recall by level, flag and language, false alarms, and milliseconds per item.

    An emergency counts as recognised at level emergency or crisis, a crisis only at level crisis.
    """
    triage.check("ready")  # reads the tables
    right, wrong, times = Counter(), Counter(), []
    for item in items:
        start = time.perf_counter()
        found = triage.check(conversation(item))
        times.append(1000 * (time.perf_counter() - start))
        enough = {"none": ("none",), "emergency": ("emergency", "crisis"), "crisis": ("crisis",)}[item["level"]]
        keys = [item["level"], f"language {item['lang']} {item['level'] != 'none'}"]
        if item["level"] != "none":
            keys.append(f"flag {item['flag']}")
        (right if found.level in enough else wrong).update(keys)
        if misses and found.level not in enough:
            flags = " ".join(flag.id for flag in found.flags)
            said = " || ".join(message["content"] for message in conversation(item))
            print(f"{item['level']} {item.get('flag')} -> {found.level} {flags}: {said}")
    total = right + wrong
    return {
        "emergency_recall": share(right["emergency"], total["emergency"]),
        "crisis_recall": share(right["crisis"], total["crisis"]),
        "false_alarms": share(wrong["none"], total["none"]),
        "missed_by_flag": {key[5:]: f"{wrong[key]}/{total[key]}" for key in sorted(wrong) if key.startswith("flag ")},
        "wrong_by_language": {
            key[9:]: f"{wrong[key]}/{total[key]}" for key in sorted(wrong) if key.startswith("language")
        },
        "milliseconds": {"median": round(median(times), 3), "worst": round(max(times), 2)},
    }


def share(part: int, whole: int) -> dict[str, float | int]:
    """Return a share with its counts."""
    return {"value": round(part / whole, 4) if whole else 0.0, "n": part, "of": whole}


# --- the second opinion ----------------------------------------------------------------------------------------------


def examples() -> list[dict]:
    """Return what to learn from: {"text" or "turns", "level", "source", "words"}, no wording twice."""
    urgent = {text["id"] for text in read(ASSETS / "knowledge" / "first-aid.jsonl")}
    items = [item | {"source": "tune"} for item in read(BANK) if item["split"] == "tune"]
    items += [item | {"source": "phrases"} for item in read(DATA / "triage_phrases.jsonl")]
    items += [item | {"source": "train"} for item in read(ASSETS / "triage" / "train.jsonl")]
    for name in ("medquad", "off_topic", "retrieval"):
        for item in read(DATA / f"{name}_questions.jsonl"):
            # "ordinary" is only what neither the topics nor the rules call urgent
            calm = item["split"] == "tune" and not urgent & set(item.get("topics", ()))
            if calm and not triage.recognise([triage.words(item["question"])]):
                items.append({"text": item["question"], "level": "none", "source": "ordinary"})
    found = {}
    for item in items:
        tokens = triage.words("\n".join(item.get("turns") or [item["text"]]))
        found.setdefault(" ".join(tokens), item | {"words": tokens})
    return [item for key, item in found.items() if key]


def train() -> dict:
    """Fit the two regressions, set their thresholds by cross-validation, write the weights, and return the figures."""
    items = examples()
    design = matrix(items)
    used = np.flatnonzero(design.any(axis=0))
    design = design[:, used]
    kernel = (design @ design.T).astype(np.float64) + CONSTANT
    levels = np.array([item["level"] for item in items])
    sources = np.array([item["source"] for item in items])
    targets = np.stack([levels != "none", levels == "crisis"], axis=1).astype(float)
    fold = np.random.default_rng(0).permutation(len(items)) % FOLDS
    scores = np.zeros((len(items), 2))
    for k in range(FOLDS):
        weights, bias = fit(design, kernel, targets, np.flatnonzero(fold != k))
        weights = spread_out(weights, used)
        for i in np.flatnonzero(fold == k):
            scores[i] = second_opinion.margins(items[i]["words"], weights, bias)
    # train.jsonl has near misses that were written to be hard; how often people write such is what the others tell
    thresholds = np.quantile(scores[(levels == "none") & (sources != "train")], QUIET, axis=0)
    weights, bias = fit(design, kernel, targets, np.arange(len(items)))
    weights = spread_out(weights, used).astype(np.float16)
    np.savez_compressed(second_opinion.WEIGHTS, weights=weights, bias=(bias - thresholds).astype(np.float32))
    second_opinion.model.cache_clear()
    said = scores > thresholds
    rules = np.array([triage.level_of(triage.recognise([item["words"]])) for item in items])
    return {"bytes": second_opinion.WEIGHTS.stat().st_size} | {
        f"{source} {level}": {
            "model": share(int(said[here, int(level == "crisis")].sum()), int(here.sum())),
            "rules": share(int(enough(rules[here], level).sum()), int(here.sum())),
            "both": share(
                int((said[here, int(level == "crisis")] | enough(rules[here], level)).sum()), int(here.sum())
            ),
        }
        for source in ("tune", "phrases", "train", "ordinary")
        for level in ("emergency", "crisis", "none")
        if (here := (sources == source) & (levels == level)).any()
    }


def enough(found: np.ndarray, level: str) -> np.ndarray:
    """Whether each level found is an alarm, or for a crisis, a crisis."""
    return found == "crisis" if level == "crisis" else found != "none"


def matrix(items: Sequence[dict]) -> np.ndarray:
    """Return the features of each item's words, [items, BINS] float32, as medchat.second_opinion weighs them."""
    rows = np.zeros((len(items), second_opinion.BINS), dtype=np.float32)
    for row, item in zip(rows, items, strict=True):
        found, values, _ = second_opinion.features(item["words"])
        np.add.at(row, found, values / second_opinion.length(len(item["words"])))
    return rows


def spread_out(weights: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return the weights of the features `used`, [len(used), 2], in their places among all: [BINS, 2]."""
    places = np.zeros((second_opinion.BINS, 2), dtype=np.float32)
    places[used] = weights
    return places


def fit(design: np.ndarray, kernel: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [features, 2] and biases [2] of ridge-penalised logistic regression on `rows`, by Newton's method.

    It solves for one number per example instead of one per feature, which is exact, quick and the same every time.
    """
    inner = kernel[np.ix_(rows, rows)]
    columns = []
    for target in targets[rows].T:
        part = np.zeros(len(rows))
        for _ in range(6):
            score = inner @ part
            chance = 1 / (1 + np.exp(-score))
            spread = np.maximum(chance * (1 - chance), 1e-4)
            root = np.sqrt(spread)
            system = root[:, None] * inner * root
            system.flat[:: len(rows) + 1] += RIDGE
            part = root * np.linalg.solve(system, root * (score + (target - chance) / spread))
        columns.append(part)
    parts = np.stack(columns, axis=1)
    return design[rows].T @ parts.astype(np.float32), CONSTANT * parts.sum(axis=0)


if __name__ == "__main__":
    main()
