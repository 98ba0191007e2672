"""The public API: /chat, /sources, /triage and /models, on the same engine and line as the page.

They are MCP tools too. Gradio names a tool after its function and describes it with the docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from medchat.chat import assess, passages_for, reply
from medchat.engines import Sampling
from medchat.errors import UserError
from medchat.knowledge import Knowledge, Passage
from medchat.line import Line
from medchat.triage import check
from medchat.ui.chat_tab import paced, sampling, visitor


def add_api(line: Line, knowledge: Knowledge, notice: str | None) -> None:
    """Add the endpoints to the open gr.Blocks."""
    gr.api(_chat_api(line, knowledge), api_name="chat", concurrency_limit=None)
    gr.api(_sources_api(knowledge), api_name="sources")
    gr.api(triage, api_name="triage")
    gr.api(_models_api(line, notice), api_name="models")


def _chat_api(line: Line, knowledge: Knowledge) -> Callable[..., Iterator[str]]:
    passages_at_hand = knowledge

    def chat(
        message: str,
        history: list[dict[str, str]] = [],  # noqa: B006  (Gradio shows it as the default; never changed)
        adapter: str = "",
        max_tokens: int = 512,
        temperature: float = 0.7,
        seed: int = -1,
        knowledge: bool = True,
        request: gr.Request | None = None,
    ) -> Iterator[str]:
        """Answer a health question; streams the reply so far. Educational, not a doctor's advice.

        Signs of an emergency or a crisis put a card with what to do first. The last text carries the numbers of the
        passages that it rests on, and lists them.

        Args:
            message: the question, at most 8,000 characters
            history: earlier messages, {"role": "user" or "assistant", "content": text}, oldest first
            adapter: a name from /models, "" for the default adapter, "base" for none
            max_tokens: longest reply, 1 to 2048
            temperature: 0 (always the same reply) to 2
            seed: makes a reply repeatable; -1 draws a new one
            knowledge: let the answer rest on passages of the knowledge base
        """
        try:
            pieces = reply(
                line.for_visitor(visitor(request)),
                message,
                history,
                adapter=adapter,
                sampling=_sampling(message, history, max_tokens, temperature, seed),
                knowledge=passages_at_hand if knowledge else None,
            )
            for text, piece in paced(pieces):
                text = text if piece.final is None else piece.final + _listed(piece.passages)
                parts = [part for part in (piece.assessment.message, text) if part]
                if parts:
                    yield "\n\n".join(parts)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return chat


def _sampling(message: str, history: list[dict[str, str]], max_tokens: int, temperature: float, seed: int) -> Sampling:
    """Return the settings checked; in danger a mistake in them must not stand before the card."""
    try:
        return sampling(max_tokens, temperature, seed)
    except UserError:
        if assess(message, history).level == "none":
            raise
        return Sampling()


def _sources_api(knowledge: Knowledge) -> Callable[..., list[dict[str, Any]]]:
    def sources(question: str, history: list[dict[str, str]] = []) -> list[dict[str, Any]]:  # noqa: B006
        """Return the passages of the knowledge base that an answer to this question would rest on, best first.

        Args:
            question: the question
            history: earlier messages, for a question that leans on them
        """
        found = passages_for(knowledge, question, history)
        return [{"title": p.title, "text": p.text, "url": p.url, "score": round(p.score, 3)} for p in found]

    return sources


def triage(text: str) -> dict[str, Any]:
    """Look for signs of an emergency or a crisis; level "none" means that nothing was recognised, never "safe".

    Args:
        text: what a person wrote
    """
    assessment = check(text)
    flags = [{"id": flag.id, "label": flag.label} for flag in assessment.flags]
    return {"level": assessment.level, "flags": flags, "message": assessment.message}


def _models_api(line: Line, notice: str | None) -> Callable[[], dict[str, Any]]:
    def models() -> dict[str, Any]:
        """Tell which engine, base model and adapters answer here, and whether something else was asked for."""
        adapters = [adapter.summary() for adapter in line.engine.adapters.values()]
        return {"engine": line.engine.name, "base": line.engine.base, "adapters": adapters, "notice": notice}

    return models


def _listed(passages: tuple[Passage, ...]) -> str:
    lines = [f"[{number}] {p.title}. {p.source}: {p.url}" for number, p in enumerate(passages, 1)]
    return "\n\nSources:\n" + "\n".join(lines) if lines else ""
