"""The Engine protocol, what flows through it, and open_engine()."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Protocol

from medchat.adapters import Adapter
from medchat.errors import UserError
from medchat.prompt import Message
from medchat.settings import Settings


class EngineError(UserError):
    """The engine could not answer this request; the next one may well succeed."""


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn.

    `max_tokens` >= 1; `temperature` 0 is greedy, up to 2; `seed` None draws a fresh one. `min_p` drops tokens less
    likely than that share of the likeliest; `repetition_penalty` 1 is none.
    """

    max_tokens: int = 512
    temperature: float = 0.7
    min_p: float = 0.2  # chosen on the embedded model: at 0.05 it drifts off topic, at 0.3 replies grow alike
    repetition_penalty: float = 1.05
    seed: int | None = None


@dataclass(frozen=True)
class Stats:
    """Facts of one reply: `cached_tokens` of the prompt were reused, `first_token_seconds` counts from the request."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Delta:
    """A piece of a reply. `finish_reason` ("stop", "length" or "cancelled") and `stats` come with the last one."""

    text: str
    finish_reason: str | None = None
    stats: Stats | None = None


class Engine(Protocol):
    """A base model with adapters side by side, chosen per request."""

    name: str  # "llama_cpp" | ...
    base: str  # what the user asked for, resolved
    context: int  # tokens that prompt and reply share
    slots: int  # replies that run at once
    adapters: Mapping[str, Adapter]  # by name; "" is the bare base and not listed

    def stream(
        self, messages: Sequence[Message], *, adapter: str, sampling: Sampling, cancel: Event
    ) -> Iterator[Delta]:
        """Yield the reply to `messages`, an empty delta at least every 0.1 s, so that a consumer can stop at any time.

        Setting `cancel` or closing the iterator ends the computation. Raises EngineError.
        """
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many tokens `messages` are as a prompt."""
        ...


def open_engine(settings: Settings) -> tuple[Engine, str | None]:
    """Return a ready engine, and the notice to show when it is not the one that was asked for.

    A mistake on the command line (a missing file, say) raises UserError; on a Space, which has no command line, and for
    what lies with the network, the embedded model starts instead.
    """
    from medchat.engines import llama_cpp

    try:
        if settings.engine == "remote":
            from medchat.engines import remote

            opened = remote.open_remote(settings.base_url, settings.base, settings.adapters, token=settings.api_key)
            return opened, None
        return llama_cpp.open_llama_cpp(settings.base, settings.adapters), None
    except UserError as error:
        if not settings.on_space:
            raise
        return llama_cpp.open_llama_cpp("embedded", ("embedded",)), f"Running the embedded model instead: {error}"
