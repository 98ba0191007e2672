"""Messages -> prompt text: the one renderer that the chat and the training share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

SYSTEM = (
    "You are MedChat, a friendly AI that explains health topics in plain words. "
    "You are not a doctor. You do not diagnose or prescribe, and you say when to see a doctor."
)

TEMPLATES = Path(__file__).parent.parent / "assets" / "templates"

# Where special tokens begin; a tokenizer finds them anywhere in a text. A space behind the "<" breaks them.
SPECIAL = re.compile(r"<(?=\||/?s>)")

# Llama 3.2's template writes today's date into the prompt. A fixed date keeps training, serving and the cache alike;
# it is the template's own default.
DATE = date(2024, 7, 26)


@dataclass(frozen=True)
class Template:
    """A chat template with the special tokens it writes.

    `source` is Jinja as Hugging Face tokenizers hold it (`chat_template`); `bos` and `eos` are token texts, "" if none.
    """

    source: str
    bos: str = ""
    eos: str = ""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt text of `messages`, the same as `tokenizer.apply_chat_template(tokenize=False)`.

        But "<|im_end|>" and its like within a message stay text there: nobody can end a turn by typing.

        Raises ValueError when the template refuses the messages (a role that it does not know, for example).
        """
        try:
            return _compile(self.source).render(
                messages=plain(messages),
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos,
                eos_token=self.eos,
                date_string=DATE.strftime("%d %b %Y"),
                tools=None,
                documents=None,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat template cannot render this conversation: {error}") from error

    def learned_spans(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Return the whole conversation's text and the character spans that a model should learn to write.

        A span is one assistant turn from the end of its prompt up to and including the end-of-turn token, whatever the
        template. Raises ValueError for a template whose earlier text changes when a turn is added.
        """
        text = self.render(messages, add_generation_prompt=False)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.render(messages[:i])
            through = self.render(messages[: i + 1], add_generation_prompt=False)
            end = through.rfind(self.eos) + len(self.eos) if self.eos else len(through)
            if not (text.startswith(prompt) and text.startswith(through[:end]) and len(prompt) < end):
                raise ValueError("This chat template rewrites earlier turns, so its answers cannot be located.")
            spans.append((len(prompt), end))
        return text, spans


def plain(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with the special tokens that are typed in them broken."""
    return [{**message, "content": SPECIAL.sub("< ", message["content"])} for message in messages]


def named_template(name: str, *, bos: str, eos: str) -> Template:
    """Return `assets/templates/NAME.jinja` ("llama-3", "llama-3.2", "alpaca"), for bases that bring no template."""
    return Template((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), bos, eos)


def with_passages(question: str, passages: Sequence[tuple[str, str]]) -> str:
    """Return the user's turn that asks `question` about `passages` (title, text); the question alone without any.

    Passages are data: they stand in the user's turn, never in the system prompt, and the question comes last.
    """
    if not passages:
        return question
    listed = "\n\n".join(f"{title}: {text}" for title, text in passages)
    return f"Passages:\n\n{listed}\n\nAnswer from the passages: {question}"


def problems(messages: object) -> list[str]:
    """Return everything that is wrong with a conversation that should end with the user's question ([] if nothing)."""
    if not isinstance(messages, list) or not messages:
        return ["the conversation is not a list of messages"]
    found = []
    expected = "user"
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            found.append(f'message {i} is not {{"role": ..., "content": text}}')
            continue
        role = message.get("role")
        if role == "system" and i == 1:
            continue
        if role != expected:
            found.append(f"message {i} has the role {str(role)[:20]!r} where {expected!r} belongs")
        if "\0" in message["content"]:
            found.append(f"message {i} contains a NUL character")
        expected = "assistant" if role == "user" else "user"
    if not found and messages[-1]["role"] != "user":
        found.append("the last message is not the user's")
    return found


def trim(
    messages: Sequence[Message], budget: int, count: Callable[[Sequence[Message]], int]
) -> tuple[list[Message], int]:
    """Drop the oldest whole turns until `count(messages)` is at most `budget` tokens; return what is left and how many.

    The system prompt and the last question always survive, so the result can still exceed the budget.
    """
    kept, dropped = list(messages), 0
    first = 1 if kept and kept[0]["role"] == "system" else 0
    while len(kept) - first > 2 and count(kept) > budget:
        del kept[first : first + 2]
        dropped += 1
    return kept, dropped


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    # The same environment as transformers' (utils/chat_template_utils.py), sandboxed: templates come from the Hub.
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = DATE.strftime
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    return environment.from_string(source)
