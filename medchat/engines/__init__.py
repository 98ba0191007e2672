"""The Engine protocol, what flows through it, and open_engine()."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from medchat import embedded
from medchat.adapters import CONFIG, Adapter
from medchat.errors import Unavailable, UserError
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
    min_p: float = 0.5  # chosen on the embedded model: at 0.2 half as many sentences again rest on no passage
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
    """A base model with adapters side by side, chosen per request.

    An engine that can load one while it runs also has `add_adapter(source) -> Adapter`, which raises UserError and
    leaves the replies in progress alone: transformers has it.
    """

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


GPU_BASE = "unsloth/Llama-3.2-3B-Instruct"
GPU_ADAPTER = "youzarsif/Doctor_Llama-3.2-3B-Instruct"
_Plan = tuple[str, str, tuple[str, ...]]  # engine, base, adapters
EMBEDDED: _Plan = ("llama_cpp", "embedded", ("embedded",))  # needs no network, token or GPU, and little memory


def open_engine(settings: Settings) -> tuple[Engine, str | None]:
    """Return a ready engine, and the notice (Markdown) to show when it is not what was asked for.

    What cannot be had now (Unavailable) or fails as nobody foresaw is left out: an adapter, where others remain or it
    was not asked for by name; else everything, and the embedded model starts. A mistake on the command line (a missing
    file, say) raises UserError; not so on a Space, where nobody reads what a command prints.
    """
    asked = plan = choose(settings)
    reasons: list[str] = []  # not the exceptions, whose frames would hold what was half loaded
    while True:
        try:
            engine = _open(plan, settings)
            break
        except Exception as error:
            mistake = isinstance(error, UserError) and not isinstance(error, Unavailable)
            if plan == EMBEDDED or (mistake and not settings.on_space):
                raise
            reasons.append(_reason(error))
            plan = _without(plan, error.adapter if isinstance(error, Unavailable) else "", settings)
    return engine, _notice(asked, plan, reasons, settings) if reasons else None


def choose(settings: Settings) -> _Plan:
    """Return engine, base and adapters: those asked for, and for the rest what suits the machine."""
    engine, base, adapters = settings.engine, settings.base, settings.adapters
    if engine == "remote" or (engine == "auto" and settings.base_url):
        return "remote", base, adapters
    if not base:
        for_gpu = engine != "llama_cpp" and not _for_embedded(adapters) and _has_gpu(settings)
        base = GPU_BASE if for_gpu else "embedded"
        adapters = adapters or ((GPU_ADAPTER,) if for_gpu else ())
    if base == "embedded":
        adapters = adapters or ("embedded",)
    if engine == "auto":
        engine = "llama_cpp" if _is_gguf(base) else "transformers"
    return engine, base, adapters


def _open(plan: _Plan, settings: Settings) -> Engine:
    engine, base, adapters = plan
    if engine == "remote":
        from medchat.engines.remote import open_remote

        return open_remote(settings.base_url, base, adapters, token=settings.api_key)
    if engine == "transformers":
        from medchat.engines.transformers import open_transformers

        return open_transformers(base, adapters, quant=settings.quant)
    from medchat.engines.llama_cpp import open_llama_cpp

    return open_llama_cpp(base, adapters)


def _without(plan: _Plan, adapter: str, settings: Settings) -> _Plan:
    """Return the plan without `adapter` ("" when it was not an adapter that failed), or the embedded model."""
    engine, base, adapters = plan
    rest = tuple(source for source in adapters if source != adapter)
    if len(rest) < len(adapters) and (rest or not settings.adapters):
        return engine, base, rest
    return EMBEDDED


def _has_gpu(settings: Settings) -> bool:
    if settings.zero_gpu:
        return True  # lent for a reply at a time
    if not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists() or Path("/dev/nvidia0").exists()):
        return False  # without the seconds that importing torch takes
    import torch

    return torch.cuda.is_available()


def _for_embedded(adapters: Sequence[str]) -> bool:
    """Tell whether one of the adapters is ours, or a folder with one that was trained on the embedded base."""
    configs = [Path(source).expanduser() / CONFIG for source in adapters]
    return "embedded" in adapters or any(
        config.is_file() and embedded.ORIGINAL in config.read_text("utf-8", "replace") for config in configs
    )


def _is_gguf(base: str) -> bool:
    path = Path(base).expanduser()
    return base == "embedded" or path.is_file() or ("gguf" in path.name.lower() and not path.is_dir())


def _reason(error: Exception) -> str:
    """Return what went wrong and what to do, as plain text in Markdown: parts come from other people's servers."""
    if isinstance(error, UserError):
        text = f"{error.what[:600]} {error.fix}"
    else:
        logging.getLogger(__name__).error("The model could not be loaded.", exc_info=error)
        text = f"It could not be loaded ({type(error).__name__}). Choose another base or engine; the log says more."
    return re.sub(r"([\\`*<\[\]])", r"\\\1", " ".join(text.split()))


def _notice(asked: _Plan, plan: _Plan, reasons: Sequence[str], settings: Settings) -> str:
    """Return the paragraph that says what was asked for, why it is not here, and the fix."""
    engine, base, adapters = asked
    if plan == EMBEDDED:
        wanted = (base or "the model") + (" of the server" if engine == "remote" else "")
        head = f"The small embedded model answers instead of {' with '.join([wanted, *adapters])}."
    else:
        head = f"Running without {' and '.join(source for source in adapters if source not in plan[2])}."
    where = " On a Space, set options as variables (MEDCHAT_BASE for --base) and tokens as secrets."
    return " ".join([f"**{head}**", *reasons]) + (where if settings.on_space else "")
