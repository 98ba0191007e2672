"""Line: visitors wait in order for one of the engine's places, and overload is answered at once with a sentence.

It stands inside `Engine.stream`, after the triage: a card against danger never waits and is never refused.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event

from medchat.adapters import Adapter
from medchat.engines import Delta, Engine, EngineError, Sampling
from medchat.prompt import Message

FIRST_GUESS = 6.0  # seconds that a reply takes, until some were seen


class Busy(EngineError):
    """Too many are waiting, or one visitor asks too often."""


@dataclass(frozen=True)
class Limits:
    """How much is taken on: replies waiting at once, and replies that one visitor may start within a minute."""

    waiting: int = 32
    per_minute: int = 60


class Line:
    """The queue in front of one engine; safe to use from several threads."""

    def __init__(self, engine: Engine, limits: Limits | None = None):
        self.engine = engine
        self.limits = limits or Limits()
        self._moved = threading.Condition()
        self._waiting: list[Event] = []
        self._running: dict[Event, float] = {}
        self._whose: dict[Event, str] = {}
        self._starts: dict[str, deque[float]] = {}
        self._seconds = FIRST_GUESS

    def for_visitor(self, name: str) -> Visitor:
        """Return the engine as this visitor may use it."""
        return Visitor(self, name)

    def place(self, cancel: Event) -> tuple[int, float]:
        """Return (place in the line from 1, estimated seconds) of the reply that `cancel` stops; (0, 0) if it runs."""
        with self._moved:
            if cancel not in self._waiting:
                return 0, 0.0
            place = self._waiting.index(cancel) + 1
            return place, place * self._seconds / self.engine.slots

    def join(self, visitor: str, cancel: Event) -> None:
        """Take the last place; raises Busy."""
        now = time.monotonic()
        with self._moved:
            self._starts = {name: times for name, times in self._starts.items() if times[-1] > now - 60}
            starts = self._starts.get(visitor, deque())
            while starts and starts[0] <= now - 60:
                starts.popleft()
            if len(starts) >= self.limits.per_minute:
                wait = max(1, round(starts[0] + 60 - now))
                raise Busy(
                    f"You have asked {len(starts)} questions within a minute, and others want to ask as well.",
                    f"Please try again in {wait} second{'s' if wait > 1 else ''}.",
                )
            if len(self._waiting) >= self.limits.waiting and not self._free():
                raise Busy(
                    f"All places are taken, and {len(self._waiting)} questions are waiting already.",
                    "Please try again in a minute.",
                )
            starts.append(now)
            self._starts[visitor] = starts
            self._waiting.append(cancel)
            self._whose[cancel] = visitor

    def wait(self, cancel: Event, seconds: float) -> bool:
        """Wait at most `seconds` for a free place and take it; return whether that came about."""
        with self._moved:
            self._moved.wait_for(lambda: cancel.is_set() or self._next(cancel), seconds)
            if cancel.is_set() or not self._next(cancel):
                return False
            self._waiting.remove(cancel)
            self._running[cancel] = time.monotonic()
            self._moved.notify_all()
            return True

    def leave(self, cancel: Event) -> None:
        """Give the place back, in the line or at the engine."""
        with self._moved:
            if cancel in self._waiting:
                self._waiting.remove(cancel)
            if (started := self._running.pop(cancel, None)) is not None:
                self._seconds += 0.2 * (time.monotonic() - started - self._seconds)
            self._whose.pop(cancel, None)
            self._moved.notify_all()

    def gone(self, visitor: str) -> None:
        """Stop whatever still runs or waits for a visitor who has left."""
        with self._moved:
            for cancel, name in self._whose.items():
                if name == visitor:
                    cancel.set()
            self._moved.notify_all()

    def _free(self) -> int:
        return max(0, self.engine.slots - len(self._running))

    def _next(self, cancel: Event) -> bool:
        return cancel in self._waiting[: self._free()]


class Visitor:
    """An Engine that waits its turn in the line before it streams."""

    def __init__(self, line: Line, visitor: str):
        self._line, self._visitor = line, visitor
        self.name = line.engine.name
        self.base = line.engine.base
        self.context = line.engine.context
        self.slots = line.engine.slots
        self.adapters: Mapping[str, Adapter] = line.engine.adapters

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many tokens `messages` are as a prompt."""
        return self._line.engine.count_tokens(messages)

    def stream(
        self, messages: Sequence[Message], *, adapter: str, sampling: Sampling, cancel: Event
    ) -> Iterator[Delta]:
        """Yield empty deltas while waiting, then the reply. Raises Busy and EngineError."""
        self._line.join(self._visitor, cancel)
        try:
            while not self._line.wait(cancel, 0.1):
                if cancel.is_set():
                    yield Delta("", "cancelled")
                    return
                yield Delta("")
            yield from self._line.engine.stream(messages, adapter=adapter, sampling=sampling, cancel=cancel)
        finally:
            self._line.leave(cancel)
