"""check(): signs of an emergency or a crisis in what a person writes. guard(): the reply, repaired.

Text -> words (`words`) -> concepts (`Lexicon`, from the tables in assets/triage) -> scope (negated, past, a lesson, a
story, a pet) -> rules, also from the tables, which combine concepts within a few words or over the conversation.
Everything is dictionary look-ups over words, so the work grows with the length of the text and with nothing else.
medchat.second_opinion, a small learned model, raises the level where the rules miss a danger, and silences a rule
where it is sure that nobody is in danger.
"""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medchat import second_opinion
from medchat.second_opinion import Heard

TABLES = Path(__file__).parent.parent / "assets" / "triage"
LANGUAGES = ("en", "es", "fr", "de", "pt", "hi")
REGIONS = ("US", "CA", "UK", "IE", "AU", "NZ", "IN", "EU")
CRISES = ("suicide", "self_harm", "harm_others", "crisis")

Level = Literal["none", "emergency", "crisis"]


@dataclass(frozen=True)
class Flag:
    """One kind of danger: a stable `id` and a plain English `label`."""

    id: str
    label: str


@dataclass(frozen=True)
class Assessment:
    """What `check` found: the level, every flag, and the Markdown card to show first ("" for none).

    Level "none" means that nothing was recognised. It never means that a person is safe.
    """

    level: Level
    flags: tuple[Flag, ...]
    message: str


def check(
    messages: Sequence[Mapping[str, str]] | str, *, region: str | None = None, language: str | None = None
) -> Assessment:
    """Return the emergency or crisis that the user's turns describe, and the card with what to do now.

    `messages` is a text or [{"role", "content"}]; only user turns are read, and none can withdraw another's flag.
    `region` is one of REGIONS; anything else gets lines of several countries. Recognises six languages (LANGUAGES).
    `language` is what the reader prefers: a card on a text in English comes in it first, and in English below.

    Does NOT cover: pictures, sound, other languages, illness that is urgent but no emergency, dangers told in
    words that neither the rules nor the model know, or whether what is told is true. Silence is no reassurance.
    """
    turns = [messages] if isinstance(messages, str) else [m["content"] for m in messages if m["role"] == "user"]
    found: dict[str, str] = {}
    told = [words(turn) for turn in turns]
    by_turn, together = recognise(told)
    for flags, heard in by_turn:
        found |= judged(flags, heard) | found
    found |= together | found
    level = level_of(found)
    if level == "none":
        return Assessment("none", (), "")
    labels = tables().labels
    ids = [flag for flag in labels if flag in found]
    return Assessment(level, tuple(Flag(i, labels[i]) for i in ids), card(level, ids, found, region, language))


def level_of(flags: Iterable[str]) -> Level:
    """Return the level of what was recognised."""
    flags = set(flags)
    return "crisis" if flags & set(CRISES) else "emergency" if flags else "none"


def judged(flags: Mapping[str, str], heard: Heard) -> dict[str, str]:
    """Return the flags of a turn after the second opinion, which may see a danger or clear up a mistake.

    It rests on the turn alone, so that no later turn takes a flag back; a sentence added to the same turn hardly can.
    A crisis told in another language than English stands: the model has read few of them.
    """
    if not heard.sentences:
        return {}
    second = second_opinion.opinion(heard, frozenset(CRISES))
    kept = {
        flag: language
        for flag, language in flags.items()
        if (second.crisis or language != "en" if flag in CRISES else second.stands)
    }
    # the model's own flag is the level alone, for it does not say what it saw
    if second.crisis and level_of(kept) != "crisis":
        kept["crisis"] = heard.language or "en"
    elif second.alarm and not kept:
        kept["emergency"] = heard.language or "en"
    return kept


def card(level: Level, ids: Sequence[str], languages: Mapping[str, str], region: str | None, reader: str | None) -> str:
    """Return the card (Markdown, 60 to 120 words) in the language in which most flags of its level were recognised.

    People write English to a page that answers in English. So where that is the language, what they read comes first.
    """
    texts = json.loads((TABLES / "cards.json").read_text(encoding="utf-8"))
    deciding = [flag for flag in ids if level == "emergency" or flag in CRISES]
    told = Counter(languages[flag] for flag in deciding).most_common(1)[0][0]
    chosen = [reader, told] if told == "en" and reader in texts.keys() - {"numbers", "en"} else [told]
    return "\n\n---\n\n".join(card_in(str(language), texts, level, ids, region) for language in chosen)


def card_in(language: str, texts: dict[str, Any], level: Level, ids: Sequence[str], region: str | None) -> str:
    """Return the card in one language of assets/triage/cards.json, which `texts` holds."""
    urgent = [flag for flag in ids if flag not in CRISES]
    text, own = texts[language][level], texts[language].get("numbers", {})
    numbers = {}
    for kind, everywhere in texts["numbers"].items():
        by_region = everywhere | own.get(kind, {})
        numbers[kind] = by_region.get(region, by_region[""])
        if language == "ar":  # written from right to left, the groups of "116 123" would change places
            numbers[kind] = re.sub(r"\d+(?: \d+)+", "\u2066\\g<0>\u2069", numbers[kind])
    first = next((tables().first[flag] for flag in urgent if flag in tables().first), "")
    labels = "; ".join(tables().labels[flag] for flag in urgent[:3])
    if level == "crisis" and urgent:
        # the emergency number moves from its line among the others to the top
        title, rest = "\n".join(line for line in text.split("\n") if "{emergency}" not in line).split("\n\n", 1)
        text = f"{title}\n\n{texts[language]['both']}{rest}"
    return text.format(labels=labels, first=first, **numbers)


# --- the reply, repaired ----------------------------------------------------------------------------------------------

I_AM_AN_AI = "I am an AI, not a doctor."
CALL_FIRST = "Please follow the advice at the top of this answer first, and call for help now."
SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?]+(?=\s|$)|[.!?](?!\s|$)[^.!?\n]*)*[.!?]*\s*|\n")
TITLE = re.compile(r"\b(Dr|Mr|Mrs|Ms|Prof|St)\.(?=\s)")  # its full stop ends no sentence: U+2024 stands in for it


def guard(reply: str, assessment: Assessment) -> str:
    """Return the finished reply, repaired; the very same text when nothing is wrong with it.

    A loop is cut where it begins to repeat, boilerplate of training data is removed, a claim to be a doctor becomes one
    sentence that this is an AI, and in a flagged conversation sentences that advise waiting or ignoring go.

    Does NOT cover: wrong facts or doses, harmful advice in other words, other languages than English (apart from
    loops), or anything that a single sentence does not show.
    """
    text, seen = cut_loop(reply), faults()
    out, changed, told = [], text != reply, False
    for sentence in SENTENCE.findall(TITLE.sub("\\1\u2024", text)):
        plainly = sentence.replace("\u2019", "'")
        if seen["DOCTOR"].search(plainly) and not seen["NOT_DOCTOR"].search(plainly):
            replacement, told = ("" if told else I_AM_AN_AI + " "), True
        elif seen["BOILERPLATE"].search(plainly) or (
            assessment.level != "none" and seen["WAITING"].search(plainly) and not seen["NOT_WAITING"].search(plainly)
        ):
            replacement = ""
        else:
            out.append(sentence)
            continue
        changed = True
        out.append(replacement + "\n" * sentence.count("\n"))
    if not changed:
        return reply
    text = re.sub(r"\n{3,}", "\n\n", "".join(out)).replace("\u2024", ".").strip()
    return text or (I_AM_AN_AI if assessment.level == "none" else CALL_FIRST)


@lru_cache(maxsize=1)
def faults() -> dict[str, re.Pattern[str]]:
    """Return what to look for in a sentence, by name."""
    lines: dict[str, list[str]] = defaultdict(list)
    for line in (TABLES / "guard.txt").read_text(encoding="utf-8").splitlines():
        name, named, pattern = line.partition(" = ")
        if named and not line.startswith("#"):
            lines[name].append(pattern)
    return {name: re.compile("|".join(patterns), re.IGNORECASE) for name, patterns in lines.items()}


def cut_loop(reply: str) -> str:
    """Return the reply up to where it starts to repeat itself: three times the same words in a row, or a long sentence
    that comes again and is followed by what followed it before, or by nothing.
    """
    spans = [match.span() for match in re.finditer(r"\S+", reply)]
    tokens = [re.sub(r"\W", "", reply[a:b]).lower() or reply[a:b] for a, b in spans]
    end = len(spans)
    for period in range(1, 41):
        run = 0
        for i in range(min(end, len(tokens)) - period):
            run = run + 1 if tokens[i] == tokens[i + period] else 0
            if run >= max(2 * period, 4):
                end = min(end, i - run + 1 + period)
                break
    parts = [match.span() for match in SENTENCE.finditer(reply) if match.group().strip()]
    keys = [" ".join(re.findall(r"\w+", reply[a:b].lower())) for a, b in parts]
    seen: dict[str, int] = {}
    cut = spans[end - 1][1] if spans and end < len(spans) else len(reply)
    for i, key in enumerate(keys):
        before = seen.setdefault(key, i)
        if before < i and len(key.split()) >= 5 and (i + 1 == len(keys) or keys[i + 1] == keys[before + 1]):
            cut = min(cut, parts[i][0])
            break
    return reply if cut == len(reply) else reply[:cut].rstrip()


# --- text -> words ---------------------------------------------------------------------------------------------------

EMOJI = {"🩸": " blood ", "🤮": " vomiting ", "🔪": " knife ", "💊": " pills ", "🔫": " gun ", "🥵": " overheating "}
LOOKALIKES = str.maketrans("аеорсухіѕєɡ’‘ʼ`´′", "aeopcyxiseg''''''")
TOKEN = re.compile(
    r"\d+(?:[.,:]\d+)?|[^\W\d_\u0900-\u097f]+(?:'[^\W\d_]+)*|[\u0900-\u0963\u0970-\u097f]+"
    r"|[.!?;,:\n।…()\u2013\u2014-]"
)
REPEATS = re.compile(r"([^\W\d_])\1{2,}")
IS = {"he", "she", "it", "that", "there", "what", "who", "where", "how", "let", "here"}
PAIRS = {
    ("i", "am"): "im",
    ("i", "have"): "ive",
    ("he", "is"): "hes",
    ("she", "is"): "shes",
    ("it", "is"): "its",
    ("going", "to"): "gonna",
    ("going", "2"): "gonna",
    ("want", "to"): "wanna",
    ("want", "2"): "wanna",
    ("wants", "to"): "wanna",
    ("wanting", "to"): "wanna",
    ("he", "has"): "hes",
    ("she", "has"): "shes",
    ("can", "not"): "cant",
    ("will", "not"): "wont",
    ("shall", "not"): "wont",
}
PAIRS |= {
    (aux, "not"): aux + "nt"
    for aux in ("could", "do", "does", "did", "is", "was", "are", "were", "would", "has", "have", "had", "should")
}
NUMBERS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16",
    "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40", "fifty": "50",
    "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90", "hundred": "100",
}  # fmt: skip
STOPS = frozenset(".!?;\n।…")
BREAKS = frozenset(",:()-\u2013\u2014") | STOPS


def words(text: str) -> list[str]:
    """Return the lower-case words and punctuation marks of `text`, without accents, shorthand or typing habits.

    Does NOT cover: letters spaced out, words run together, or writing systems other than Latin and Devanagari.
    """
    text = unicodedata.normalize("NFKC", text)
    for sign, word in EMOJI.items():
        text = text.replace(sign, word)
    text = plain(text.casefold().translate(LOOKALIKES))
    text = REPEATS.sub(r"\1", text)
    shorthand, out = tables().shorthand, []
    for token in TOKEN.findall(text):
        if "'" in token:
            out.extend(contraction(token))
        else:
            out.extend(shorthand.get(token) or (NUMBERS.get(token, token),))
        if len(out) > 1 and (out[-2], out[-1]) in PAIRS:
            out[-2:] = [PAIRS[out[-2], out[-1]]]
    out = [tables().spelled(token) for token in out]
    return [token for i, token in enumerate(out) if i < 3 or out[i - 3 : i] != [token] * 3]


def plain(text: str) -> str:
    """Return `text` without Latin accents, Devanagari dots and invisible characters."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFD", text)
    text = re.sub("[\u0300-\u036f\u093c\u200b-\u200f\u2060\ufeff\ufe0f\u00ad]", "", text)
    return unicodedata.normalize("NFC", text).replace("\u0901", "\u0902").replace("ß", "ss")


def contraction(token: str) -> list[str]:
    """Split or join what stands around an apostrophe: can't -> cant, mum's -> mum, they'll -> they will."""
    head, _, tail = token.rpartition("'")
    head = head.replace("'", "")
    if tail == "s":
        return [head + "s"] if head in IS else [head]
    if tail in ("ll", "d", "re", "ve") and (head, tail) != ("i", "ve"):
        return [head, {"ll": "will", "d": "would", "re": "are", "ve": "have"}[tail]]
    if tail in ("t", "m", "ve"):
        return [head + tail]
    return [part for part in token.split("'") if part]


# --- the tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Element:
    """One place in a phrase: exact words, beginnings of words, concepts; or a gap of up to `gap` words."""

    exact: frozenset[str] = frozenset()
    starts: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    gap: int = 0


@dataclass(frozen=True)
class Rule:
    """Flag `flag` when a mention of every term lies within `window` words of one turn (0: anywhere in the chat).

    A term is a set of concepts, any of which will do; `without` are concepts that silence the rule in a turn.
    """

    flag: str
    language: str
    terms: tuple[frozenset[str], ...]
    without: frozenset[str]
    window: int


@dataclass
class Lexicon:
    """The tables of assets/triage, ready for look-up: phrases by level and first word, rules, labels, spelling."""

    labels: dict[str, str] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    shorthand: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    by_word: list[dict[str, list]] = field(default_factory=list)
    by_start: list[dict[str, list]] = field(default_factory=list)
    by_concept: list[dict[str, list]] = field(default_factory=list)
    known: frozenset[str] = frozenset()
    starts: tuple[str, ...] = ()
    common: dict[str, frozenset[str]] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()  # concepts that stand in phrases of other concepts
    near: dict[str, str] = field(default_factory=dict)
    skeletons: dict[str, str] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)
    cache: dict[tuple[int, str, frozenset[str]], list] = field(default_factory=dict)

    def spelled(self, word: str) -> str:
        """Return the word of the tables that `word` misspells, or `word` itself."""
        if len(word) < 4 or not word.isascii() or not word.isalpha() or word in self.known:
            return word
        if word not in self.seen:
            if len(self.seen) > 20_000:
                self.seen.clear()
            self.seen[word] = self.correction(word)
        return self.seen[word]

    def correction(self, word: str) -> str:
        if word.startswith(self.starts):
            return word
        for key in deletions(word):
            near = self.near.get(key)
            if near and near[0] == word[0] and (len(word) > 4 or len(near) > 4):
                return near
        near = self.skeletons.get(skeleton(word)) if len(word) > 4 else None
        return near if near and abs(len(near) - len(word)) <= 2 else word

    def phrases(self, level: int, word: str, spoken: frozenset[str]) -> list:
        """Return the phrases of `level` in the languages `spoken` that can begin with `word`."""
        key = (level, word, spoken)
        if key not in self.cache:
            if len(self.cache) > 50_000:
                self.cache.clear()
            found = list(self.by_word[level].get(word, ()))
            for end in range(2, len(word) + 1):
                found += self.by_start[level].get(word[:end], ())
            self.cache[key] = [entry for entry in found if entry[0][:2] in spoken]
        return self.cache[key]


def deletions(word: str) -> Iterable[str]:
    """Yield `word` and `word` with each letter left out: two words one typing slip apart share one of them."""
    yield word
    for i in range(1, len(word)):
        yield word[:i] + word[i + 1 :]


def skeleton(word: str) -> str:
    """Return the first letter and the consonant sounds of `word`: seziure and seizure have the same."""
    sounds = word.replace("ph", "f").replace("ck", "k").replace("ch", "k").replace("c", "k").replace("z", "s")
    return word[0] + re.sub(r"(.)\1+", r"\1", re.sub(r"[aeiouyhw]", "", sounds[1:]))


@lru_cache(maxsize=1)
def tables() -> Lexicon:
    """Return the tables, read once."""
    return read_tables(TABLES)


def read_tables(folder: Path) -> Lexicon:
    """Read labels.txt, words.txt and one table per language; assets/triage/README.md says how they are written."""
    lexicon = Lexicon()
    for line in content(folder / "labels.txt"):
        flag, label, *first = line.split(" = ")
        lexicon.labels[flag] = label
        lexicon.first.update((flag, text) for text in first)
    phrases: list[tuple[str, str]] = []  # (concept, phrase)
    for language in LANGUAGES:
        for line in content(folder / f"{language}.txt"):
            if line.startswith("~"):
                short, full = line[1:].split("=")
                for word in short.split():
                    lexicon.shorthand[word] = tuple(full.split())
            elif " < " in line:
                lexicon.rules.append(read_rule(line, language))
            elif line.startswith("COMMON = "):
                lexicon.common[language] = frozenset(line.removeprefix("COMMON = ").split(" | "))
            else:
                name, alternatives = line.split(" = ", 1)
                name = f"{language}:{name.strip()}"
                phrases += [(name, f"{language}:{phrase.strip()}") for phrase in alternatives.split("|")]
    for name in {name for name, _ in phrases if name.split(":")[1] in lexicon.labels}:
        language, flag = name.split(":")
        lexicon.rules.append(Rule(flag, language, (frozenset([name]),), frozenset(), 99))
    compile_phrases(lexicon, phrases)
    defined = {name for name, _ in phrases}
    for rule in lexicon.rules:
        unknown = {name for term in (*rule.terms, rule.without) for name in term} - defined
        unknown = {name for name in unknown if name.split(":")[1] not in NUMERIC}
        if unknown or rule.flag not in lexicon.labels:
            raise ValueError(f"{rule.language}.txt: a rule for {rule.flag} names {sorted(unknown)}")
    learn_spelling(lexicon, folder)
    return lexicon


def content(path: Path) -> list[str]:
    """Return the lines of a table: comments left out, an indented line joined to the one before."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].rstrip()
        if line.startswith(" ") and lines:
            lines[-1] += " " + line.strip()
        elif line.strip():
            lines.append(line)
    return lines


def read_rule(line: str, language: str) -> Rule:
    """Read `flag < TERM, OTHER|TERM, !WITHOUT @window`."""
    flag, body = line.split(" < ")
    body, _, window = body.partition("@")
    terms, without = [], set()
    for part in body.split(","):
        names = [f"{language}:{name.strip()}" for name in part.strip().lstrip("!").split("|")]
        if part.strip().startswith("!"):
            without.update(names)
        else:
            terms.append(frozenset(names))
    return Rule(flag.strip(), language, tuple(terms), frozenset(without), int(window.strip() or 14))


def compile_phrases(lexicon: Lexicon, phrases: Sequence[tuple[str, str]]) -> None:
    """File every phrase under its first word or concept, one level above the concepts that it uses."""
    parsed = [(name, variant) for name, phrase in phrases for variant in variants(phrase)]
    uses: dict[str, set[str]] = defaultdict(set)
    for name, elements in parsed:
        for element in elements:
            uses[name].update(element.concepts)
    depth: dict[str, int] = {}

    def level(name: str, path: tuple[str, ...] = ()) -> int:
        if name in path:
            raise ValueError(f"{name} is defined by itself.")
        if name not in depth:
            if name not in uses and name.split(":")[1] not in NUMERIC:
                raise ValueError(f"{name} is used and not defined.")
            depth[name] = max((1 + level(used, (*path, name)) for used in uses.get(name, ())), default=0)
        return depth[name]

    for name, _ in parsed:
        level(name)
    lexicon.parts = frozenset().union(*uses.values())
    count = max(depth.values()) + 1
    lexicon.by_word = [defaultdict(list) for _ in range(count)]
    lexicon.by_start = [defaultdict(list) for _ in range(count)]
    lexicon.by_concept = [defaultdict(list) for _ in range(count)]
    for name, elements in parsed:
        first, at = elements[0], depth[name]
        entry = (name, elements)
        for word in first.exact:
            lexicon.by_word[at][word].append(entry)
        for start in first.starts:
            lexicon.by_start[at][start].append(entry)
        for concept in first.concepts:
            lexicon.by_concept[at][concept].append(entry)


def variants(phrase: str) -> list[tuple[Element, ...]]:
    """Return the phrase as elements, once with and once without each optional one."""
    language, _, text = phrase.partition(":")
    found: list[tuple[Element, ...]] = [()]
    for part in text.split():
        optional = part.endswith("?")
        part = part.removesuffix("?")
        if part.startswith(".."):
            element = Element(gap=int(part[2:] or 3))
        else:
            names = part.strip("()").split("/")
            element = Element(
                exact=frozenset(n for n in names if not n.endswith("*") and not n.isupper()),
                starts=tuple(n[:-1] for n in names if n.endswith("*")),
                concepts=tuple(f"{language}:{n}" for n in names if n.isupper() and not n.endswith("*")),
            )
            element = Element(
                frozenset(plain(w) for w in element.exact), tuple(plain(w) for w in element.starts), element.concepts
            )
        found = [(*one, element) for one in found] + (found if optional else [])
    return [strip_gaps(one) for one in found if one]


def strip_gaps(elements: tuple[Element, ...]) -> tuple[Element, ...]:
    return strip_gaps(elements[:-1]) if elements[-1].gap else elements


def learn_spelling(lexicon: Lexicon, folder: Path) -> None:
    """Index the English words of the tables for `spelled`; words.txt holds common words that are no misspellings."""
    ours: set[str] = set()
    others: set[str] = set()
    starts: set[str] = set()
    for level in range(len(lexicon.by_word)):
        for index in (lexicon.by_word[level], lexicon.by_start[level], lexicon.by_concept[level]):
            for name, elements in (entry for entries in index.values() for entry in entries):
                for element in elements:
                    (ours if name.startswith("en:") else others).update(element.exact)
                    starts.update(start for start in element.starts if len(start) >= 4)
    common = (folder / "words.txt").read_text(encoding="utf-8").split()
    lexicon.known = frozenset(ours.union(others, starts, common, lexicon.shorthand))
    lexicon.starts = tuple(sorted(starts))
    for word in sorted(w for w in ours if len(w) > 4 and w.isascii() and w.isalpha()):
        for key in deletions(word):
            lexicon.near.setdefault(key, word)
        lexicon.skeletons.setdefault(skeleton(word), word)


# --- words -> concepts -> flags --------------------------------------------------------------------------------------

NUMERIC = ("NUM", "FEVER", "LOWTEMP", "MANY", "YEAR", "HUGE")


class Mention(NamedTuple):
    """A concept found at words start..end (end not included) of a turn."""

    concept: str
    start: int
    end: int


def numeric(token: str) -> Iterable[str]:
    """Yield the concepts of a number: a fever in C or F, a low body temperature, a year, many."""
    try:
        value = float(token.replace(",", ".").replace(":", "."))
    except ValueError:
        return
    yield "NUM"
    if 38 <= value <= 43 or 100.4 <= value <= 108:
        yield "FEVER"
    if 26 <= value < 35.6:
        yield "LOWTEMP"
    if value >= 7:
        yield "MANY"
    if 1900 <= value <= 2099 and "." not in token and "," not in token:
        yield "YEAR"


def recognise(turns: Sequence[Sequence[str]]) -> tuple[list[tuple[dict[str, str], Heard]], dict[str, str]]:
    """Return ({flag: language}, the turn as heard) of each turn, and {flag: language} of what only several show."""
    rules = tables().rules
    by_turn: list[tuple[dict[str, str], Heard]] = []
    together: dict[str, str] = {}
    everywhere: dict[str, list[Mention]] = {}
    for tokens in turns:
        language, everything = main_language(tokens), concepts(tokens)
        mentions, silent = in_scope(tokens, everything)
        places: dict[str, list[Mention]] = defaultdict(list)
        for mention in mentions:
            places[mention.concept].append(mention)
        everywhere |= places
        flags: dict[str, str] = {}
        found: list[tuple[int, str]] = []
        signs = {(m.start, m.concept) for m in everything if m.concept[3:] in SCOPES}
        signs.update((m.start, m.concept) for m in mentions)
        for rule in rules:
            end = fits(rule, places)
            if end >= 0 and rule.flag not in flags:
                flags[rule.flag] = language or rule.language
                found.append((end, rule.flag))
            elif not rule.window and fits(rule, everywhere) >= 0:
                together.setdefault(rule.flag, rule.language)
        said = [f"{token}~" if i in silent else token for i, token in enumerate(tokens)]
        by_turn.append((flags, Heard(said, sorted(signs), found, sentences(tokens), language, readable(tokens))))
    return by_turn, {flag: told for flag, told in together.items() if not any(flag in flags for flags, _ in by_turn)}


def fits(rule: Rule, places: Mapping[str, list[Mention]]) -> int:
    """Return the last word of the first place where a mention of every term lies within the rule's window, else -1.

    One sweep over the mentions by position.
    """
    if rule.without & places.keys():
        return -1
    hits: list[tuple[int, int, int]] = []
    for i, term in enumerate(rule.terms):
        here = [(m.start, m.end, i) for name in term for m in places.get(name, ())]
        if not here:
            return -1
        hits += here
    if not rule.window:
        return 0
    hits.sort()
    last = [(-10_000, -10_000)] * len(rule.terms)
    for start, end, i in hits:
        last[i] = max(last[i], (start, end)) if last[i][0] >= 0 else (start, end)
        furthest = max(e for _, e in last)
        if furthest - min(s for s, _ in last) <= max(rule.window, end - start):
            return furthest - 1
    return -1


def concepts(tokens: Sequence[str]) -> list[Mention]:
    """Return every concept mentioned in the words of one turn."""
    lexicon, spoken = tables(), languages(tokens)
    words_at: dict[str, list[int]] = defaultdict(list)
    for i, token in enumerate(tokens):
        words_at[token].append(i)
    here = frozenset(words_at)
    at: dict[int, dict[str, list[int]]] = defaultdict(dict)  # start -> concept -> ends
    starts: dict[str, set[int]] = defaultdict(set)  # concept -> starts
    found: set[Mention] = set()

    def add(name: str, start: int, end: int) -> None:
        mention = Mention(name, start, end)
        if mention not in found:
            found.add(mention)
            if name in lexicon.parts:
                at[start].setdefault(name, []).append(end)
                starts[name].add(start)

    for token in here:
        for name in numeric(token) if token[0].isdigit() else ():
            for language in spoken:
                for i in words_at[token]:
                    add(f"{language}:{name}", i, i + 1)
    for level, by_concept in enumerate(lexicon.by_concept):
        new: list[tuple[str, int, int]] = []
        beginnings = [(lexicon.phrases(level, word, spoken), words_at[word]) for word in here]
        beginnings += [(by_concept[name], starts[name]) for name in starts if name in by_concept]
        for entries, places in beginnings:
            for name, elements in entries:
                # a phrase that needs a word or a concept which the turn has nowhere is not tried at each place
                if possible(elements, here, starts):
                    one_word = len(elements) > 1 and not elements[0].concepts
                    for i in following(places, elements[1], tokens) if one_word else places:
                        end = match(elements, 0, tokens, i, at)
                        if end >= 0:
                            new.append((name, i, end))
        for name, start, end in new:
            add(name, start, end)
    return sorted(found, key=itemgetter(1, 2, 0))


def following(places: Iterable[int], element: Element, tokens: Sequence[str]) -> Iterable[int]:
    """Return the places whose next word fits a plain second element: a quick look before `match`."""
    if element.gap or element.concepts or element.starts:
        return places
    return [i for i in places if i + 1 < len(tokens) and tokens[i + 1] in element.exact]


def possible(elements: Sequence[Element], here: frozenset[str], names: Mapping[str, object]) -> bool:
    """Whether each element of a phrase can be found at all among the words and the concepts of a turn."""
    return all(
        e.gap or e.starts or not e.exact.isdisjoint(here) or any(name in names for name in e.concepts) for e in elements
    )


def match(elements: Sequence[Element], k: int, tokens: Sequence[str], i: int, at: Mapping) -> int:
    """Return where elements[k:] end when they match at word i, or -1."""
    if k == len(elements):
        return i
    if i >= len(tokens):
        return -1
    element = elements[k]
    if element.gap:
        for skip in range(element.gap + 1):
            end = match(elements, k + 1, tokens, i + skip, at)
            if end >= 0:
                return end
            if i + skip >= len(tokens) or tokens[i + skip] in STOPS:
                return -1
        return -1
    token = tokens[i]
    if token in element.exact or (element.starts and token.startswith(element.starts)):
        end = match(elements, k + 1, tokens, i + 1, at)
        if end >= 0:
            return end
    if element.concepts and i in at:
        for name in element.concepts:
            for stop in at[i].get(name, ()):
                end = match(elements, k + 1, tokens, stop, at)
                if end >= 0:
                    return end
    return -1


SCOPES = (
    "NOT", "AFTERNOT", "PAST", "NOW", "RIGHTNOW", "ASKS", "LESSON", "FICTION", "PET", "ONE", "SELFW",
    "IDIOM", "LINK", "CLAUSE", "HUMAN",
)  # fmt: skip


def in_scope(tokens: Sequence[str], mentions: Sequence[Mention]) -> tuple[list[Mention], set[int]]:
    """Return the mentions that are told as true, of a person, now, and the words of the sentences that are not.

    Left out: what is negated, lies in the past, or belongs to a lesson, a story, an idiom or a pet. Does NOT cover
    irony, quotations, or a negation told in a sentence of its own.
    """
    marks: dict[str, list[Mention]] = defaultdict(list)
    content: list[Mention] = []
    for mention in mentions:
        kind = mention.concept[3:]
        if kind in SCOPES:
            marks[kind].append(mention)
        else:
            content.append(mention)
    idiom = {i for m in marks["IDIOM"] for i in range(m.start, m.end)}
    content = [m for m in content if not (m.start in idiom and m.end - 1 in idiom)]
    silent, silent_crisis = silent_words(tokens, marks)
    content = [m for m in content if m.start not in (silent_crisis if m.concept[3:] in CRISES else silent)]
    denied = denied_words(tokens, marks, content)
    kept = [m for m in content if m.start not in denied.get(m.concept[:2], ())]
    return kept + [m for kind in ("SELFW", "ONE") for m in marks[kind]], silent


def languages(tokens: Sequence[str]) -> frozenset[str]:
    """Return the languages that a turn may be written in: those with as many common words in it as English, and English
    itself unless the turn has none of its common words and three of another's.
    """
    common = tables().common
    counts = {language: sum(token in common[language] for token in tokens) for language in LANGUAGES}
    # a few words may have none of the common ones; in a long text their absence tells
    least = max(counts["en"], len(tokens) >= 30)
    others = {language for language in LANGUAGES if counts[language] >= least} - {"en"}
    return frozenset(others if counts["en"] == 0 and max(counts.values()) >= 3 else others | {"en"})


def readable(tokens: Sequence[str]) -> list[bool]:
    """Return which tokens are words: not the Latin letters that no table and no list of common words knows."""
    known = tables().known
    return [not (token.isascii() and token.isalpha()) or (len(token) > 1 and token in known) for token in tokens]


def main_language(tokens: Sequence[str]) -> str:
    """Return the language that most common words of a turn belong to, "" when two share the first place."""
    counts = Counter({name: sum(token in common for token in tokens) for name, common in tables().common.items()})
    (first, most), (_, second) = counts.most_common(2)
    return first if most > second else ""


def sentences(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Return (start, end) of the sentences."""
    bounds, start = [], 0
    for i, token in enumerate(tokens):
        if token in STOPS:
            if i > start:
                bounds.append((start, i + 1))
            start = i + 1
    if start < len(tokens):
        bounds.append((start, len(tokens)))
    return bounds


def silent_words(tokens: Sequence[str], marks: Mapping[str, list[Mention]]) -> tuple[set[int], set[int]]:
    """Return the words of sentences that tell of the past, a lesson, a story or a pet.

    The second set is for crises, which only the past and a story silence: "do people who jump regret it" is a question
    and a sign.
    """
    kinds = ("PAST", "NOW", "RIGHTNOW", "ASKS", "LESSON", "FICTION", "PET", "ONE", "SELFW", "HUMAN")
    starts = {kind: sorted(m.start for m in marks[kind]) for kind in kinds}

    def has(kind: str, start: int, end: int) -> bool:
        i = bisect_left(starts[kind], start)
        return i < len(starts[kind]) and starts[kind][i] < end

    silent: set[int] = set()
    silent_crisis: set[int] = set()
    lesson = pet = False
    for start, end in sentences(tokens):
        now, person = has("NOW", start, end), has("ONE", start, end)
        real = person and has("RIGHTNOW", start, end)
        fiction = has("FICTION", start, end)
        past = has("PAST", start, end) and not now
        lesson = not real and (lesson or fiction or has("LESSON", start, end))
        pet = not has("HUMAN", start, end) and ((pet and not person) or has("PET", start, end))
        if past or lesson or pet or (has("ASKS", start, end) and not person):
            silent.update(range(start, end))
        if past or (fiction and not real) or (lesson and not has("SELFW", start, end)):
            silent_crisis.update(range(start, end))
    return silent, silent_crisis


def goes_on(tokens: Sequence[str], i: int, links: set[int]) -> bool:
    """Whether the comma at word i stands in a list that ends with "or": no fever, rash or cough."""
    if tokens[i] != ",":
        return False
    for j in range(i + 1, min(i + 7, len(tokens))):
        if j in links:
            return True
        if tokens[j] in STOPS:
            return False
    return False


def denied_words(tokens: Sequence[str], marks: Mapping, content: Sequence[Mention]) -> dict[str, set[int]]:
    """Return, by language, the words that a "no" or "not" before them (in Hindi, after them) denies."""
    inside = {i for m in content if m.end - m.start > 1 for i in range(m.start, m.end)}
    breaks = {m.start for m in marks["CLAUSE"]} | {i for i, token in enumerate(tokens) if token in BREAKS}
    links = {i for m in marks["LINK"] for i in range(m.start, m.end)}
    covered = {i for m in content for i in range(m.start, m.end)}
    denied: dict[str, set[int]] = defaultdict(set)
    for negation in marks["NOT"]:
        if any(i in inside for i in range(negation.start, negation.end)):
            continue
        room, i = 3, negation.end
        while i < min(negation.end + 16, len(tokens)) and room > 0 and (i not in breaks or goes_on(tokens, i, links)):
            denied[negation.concept[:2]].add(i)
            # "no fever, rash or cough": the words that are named and the "or" between them use up no room
            room = 3 if i in links else room - (i not in covered)
            i += 1
    for negation in marks["AFTERNOT"]:
        if any(i in inside for i in range(negation.start, negation.end)):
            continue
        for i in range(negation.start - 1, max(-1, negation.start - 4), -1):
            if i in breaks:
                break
            denied[negation.concept[:2]].add(i)
    question = [i for i, token in enumerate(tokens) if token == "?" and i + 1 < len(tokens)]
    for i in question:
        if tokens[i + 1] in ("no", "nope", "nah", "none"):
            for j in range(i - 1, max(-1, i - 5), -1):
                if tokens[j] in STOPS:
                    break
                denied["en"].add(j)
    return denied
