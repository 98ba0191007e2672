"""`python -m benchmarks.knowledge`: how well and how fast questions find their passages.

Prints the figures and writes them to benchmarks/results/knowledge.json. The parts that need MedQuAD are left out, and
said so, when neither DATASETS_MIRROR nor the Hub has it. `--fit` only prints the weights of the choice among a topic's
passages (medchat.knowledge.CHOICE) as fitted on asked.txt.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from medchat import knowledge
from medchat.errors import UserError
from medchat.knowledge import TOPICS, Knowledge, Topics, keyed_lines, open_knowledge, sentences, supported

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
RESULTS = ROOT / "benchmarks" / "results" / "knowledge.json"
OWN_FILES = 20_000


def main() -> None:
    """Run every part and write the figures."""
    started = time.process_time()
    topics = open_knowledge("builtin")
    assert isinstance(topics, Topics)
    if sys.argv[1:] == ["--fit"]:
        print(json.dumps(fit(topics), indent=2))
        return
    results: dict[str, object] = {
        "builtin": {"load_seconds": round(time.process_time() - started, 3), **builtin(topics)}
    }
    results["choice"] = choice(topics)
    results["left_out"] = left_out()
    results["support"] = support(topics)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEDCHAT_CACHE"] = str(Path(folder, "cache"))
        results["medquad"] = medquad()
        results["own_folder"] = own_folder(topics, Path(folder, "own"))
    print(json.dumps(results, indent=2))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def builtin(topics: Knowledge) -> dict:
    """Return hit@1, hit@3 and the off-topic rate on both halves of the question sets, and on all of them.

    "tune" is the half that the everyday words were once set on; only "test" is unseen.
    """
    return {name: retrieval(topics, split) for name, split in (("tune", "tune"), ("test", "test"), ("all", None))}


def left_out(turn: int = 2) -> dict[str, float]:
    """Return hit@1 and hit@3 on one question of asked.txt per topic, left out of the index, and the off-topic rate.

    The weights and the confidence are set on these questions; `turn` says which one of each topic is left out.
    """
    lines = [line for line in (TOPICS / "asked.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    those = [(line.partition(": ")[0], line.partition(": ")[2].split(" | ")) for line in lines]
    count: Counter[str] = Counter()
    asked: list[tuple[str, str]] = []
    for key, rest in those:
        id = key.partition("#")[0]
        if count[id] <= turn < count[id] + len(rest):
            asked.append((rest.pop(turn - count[id]), id))
            count[id] += 1
        count[id] += len(rest)
    kept = [f"{key}: {' | '.join(rest)}" for key, rest in those if rest]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(TOPICS, folder, dirs_exist_ok=True)
        Path(folder, "asked.txt").write_text("\n".join(kept), encoding="utf-8")
        topics = Topics(Path(folder))
    found = [([p.topic for p in topics.search(question, limit=3)], id) for question, id in asked]
    off = questions("off_topic_tuning.jsonl")
    return {
        "questions": len(asked),
        "hit@1": _share(f[:1] == [id] for f, id in found),
        "hit@3": _share(id in f for f, id in found),
        "off_topic": len(off),
        "off_topic_found": _share(topics.search(q["question"]) for q in off),
    }


def retrieval(topics: Knowledge, split: str | None) -> dict[str, float]:
    """Return the share of questions with a right topic first, among three, and of off-topic ones that find anything."""
    asked = questions("retrieval_questions.jsonl", split)
    found = [[p.topic for p in topics.search(q["question"], limit=3)] for q in asked]
    off = questions("off_topic_questions.jsonl", split)
    return {
        "questions": len(asked),
        "hit@1": _share(f[:1] and f[0] in q["topics"] for f, q in zip(found, asked, strict=True)),
        "hit@3": _share(set(f) & set(q["topics"]) for f, q in zip(found, asked, strict=True)),
        "off_topic": len(off),
        "off_topic_found": _share(topics.search(q["question"]) for q in off),
        "milliseconds": _milliseconds(topics.search, [q["question"] for q in asked]),
    }


def choice(topics: Topics) -> dict[str, float]:
    """Return how often the passage that answers a question is the first, or among two, of its topic's passages.

    Over test questions, for which a reader of all passages wrote down which one or two answer; `answered` is the share
    of all those questions that any passage answers.
    """
    read = [q for q in questions("retrieval_questions.jsonl", "test") if "passages" in q]
    asked = [q for q in read if q["passages"]]
    number = {topic["id"]: i for i, topic in enumerate(topics.topics)}
    keys = [topics.keys(number[q["topics"][0]], q["question"])[:2] for q in asked]
    return {
        "questions": len(read),
        "answered": round(len(asked) / len(read), 3),
        "first": _share(k[0] in q["passages"] for k, q in zip(keys, asked, strict=True)),
        "of_two": _share(set(k) & set(q["passages"]) for k, q in zip(keys, asked, strict=True)),
    }


def fit(topics: Topics, folds: int = 4) -> dict[str, object]:
    """Return CHOICE fitted on the questions of asked.txt, each left out, and how often it is right on unseen topics."""
    known = keyed_lines(TOPICS / "asked.txt").items()
    asked = [(*key.split("#"), q.strip()) for key, line in known if "#" in key for q in line.split("|")]
    number = {topic["id"]: i for i, topic in enumerate(topics.topics)}
    rows = []
    for id, key, question in asked:
        signs = topics.signs(number[id], question, but=question)
        rows.append((number[id] % folds, np.array(list(signs.values())), list(signs).index(key)))
    right = []
    for fold in range(folds):
        weights = _fitted([row for row in rows if row[0] != fold])
        right += [int(np.argmax(signs @ weights)) == answer for part, signs, answer in rows if part == fold]
    return {
        "questions": len(rows),
        "present": _share(int(np.argmax(signs @ knowledge.CHOICE)) == answer for _, signs, answer in rows),
        "cross_validated": _share(right),
        "CHOICE": [round(float(weight), 1) for weight in _fitted(rows)],
    }


def _fitted(rows: Sequence[tuple[int, np.ndarray, int]]) -> np.ndarray:
    """Return the weights of a softmax over each question's passages, by Newton's method with a small ridge."""
    weights = np.zeros(rows[0][1].shape[1])
    for _ in range(12):
        slope, curve = 1e-3 * len(rows) * weights, 1e-3 * len(rows) * np.eye(len(weights))
        for _, signs, answer in rows:
            chance = np.exp(signs @ weights - np.max(signs @ weights))
            chance /= chance.sum()
            mean = chance @ signs
            slope += mean - signs[answer]
            curve += (signs.T * chance) @ signs - np.outer(mean, mean)
        weights -= np.linalg.solve(curve, slope)
    return weights


def support(topics: Knowledge) -> dict[str, float]:
    """Return how many faithful and invented sentences the overlap check calls supported."""
    rows = questions("support_sentences.jsonl")
    called = [supported(row["sentence"], [p for p in [topics.get(row["passage"])] if p]) for row in rows]
    pairs = list(zip(rows, called, strict=True))
    return {
        "threshold": knowledge.SUPPORT,
        "faithful_supported": _share(c for row, c in pairs if row["supported"]),
        "invented_supported": _share(c for row, c in pairs if not row["supported"]),
    }


def medquad() -> dict | str:
    """Return seconds to build and to open again, memory and MRR over the paraphrased questions."""
    started = time.perf_counter()
    try:
        shelf = open_knowledge("medquad")
    except UserError as error:
        return f"left out: {error}"
    result: dict = {"passages": len(shelf), "build_seconds": round(time.perf_counter() - started, 1)}
    result.update(_opened_again("medquad"))
    for split in ("tune", "test"):
        asked = questions("medquad_questions.jsonl", split)
        result[split] = {
            "questions": len(asked),
            "mrr": round(sum(_reciprocal(shelf, q) for q in asked) / len(asked), 3),
            "off_topic_found": _share(
                shelf.search(q["question"]) for q in questions("off_topic_questions.jsonl", split)
            ),
            "milliseconds": _milliseconds(shelf.search, [q["question"] for q in asked]),
        }
    return result


def _reciprocal(shelf: Knowledge, question: dict) -> float:
    wanted = {topic.lower() for topic in question["topics"]}
    found = shelf.search(question["question"], limit=10)
    return next((1 / rank for rank, passage in enumerate(found, 1) if passage.topic.lower() in wanted), 0.0)


def own_folder(topics: Topics, folder: Path) -> dict:
    """Return seconds to index 20,000 files made by shuffling our own sentences, and to open them again."""
    pool = [s for topic in topics.topics for s in sentences(topic["overview"] + " " + topic["signs"])]
    dice = random.Random(0)
    for number in range(OWN_FILES):
        path = folder / f"{number // 500:03}" / f"note-{number:05}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# Note {number}\n\n" + " ".join(dice.sample(pool, 12)), encoding="utf-8")
    started = time.perf_counter()
    shelf = open_knowledge(str(folder))
    built = time.perf_counter() - started
    asked = [q["question"] for q in questions("retrieval_questions.jsonl", "tune")[:100]]
    return {
        "files": OWN_FILES,
        "passages": len(shelf),
        "build_seconds": round(built, 1),
        **_opened_again(str(folder)),
        "milliseconds": _milliseconds(shelf.search, asked),
    }


def _opened_again(source: str) -> dict[str, float]:
    """Return seconds to open an index and the memory it holds after a search, in a process of its own (Linux)."""
    code = (
        "import re, sys, time; from pathlib import Path; from medchat.knowledge import open_knowledge\n"
        "import medchat.shelf\n"
        "def mb(): return int(re.search(r'VmRSS:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before, t = mb(), time.perf_counter(); shelf = open_knowledge(sys.argv[1]); t = time.perf_counter() - t\n"
        "shelf.search('what helps against diabetis'); print(t, mb() - before)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, source], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    seconds, megabytes = map(float, out.split())
    return {"open_again_seconds": round(seconds, 3), "memory_mb": round(megabytes, 1)}


def questions(name: str, split: str | None = None) -> list[dict]:
    """Return the rows of a question file, of one split when it is named."""
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if split is None or row["split"] == split]


def _share(values: Iterable[object]) -> float:
    flags = [bool(value) for value in values]
    return round(sum(flags) / len(flags), 3)


def _milliseconds(search: Callable, asked: list[str]) -> float:
    """Return milliseconds of processor time per question, so that what else the machine does counts little."""
    search(asked[0])
    started = time.process_time()
    for question in asked:
        search(question)
    return round((time.process_time() - started) / len(asked) * 1000, 2)


if __name__ == "__main__":
    main()
