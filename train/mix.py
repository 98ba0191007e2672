"""Which of the rows that were read stay, and on which side of the split."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from medchat.errors import UserError
from train import overlap
from train.recipe import Recipe

LONG_QUESTION = 12  # content words: two questions of that length that are near-duplicates are one
LONG_ANSWER = 12  # words: an answer of that length is not given twice by chance
OVERLAPS = "overlaps "  # and the evaluation set's name: why a row left


@dataclass
class Rows:
    """What is kept in memory of the rows that were read, one entry a row; the conversations are on disk."""

    source: list[int] = field(default_factory=list)  # number in the recipe
    topic: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)  # where the file says so; after `split` of every row that stays
    terse: list[bool] = field(default_factory=list)
    why: list[str] = field(default_factory=list)  # why a row left, "" for one that stays
    group: list[int] = field(default_factory=list)

    def staying(self) -> list[int]:
        """Return the numbers of the rows that have not left."""
        return [row for row, why in enumerate(self.why) if not why]


def drop_repeats(rows: Rows, texts: overlap.Texts) -> None:
    """Note why rows leave that hold test questions or repeat an earlier row, and put the others into groups.

    A short question with another answer is no repeat. Rows whose file gave them a side of the split were written for
    the purpose: of these only exact repeats leave.
    """
    tests = len(texts.test_of)
    questions = _Alike(*texts.question_sets())
    answers = _Alike(*texts.answer_sets())
    shared = texts.shared_runs().tolist()
    test_keys = {texts.question_keys[i]: set_number for i, set_number in enumerate(texts.test_of)}
    test_sets = {
        questions.first[i]: set_number
        for i, set_number in enumerate(texts.test_of)
        if questions.size[i] >= overlap.FEWEST
    }
    kept: set[tuple[int, int]] = set()
    kept_alike: set[tuple[int, int]] = set()
    kept_questions: set[int] = set()
    kept_answers: set[int] = set()
    groups = _Groups(len(rows.source))
    for row, i in enumerate(range(tests, tests + len(rows.source))):
        key, alike = texts.question_keys[i], questions.like(i)
        answer = texts.answer_keys[i]
        long_answer = texts.answer_lengths[i] >= LONG_ANSWER and not rows.terse[row]
        hits = [shared[row], test_keys.get(key, -1), *(test_sets.get(other, -1) for other in alike)]
        free = not rows.split[row]
        if (hit := max(hits)) >= 0:
            rows.why[row] = f"{OVERLAPS}{texts.sets[hit]}"
        elif (key, answer) in kept:
            rows.why[row] = "the same row again"
        elif free and any((other, answer) in kept_alike for other in alike):
            rows.why[row] = "nearly the same question with the same answer"
        elif free and questions.size[i] >= LONG_QUESTION and not kept_questions.isdisjoint(alike):
            rows.why[row] = "nearly the same long question again"
        elif free and long_answer and not kept_answers.isdisjoint(answers.like(i)):
            rows.why[row] = "nearly the same answer again"
        else:
            kept.add((key, answer))
            kept_alike.update((other, answer) for other in alike[:1])
            kept_questions.update(alike[:1])
            if long_answer:
                kept_answers.add(answers.first[i])
            groups.put(row, [("words", key), ("topic", rows.topic[row])], [("question", other) for other in alike])
    rows.group = [groups.of(row) for row in range(len(rows.source))]


class _Alike:
    """Which sets are equal, and which nearly."""

    def __init__(self, offsets: np.ndarray, items: np.ndarray) -> None:
        first = overlap.first_equal(offsets, items)
        self.size: list[int] = np.diff(offsets).tolist()
        self.first: list[int] = first.tolist()  # of each set: the first that equals it
        self._near: dict[int, list[int]] = defaultdict(list)
        for left, right in overlap.similar_pairs(offsets, items, first):
            for i, j in zip(left.tolist(), right.tolist(), strict=True):
                self._near[i].append(j)
                self._near[j].append(i)

    def like(self, i: int) -> list[int]:
        """Return the firsts of the sets that equal set i (it comes first) or nearly do; none for an empty set."""
        return [self.first[i], *self._near.get(self.first[i], ())] if self.size[i] else []


class _Groups:
    """Rows joined into groups by what they share."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self._holder: dict[tuple[str, int | str], int] = {}  # of each mark: the first row that bears it

    def put(self, row: int, marks: list[tuple[str, int | str]], alike: list[tuple[str, int]]) -> None:
        """Join `row` to the rows that bear one of its marks; of `alike` it bears the first and is joined to all."""
        for mark in [*marks, *alike]:
            if mark[1] != "" and mark in self._holder:
                a, b = self.of(row), self.of(self._holder[mark])
                self._parent[max(a, b)] = min(a, b)
        for mark in [*marks, *alike[:1]]:
            self._holder.setdefault(mark, row)

    def of(self, row: int) -> int:
        """Return the number of a row's group: its first row's."""
        parent = self._parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row


def take(recipe: Recipe, rows: Rows) -> None:
    """Leave of every source as many rows as the recipe asks for (`rows` or `fraction`), after a seeded shuffle."""
    by_source: dict[int, list[int]] = defaultdict(list)
    for row in rows.staying():
        by_source[rows.source[row]].append(row)
    for number, source in enumerate(recipe.data):
        found = by_source[number]
        random.Random(f"{recipe.seed} take {number}").shuffle(found)
        most = len(found)
        if source.fraction is not None:
            most = max(1, round(source.fraction * len(found)))
        for row in found[source.rows if source.rows is not None else most :]:
            rows.why[row] = "more than the recipe takes"


def split(recipe: Recipe, rows: Rows) -> None:
    """Give every row that stays its side, whole groups at a time; `held_out` counts rows that had no side before.

    A group with rows that a file put on the training side is trained on (the held-out ones among them leave), one
    with held-out rows only is held out whole.
    """
    staying = rows.staying()
    members: dict[int, list[int]] = defaultdict(list)
    for row in staying:
        members[rows.group[row]].append(row)
    free = []
    for group in members.values():
        sides = {rows.split[row] for row in group} - {""}
        for row in group:
            if sides == {"train", "held_out"} and rows.split[row] == "held_out":
                rows.why[row] = "held-out row that repeats a training row"
            rows.split[row] = "train" if "train" in sides or not sides else "held_out"
        if not sides:
            free.append(group)
    total = sum(map(len, free))
    share = isinstance(recipe.held_out, float)
    wanted = round(recipe.held_out * total) if share else int(recipe.held_out)
    random.Random(f"{recipe.seed} split").shuffle(free)
    room = wanted if free else 0
    for group in free:
        if len(group) <= room:
            room -= len(group)
            for row in group:
                rows.split[row] = "held_out"
    if staying and not any(rows.split[row] == "train" for row in rows.staying()):
        raise UserError(
            f"held_out={recipe.held_out} leaves no row to train on, of {total:,}.", "Type a smaller number."
        )
