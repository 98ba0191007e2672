"""Knowledge: passages to read before answering, found for a question, and what of a reply they support.

Three shelves: the topics in assets/knowledge (built in), MedQuAD from the Hub, or a person's own folder. What a passage
says is data for the prompt, never an instruction, and nothing here runs or obeys it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from operator import mul
from pathlib import Path
from typing import NamedTuple

from medchat.prompt import Message
from medchat.words import STOP, Speller, phrases, stem, words

TOPICS = Path(__file__).parent.parent / "assets" / "knowledge"
FIELDS = ("overview", "signs", "self_care", "seek_care", "treatment")
MAX_QUESTION = 2_000  # characters of a question that are searched; the rest of a longer one is not read
MAX_WORDS = 110  # per passage asked for: two passages are at most 220 words, about 300 tokens of the prompt

# Confidence below which nothing is shown, set on the "tune" half of tests/data/*_questions.jsonl
# (`python -m benchmarks.knowledge` prints what it lets through on both halves).
MIN_CONFIDENCE = 0.5


@dataclass(frozen=True)
class Passage:
    """A text to rest an answer on; `text` is verbatim what the index holds, `score` the confidence from 0 to 1."""

    id: str
    topic: str
    title: str
    text: str
    source: str
    url: str
    score: float = 0.0


class Knowledge:
    """What open_knowledge returns: this one is empty, the others fill it. Safe to use from several threads."""

    report: Sequence[str] = ()  # what could not be read, a sentence each

    def search(self, question: str, history: Sequence[Message] = (), *, limit: int = 2) -> list[Passage]:
        """Return at most `limit` passages for a question, best first; [] below the measured confidence.

        `history` is the conversation before it: its last questions are used for one that cannot stand alone ("and how
        is it treated?"). Together the passages hold at most 110 words for each one asked for, at least one passage.
        """
        del question, history, limit
        return []

    def get(self, id: str) -> Passage | None:
        """Return the passage with this id, None when there is none (any longer)."""
        del id
        return None

    def __len__(self) -> int:
        """Return the number of passages."""
        return 0


def open_knowledge(source: str = "builtin") -> Knowledge:
    """Open the knowledge named by `source`: "builtin", "medquad", the path of a folder, "none" or "" for an empty one.

    Raises UserError for a folder that is not there, or when MedQuAD cannot be loaded.
    """
    if source in ("", "none"):
        return Knowledge()
    if source == "builtin":
        return Topics()
    from medchat.shelf import open_folder, open_medquad

    return open_medquad() if source == "medquad" else open_folder(Path(source))


# How much a word counts where it stands, and how soon more of the same word stops counting (BM25F). Set on questions of
# asked.txt that were left out of the index (`left_out` of benchmarks.knowledge).
WEIGHTS = {"names": 5.0, "everyday": 5.0, "signs": 3.0, "asked": 2.0, "text": 1.0}
PAIRS = {"names": 4.0, "everyday": 2.8, "asked": 1.0}  # two words side by side
SATURATION = 4.0
LENGTH = 0.3
EARLIER = (0.9, 0.4)  # the last question's words and those of the one before it, for a question that needs them
RIVAL = 0.85  # of the best topic's score that another one needs, to share a prompt's two passages
SHORT, HALF_KNOWN = 5, 0.41  # "what is Kabuki syndrome": of a few words the telling ones stand nowhere here
# What speaks for a passage of the topic, in the order of `Topics.signs`: likeness to the two most alike questions that
# it is known to answer, and to one of them in pairs of words; the share of the question's words that it holds; the
# share of its title's words that the question holds; the question's wish for its kind, and for an overview; a topic's
# usual kind; being an answer to single questions. A softmax fitted by `python -m benchmarks.knowledge --fit`.
CHOICE = (4.9, 2.1, 1.4, 3.4, 2.9, 1.9, 2.7, 0.9, -1.0)
NAME = 0.6  # the question holds a whole name of the topic


class Topics(Knowledge):
    """The built-in topics: about 700 records held in memory, searched by topic first and then by kind of passage."""

    def __init__(self, folder: Path = TOPICS):
        self.topics: list[dict] = []
        for path in sorted(folder.glob("*.jsonl")):
            self.topics += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        self._number = {topic["id"]: i for i, topic in enumerate(self.topics)}
        everyday, self._known = keyed_lines(folder / "everyday.txt"), keyed_lines(folder / "asked.txt")
        asked: dict[str, str] = {}
        for key, line in self._known.items():  # "topic#passage" and "topic"
            id = key.partition("#")[0]
            asked[id] = f"{asked[id]} | {line}" if id in asked else line
        self._answers = [{_key(answer["title"]): answer for answer in topic["answers"]} for topic in self.topics]
        rows = [
            {
                "names": ", ".join([topic["title"], *topic["aliases"]]),
                "everyday": everyday.get(topic["id"], ""),
                "asked": asked[topic["id"]],
                "signs": topic["signs"],
                "text": " ".join(topic[field] for field in FIELDS if field != "signs"),
            }
            for topic in self.topics
        ]
        # Other worlds (cooking, computers) stand in the same index: a question that fits one of them finds nothing.
        worlds = keyed_lines(folder / "elsewhere.txt").values()
        rows += [{"everyday": line} for line in worlds]
        self._index = Index(rows)
        others = keyed_lines(folder / "asked-elsewhere.txt").values()
        here = _heard([*asked.values(), *everyday.values()])
        self._leaning = _leaning(here, _heard([*others, *worlds]))
        common = {stem(word) for word in STOP}  # "how long" tells something, but half of what its rarity says
        self._telling = {
            word: math.log(1 + here[1] / count) * (0.5 if word in common else 1.0) for word, count in here[0].items()
        }
        self._unheard = math.log(1 + here[1])
        self._topics: dict[int, _Topic] = {}  # those met so far
        self._names: dict[tuple[str, ...], int] = {}
        self._whole_names: set[tuple[str, ...]] = set()  # those without stop words: not "see a doctor"
        for i, topic in enumerate(self.topics):
            for name in [*re.split("[()]", topic["title"]), topic["title"], *topic["aliases"]]:
                if key := tuple(_stems(name)):
                    self._names.setdefault(key, i)
                    if len(key) == len(words(name)):
                        self._whole_names.add(key)

    def __len__(self) -> int:
        """Return the number of passages: five for each topic, and its answered questions."""
        return len(self.topics) * len(FIELDS) + sum(map(len, self._answers))

    def get(self, id: str) -> Passage | None:
        """Return the passage "topic#field" or "topic#answer", None when there is none."""
        topic, _, key = id.partition("#")
        if topic not in self._number or (key not in FIELDS and key not in self._answers[self._number[topic]]):
            return None
        return self._passage(self._number[topic], key, 1.0)

    def search(self, question: str, history: Sequence[Message] = (), *, limit: int = 2) -> list[Passage]:
        """Return passages of the best topics, of the kind that the question asks for first (see Knowledge.search)."""
        ranked = self.rank(question, history)
        if not ranked:
            return []
        # Two passages are for a prompt, where a weak rival does harm; who asks for more wants to see other topics too.
        least = RIVAL * ranked[0][1] if limit <= 2 else 0.0
        close = [(i, confidence) for i, confidence in ranked if confidence >= least][:limit]
        keys = {i: self.keys(i, question) for i, _ in close}
        choices = [(i, keys[i][0], confidence) for i, confidence in close]
        # Without a rival the same topic says more.
        best, confidence = close[0]
        choices += [(best, key, confidence) for key in keys[best][1:]]
        return self._within(choices, limit)

    def about(self, topic: str, question: str, *, but: str = "", limit: int = 2) -> list[Passage]:
        """Return the passages that `search` chooses for a question on the topic with this id.

        `but` is a known question that counts for nothing: what is chosen for it then is as for one never heard.
        """
        i = self._number[topic]
        return self._within([(i, key, 1.0) for key in self.keys(i, question, but=but)], limit)

    def questions(self, topic: str) -> dict[str, list[str]]:
        """Return the questions that each passage of the topic with this id is known to answer, by the passage's key."""
        passages = self._read(self._number[topic]).passages
        return {key: [question for question, _, _ in passage.asked] for key, passage in passages.items()}

    def _within(self, choices: Iterable[tuple[int, str, float]], limit: int) -> list[Passage]:
        """Return the first `limit` of (topic, key, confidence) whose texts fit, at least one."""
        passages: list[Passage] = []
        room = MAX_WORDS * limit
        for i, key, confidence in choices:
            passage = self._passage(i, key, confidence)
            size = len(passage.text.split())
            if len(passages) < limit and (size <= room or not passages):
                passages.append(passage)
                room -= size
        return passages

    def rank(self, question: str, history: Sequence[Message] = ()) -> list[tuple[int, float]]:
        """Return (number of the topic, confidence) of up to ten topics, best first; [] when the best is not sure."""
        said = [part for part in re.split("[.?!]", question[:MAX_QUESTION].lower()) if part.strip()]
        if said and all(map(_TO_US.match, said)):
            return []
        query = self._index.query(question)
        ranked = self._rank(query)
        earlier = [m["content"] for m in history if m.get("role") == "user"][-2:]
        sure = bool(ranked) and (not points_back(question) or (ranked[0][1] > 0.9 and len(query.content) > 3))
        if earlier and not sure and leans_on_history(question):
            for share, text in zip(EARLIER, reversed(earlier), strict=False):
                query = query.joined(self._index.query(text), share)
            ranked = self._rank(query)
            # "What can I do until then": the subject is the last question's.
            if not ranked and points_back(question) and self._about_health(question):
                ranked = self._rank(self._index.query(earlier[-1]))
        return ranked

    def _about_health(self, question: str) -> bool:
        """Whether a question that names no topic asks what one asks about an illness."""
        lower = question.lower()[:MAX_QUESTION]
        said = [stem(word) for word in words(lower)]
        return bool(_ASKING.search(lower)) and sum(self._leaning.get(word, -1.0) for word in said) > 0

    def _rank(self, query: Query) -> list[tuple[int, float]]:
        scores = self._index.scores(query)
        named = False
        for size in range(1, 6):
            for start in range(len(query.content) - size + 1):
                name = tuple(query.content[start : start + size])
                if (i := self._names.get(name)) is not None and i in scores:
                    scores[i] += NAME * sum(self._index.weight(word) for word in name)
                    if size == len(query.content):  # "what is gout": the name and nothing else
                        scores[i] += 4.0
                        named = name in self._whole_names
        if not named and all(word in _NO_TOPIC or word.isdigit() for word in query.content):
            return []
        ours = sorted(((i, score) for i, score in scores.items() if i < len(self.topics)), key=lambda item: -item[1])
        elsewhere = max((score for i, score in scores.items() if i >= len(self.topics)), default=0.0)
        leaning = sum(self._leaning.get(word, 0.0) for word in set(query.stems)) * min(1.0, 12 / len(query.stems))
        if named:  # "POTS", "shock": not a kitchen's, not a car's
            elsewhere, leaning = 0.0, max(0.0, leaning)
        if not ours:
            return []
        best, most = ours[0]
        share = self._index.share(query, best)
        if len(query.content) <= SHORT and share < HALF_KNOWN:
            return []
        sure = _confidence(most, share, elsewhere, leaning)
        return [(i, sure * score / most) for i, score in ours[:10]] if sure >= MIN_CONFIDENCE else []

    def keys(self, i: int, question: str, *, but: str = "") -> list[str]:
        """Return the keys of the passages of topic number i, the one that answers the question first."""
        signs = self.signs(i, question, but=but)
        return sorted(signs, key=lambda key: -sum(map(mul, signs[key], CHOICE)))

    def signs(self, i: int, question: str, *, but: str = "") -> dict[str, tuple[float, ...]]:
        """Return what speaks for each passage of topic i, in the order of CHOICE; the known question `but` left out."""
        topic, query = self._read(i), self._index.query(question)
        kind = self.topics[i]["kind"] if self.topics[i]["kind"] in _WISHES else "condition"
        lower = question.lower()[:MAX_QUESTION]
        wished = {field for field, pattern in _WISHES[kind].items() if pattern.search(lower)}
        asked = _WHAT_IS.match(lower)
        named = bool(asked) and not topic.names.isdisjoint(_stems(asked[1])[:1])
        if len(wished) > 1 and not named:  # "what are the symptoms" holds "what are"
            wished.discard("overview")
        said = set(query.stems) - topic.names
        pairs = set(pairwise(query.stems))
        whole = self._tells(said) or 1.0
        meanings = {max(group.words, key=group.words.__getitem__): group.words for group in query.groups}
        found = {}
        for key, passage in topic.passages.items():
            known = [(stems, two) for text, stems, two in passage.asked if text != but]
            alike = [*sorted((self._dice(said, stems) for stems, _ in known), reverse=True), 0.0, 0.0]
            held = {word for word in said if not passage.stems.isdisjoint(meanings.get(word, (word,)))}
            found[key] = (
                *alike[:2],
                max((2 * len(pairs & two) / (len(pairs) + len(two) or 1) for _, two in known), default=0.0),
                self._tells(held) / whole,
                self._tells(said & passage.title) / (self._tells(passage.title) or 1.0),
                float(key in wished and key != "overview"),
                float(key in wished and key == "overview"),
                _DEFAULT[kind].get(key, 0.0) if key in FIELDS else 0.0,
                float(key not in FIELDS),
            )
        return found

    def _read(self, i: int) -> _Topic:
        """Return a topic's passages as the search compares them; read when first asked for."""
        if i not in self._topics:
            topic = self.topics[i]
            names = frozenset(_stems(" ".join([topic["title"], *topic["aliases"]])))
            passages = {}
            for key in [*FIELDS, *self._answers[i]]:
                text, title, asked = self._text(i, key)[1], "", self._known.get(f"{topic['id']}#{key}", "").split("|")
                if key in self._answers[i]:
                    title, asked = key.replace("-", " "), [*asked, *self._answers[i][key]["asked"]]
                known = [(q.strip(), [stem(word) for word in words(q)]) for q in asked if q.strip()]
                passages[key] = _Passage(
                    frozenset(map(stem, words(text))),
                    frozenset(map(stem, words(title))) - names,
                    [(q, frozenset(stems) - names, frozenset(pairwise(stems))) for q, stems in known],
                )
            self._topics[i] = _Topic(names, passages)
        return self._topics[i]

    def _dice(self, a: Set[str], b: Set[str]) -> float:
        """Return how alike two questions are, from 0 to 1: Dice's coefficient, telling words counting more."""
        return 2 * self._tells(a & b) / (self._tells(a) + self._tells(b) or 1.0)

    def _tells(self, stems: Iterable[str]) -> float:
        # fsum: the same for every order of a set
        return math.fsum(self._telling.get(word, self._unheard) for word in stems)

    def _text(self, i: int, key: str) -> tuple[str, str]:
        """Return (heading, text) of a passage."""
        if key in self._answers[i]:
            return self._answers[i][key]["title"], self._answers[i][key]["text"]
        kind = self.topics[i]["kind"]
        return _HEADINGS.get(kind, _HEADINGS["condition"])[FIELDS.index(key)], self.topics[i][key]

    def _passage(self, i: int, key: str, confidence: float) -> Passage:
        topic, (heading, text) = self.topics[i], self._text(i, key)
        source = topic["source"]
        return Passage(
            f"{topic['id']}#{key}",
            topic["id"],
            f"{topic['title']}: {heading}",
            text,
            source["name"],
            source["url"],
            round(confidence, 3),
        )


class _Passage(NamedTuple):
    """A passage as the search compares it: its stems, those of its title, and the questions that it answers."""

    stems: frozenset[str]
    title: frozenset[str]
    asked: list[tuple[str, frozenset[str], frozenset[tuple[str, str]]]]


class _Topic(NamedTuple):
    names: frozenset[str]
    passages: dict[str, _Passage]


_HEADINGS = {
    "condition": ("what it is", "typical signs", "what you can do", "when to get help", "how it is found and treated"),
    "medicine": (
        "what it is for",
        "what people notice",
        "taking it safely",
        "when to get help",
        "who should check first",
    ),
    "test": ("what it is", "what results show", "how to get ready", "when to get help", "what happens"),
    "first_aid": ("the danger", "how to recognize it", "what to do", "when to call for help", "what professionals do"),
    "living": (
        "what it is about",
        "what is normal to notice",
        "what you can do",
        "when to get help",
        "what care can add",
    ),
}

# What a question asks for, in its own words.
_HELP = (
    r"\b(serious|danger\w*|emergency|urgent|hospital|ambulance|a&e|see (a|the|my) doctor|worr\w+|call"
    r"|when (should|do|to)"
)
_DO = (
    r"\b(what (can|should|could|to|do) (i|we|you|he|she|they|do)|help[s ]|relie\w+|remed\w+|avoid|eat|diet"
    r"|prevent\w*|stop|"
)
_WISHES = {
    "condition": {
        "overview": re.compile(
            r"\b(what (is|are|causes?)|what's|why|caus\w+|contagious|catch\w*|inherit\w*|who gets|risk|explain\w*"
            r"|means?|simple words|happens|difference|same( thing)? as|spreads?|does .* do)\b"
        ),
        "signs": re.compile(
            r"\b(symptoms?|signs?|how (do|can) (i|you|we) (know|tell)|tell if|feels? like|looks? like|notice)\b"
        ),
        "self_care": re.compile(
            _DO + r"get rid|myself|at home|ease|safe to|how to|how (do|can|could|should) (i|we)(?! (know|tell))|can i|"
            r"should i|could i|what now|advice|tips|look after)\b"
        ),
        "seek_care": re.compile(_HELP + r" (i )?(go|take|call|worry|see))\b"),
        "treatment": re.compile(
            r"\b(treat\w*|cur(e|ed|able)|therap\w+|operation|surgery|"
            r"tests?|tested|diagnos\w+|f(i|ou)nd out|scans?|medicines?|recover\w*)\b"
        ),
    }
}
_WISHES["living"] = _WISHES["condition"]
_WISHES["symptom"] = _WISHES["condition"]
_WISHES["first_aid"] = {
    "seek_care": re.compile(_HELP + r" (i )?(go|take|call|worry|see))\b"),
    "signs": re.compile(r"\b(symptoms?|signs?|how (do|can) (i|you|we) (know|tell)|tell if|recogni[sz]e)\b"),
}
_WISHES["medicine"] = {
    "overview": re.compile(r"\b(what (is|are)|what's|used for|how does .* work|why)\b"),
    "signs": re.compile(r"\b(side effects?|makes? me|made me|making me|feel|cause[sd]?|normal)\b"),
    "self_care": re.compile(
        r"\b(how (to|do i|should)|take it|when (to|should)|before or after|store|miss\w*|forgot\w*|long)\b"
    ),
    "seek_care": re.compile(_HELP + r" i (call|worry|see))\b"),
    "treatment": re.compile(r"\b(together|with|alcohol|pregnan\w+|breastfe\w+|interact\w*|who|mix|drink|safe|while)\b"),
}
_WISHES["test"] = {
    "overview": re.compile(r"\b(what (is|are)|what's|why|need)\b"),
    "signs": re.compile(r"\b(results?|mean|high|low|raised|normal|ok|bad|positive|negative|level|\d+(\.\d+)?)\b"),
    "self_care": re.compile(r"\b(prepare|ready|before|fasting|eat|drink|full bladder|wear)\b"),
    "seek_care": re.compile(_HELP + r" i (call|worry|see))\b"),
    "treatment": re.compile(r"\b(hurt\w*|pain\w*|during|after|happens?|how long|done|awake|asleep|what is it like)\b"),
}
_DEFAULT = {
    "condition": {"overview": 0.3, "seek_care": 0.2, "self_care": 0.1},
    "symptom": {"self_care": 0.3, "seek_care": 0.3},
    "living": {"self_care": 0.4},
    "medicine": {"overview": 0.3, "self_care": 0.1},
    "test": {"overview": 0.3, "treatment": 0.1},
    "first_aid": {"self_care": 1.5, "seek_care": 0.9},
}

_WHAT_IS = re.compile(r"\W*(?:(?:so|hi|hello|and|please)\W+)*what(?:'?s| is| are)\b(.*)", re.DOTALL)
_LEANING = re.compile(
    r"^\W*(and|but|so|or|then|ok|okay|what about|how about|also|why|what if|for how long|how long|how often)\b"
    r"|\b(it|its|this|that|these|those|they|them|there|he|she|him|her|meantime|meanwhile|again|shorter|simpler)\b"
    r"|\b(until (then|i|we)|forgot to (say|mention)|should (add|mention|say))\b"
)
_ASKING = re.compile(
    r"\b(treat\w*|cure\w*|symptoms?|signs?|causes?|caused|doctor|hospital|prevent\w*|contagious|catching|serious|"
    r"dangerous|medicines?|tests?|tested|diet|exercise|how (long|often)|what (can|should) i do|side effects?|"
    r"surgery|diagnosed|see (someone|somebody))\b"
)
# "Do you sleep?" is asked of the assistant, "do you need antibiotics?" of a doctor.
_TO_US = re.compile(
    r"\W*((how old )?(are|do|did|have|were|will) you(?! (need|get|catch|have|treat|cure|feel|lose))( \w+){0,2}"
    r"|who \w+ you)\W*$"
)
# Words that ask for a kind of passage; a question of these alone names no topic.
_NO_TOPIC = frozenset(
    stem(word)
    for word in """treat treated treatment treatable cure cured curable symptom symptoms sign signs cause causes caused
    serious dangerous danger contagious catching infectious doctor doctors hospital diagnose diagnosed diagnosis prevent
    prevented worse better worry worried test tests tested testing medical question advice information""".split()  # noqa: SIM905
)


def points_back(question: str) -> bool:
    """Whether a question begins as a continuation or holds a word like "it" that may stand for an earlier topic."""
    return bool(_LEANING.search(question.lower()[:MAX_QUESTION]))


def leans_on_history(question: str) -> bool:
    """Whether a question cannot stand alone: it points back, or asks for a kind of passage without naming a topic."""
    text = question.lower()[:MAX_QUESTION]
    content = [word for word in words(text) if word not in STOP]
    if not content and not re.search(r"\b(why|how|when|what)\b", text):
        return False  # "thanks", "ok"
    return points_back(text) or (len(content) <= 3 and bool(_ASKING.search(text)))


def _confidence(score: float, share: float, elsewhere: float, leaning: float) -> float:
    """Return 0 to 1 from a topic's score, its share of the question's words, the best other world, and the leaning.

    A logistic curve, fitted on questions of asked.txt left out of the index against tests/data/off_topic_tuning.jsonl.
    """
    odds = 0.375 * min(score, 25.0) + 1.2 * share - 2.2 * min(elsewhere / score, 3.0) + 0.48 * leaning - 2.1
    return 1 / (1 + math.exp(-odds))


def _leaning(ours: tuple[Counter[str], int], others: tuple[Counter[str], int]) -> dict[str, float]:
    """Return how much a word, stop words included, speaks for a question about health: the log of a ratio of rates."""
    (here, questions), (away, remarks) = ours, others
    evenly = math.log((remarks + 1) / (questions + 1))
    return {word: math.log((here[word] + 0.5) / (away[word] + 0.5)) + evenly for word in here | away}


def _heard(lines: Iterable[str]) -> tuple[Counter[str], int]:
    """Return in how many questions each stem stands, and how many there are; bare words count as one for every six."""
    counts: Counter[str] = Counter()
    size = 0
    for line in lines:
        for phrase in phrases(line):
            size += max(1, len(phrase) // 6)
            counts.update({stem(word) for word in phrase})
    return counts, size


@dataclass(frozen=True)
class Group:
    """One word of a question: its stem and the stems that may stand for it, each with a weight from 0 to 1."""

    words: dict[str, float]
    share: float = 1.0


@dataclass(frozen=True)
class Query:
    """A question as the index reads it: groups of words, its stems in order, and the same without stop words."""

    groups: list[Group]
    stems: list[str]
    content: list[str]

    def joined(self, other: Query, share: float) -> Query:
        """Return this question with another's words, which count `share` as much."""
        groups = self.groups + [Group(g.words, g.share * share) for g in other.groups]
        return Query(groups, self.stems + other.stems, self.content + other.content)


class Index:
    """An inverted index with weighted columns (BM25F), spelling correction and everyday synonyms."""

    def __init__(self, rows: Sequence[dict[str, str]]):
        self._postings: dict[str, dict[int, float]] = {}
        known: dict[str, float] = dict.fromkeys(STOP, 1.0)
        slots: dict[str, dict[int, float]] = {
            word: {} for word in STOP
        }  # word -> its stem's posting; stop words' fall away
        for column, weight in WEIGHTS.items():
            counts = {i: Counter(words(row[column])) for i, row in enumerate(rows) if row.get(column)}
            sizes = {i: sum(counter.values()) for i, counter in counts.items()}
            mean = sum(sizes.values()) / max(1, len(sizes))
            for i, counter in counts.items():
                scale = weight / (1 - LENGTH + LENGTH * sizes[i] / mean)
                for word, count in counter.items():
                    if (posting := slots.get(word)) is None:
                        posting = slots[word] = self._postings.setdefault(stem(word), {})
                        known[word] = 2.0 if column == "names" else 1.0
                    posting[i] = posting.get(i, 0.0) + scale * count
        # A word tells the less, the more topics are asked for with it; where else it stands says little.
        spread: Counter[str] = Counter()
        for i, row in enumerate(rows):
            seen: set[str] = set()
            for column, value in PAIRS.items():
                for phrase in phrases(row.get(column, "")):
                    stems = [stem(word) for word in phrase if word not in STOP]
                    seen.update(stems)
                    for pair in _pairs(stems):
                        posting = self._postings.setdefault(pair, {})
                        posting[i] = posting.get(i, 0.0) + value
            spread.update(seen)
        self._size = len(rows)
        found = {word: spread[word] if " " not in word else len(posting) for word, posting in self._postings.items()}
        self._weights = {word: self._rarity(n) for word, n in found.items()}
        self.speller = Speller(known)

    def weight(self, word: str) -> float:
        """Return how much a stem tells: the rarer the more, most for one that stands nowhere (inverse frequency)."""
        return self._weights.get(word) or self._rarity(0)

    def _rarity(self, found: int) -> float:
        return math.log(1 + (self._size - found + 0.5) / (found + 0.5))

    def share(self, query: Query, i: int) -> float:
        """Return which share of the question's words, rare ones counting more, stands in row i: 0 to 1."""
        held = whole = 0.0
        for group in query.groups:
            if " " not in min(group.words):
                most = max(group.share * weight * self.weight(word) for word, weight in group.words.items())
                whole += most
                held += most * any(i in self._postings.get(word, ()) for word in group.words)
        return held / whole if whole else 0.0

    def query(self, text: str) -> Query:
        """Return a question as groups of stems: corrected, with synonyms, without stop words."""
        return make_query(text, self._postings, self.speller.nearest)

    def scores(self, query: Query) -> dict[int, float]:
        """Return the score of each row that shares a word with the question."""
        scores: dict[int, float] = {}
        for group in query.groups:
            best: dict[int, float] = {}
            for word, weight in group.words.items():
                factor = group.share * weight * self.weight(word)
                for i, count in self._postings.get(word, {}).items():
                    value = factor * count / (SATURATION + count)
                    if value > best.get(i, 0.0):
                        best[i] = value
            for i, value in best.items():
                scores[i] = scores.get(i, 0.0) + value
        return scores


def make_query(text: str, known: Container[str], nearest: Callable[[str], str | None]) -> Query:
    """Return a question as groups of stems; `known` holds the stems of an index, `nearest` corrects a word."""
    stems: list[str] = []
    groups: dict[str, dict[str, float]] = {}
    for word in words(text[:MAX_QUESTION])[:120]:
        key, weight = stem(word), 1.0
        if word not in STOP and key not in known and (near := nearest(word)):
            word, key, weight = near, stem(near), 0.8
        stems.append(key)
        if word not in STOP:
            groups.setdefault(key, {key: weight})
    content = [key for key in stems if key in groups]
    synonyms, longest = _synonyms()
    for size in range(1, longest + 1):
        for start in range(len(stems) - size + 1):
            meaning = synonyms.get(tuple(stems[start : start + size]))
            if not meaning or (size == 1 and stems[start] not in groups):
                continue
            last = stems[start + size - 1]
            group = groups.setdefault(last if last in groups else " ".join(stems[start : start + size]), {})
            for word in meaning:
                group[word] = max(group.get(word, 0.0), 0.5 if size == 1 else 0.8)
    for pair in _pairs(content):
        if pair in known:
            groups[pair] = {pair: 0.7}
    return Query([Group(group) for group in groups.values()], stems, content)


@lru_cache(maxsize=1)
def _synonyms() -> tuple[dict[tuple[str, ...], set[str]], int]:
    """Return everyday phrase (as stems) -> stems of our texts from synonyms.txt, and the longest phrase's length."""
    meanings: dict[tuple[str, ...], set[str]] = {}
    for line in _content_lines(TOPICS / "synonyms.txt"):
        said, _, meaning = line.partition("->")
        for phrase in said.split(","):
            key = tuple(stem(word) for word in words(phrase))
            meanings.setdefault(key, set()).update(stem(word) for word in words(meaning))
    return meanings, max(map(len, meanings))


@lru_cache(maxsize=1)
def elsewhere() -> frozenset[str]:
    """Return the stems of the words of other worlds (elsewhere.txt)."""
    return frozenset(word for line in keyed_lines(TOPICS / "elsewhere.txt").values() for word in _stems(line))


def keyed_lines(path: Path) -> dict[str, str]:
    """Return the lines "key: text" of a file."""
    return {key: text for key, _, text in (line.partition(":") for line in _content_lines(path))}


def _content_lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line


def _stems(text: str) -> list[str]:
    return [stem(word) for word in words(text) if word not in STOP]


def _key(title: str) -> str:
    return "-".join(words(title))


def _pairs(stems: Sequence[str]) -> list[str]:
    return [f"{a} {b}" for a, b in pairwise(stems)]


# --- what of a reply rests on the passages ---

_SENTENCE = re.compile(r"\S.*?(?:[.!?]+[\"”')\]]*(?=\s+[A-Z0-9\"“(•*-]|\s*$)|$)", re.DOTALL)
SUPPORT = 0.6  # share of a sentence's content words that a passage must hold; set on tests/data/support_sentences.jsonl


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each verbatim."""
    return [match.group().strip() for line in text.splitlines() for match in _SENTENCE.finditer(line)]


def supported(sentence: str, passages: Sequence[Passage]) -> bool:
    """Whether one of the passages holds at least 60 % of the sentence's content words.

    Words are compared as stems and through the synonym table; sentences of fewer than three content words ("I am glad
    you asked.") claim too little to check and count as supported. It compares words: a sentence that turns a passage's
    meaning round ("do not") is not noticed.
    """
    content = set(_stems(sentence))
    if len(content) < 3:
        return True
    return any(_share(content, set(_stems(f"{passage.title} {passage.text}"))) >= SUPPORT for passage in passages)


def unsupported_sentences(reply: str, passages: Sequence[Passage]) -> list[str]:
    """Return the reply's sentences, verbatim, that no passage supports (see `supported`)."""
    return [sentence for sentence in sentences(reply) if not supported(sentence, passages)]


def cite(reply: str, passages: Sequence[Passage]) -> list[tuple[int, str]]:
    """Return (number of the passage from 1, its sentence verbatim) for what each sentence of the reply leans on."""
    quotes = [
        (number, sentence, set(_stems(sentence)))
        for number, passage in enumerate(passages, 1)
        for sentence in sentences(passage.text)
    ]
    found: dict[tuple[int, str], None] = {}
    for said in sentences(reply):
        content = set(_stems(said))
        if len(content) < 3 or not quotes:
            continue
        number, quote, held = max(quotes, key=lambda q: 2 * len(content & q[2]) / (len(content) + len(q[2]) or 1))
        if len(content & held) >= 2 and _share(content, held) >= 0.4:
            found[number, quote] = None
    return list(found)


def _share(content: set[str], held: set[str]) -> float:
    """Return the share of `content` that `held` holds, a synonym counting as the word."""
    synonyms, _ = _synonyms()
    hits = sum(1 for word in content if word in held or not held.isdisjoint(synonyms.get((word,), ())))
    return hits / len(content)
