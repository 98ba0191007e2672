"""Words for searching: stems that join spellings, and the nearest known word for a mistyped one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

_WORD = re.compile(r"[^\W_]+")
_WORD_OR_BREAK = re.compile(r"[^\W_]+|[|,]")
_VOWEL = re.compile(r"[aeiouy]")
_OUR = re.compile(r"(?<=..)our")  # tumour, colour; not hour, mourning

# Words that say nothing about the topic: function words, and what every question to a doctor holds.
STOP = frozenset(
    """a about above across actually after again against all almost along already also although always am an and
    another any anybody anyone anything are around as ask at away be because been before behind being below best
    better between both but by came can cannot come comes coming could d dear did do does doesn doing don done
    down during each either else even ever every everything few find first for from get gets getting give given
    go goes going gone good got great had happen happens has have haven having he hello her here hers hi him his
    how however i if im in instead into is isn it its itself just keep keeps kind know known last lately least
    less let like likely ll long look looks lot lots m made make makes many may maybe me mean means might mine
    more most much must my myself need needs never next no none nor normal normally not nothing now of off often
    ok okay on once one ones only onto or other our ours out over own part perhaps person people please possible
    put quite rather re really right s safe said same saw say says see seem seems several shall she should show
    shown since so some somebody someone something sometimes soon still such sure t take taken takes taking tell
    than thank thanks that the their them then there these they thing things think this those though through
    till to today told tomorrow too took tried try trying under until up upon us use used useful using usually
    ve very wait want wants was way we week weeks well went were what when where whether which while who whole
    why will with within without won would yes yesterday yet you your yours yourself day days month months year
    years ago time times hour hours minute minutes don't ive weve theyve im hes shes theyre youre thats whats theres
    isnt arent wasnt werent doesnt didnt havent hasnt cant couldnt wont wouldnt shouldnt dont youd""".split()  # noqa: SIM905
)


def words(text: str) -> list[str]:
    """Return the lower-case words and numbers of a text."""
    return _WORD.findall(text.lower().replace("'", "").replace("’", ""))


def phrases(text: str) -> Iterator[list[str]]:
    """Yield the words of each piece of a text, as `words` does; commas and "|" divide it."""
    piece: list[str] = []
    for token in _WORD_OR_BREAK.findall(text.lower().replace("'", "").replace("’", "")):
        if token in "|,":
            yield piece
            piece = []
        else:
            piece.append(token)
    yield piece


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Return the form under which a word is indexed: British and American spelling, number and tense fall together."""
    if len(word) < 4 or not word.isascii():
        return word
    w = word.replace("oe", "e").replace("ae", "e") if len(word) > 4 else word
    if len(w) > 4:
        w = _OUR.sub("or", w)
    if w.endswith("ies") and len(w) > 4:
        w = w[:-3] + "y"
    elif w.endswith(("sses", "shes", "ches", "xes", "zes")):
        w = w[:-2]
    elif w.endswith("s") and not w.endswith(("ss", "us")):
        w = w[:-1]
    for suffix in ("ing", "ed"):
        base = w[: -len(suffix)]
        if w.endswith(suffix) and len(base) > 2 and _VOWEL.search(base):
            w = base[:-1] if base[-1] == base[-2] and base[-1] not in "lsz" else base
            break
    if w.endswith("ly") and len(w) > 5:
        w = w[:-2]
    if w.endswith(("tion", "sion")) and len(w) > 6:
        w = w[:-3]
    if w.endswith("e") and len(w) > 3:
        w = w[:-1]
    if w.endswith("y") and len(w) > 3:
        w = w[:-1] + "i"
    return w


_SOUNDS = [
    (re.compile(pattern), sound)
    for pattern, sound in (
        (r"^kn", "n"), (r"^wr", "r"), (r"^ps", "s"), (r"^pn", "n"), (r"ph", "f"), (r"rrh", "r"), (r"rh", "r"),
        (r"gh(?=t)", ""),
        (r"tch", "ch"), (r"sch", "sk"), (r"ck", "k"), (r"c(?=[eiy])", "s"), (r"c(?!h)", "k"), (r"qu", "kw"),
        (r"x", "ks"), (r"z", "s"), (r"y", "i"), (r"(?<=..)e$", ""), (r"oe|ae", "e"),
        (r"ea|ee|ie|ei", "i"), (r"(.)\1", r"\1"),
    )
]  # fmt: skip


@lru_cache(maxsize=50_000)
def sound(word: str) -> str:
    """Return a rough spelling of how an English word sounds, so that "anafilaxis" meets "anaphylaxis"."""
    for pattern, replacement in _SOUNDS:
        word = pattern.sub(replacement, word)
    return word


class Speller:
    """The nearest word of a vocabulary, by sound and by edit distance."""

    def __init__(self, weights: dict[str, float]):
        self.weights = weights  # word -> how much it is wanted
        self._by_sound: dict[str, str] = {}
        self._sounds: list[tuple[str, int, str]] | None = None

    def nearest(self, word: str) -> str | None:
        """Return the known word that `word` most likely stands for, None when there is none close enough."""
        if not 3 <= len(word) <= 30 or not word.isascii() or not word.isalpha() or not _VOWEL.search(word):
            return None
        if self._sounds is None:
            self._sounds = [(s, _letters(s), w) for w in self.weights if w.isascii() and len(w) > 2 for s in [sound(w)]]
            for s, _, w in self._sounds:
                if self.weights[w] > self.weights.get(self._by_sound.get(s, ""), -1):
                    self._by_sound[s] = w
        target = sound(word)
        if target in self._by_sound:
            return self._by_sound[target]
        limit = 0 if len(target) < 5 else 1 if len(target) < 8 else 2
        letters, size, consonants = _letters(target), len(target), _VOWEL.sub("", target)
        best: tuple[float, str] | None = None
        for s, mask, w in self._sounds:
            if abs(len(s) - size) > limit or (mask ^ letters).bit_count() > 2 * limit:
                continue
            d = _distance(target, s, limit)
            if d <= limit:
                key = (
                    d
                    + (0.3 if s[0] != target[0] else 0)
                    + (0.2 if _VOWEL.sub("", s) != consonants else 0)
                    - 0.4 * self.weights[w]
                )
                if best is None or key < best[0]:
                    best = (key, w)
        return best[1] if best else None


def _letters(word: str) -> int:
    mask = 0
    for c in word:
        mask |= 1 << (ord(c) & 31)
    return mask


def _distance(a: str, b: str, limit: int) -> int:
    """Return the number of letters to insert, drop, change or swap between two words; stops above `limit`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            cost = min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            new.append(cost)
        if min(new) > limit:
            return limit + 1
        before, row = row, new
    return row[-1]
