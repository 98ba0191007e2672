"""reply(): the whole product, from a question to the pieces of its answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event

from medchat import courtesy, prompt, refusal, triage
from medchat.engines import Delta, Engine, EngineError, Sampling
from medchat.errors import UserError
from medchat.knowledge import Knowledge, Passage, cite, sentences
from medchat.prompt import Message
from medchat.triage import Assessment

MAX_CHARACTERS = 8_000  # of one message, about four pages
SHORTEST_REPLY = 64  # tokens that a long question must leave free

# What finished() and /chat add to a reply; the model would learn from its own history to write such marks itself.
CITED = re.compile(r" \[\d+\]|\n\nSources:\n\[1\] .*\Z", re.DOTALL)

DISCLAIMER = (
    "MedChat is an AI for research and education. It is not a doctor or a medical device, and it can be wrong. "
    "In an emergency call your local emergency number."
)


class ChatError(UserError):
    """The message or the conversation cannot be answered as it is."""


@dataclass(frozen=True)
class Reply:
    """A piece of the answer and what it rests on; all but `delta` and `final` are the same in every piece.

    `assessment.message` is a card to show before the answer ("" for none). `final` comes with the last piece: the whole
    answer as it should stand, repaired and with the numbers of its `passages` ("[1]").
    """

    delta: Delta
    assessment: Assessment
    adapter: str = ""
    dropped_turns: int = 0
    passages: tuple[Passage, ...] = ()
    final: str | None = None


def reply(
    engine: Engine,
    message: str,
    history: Sequence[Message] = (),
    *,
    adapter: str = "",
    sampling: Sampling | None = None,
    knowledge: Knowledge | None = None,
    cancel: Event | None = None,
    region: str | None = None,
    language: str | None = None,
    system: str = "",
) -> Iterator[Reply]:
    """Yield the answer to `message` after `history`, piece by piece; a card against danger comes first.

    `adapter` is a name of `engine.adapters`, "" the first of them, "base" none. In a crisis the card is the answer, and
    no model runs; nor for a request for help with harm, which gets a sentence of medchat.refusal, nor for a greeting or
    a question about itself (medchat.courtesy). `region` chooses the numbers on the card (triage.REGIONS), `language`
    its language beside that of the message; `system`, where given, takes the place of the system prompt. Raises
    ChatError with a sentence for the visitor before anything is computed, and EngineError when the engine fails, unless
    a card stands already.
    """
    assessment = assess(message, history, region, language)
    if assessment.level == "crisis":
        yield Reply(Delta("", "stop"), assessment, final="")
        return
    if assessment.level == "emergency":
        yield Reply(Delta(""), assessment)

    sampling, cancel = sampling or Sampling(), cancel or Event()
    name = adapter_name(engine, adapter)
    messages = conversation(message, history)
    said = messages[-1]["content"]
    if sentence := refusal.decline(said, messages[:-1]) or courtesy.answer(said):
        yield Reply(Delta(sentence, "stop"), assessment, name, final=sentence)
        return
    passages = passages_for(knowledge, message, messages[:-1]) if knowledge else []
    system = system or system_prompt(engine, name)
    messages, passages, dropped = fit(engine, system, messages, passages, sampling.max_tokens)
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens, engine.context - engine.count_tokens(messages)))

    whole = Reply(Delta(""), assessment, name, dropped, tuple(passages))
    text = ""
    try:
        for delta in engine.stream(messages, adapter=name, sampling=sampling, cancel=cancel):
            text += delta.text
            final = finished(text, assessment, passages) if delta.finish_reason else None
            yield replace(whole, delta=delta, final=final)
    except EngineError:
        if assessment.level == "none":
            raise
        yield replace(whole, delta=Delta("", "stop"), final=text)


def system_prompt(engine: Engine, name: str) -> str:
    """Return the system prompt of an adapter of `engine`: the one it was trained with, else ours."""
    return (engine.adapters[name].system if name else None) or prompt.SYSTEM


def assess(message: object, history: object, region: str | None = None, language: str | None = None) -> Assessment:
    """Return triage.check() of what the visitor wrote; what is not a message is passed over, so it never fails."""
    turns = [turn for turn in history if isinstance(turn, dict)] if isinstance(history, (list, tuple)) else []
    said = [turn.get("content") for turn in turns if turn.get("role") == "user"] + [message]
    told = [{"role": "user", "content": text} for text in said if isinstance(text, str)]
    return triage.check(told, region=region, language=language)


def passages_for(knowledge: Knowledge, question: str, history: Sequence[Message]) -> list[Passage]:
    """Return the passages to answer from: those of the best topic, since a small model mixes two topics up."""
    found = knowledge.search(question, history)
    return [passage for passage in found if passage.topic == found[0].topic]


def fit(
    engine: Engine, system: str, messages: Sequence[Message], passages: Sequence[Passage], max_tokens: int
) -> tuple[list[Message], list[Passage], int]:
    """Return the prompt's messages, the passages in it, and how many old turns were dropped to fit the context.

    Old turns go first, then passages; raises ChatError when the last question alone is too long.
    """
    room = engine.context - min(max_tokens, engine.context // 2)
    most = engine.context - min(max_tokens, SHORTEST_REPLY)
    chosen = list(passages)
    while True:
        *earlier, last = messages
        asked = prompt.with_passages(last["content"], [(p.title, p.text) for p in chosen])
        rendered = [{"role": "system", "content": system}, *earlier, {"role": "user", "content": asked}]
        kept, dropped = prompt.trim(rendered, room, engine.count_tokens)
        used = engine.count_tokens(kept)
        if used <= (room if chosen else most):
            return kept, chosen, dropped
        if not chosen:
            raise ChatError(
                f"Your message is {used:,} tokens long, and {most:,} fit.",
                "Please shorten it, or split it into several.",
            )
        chosen.pop()


def finished(text: str, assessment: Assessment, passages: Sequence[Passage]) -> str:
    """Return a finished reply, repaired by the output guard, each sentence with the number of the passage behind it."""
    text = triage.guard(text, assessment)
    if not passages:
        return text
    marked, rest = "", text
    for sentence in sentences(text):
        before, _, rest = rest.partition(sentence)
        numbers = sorted({number for number, _ in cite(sentence, passages)})
        marked += before + sentence + "".join(f" [{number}]" for number in numbers)
    return marked + rest


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
    return [{"role": m["role"], "content": uncited(m)} for m in messages]


def uncited(message: Message) -> str:
    """Return a message's text; the model's own without the numbers and the list of sources that it was shown with."""
    text = message["content"]
    return CITED.sub("", text) if message["role"] == "assistant" else text
