"""An engine that answers from a script, quickly and always alike: for the page, where the words do not matter."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from threading import Event

from medchat.adapters import Adapter, open_adapter
from medchat.engines import Delta, EngineError, Sampling, Stats
from medchat.prompt import Message

INVENTED = "Blue elephants invented this remedy in seven marble palaces."
HOSTILE = (
    "<img src=x onerror=\"window.hacked='img'\"><script>window.hacked='script'</script>"
    "<a href=\"javascript:window.hacked='link'\">click</a><svg onload=\"window.hacked='svg'\"></svg>"
    "<div style='position:fixed;inset:0;background:red'>over everything</div>"
    "![x](javascript:window.hacked='image') [link](javascript:window.hacked='markdown')"
)


class ScriptedEngine:
    """Answers by what the question holds: LONG never ends, THINK reasons first, HOSTILE sends markup, FAIL fails.

    SLOW waits before its first word. Else it repeats the first passage that it was given, and adds a sentence that no
    passage supports. The base answers in capitals. `computing` is how many replies run now.
    """

    name = "scripted"
    base = "script"
    context = 2000

    def __init__(self, *, slots: int = 4, pause: float = 0.004):
        self.slots, self.pause = slots, pause
        adapter = open_adapter("embedded")
        second = Adapter(**{**vars(adapter), "name": "second", "source": "org/second", "system": "Be brief."})
        self.adapters: Mapping[str, Adapter] = {"medchat": adapter, "second": second}
        self.computing = 0
        self._lock = threading.Lock()

    def stream(
        self, messages: Sequence[Message], *, adapter: str, sampling: Sampling, cancel: Event
    ) -> Iterator[Delta]:
        """Yield the scripted reply word by word."""
        started = time.perf_counter()
        with self._lock:
            self.computing += 1
        try:
            asked = messages[-1]["content"]
            while "SLOW" in asked and not cancel.is_set():
                time.sleep(0.02)
                yield Delta("")
            count = 0
            for word in self._words(asked, adapter):
                if cancel.is_set():
                    break
                time.sleep(self.pause)
                count += 1
                yield Delta(word)
            took = time.perf_counter() - started
            stats = Stats(self.count_tokens(messages), 0, count, 0.01, count / took if took else 0.0)
            yield Delta("", "cancelled" if cancel.is_set() else "stop", stats)
        finally:
            with self._lock:
                self.computing -= 1

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the number of words."""
        return sum(len(message["content"].split()) for message in messages)

    def _words(self, asked: str, adapter: str) -> Iterator[str]:
        question = asked.rpartition("Answer from the passages: ")[2]
        while "LONG" in question:
            yield from ("and ", "on ", "it ", "goes. ")
        if "FAIL" in question:
            yield "Half "
            raise EngineError("The model stopped with an error.", "Please send the message again.")
        passage = re.search(r"Passages:\n\n[^:]*: [^:]*: (.*)", asked)
        text = f"{passage[1].split('. ')[0]}. {INVENTED}" if passage else f"About this: {question}"
        if "THINK" in question:
            text = f"<think>First I weigh it.</think>{text}"
        if "HOSTILE" in question:
            text = HOSTILE
        text = text if adapter else text.upper()
        yield from re.findall(r"\S+\s*", f"{text} ({adapter})" if adapter == "second" else text)
