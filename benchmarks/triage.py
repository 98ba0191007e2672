"""`python -m benchmarks.triage`: how many emergencies and crises medchat.triage recognises, and its false alarms.

Reads tests/data/triage_bank.jsonl (or --bank FILE): {"text" or "turns", "level", "flag", "kind", "lang", "split"}.
`--ordinary FILE` adds ordinary questions, one a line, none of which should raise anything. Prints a table as JSON.

`--train` fits medchat.second_opinion on the tune half, the phrasings of tests/data/triage_phrases.jsonl, the examples
of assets/triage, ordinary questions and harmless turns of the dialogue corpus (half an hour), writes the weights, and
prints what the texts give on which encoder and judge were weighed (a little too good), and the tune half. The words
that it learns from pass the tables, so train again after a change of those.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

from medchat import hashed, second_opinion, triage

ASSETS = Path(__file__).parent.parent / "assets"
DATA = Path(__file__).parent.parent / "tests" / "data"
BANK = DATA / "triage_bank.jsonl"
CRISES = frozenset(triage.CRISES)
FOLDS = 5
RIDGE = 0.1  # the penalty on the squared weights
# The shares of unseen harmless texts that may raise an alarm, and a crisis: of short texts, then of longer near misses.
ALARMS = ((0.008, 0.004), (0.04, 0.02))  # by encoder and judge together
SURE = ((0.004, 0.002), (0.02, 0.004))  # by the judge alone, beside the encoder
JUDGED = (0.09, 0.04)  # of near misses, by the judge when it is fitted
HELD = 8  # every HELDth example is held out from the encoder, and every TURNth harmless turn of the dialogue corpus
TURN = 3
PARTS = [9, 10]  # where the evidence says that a stretch is a beginning of the text, or a sentence alone
PARTLY = 0.01  # the share of near misses that may raise an alarm by each of these
SHORT = 8  # words
COPIES = 0.4  # the share of texts of every level that also come talked down
TRUST = 2.0  # how much more the examples written after the rules count than those that the rules were made from


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
            # some of them tell of real emergencies: "ordinary" is what neither the topics nor the rules call urgent
            calm = item["split"] == "tune" and not urgent & set(item.get("topics", ()))
            if calm and not heard(item["question"])[0]:
                items.append({"text": item["question"], "level": "none", "source": "ordinary"})
    items += [{"text": text, "level": "none", "source": "gibberish"} for text in gibberish(200)]
    items += [{"text": text, "level": "none", "source": "excuses"} for text in excuses(300)]
    items += [item for i, item in enumerate(turns()) if i % TURN]
    found = {}
    for item in items:
        found.setdefault(" ".join(triage.words(said(item))), item)
    return [item for key, item in found.items() if key]


def said(item: dict) -> str:
    """Return all that a bank item says, as one text."""
    return "\n".join(item.get("turns") or [item["text"]])


def heard(text: str) -> tuple[dict[str, str], second_opinion.Heard]:
    """Return the flags that the rules raise in a text, and the text as they heard it."""
    return triage.recognise([triage.words(text)])[0][0]


def gibberish(count: int) -> list[str]:
    """Return texts of random letters and digits, and as many of a few repeated: none of them is a danger."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789   "))
    texts = ["".join(random.choice(letters, random.integers(5, 200))) for _ in range(count)]
    return texts + ["".join(random.choice(letters, 4)) * int(random.integers(10, 100)) for _ in range(count)]


def minimising() -> list[str]:
    """Return the sentences that play a danger down."""
    lines = (ASSETS / "triage" / "minimising.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def excuses(count: int) -> list[str]:
    """Return each sentence that plays a danger down, then `count` of two: alone they tell of no danger."""
    random, sentences = np.random.default_rng(0), minimising()
    return sentences + [" ".join(random.choice(sentences, 2)) for _ in range(count)]


def talked_down(items: Sequence[dict]) -> tuple[list[dict], list[int]]:
    """Return copies of some items with a sentence that plays the danger down, and whose copies they are."""
    sentences = minimising()
    random = np.random.default_rng(0)
    copies, owners = [], []
    for i, item in enumerate(items):
        added = " ".join(random.choice(sentences, random.integers(1, 3)))
        if random.random() < COPIES:
            text = said(item).rstrip()
            text = f"{added} {text}" if random.random() < 0.25 else f"{text}{'' if text[-1:] in '.!?' else '.'} {added}"
            copies.append({**item, "text": text, "turns": None})
            owners.append(i)
    return copies, owners


def train() -> dict:
    """Fit the second opinion, weigh its two parts on held-out texts, write it, and return the figures."""
    from benchmarks import finetune  # brings torch, which no measurement needs

    items = examples()
    copies, owners = talked_down(items)
    own = len(items)
    fold = np.random.default_rng(0).permutation(own) % FOLDS
    fold = np.append(fold, fold[owners])
    items += copies
    for item in items:
        item["flags"], item["heard"] = heard(said(item))
    levels = np.array([item["level"] for item in items])
    targets = np.stack([levels != "none", levels == "crisis"], axis=1)
    # the rules were made with an eye on the other texts, so only these tell how far the rules are to be trusted
    unseen = np.array([item["source"] == "examples" for item in items])
    counts = np.where(unseen, TRUST, 1.0)
    near = unseen & (levels == "none") & np.array([item.get("kind") != "ordinary" for item in items])
    near[own:] = False
    scores, judge = judged_unseen(items, targets, fold, near, counts)
    reader = hashed.fit([item["heard"][:2] for item in items], targets, RIDGE, counts)

    # every HELDth example stays away from the encoder: how it is weighed against the judge is set on these
    latin = np.array([second_opinion.is_latin(item["heard"].words) for item in items])
    held = np.array([zlib.crc32(said(item).encode()) % HELD == 0 for item in items[:own]]) & (unseen & latin)[:own]
    learned = np.flatnonzero(latin & ~np.append(held, held[owners])).tolist()
    common = (ASSETS / "triage" / "words.txt").read_text(encoding="utf-8").split()
    texts = [second_opinion.plain(items[i]["heard"].words) for i in learned]
    finetune.fine_tuned(texts, targets[learned], common, second_opinion.ENCODER)
    second_opinion.encoder.cache_clear()
    second_opinion.SCORES.clear()
    shown = np.flatnonzero(held).tolist()
    return weighed([items[i] for i in shown], scores[shown], near[shown], reader, judge)


def judged_unseen(
    items: Sequence[dict], targets: np.ndarray, fold: np.ndarray, near: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores [items, 2] that each item gets from a judge fitted on the other folds, and the judge of all."""
    seen: list[np.ndarray] = [np.empty(0)] * len(items)
    for k in range(FOLDS):
        rest = np.flatnonzero(fold != k).tolist()
        reader = hashed.fit([items[i]["heard"][:2] for i in rest], targets[rest], RIDGE, counts[rest])
        for i in np.flatnonzero(fold == k).tolist():
            seen[i] = second_opinion.evidence(items[i]["heard"], CRISES, reader)
    # in a few words an exact phrase of the rules is all there is to judge by
    short = np.array([len(item["heard"].words) <= SHORT for item in items])
    weighed = (counts == TRUST) | short
    scores = np.zeros(targets.shape)
    for k in range(FOLDS):
        judge = fit_judge(seen, targets, weighed & (fold != k), near & (fold != k))
        for i in np.flatnonzero(fold == k).tolist():
            scores[i] = highest(seen[i], judge)
    return scores, fit_judge(seen, targets, weighed, near)


def highest(seen: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Return the judge's scores [2] of a text by its most alarming stretch."""
    return second_opinion.verdicts(seen, judge).max(axis=0, initial=-second_opinion.MOST_SAID)


def weighed(held: list[dict], judged: np.ndarray, near: np.ndarray, reader: hashed.Linear, judge: np.ndarray) -> dict:
    """Weigh encoder and judge on held-out items and turns of the corpus, write the weights, return the figures."""
    calm = [item | {"heard": heard(item["text"])[1]} for item in turns()[::TURN]]
    said_of = [highest(second_opinion.evidence(item["heard"], CRISES, reader), judge) for item in calm]
    weigh, found = fit_weights(
        held + calm, np.vstack([judged, said_of]), np.append(near, np.zeros(len(calm), bool)), reader
    )
    hashed.write(second_opinion.WEIGHTS, reader, judge=judge, weigh=weigh)
    second_opinion.models.cache_clear()
    n = len(held)
    ruled = np.array([[bool(item["flags"]), triage.level_of(item["flags"]) == "crisis"] for item in held])
    by_language = [f"{item.get('lang', 'en')} {item['level']}" for item in held]
    return {
        "judge": judge.round(2).tolist(),
        "weigh": weigh.round(2).tolist(),
        "turns of the corpus that raise an alarm": share(int(found[n:, 0].sum()), len(calm)),
        "held out by level": table(held, [item["level"] for item in held], ruled, found[:n]),
        "held out by language": table(held, by_language, ruled, found[:n]),
    }


def turns() -> list[dict]:
    """Return what people write in the training dialogues of the corpus that are no emergency, shuffled."""
    from train import corpus

    said = {
        " ".join(triage.words(message["content"])): message["content"]
        for row in corpus.read()
        if row["split"] == "train" and row["kind"] != "emergency"
        for message in row["messages"]
        if message["role"] == "user"
    }
    texts = [text for key, text in said.items() if key]
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    return [{"text": texts[i], "level": "none", "source": "turns"} for i in order]


def fit_weights(
    items: Sequence[dict], judged: np.ndarray, near: np.ndarray, reader: hashed.Linear
) -> tuple[np.ndarray, np.ndarray]:
    """Return how encoder and judge are weighed [2, 4, 2] (see second_opinion.models), and the verdicts [items, 2] so.

    Neither has seen the items; `judged` are the judge's scores [items, 2], `near` says which are near misses. Short
    texts and longer ones are weighed apart; what may raise an alarm is set on harmless short texts of every kind, and
    on longer near misses.
    """
    from scipy.sparse import csr_matrix

    seen = np.array([second_opinion.encoder_scores(item["heard"], reader) for item in items])
    levels = np.array([item["level"] for item in items])
    targets = np.stack([levels != "none", levels == "crisis"], axis=1)
    clipped = np.clip(judged, -second_opinion.MOST_SAID, second_opinion.MOST_SAID)
    longer = np.array([second_opinion.is_longer(item["heard"].words) for item in items])
    weigh = np.zeros((2, 4, 2))
    for size, output in product(range(2), range(2)):
        here = longer == size
        quiet = here & (levels == "none") & (near | (size == 0))
        both = np.stack([seen[:, output], clipped[:, output]], axis=1)
        weights = hashed.logistic(csr_matrix(both[here]), targets[here, output], RIDGE)[:2]
        bias = -float(np.quantile((both @ weights)[quiet], 1 - ALARMS[size][output]))
        sure = float(np.quantile(judged[quiet, output], 1 - SURE[size][output]))
        weigh[size, :, output] = [*weights, bias, sure]
    weigh[0, 3] = weigh[:, 3].max(axis=0)  # more words never need a surer judge
    of_encoder, of_judge, bias, sure = weigh[longer.astype(int)].transpose(1, 0, 2)
    found = np.maximum(seen * of_encoder + clipped * of_judge + bias, judged - sure) > 0
    found[:, 0] |= found[:, 1]
    return weigh, found


def fit_judge(seen: Sequence[np.ndarray], targets: np.ndarray, rows: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the judge's weights [12, 2]: learned from the most alarming stretch of each text among `rows`.

    The bias lets through JUDGED of the near misses `near`, and the weights of PARTS let PARTLY more through.
    """
    from scipy.sparse import csr_matrix

    judge = np.zeros((seen[0].shape[1] + 1, 2))
    learned = [i for i in np.flatnonzero(rows).tolist() if len(seen[i])]  # gibberish has no evidence
    misses = [seen[i] for i in np.flatnonzero(near).tolist()]
    for output in range(2):
        column = np.zeros(len(judge))
        column[[output, output + 2, output + 4]] = 1.0  # to start with: the scores and the rules
        for _ in range(3):
            column[PARTS] = -100.0  # no part counts
            chosen = [seen[i][(seen[i] @ column[:-1]).argmax()] for i in learned]
            column = hashed.logistic(csr_matrix(np.array(chosen)), targets[learned, output], RIDGE)
        column[PARTS] = -100.0
        column[-1] -= np.quantile(
            [second_opinion.verdicts(m, column).max(initial=-100.0) for m in misses], 1 - JUDGED[output]
        )
        column[PARTS] = 0.0
        for part in PARTS:
            alarms = [second_opinion.verdicts(m, column)[m[:, part] > 0].max(initial=-100.0) for m in misses]
            judge[part, output] = -max(0.0, float(np.quantile(alarms, 1 - PARTLY)))
        judge[:, output] += column
    return judge


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
