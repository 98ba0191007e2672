"""Which rows say the same: near-duplicates among the rows, and rows that hold parts of an evaluation set.

Both methods are exact: no sampling, and no buckets that could miss a pair.
- Near-duplicates are pairs whose sets (a question's content words, an answer's three-word runs) have a Jaccard
  similarity above 0.8, the threshold of Lee et al. 2022 (arXiv:2107.06499). They are found with prefix filtering
  (Bayardo et al. 2007, "Scaling up all pairs similarity search"): two such sets share one of their rarest members.
- Contamination is a run of 13 words shared with an evaluation set (Brown et al. 2020, arXiv:2005.14165, appendix C), or
  a question that equals or nearly duplicates one of its questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from medchat.words import stem, words

SIMILAR = 0.8
RUN = 13  # words
SHINGLE = 3  # words of a run of an answer
# A test question with fewer content words ("What is rickets?") is only found where it stands word for word.
FEWEST = 4
# Words of questions that say nothing about their topic. Not medchat.words.STOP, which holds names' words ("Down").
STOP = frozenset(
    """am an and any are as at be been by can could did do does for from had has have he her his how i if in is it its
    me my of on or our please she should so some that the their there these they this those to us was we were what when
    where which who why will with would you your""".split()  # noqa: SIM905
)
_BATCH = 2_000  # rows whose words are hashed at once
_CHUNK = 1_000_000  # pairs, or members of sets, that are compared at once: under 100 MB
_SPACES = {i: " " for i in range(128) if not chr(i).isalnum()}
_BUCKETS = 22  # bits
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Array = np.ndarray


class Texts:
    """What rows are compared by, under a kilobyte each; test questions come first, then `seal`, then the rows."""

    def __init__(self) -> None:
        self._numbers = _Numbers()
        self._questions: list[list[int]] = []  # the batch that waits to be hashed
        self._answers: list[list[int]] = []
        self._all: list[list[int]] = []
        self._parts: dict[str, list[Array]] = {key: [] for key in ("q", "q_sizes", "a", "a_sizes", "runs", "found")}
        self._test_runs = self._test_of_run = np.zeros(0, np.uint64)
        self._seen = np.zeros(0, bool)
        self.sets: list[str] = []  # names of the evaluation sets
        self.test_of: list[int] = []  # of each test question: its set's number
        self.question_keys: list[int] = []  # of each test question and row: its words, in one number
        self.answer_keys: list[int] = []
        self.answer_lengths: list[int] = []

    def add_test(self, name: str, questions: Sequence[str], texts: Sequence[str]) -> None:
        """Take in a row of the evaluation set `name`: its question, perhaps in two wordings, and all of its texts."""
        if name not in self.sets:
            self.sets.append(name)
        joined = _joined([self._numbered(text) for text in texts])
        for question in questions:
            self.test_of.append(self.sets.index(name))
            self._add(self._numbered(question), [], joined)
            joined = []

    def seal(self) -> None:
        """End the test questions; rows that are added from now on are searched for their runs."""
        self._flush()
        runs = np.concatenate(self._parts["runs"]) if self._parts["runs"] else np.zeros(0, np.uint64)
        of = np.concatenate(self._parts["found"]) if self._parts["found"] else np.zeros(0, np.int64)
        self._test_runs, first = np.unique(runs, return_index=True)
        self._test_of_run = np.asarray(self.test_of, np.int64)[of[first]] if len(of) else of
        # Most runs are of no test: one look into this table says so, without a search.
        self._seen = np.zeros(1 << _BUCKETS, bool)
        self._seen[(self._test_runs >> np.uint64(64 - _BUCKETS)).astype(np.int64)] = True
        self._parts["runs"], self._parts["found"] = [], []

    def add(self, question: str, answer: str, shown: Sequence[str]) -> None:
        """Take in a row; `shown` are all its texts, which are searched for runs of the tests."""
        asked, answered = self._numbered(question), self._numbered(answer)
        numbered = {question: asked, answer: answered}
        self._add(asked, answered, _joined([numbered.get(text) or self._numbered(text) for text in shown]))

    def _numbered(self, text: str) -> list[int]:
        if not text.isascii():
            return list(map(self._numbers.__getitem__, words(text)))
        # The same words, ten times as fast.
        return list(map(self._numbers.__getitem__, text.lower().replace("'", "").translate(_SPACES).split()))

    def _add(self, question: list[int], answer: list[int], everything: list[int]) -> None:
        self._questions.append(question)
        self._answers.append(answer)
        self._all.append(everything)
        self.question_keys.append(hash(tuple(question)))
        self.answer_keys.append(hash(tuple(answer)))
        self.answer_lengths.append(len(answer))
        if len(self._all) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        count, parts = len(self._all), self._parts
        if not count:
            return
        row, word = _flat(self._questions)
        stems = np.asarray(self._numbers.stems, np.uint64)[word]
        _put(parts["q"], parts["q_sizes"], row[stems > 0], stems[stems > 0], count)
        row, runs = _runs(self._answers, SHINGLE)
        _put(parts["a"], parts["a_sizes"], row, runs >> np.uint64(32), count)
        row, runs = _runs(self._all, RUN)
        if not len(self._seen):
            parts["runs"].append(runs)
            parts["found"].append(row + len(self.question_keys) - count)
        else:
            parts["found"].append(self._search(row, runs, count))
        self._questions, self._answers, self._all = [], [], []

    def _search(self, row: Array, runs: Array, count: int) -> Array:
        """Return for each row of the batch the number of the set that it shares a run with, -1 for none."""
        found = np.full(count, -1)
        if len(self._test_runs):
            likely = self._seen[(runs >> np.uint64(64 - _BUCKETS)).astype(np.int64)]
            row, runs = row[likely], runs[likely]
            at = np.minimum(np.searchsorted(self._test_runs, runs), len(self._test_runs) - 1)
            same = self._test_runs[at] == runs
            found[row[same]] = self._test_of_run[at[same]]
        return found

    def shared_runs(self) -> Array:
        """Return for each row (tests not counted) the number of the evaluation set it shares a run with, or -1."""
        self._flush()
        return np.concatenate(self._parts["found"]) if self._parts["found"] else np.zeros(0, np.int64)

    def question_sets(self) -> tuple[Array, Array]:
        """Return (offsets, items) of the content words of every test question and row."""
        return self._sets("q")

    def answer_sets(self) -> tuple[Array, Array]:
        """Return (offsets, items) of the three-word runs of every answer; a test question's is empty."""
        return self._sets("a")

    def _sets(self, part: str) -> tuple[Array, Array]:
        self._flush()
        sizes = np.concatenate([np.zeros(1, np.int64), *self._parts[part + "_sizes"]])
        return np.cumsum(sizes), np.concatenate([np.zeros(0, np.uint32), *self._parts[part]])


class _Numbers(dict[str, int]):
    """Numbers the words as they come; `stems[number]` is the number of a word's stem, 0 for one that says nothing."""

    def __init__(self) -> None:
        self.stems: list[int] = []
        self._known: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.stems.append(0 if word in STOP else self._known.setdefault(stem(word), len(self._known) + 1))
        return number


def _joined(texts: Sequence[list[int]]) -> list[int]:
    """Return one list of words; a number that stands for no word keeps runs from going across texts."""
    return list(chain.from_iterable([*text, -1] for text in texts))


def _flat(batch: Sequence[list[int]]) -> tuple[Array, Array]:
    """Return (row of each word, number of each word)."""
    sizes = np.fromiter(map(len, batch), np.int64, len(batch))
    word = np.fromiter(chain.from_iterable(batch), np.int64, int(sizes.sum()))
    return np.repeat(np.arange(len(batch)), sizes), word


def _runs(batch: Sequence[list[int]], length: int) -> tuple[Array, Array]:
    """Return (row, hash in 64 bits) of every run of `length` words within one text."""
    row, word = _flat(batch)
    last = len(word) - length + 1
    if last <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    mixed = _mix(word.astype(np.uint64))
    run = np.zeros(last, np.uint64)
    for k in range(length):
        run = run * _FACTOR + mixed[k : k + last]
    separators = np.concatenate(([0], np.cumsum(word < 0)))
    whole = (row[:last] == row[length - 1 :]) & (separators[length:] == separators[:last])
    return row[:last][whole], _mix(run[whole])


def _mix(numbers: Array) -> Array:
    """Return the numbers with their bits spread (the finisher of SplitMix64)."""
    numbers = (numbers + np.uint64(1)) * _FACTOR
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _put(items: list[Array], sizes: list[Array], row: Array, values: Array, count: int) -> None:
    """Append the sets of `count` rows, whose members are the 32-bit `values`."""
    keys = np.sort((row.astype(np.uint64) << np.uint64(32)) | values)
    keys = keys[np.concatenate((np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]))]
    items.append((keys & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    sizes.append(np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=count))


def similar_pairs(
    offsets: Array, items: Array, first: Array, threshold: float = SIMILAR
) -> Iterator[tuple[Array, Array]]:
    """Yield arrays (i, j), i < j, of the sets whose Jaccard similarity is above `threshold`; a pair may come twice.

    Of equal sets only the first stands in a pair (`first` is first_equal's). Empty sets are like no other.
    """
    size, bits = np.diff(offsets), _bits(offsets, items)
    item, row = _prefixes(offsets, items, first == np.arange(len(first)), threshold)
    # Sets with a member in common stand in order of size: each is compared with the next, as far as not too large.
    wide = int(size.max(initial=0)) + 1
    key = item * wide + size[row]
    largest = np.minimum((size[row] / threshold).astype(np.int64), wide - 1)
    most = np.searchsorted(key, item * wide + largest, "right")
    partners = np.maximum(most - np.arange(len(key)) - 1, 0)
    done = np.cumsum(partners)
    start = 0
    while start < len(key):
        before = done[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(done, before + _CHUNK, "right")))
        some = partners[start:stop]
        left = np.repeat(np.arange(start, stop), some)
        step = np.arange(len(left)) - np.repeat(np.cumsum(some) - some, some)
        i, j = _not_far(bits, size, row[left], row[left + 1 + step], threshold)
        pairs = np.unique((np.minimum(i, j) << 32) | np.maximum(i, j))
        i, j = pairs >> 32, pairs & 0xFFFFFFFF
        same = _overlaps(offsets, items, i, j)
        keep = same > threshold * (size[i] + size[j] - same) + 1e-9
        yield i[keep], j[keep]
        start = stop


def first_equal(offsets: Array, items: Array) -> Array:
    """Return for each set the first one with the same members."""
    sums = np.zeros(len(offsets) - 1, np.uint64)
    for rows, members in _blocks(offsets):
        sums[rows] = np.add.reduceat(_mix(items[members].astype(np.uint64)), offsets[rows] - members.start)
    _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
    return first[inverse]


def _blocks(offsets: Array) -> Iterator[tuple[Array, slice]]:
    """Yield (rows with members, where their members are) for some rows at a time, to keep within memory."""
    start = 0
    while start < len(offsets) - 1:
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + _CHUNK, "right")) - 1)
        rows = np.arange(start, stop)
        rows = rows[offsets[rows + 1] > offsets[rows]]
        if len(rows):
            yield rows, slice(int(offsets[start]), int(offsets[stop]))
        start = stop


def _bits(offsets: Array, items: Array) -> Array:
    """Return 256 bits for each set, four numbers of 64, with a bit set for each of its members."""
    bits = np.zeros((4, len(offsets) - 1), np.uint64)
    for rows, members in _blocks(offsets):
        spread = _mix(items[members].astype(np.uint64))
        for k in range(4):
            own = np.where(spread & np.uint64(3) == k, np.uint64(1) << (spread >> np.uint64(58)), np.uint64(0))
            bits[k, rows] = np.bitwise_or.reduceat(own, offsets[rows] - members.start)
    return bits


def _prefixes(offsets: Array, items: Array, chosen: Array, threshold: float) -> tuple[Array, Array]:
    """Return (member, set) for the rarest members of each chosen set, ordered by member and size of the set.

    In any order of all members, two sets as similar as `threshold` share one of their first
    n - ceil(threshold * n) + 1; with the rare ones first, few sets share one. How rare is counted in buckets.
    """
    size = np.diff(offsets)
    count = np.zeros(1 << _BUCKETS, np.uint32)
    for _, members in _blocks(offsets):
        np.add.at(count, _bucket(items[members]), np.uint32(1))
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for rows, members in _blocks(offsets):
        inside = np.arange(len(rows))
        # 0 for a member of one set only; eight steps to each doubling fit into a byte.
        often = (8 * np.log2(count[_bucket(items[members])])).astype(np.uint64)
        key = (np.repeat(inside, size[rows]).astype(np.uint64) << np.uint64(40)) | (often << np.uint64(32))
        key = np.sort(key | items[members])  # by row, rarity, member
        row = rows[(key >> np.uint64(40)).astype(np.int64)]
        place = np.arange(len(row)) - (offsets[row] - members.start)
        shared = (key >> np.uint64(32)) & np.uint64(255) > 0
        first = chosen[row] & shared & (place <= size[row] - np.ceil(threshold * size[row] - 1e-9))
        found.append(((key[first] & np.uint64(0xFFFFFFFF)).astype(np.int64), row[first]))
    item, row = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((size[row], item))
    return item[order], row[order]


def _bucket(items: Array) -> Array:
    return (_mix(items.astype(np.uint64)) >> np.uint64(64 - _BUCKETS)).astype(np.int64)


def _not_far(bits: Array, size: Array, i: Array, j: Array, threshold: float) -> tuple[Array, Array]:
    """Return the pairs whose bits do not show already that they are less similar than `threshold`.

    Each bit in which two sets differ is a member that they do not share ("bitmap filter", Sandes et al. 2020).
    """
    differ = np.zeros(len(i), np.int64)
    for word in bits:
        differ += np.bitwise_count(word[i] ^ word[j])
        near = differ <= (size[i] + size[j]) * (1 - threshold) / (1 + threshold) + 1e-9
        i, j, differ = i[near], j[near], differ[near]
    return i, j


def _overlaps(offsets: Array, items: Array, i: Array, j: Array) -> Array:
    """Return how many members the sets i[k] and j[k] share, for every k."""
    size = np.diff(offsets)
    total = np.cumsum(size[i] + size[j])
    shared = np.zeros(len(i), np.int64)
    start = 0
    while start < len(i):
        stop = max(start + 1, int(np.searchsorted(total, (total[start - 1] if start else 0) + _CHUNK, "right")))
        both = np.concatenate((i[start:stop], j[start:stop]))
        lengths = size[both]
        pair = np.repeat(np.tile(np.arange(stop - start), 2), lengths)
        inner = np.arange(len(pair)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        keys = np.sort((pair << 32) | items[np.repeat(offsets[both], lengths) + inner].astype(np.int64))
        twice = keys[1:][keys[1:] == keys[:-1]] >> 32
        shared[start:stop] = np.bincount(twice, minlength=stop - start)
        start = stop
    return shared
