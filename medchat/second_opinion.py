"""opinion(): a small learned second look at what a person writes, for phrasings that the rules of medchat.triage miss.

A linear model (medchat.hashed) with two outputs: is it an alarm at all, is it a crisis. `python -m benchmarks.triage
--train` writes the weights and, chosen by cross-validation, above which score it raises an alarm on its own and below
which it doubts one that a rule has raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medchat.hashed import Linear

WEIGHTS = Path(__file__).parent.parent / "assets" / "triage" / "weights.npz"


class Opinion(NamedTuple):
    """What the model makes of one turn: raised on its own account, or doubted although a rule says so."""

    alarm: bool
    crisis: bool
    doubts_alarm: bool
    doubts_crisis: bool


def opinion(words: Sequence[str]) -> Opinion:
    """Return the opinion on one turn's words as heard (medchat.triage.recognise).

    It is the highest of all stretches of the turn, so words added to an alarm cannot talk it down by much. Learned
    mostly from English: in other languages it adds little, and its doubts are to be ignored.
    """
    linear, doubt = model()
    scores = linear.scores(words)
    return Opinion(*(scores > 0).tolist(), *(scores < doubt).tolist())


@lru_cache(maxsize=1)
def model() -> tuple[Linear, np.ndarray]:
    """Return the model, which raises an alarm above 0, and the score of each output below which it doubts a rule."""
    with np.load(WEIGHTS) as file:
        return Linear.read(WEIGHTS), file["doubt"]
