"""opinion(): a learned second look at what a person writes, where the rules of medchat.triage miss or mistake.

An encoder (medchat.encoder) reads the whole turn. Beside it stands a judge: a reader (medchat.hashed) scores words and
concepts, is it an alarm at all, is it a crisis; and eleven numbers weigh, for each sentence and each stretch of up to
40 words that ends with one, the reader's scores of the stretch and of its most alarming sentence against what the rules
found in it. The most alarming stretch decides; a part counts a little less than the whole. Encoder and judge together
raise an alarm, or the judge alone where it is sure: added words change that only by the little that a part counts less.
`python -m benchmarks.triage --train` makes all of it, and weighs encoder and judge on texts that neither has seen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medchat.encoder import Encoder
from medchat.errors import UserError
from medchat.hashed import Linear, Sign, length

ENCODER = Path(__file__).parent.parent / "assets" / "triage"
WEIGHTS = ENCODER / "weights.npz"
WINDOW, STEP = 40, 10  # words of a stretch; a longer sentence is cut every 10 words
READABLE = 0.25  # the share of words in a stretch that must be words, or it is gibberish
MOST = 3  # rules found in a stretch, more count as three
FEW = 14  # words
SPANS = 8  # of a turn that the encoder reads at most
DOUBT = 1.5  # below the line: in few words what a rule found stands until there
CALM = 2.5  # below the line of an alarm nothing is a crisis
MOST_SAID = 6.0  # the judge's scores beyond that say no more
SCORES: dict[bytes, np.ndarray] = {}  # the encoder's, for each message asks for all those before it again
REMEMBERED = 20_000


class Heard(NamedTuple):
    """A turn as the rules heard it: its words, with "~" in a sentence that they pass over, and the concepts in them.

    `found` are the flags (the last word of the place, the flag) that rules raise, `sentences` their (start, end), and
    `language` is what most of its common words belong to ("" if that is not clear), `readable` which words are any.
    """

    words: list[str]
    signs: list[Sign]
    found: list[Sign]
    sentences: list[tuple[int, int]]
    language: str
    readable: list[bool]


class Opinion(NamedTuple):
    """Whether a turn tells of a danger at all, whether of a crisis, and whether what a rule found stands."""

    alarm: bool
    crisis: bool
    stands: bool


def opinion(heard: Heard, crises: frozenset[str]) -> Opinion:
    """Return the opinion on a turn; `crises` are the flags that are one.

    Learned mostly from English: of other languages it knows little.
    """
    reader, judge, weigh = models()
    judged = verdicts(evidence(heard, crises, reader), judge).max(axis=0, initial=-MOST_SAID)
    if not is_latin(heard.words):
        both = judged
    else:
        of_encoder, of_judge, bias, sure = weigh[int(is_longer(heard.words))]
        both = encoder_scores(heard, reader) * of_encoder + np.minimum(judged, MOST_SAID) * of_judge + bias
        both = np.maximum(both, judged - sure)
    crisis = both[1] > 0 and both[0] > -CALM
    alarm = both[0] > 0 or crisis
    stands = alarm or (not is_longer(heard.words) and both[0] > -DOUBT)
    return Opinion(bool(alarm), bool(crisis), bool(stands))


def is_latin(words: Sequence[str]) -> bool:
    """Whether at least half of a text's words are in Latin letters; of other scripts the encoder knows single signs."""
    spelled = [word for word in words if word[0].isalpha()]
    return 2 * sum(word.isascii() for word in spelled) >= len(spelled)


def is_longer(words: Sequence[str]) -> bool:
    """Whether a text has enough words for the encoder's judgement: in fewer the judge counts more."""
    return len(words) > FEW


def encoder_scores(heard: Heard, reader: Linear) -> np.ndarray:
    """Return the encoder's scores [2] of the turn: the highest of its spans, where it does not fit as a whole.

    Of a long turn it reads the SPANS spans that are most alarming to the `reader`, and gibberish never.
    """
    words = plain(heard.words)
    spans = encoder().spans(words)
    spans = [(start, end) for start, end in spans if sum(heard.readable[start:end]) >= READABLE * (end - start)]
    if len(spans) > SPANS:
        alarming = reader.scores(heard.words, heard.signs, spans).max(axis=1)
        spans = [spans[i] for i in np.argsort(-alarming, kind="stable")[:SPANS].tolist()]
    scores = [scored(words[start:end]) for start, end in spans]
    return np.array(scores).reshape(-1, 2).max(axis=0, initial=-100.0)


def plain(words: Sequence[str]) -> list[str]:
    """Return the words as the encoder reads them: without the marks of sentences that the rules pass over."""
    return [word.removesuffix("~") for word in words]


def verdicts(seen: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Return the judge's scores [stretches, 2] for the evidence [stretches, 11]; above 0 means yes."""
    return seen @ judge[:-1] + judge[-1]


def stretches(sentences: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (start, end) of the sentences, long ones cut, and of the stretches that end with each of them.

    Words added at the end of a text add to both and change nothing in them but the last, unfinished sentence.
    """
    parts = [
        (max(start, cut - WINDOW), cut) for start, end in sentences for cut in [*range(start + WINDOW, end, STEP), end]
    ]
    starts, longer = [start for start, _ in sentences], []
    for start, end in parts:
        i = bisect_left(starts, end - WINDOW)
        longer.append((min(start, starts[i]) if i < len(starts) else start, end))
    return parts, longer


def evidence(heard: Heard, crises: frozenset[str], reader: Linear) -> np.ndarray:
    """Return what the judge weighs [stretches, 11]: four scores, what rules found (four), length, which part."""
    parts, longer = stretches(heard.sentences)
    firsts = [start for start, _ in parts]
    scores = reader.scores(heard.words, heard.signs, [*longer, *parts])
    alone = scores[len(longer) :]
    best = [alone[bisect_left(firsts, start) : i + 1].max(axis=0) for i, (start, _) in enumerate(longer)]
    starts, ends = np.array([*longer, *parts]).T
    inside = [(starts <= place) & (place < ends) for place, _ in heard.found]
    rules = np.sum(inside, axis=0) if inside else np.zeros(len(starts))
    crisis = np.any(
        [here for here, (_, flag) in zip(inside, heard.found, strict=True) if flag in crises] or [rules < 0], 0
    )
    seen = np.column_stack(
        [
            scores,
            np.concatenate([np.array(best), alone]),
            rules > 0,
            crisis,
            np.minimum(rules, MOST),
            (rules > 0) / length(ends - starts),  # a rule's find weighs more where little else is said
            np.log1p(ends - starts),
            (starts == 0) & (ends < ends[len(longer) - 1]) & (np.arange(len(starts)) < len(longer)),
            np.arange(len(starts)) >= len(longer),
        ]
    ).astype(np.float64)
    sums = np.append(0, np.cumsum(heard.readable))
    whole = [True] * len(longer) + [span != stretch for span, stretch in zip(parts, longer, strict=True)]
    return seen[np.array(whole) & (sums[ends] - sums[starts] >= READABLE * (ends - starts))]


@lru_cache(maxsize=1)
def models() -> tuple[Linear, np.ndarray, np.ndarray]:
    """Return the reader, the judge's weights [12, 2], the bias last, and how encoder and judge are weighed [2, 4, 2].

    Of few words first, then of more. The four are the weight of the encoder's score, of the judge's, the bias, and the
    judge's score that suffices alone.
    """
    with np.load(WEIGHTS) as file:
        return Linear.read(WEIGHTS), file["judge"], file["weigh"]


def scored(words: Sequence[str]) -> np.ndarray:
    """Return the encoder's scores [2] of some words, remembered under a digest: no text stays in memory."""
    key = blake2b(" ".join(words).encode(), digest_size=16).digest()
    if (scores := SCORES.get(key)) is None:
        if len(SCORES) >= REMEMBERED:
            SCORES.clear()
        scores = SCORES[key] = encoder().logits([words])[0]
    return scores


@lru_cache(maxsize=1)
def encoder() -> Encoder:
    """Return the encoder, read once; raises UserError when its files are not the repository's."""
    try:
        return Encoder.read(ENCODER)
    except Exception as error:  # a file that is missing, cut, or the pointer to one
        raise UserError(
            f"The triage's encoder in {ENCODER} cannot be read ({error}).", "Fetch the repository's files again."
        ) from error
