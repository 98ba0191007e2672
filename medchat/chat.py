"""reply(): the whole product, from a question to the pieces of its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event

from medchat import prompt
from medchat.engines import Delta, Engine, Sampling
from medchat.errors import UserError
from medchat.prompt import Message

MAX_CHARACTERS = 8_000  # of one message, about four pages
SHORTEST_REPLY = 64  # tokens that a long question must leave free

DISCLAIMER = (
    "MedChat is an AI for research and education. It is not a doctor or a medical device, and it can be wrong. "
    "In an emergency call your local emergency number."
)


class ChatError(UserError):
    """The message or the conversation cannot be answered as it is."""


@dataclass(frozen=True)
class Reply:
    """A piece of the answer, with what was left out of the prompt (`dropped_turns`) and who answers (`adapter`)."""

    delta: Delta
    adapter: str
    dropped_turns: int


def reply(
    engine: Engine,
    message: str,
    history: Sequence[Message] = (),
    *,
    adapter: str = "",
    sampling: Sampling | None = None,
    cancel: Event | None = None,
) -> Iterator[Reply]:
    """Yield the answer to `message` after `history`, piece by piece.

    `adapter` is a name of `engine.adapters`, "" the first of them, "base" none. Raises ChatError with a sentence for
    the visitor before anything is computed, and EngineError when the engine fails.
    """
    sampling, cancel = sampling or Sampling(), cancel or Event()
    name = adapter_name(engine, adapter)
    messages = conversation(message, history)
    system = engine.adapters[name].system if name else None
    messages = [{"role": "system", "content": system or prompt.SYSTEM}, *messages]

    room = engine.context - min(sampling.max_tokens, engine.context // 2)
    messages, dropped = prompt.trim(messages, room, engine.count_tokens)
    used, most = engine.count_tokens(messages), engine.context - min(sampling.max_tokens, SHORTEST_REPLY)
    if used > most:
        raise ChatError(
            f"Your message is {used:,} tokens long, and {most:,} fit.", "Please shorten it, or split it into several."
        )
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens, engine.context - used))
    for delta in engine.stream(messages, adapter=name, sampling=sampling, cancel=cancel):
        yield Reply(delta, name, dropped)


def adapter_name(engine: Engine, adapter: str) -> str:
    """Return the engine's name for what a visitor chose: "" is the default adapter, "base" the bare base."""
    if adapter == "base":
        return ""
    if not adapter:
        return next(iter(engine.adapters), "")
    if adapter not in engine.adapters:
        names = ", ".join([*engine.adapters, "base"])
        raise ChatError(f"There is no adapter {adapter[:80]!r} here.", f"Choose one of: {names}.")
    return adapter


def conversation(message: str, history: Sequence[Message]) -> list[Message]:
    """Return `history` with `message` at its end, checked; raises ChatError naming all that is wrong."""
    if not isinstance(message, str) or not message.strip():
        raise ChatError("Your message is empty.", "Please type a question.")
    if len(message) > MAX_CHARACTERS:
        raise ChatError(
            f"Your message has {len(message):,} characters; {MAX_CHARACTERS:,} are possible.",
            "Please shorten it, or split it into several.",
        )
    if not isinstance(history, (list, tuple)):
        raise ChatError("The history is not a list of messages.", "Please start a new conversation.")
    turns = [turn for turn in history if not (isinstance(turn, dict) and turn.get("role") == "system")]
    messages = [*turns, {"role": "user", "content": message.strip()}]
    if found := prompt.problems(messages):
        raise ChatError(f"This conversation cannot be continued: {'; '.join(found[:5])}.", "Please start a new one.")
    return [{"role": m["role"], "content": m["content"]} for m in messages]
