"""`python -m benchmarks.triage`: how many emergencies and crises medchat.triage recognises, and its false alarms.

Reads tests/data/triage_bank.jsonl (or --bank FILE): {"text" or "turns", "level", "flag", "kind", "lang", "split"}.
`--ordinary FILE` adds ordinary questions, one a line, none of which should raise anything. Prints a table as JSON.

`--train` fits medchat.second_opinion on the tune half, the phrasings of tests/data/triage_phrases.jsonl, the examples
of assets/triage and ordinary questions (minutes), writes the weights, and prints what five-fold cross-validation and
the tune half give. The words that it learns from pass the tables, so train again after a change of those.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from medchat import hashed, second_opinion, triage

ASSETS = Path(__file__).parent.parent / "assets"
DATA = Path(__file__).parent.parent / "tests" / "data"
BANK = DATA / "triage_bank.jsonl"
FOLDS = 5
RIDGE = 0.1  # the penalty on the squared weights
ALARMS = (0.03, 0.01)  # the share of near misses that may raise an alarm, and a crisis, in cross-validation


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
        args.split = args.split or "tune"
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
    """Return what to learn from: {"text" or "turns", "level", "source", ...}, no wording twice."""
    urgent = {text["id"] for text in read(ASSETS / "knowledge" / "first-aid.jsonl")}
    items = [item | {"source": "tune"} for item in read(BANK) if item["split"] == "tune"]
    items += [item | {"source": "phrases"} for item in read(DATA / "triage_phrases.jsonl")]
    items += [item | {"source": "train"} for item in read(ASSETS / "triage" / "train.jsonl")]
    items += [item | {"source": "examples"} for item in read(ASSETS / "triage" / "examples.jsonl")]
    for name in ("medquad", "off_topic", "retrieval"):
        for item in read(DATA / f"{name}_questions.jsonl"):
            # "ordinary" is only what no first-aid topic answers
            if item["split"] == "tune" and not urgent & set(item.get("topics", ())):
                items.append({"text": item["question"], "level": "none", "source": "ordinary"})
    items += [{"text": text, "level": "none", "source": "gibberish"} for text in gibberish(200)]
    found = {}
    for item in items:
        found.setdefault(" ".join(triage.words(said(item))), item)
    return [item for key, item in found.items() if key]


def said(item: dict) -> str:
    """Return all that a bank item says, as one text."""
    return "\n".join(item.get("turns") or [item["text"]])


def gibberish(count: int) -> list[str]:
    """Return texts of random letters and digits: none of them is a danger."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789   "))
    return ["".join(random.choice(letters, random.integers(5, 200))) for _ in range(count)]


def train() -> dict:
    """Fit the second opinion, set its thresholds by cross-validation, write it, and return the figures."""
    items = examples()
    for item in items:
        ((item["flags"], item["heard"]),) = triage.recognise([triage.words(said(item))])[0]
    levels = np.array([item["level"] for item in items])
    targets = np.stack([levels != "none", levels == "crisis"], axis=1).astype(float)
    # the rules were made with an eye on the other texts, so only these tell how far the rules are to be trusted
    unseen = np.array([item["source"] == "examples" for item in items])
    fold = np.random.default_rng(0).permutation(len(items)) % FOLDS
    seen = np.stack([weighed(item, reader) for item, reader in zip(items, folds(items, targets, fold), strict=True)])
    judge, verdicts = np.zeros((seen.shape[1] + 1, 2)), np.zeros(targets.shape)
    for output, alarms in enumerate(ALARMS):
        for k in range(FOLDS):
            solved = hashed.logistic(seen[unseen & (fold != k)], targets[unseen & (fold != k), output], RIDGE)
            verdicts[fold == k, output] = seen[fold == k] @ solved[:-1] + solved[-1]
        threshold = np.quantile(verdicts[unseen & (levels == "none"), output], 1 - alarms)
        verdicts[:, output] -= threshold
        judge[:, output] = hashed.logistic(seen[unseen], targets[unseen, output], RIDGE)
        judge[-1, output] -= threshold
    hashed.write(second_opinion.WEIGHTS, hashed.fit([i["heard"] for i in items], targets, ridge=RIDGE), judge=judge)
    second_opinion.models.cache_clear()
    ruled = np.array([[bool(item["flags"]), triage.level_of(item["flags"]) == "crisis"] for item in items])
    verdicts[:, 0] = verdicts.max(axis=1)
    return {"bytes": second_opinion.WEIGHTS.stat().st_size, "judge": judge.round(3).tolist()} | {
        "cross-validation by source": table(items, [f"{i['source']} {i['level']}" for i in items], ruled, verdicts > 0),
        "by flag of the unseen": table(
            items, [i.get("flag") if new else None for i, new in zip(items, unseen, strict=True)], ruled, verdicts > 0
        ),
    }


def folds(items: Sequence[dict], targets: np.ndarray, fold: np.ndarray) -> Iterator[hashed.Linear]:
    """Yield for each item a reader that has not learned from it."""
    readers = [
        hashed.fit([items[i]["heard"] for i in np.flatnonzero(fold != k)], targets[fold != k], ridge=RIDGE)
        for k in range(FOLDS)
    ]
    return (readers[k] for k in fold)


def weighed(item: dict, reader: hashed.Linear) -> np.ndarray:
    """Return the evidence that the judge of the second opinion weighs."""
    heard, flags = item["heard"], item["flags"]
    scores = reader.scores(heard, second_opinion.standing(heard, triage.sentences(heard)))
    return second_opinion.evidence(scores, flags, triage.level_of(flags) == "crisis", len(heard))


def table(items: Sequence[dict], keys: Sequence[str | None], ruled: np.ndarray, both: np.ndarray) -> dict[str, dict]:
    """Return by key how many items there are, and what share is an alarm (of crises: a crisis) by rules, and in all."""
    crisis = np.array([int(item["level"] == "crisis") for item in items])
    rows, found = np.arange(len(items)), {}
    for key in sorted({key for key in keys if key}):
        here = np.array([k == key for k in keys])
        found[key] = {"n": int(here.sum())} | {
            name: round(float(yes[rows, crisis][here].mean()), 3) for name, yes in (("rules", ruled), ("all", both))
        }
    return found


if __name__ == "__main__":
    main()
