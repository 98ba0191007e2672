"""The dialogues of assets/corpus: `python -m train.corpus` prints their figures and everything wrong with them.

assets/corpus/GUIDE.md says how a dialogue is written; this module holds what of it a program can check. With
`--outside lavita/MedQuAD qiaojin/PubMedQA:pqa_labeled` it prints the longest run of words that an answer shares with
each of those data sets.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medchat import triage
from medchat.knowledge import Knowledge, open_knowledge

DIALOGUES = Path(__file__).parent.parent / "assets" / "corpus" / "dialogues.jsonl"

# Kinds that answer from passages, then the others.
FROM_PASSAGES = ("explain", "what_to_do", "when_to_seek_care", "compare", "prepare_visit", "family", "medicine")
KINDS = (*FROM_PASSAGES, "misfit", "no_passage", "small_talk", "off_topic", "harmful", "other_language", "emergency")

# Fewest and most words of a first answer; a later one may be short ("You are welcome.").
WORDS = {"small_talk": (6, 90), "off_topic": (10, 90), "harmful": (20, 120), "other_language": (10, 90)}
USUAL = (40, 150)
SHORTER = (30, 150)  # where no passage fits, there is less to say
BESIDE_CARD = (8, 75)  # an answer under an emergency card adds a few calm sentences
LATER = 6
LONGEST_COPY = 12  # words in a row that an answer may share with a passage or an outside data set
SAME = 0.3  # two dialogues whose answers share this much of their runs of four words are near-duplicates

STOCK = re.compile(
    r"it(?:'s| is) (?:important|essential|crucial|worth noting|always best)|sorry to hear|\bremember[,:]|^remember\b"
    r"|great question|good question|thank you for (?:asking|sharing|your|reaching)|as an ai\b|language model"
    r"|it sounds like|that sounds (?:really |very )?(?:tough|difficult|frustrating|uncomfortable|scary)"
    r"|i understand (?:that|your|how)|^(?:absolutely|certainly|of course|sure)\b|feel free to|don't hesitate"
    r"|do not hesitate|i hope this|hope that helps|in conclusion|in summary|overall,|please note|rest assured"
    r"|healthcare (?:provider|professional)|health care (?:provider|professional)|the passages\b|based on the"
    r"|(?:the|this) passage (?:says|does|is)",
    re.IGNORECASE | re.MULTILINE,
)
MARKUP = re.compile(r"[*#`_|<>\[\]\u2013\u2014\u2018\u2019\u201c\u201d\u2026]|https?:|www\.|  |\n{3,}|[ \t]\n|\t")
END = re.compile(r"[.!?\u0964\u061f]$")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

# Names that the medicine topics have beside true medicine names; an answer may use these words freely.
NOT_A_MEDICINE = {
    *("benzos", "painkillers", "hypnotics", "puffer", "polypharmacy", "multivitamins", "salicylate"),
    *("shots", "jabs", "immunization", "immunisation", "vaccination", "inoculation"),
    *("apap", "asa", "dmard", "ics", "mht", "mtx", "ors"),
}


def read(path: Path = DIALOGUES) -> list[dict[str, Any]]:
    """Return the dialogues of a file: id, topic, kind, split, messages, and passage ids per user turn."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def problems(row: dict[str, Any], knowledge: Knowledge, medicines: frozenset[str]) -> list[str]:
    """Return everything that is wrong with one dialogue, a sentence each; `medicines` as medicine_names gives them."""
    if found := form(row):
        return found
    users = [m["content"] for m in row["messages"][::2]]
    answers = [m["content"] for m in row["messages"][1::2]]
    read_so_far = ""
    for turn, (answer, ids) in enumerate(zip(answers, row["passages"], strict=True)):
        asked = users[: turn + 1]
        assessment = triage.check([{"role": "user", "content": text} for text in asked])
        passages = [knowledge.get(id) for id in ids]
        found += [f"turn {turn + 1}: no passage {id!r}" for id, p in zip(ids, passages, strict=True) if p is None]
        texts = [f"{p.title}: {p.text}" for p in passages if p]
        read_so_far += " ".join([asked[-1], *texts, ""])
        mistakes = [
            *triage_mistakes(row["kind"], assessment, last=turn == len(answers) - 1),
            *answer_mistakes(answer, assessment, limits(row["kind"], turn, assessment.level == "emergency")),
            *invented(answer, read_so_far, medicines),
        ]
        for text in texts:
            if len(copy := copied(answer, text).split()) > LONGEST_COPY:
                mistakes.append(f"{len(copy)} words copied: {' '.join(copy)!r}")
        read_so_far += answer + " "
        found += [f"turn {turn + 1}: {mistake}" for mistake in mistakes]
    if row["kind"] in (*FROM_PASSAGES, "misfit") and not any(row["passages"]):
        found.append(f"kind {row['kind']} without any passage")
    if row["kind"] == "no_passage" and any(row["passages"]):
        found.append("kind no_passage with passages")
    return found


def form(row: dict[str, Any]) -> list[str]:
    """Return what is wrong with a dialogue's fields and roles."""
    if set(row) != {"id", "topic", "kind", "split", "messages", "passages"}:
        return [f"the fields are {sorted(row)}"]
    found = []
    if row["kind"] not in KINDS:
        found.append(f"kind {row['kind']!r} is none of {', '.join(KINDS)}")
    if row["split"] not in ("train", "held_out"):
        found.append(f"split {row['split']!r}")
    roles = [message["role"] for message in row["messages"]]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        found.append("the roles do not alternate from user to assistant")
    if any(not message["content"].strip() for message in row["messages"]):
        found.append("an empty message")
    if len(row["passages"]) != len(roles) // 2:
        found.append(f"{len(row['passages'])} lists of passages for {len(roles) // 2} user turns")
    return found


def limits(kind: str, turn: int, flagged: bool) -> tuple[int, int]:
    """Return the fewest and the most words of an answer."""
    if flagged:
        return BESIDE_CARD
    default = SHORTER if kind in ("misfit", "no_passage") else (15, 150) if kind == "emergency" else USUAL
    least, most = WORDS.get(kind, default)
    return (least, most) if turn == 0 else (LATER, USUAL[1])


def triage_mistakes(kind: str, assessment: triage.Assessment, *, last: bool) -> Iterator[str]:
    """Yield where the dialogue's kind and what triage says of the user's turns so far disagree."""
    flags = ", ".join(flag.id for flag in assessment.flags)
    if assessment.level == "crisis":
        yield f"triage sees a crisis ({flags}), where no model answers"
    elif assessment.level == "emergency" and kind != "emergency":
        yield f"triage sees an emergency ({flags}) in a dialogue of kind {kind}"
    elif assessment.level == "none" and kind == "emergency" and last:
        yield "triage sees no emergency"


def answer_mistakes(answer: str, assessment: triage.Assessment, size: tuple[int, int]) -> Iterator[str]:
    """Yield what is wrong with an answer alone: its length, markup, stock phrases, end, and what the guard repairs."""
    count = len(answer.split())
    if not size[0] <= count <= size[1]:
        yield f"{count} words, {size[0]} to {size[1]} belong here"
    if match := STOCK.search(answer):
        yield f"stock phrase {match.group()!r}"
    if match := MARKUP.search(answer):
        yield f"markup or spacing {match.group()!r}"
    if answer != answer.strip() or not END.search(answer):
        yield "does not end with a whole sentence"
    if triage.guard(answer, assessment) != answer:
        yield f"the output guard changes it to {triage.guard(answer, assessment)[-80:]!r}"


def invented(answer: str, told: str, medicines: frozenset[str]) -> Iterator[str]:
    """Yield numbers and medicines of an answer that neither the passages nor the person named.

    Does NOT cover: numbers in words, treatments other than the medicines of the built-in topics, or any other fact.
    """
    numbers = set(NUMBER.findall(told))
    body = re.sub(r"^\d\. ", "", answer, flags=re.MULTILINE)
    for number in dict.fromkeys(NUMBER.findall(body)):
        if number not in numbers:
            yield f"the number {number} comes from nowhere"
    known = set(plain_words(told))
    for word in dict.fromkeys(plain_words(answer)):
        if word in medicines and word not in known:
            yield f"the medicine {word!r} comes from nowhere"


def medicine_names(folder: Path) -> frozenset[str]:
    """Return the one-word names of medicines that medicines.jsonl in the topics' folder knows, in lower case."""
    names: set[str] = set()
    for line in (folder / "medicines.jsonl").read_text(encoding="utf-8").splitlines():
        topic = json.loads(line)
        if topic["kind"] == "medicine":
            names |= {name for name in [topic["title"].lower(), *topic["aliases"]] if name.isalpha()}
    return frozenset(names - NOT_A_MEDICINE)


# --- likeness ---


def plain_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("\u2019", "'"))


def copied(text: str, source: str) -> str:
    """Return the longest run of words that two texts share."""
    a, b = plain_words(text), plain_words(source)
    best, end = 0, 0
    before = [0] * (len(b) + 1)
    for i, word in enumerate(a):
        row = [0] * (len(b) + 1)
        for j, other in enumerate(b):
            if word == other:
                row[j + 1] = before[j] + 1
                if row[j + 1] > best:
                    best, end = row[j + 1], i + 1
        before = row
    return " ".join(a[end - best : end])


def runs(text: str, size: int) -> set[str]:
    """Return every run of `size` words of a text."""
    found = plain_words(text)
    return {" ".join(found[i : i + size]) for i in range(len(found) - size + 1)}


def near_duplicates(texts: Sequence[str], same: float = SAME) -> list[tuple[int, int, float]]:
    """Return (earlier, later, share) of texts whose runs of four words are alike (Jaccard index of at least `same`)."""
    shingles = [runs(text, 4) for text in texts]
    holders: dict[str, list[int]] = defaultdict(list)
    found = []
    for later, own in enumerate(shingles):
        shared = Counter(earlier for run in own for earlier in holders[run])
        for earlier, count in shared.items():
            share = count / len(own | shingles[earlier])
            if share >= same:
                found.append((earlier, later, share))
        for run in own:
            if len(holders[run]) < 200:  # a run that stands in hundreds of answers tells nothing and costs time
                holders[run].append(later)
    return found


def longest_overlap(texts: Sequence[str], outside: Iterable[str], start: int = 6) -> str:
    """Return the longest run of words that `texts` share with an outside text; "" when it is under `start` words."""
    known = {run for text in texts for run in runs(text, start)}
    joined = " " + " | ".join(" ".join(plain_words(text)) for text in texts) + " "
    best = ""
    for text in outside:
        found = plain_words(text)
        i = 0
        while i <= len(found) - start:
            end = i + start
            if " ".join(found[i:end]) in known:
                while end < len(found) and f" {' '.join(found[i : end + 1])} " in joined:
                    end += 1
                if end - i > len(best.split()):
                    best = " ".join(found[i:end])
            i += 1
    return best


# --- the whole corpus ---


def answers_of(row: dict[str, Any]) -> str:
    """Return all that the assistant says in a dialogue."""
    return "\n".join(message["content"] for message in row["messages"] if message["role"] == "assistant")


def split_problems(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the held-out subjects that a training dialogue is about or reads."""
    held_out = {row["topic"] for row in rows if row["split"] == "held_out"} - {None}
    trained = {topic for row in rows if row["split"] == "train" for topic in topics_of(row)}
    return [f"topic {topic} is held out and trained on" for topic in sorted(held_out & trained)]


def topics_of(row: dict[str, Any]) -> set[str]:
    """Return the ids of the topics that a dialogue is about or reads."""
    read = {id.partition("#")[0] for ids in row["passages"] for id in ids}
    return read | ({row["topic"]} if row["topic"] else set())


def corpus_problems(rows: Sequence[dict[str, Any]], knowledge: Knowledge, medicines: frozenset[str]) -> list[str]:
    """Return everything that is wrong with the corpus, one line each."""
    found = [f"{row['id']}: {problem}" for row in rows for problem in problems(row, knowledge, medicines)]
    counts = Counter(row["id"] for row in rows)
    found += [f"{id}: stands {count} times" for id, count in counts.items() if count > 1]
    found += split_problems(rows)
    for earlier, later, share in near_duplicates([answers_of(row) for row in rows]):
        found.append(f"{rows[later]['id']}: {share:.0%} the same as {rows[earlier]['id']}")
    return found


def figures(rows: Sequence[dict[str, Any]]) -> str:
    """Return the corpus in figures, a few lines: counts by kind and split, turns, words, openings."""
    kinds = Counter(row["kind"] for row in rows)
    splits = Counter(row["split"] for row in rows)
    turns = [len(row["messages"]) // 2 for row in rows]
    answers = [message["content"] for row in rows for message in row["messages"][1::2]]
    sizes = sorted(len(answer.split()) for answer in answers)
    read = sum(any(row["passages"]) for row in rows)
    openings = Counter(" ".join(plain_words(answer)[:3]) for answer in answers)
    return "\n".join(
        [
            f"{len(rows):,} dialogues, {len(answers):,} answers; {sum(turn > 1 for turn in turns) / len(rows):.0%} "
            f"with several turns; {read / len(rows):.0%} with passages",
            f"splits: {', '.join(f'{name} {count:,}' for name, count in splits.most_common())}",
            f"words of an answer: median {sizes[len(sizes) // 2]}, from {sizes[0]} to {sizes[-1]}",
            "kinds: " + ", ".join(f"{kind} {kinds[kind]:,} ({kinds[kind] / len(rows):.1%})" for kind in KINDS),
            "commonest openings: " + ", ".join(f"{opening!r} {n}" for opening, n in openings.most_common(5)),
        ]
    )


def outside_texts(name: str) -> Iterator[str]:
    """Yield every text of a Hub data set, "ORG/NAME[:CONFIG][@SPLIT]", else its train split. Raises UserError."""
    from train.tables import open_table, place

    where, _, split = name.partition("@")
    dataset, _, config = where.partition(":")
    for _, row in open_table(place(dataset, config or None, split or "train")).rows():
        if isinstance(row, dict):
            yield from _texts(row)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def main() -> None:
    """Print the figures of the corpus and its problems; exit 1 when there are any."""
    from medchat.knowledge import TOPICS

    parser = argparse.ArgumentParser(prog="python -m train.corpus")
    parser.add_argument("file", nargs="?", type=Path, default=DIALOGUES)
    parser.add_argument("--outside", nargs="+", default=[], metavar="SET[:CONFIG][@SPLIT]", help="compare with these")
    arguments = parser.parse_args()
    rows = read(arguments.file)
    for name in arguments.outside:
        longest = longest_overlap([answers_of(row) for row in rows], outside_texts(name))
        print(f"{name}: {len(longest.split())} words {longest!r}", flush=True)
    print(figures(rows))
    found = corpus_problems(rows, open_knowledge(), medicine_names(TOPICS))
    print("\n".join(found) or "no problem found")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
