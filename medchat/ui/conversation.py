"""The conversation as the page holds it: Gradio's list of messages, to plain messages and back. No gradio in here.

An answer is up to four entries, told apart by `metadata.id`: the card against danger, folded reasoning, the answer
itself, and a report of what it rests on and how it was made. A note stands where no answer came.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from medchat.chat import Reply
from medchat.engines import Engine
from medchat.knowledge import Knowledge, Passage, cite, sentences, unsupported_sentences
from medchat.prompt import Message
from medchat.triage import Assessment

CARD, REASONING, REPORT, NOTE = "card", "reasoning", "report", "note"
ENDED = {"stop": "ended by itself", "length": "cut at the length limit", "cancelled": "stopped"}
UNSUPPORTED = "[?]"  # stands behind a sentence that no passage supports, as "[1]" behind one that the first does
ELSEWHERE = '<a class="elsewhere" href="#where">Numbers of another country</a>'
MARKS = re.compile(r" \[(?:\d{1,2}|\?)\]")

History = list[dict[str, Any]]


def text_of(item: dict[str, Any]) -> str:
    """Return the text of one entry, which Gradio hands over in parts."""
    content = item["content"]
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content


def kind(item: dict[str, Any]) -> str:
    """Return what an entry is: "user", "answer", or one of the ids above."""
    return "user" if item["role"] == "user" else (item.get("metadata") or {}).get("id") or "answer"


def flatten(history: History) -> list[Message]:
    """Return the conversation as plain messages, without marks, reports, and questions that got no answer.

    A card against danger counts as the answer only where no other follows.
    """
    messages: list[Message] = []
    for item in history:
        what, text = kind(item), text_of(item)
        if what == "user":
            if messages and messages[-1]["role"] == "user":
                messages.pop()
            messages.append({"role": "user", "content": text})
        elif what == "answer" and messages and text:
            if messages[-1]["role"] == "assistant":
                messages.pop()
            messages.append({"role": "assistant", "content": MARKS.sub("", text)})
        elif what == CARD and messages and messages[-1]["role"] == "user":
            messages.append({"role": "assistant", "content": plain_card(text)})
    if messages and messages[-1]["role"] == "user" and history[-1]["role"] != "user":
        messages.pop()
    return messages


def card(assessment: Assessment) -> History:
    """Return the card against danger: Markdown within an alert, which the style sheet draws and readers speak first."""
    if not assessment.message:
        return []
    opening = f'<div class="card {assessment.level}" role="alert" dir="auto">'
    return [_entry(f"{opening}\n\n{assessment.message}\n\n{ELSEWHERE}</div>", CARD)]


def plain_card(content: str) -> str:
    """Return a card's text without its frame."""
    return re.sub(r"^<div [^>]*>\s*", "", content).removesuffix("</div>").removesuffix(ELSEWHERE).strip()


def answer(text: str, passages: Sequence[Passage] = (), *, ended: bool = False) -> History:
    """Return the entries of an answer so far; one that has ended gets its marks where no passage supports it."""
    reasoning, text = split_reasoning(text)
    entries = []
    if reasoning:
        state = "" if text or ended else " open"
        told = escape(reasoning).replace("\n", "<br>")
        entries.append(_entry(f"<details class='fold'{state}><summary>Reasoning</summary>{told}</details>", REASONING))
    if text:
        entries.append({"role": "assistant", "content": marked(text, passages) if ended and passages else text})
    return entries


def split_reasoning(text: str) -> tuple[str, str]:
    """Return (what stands in <think> tags at the start, the rest); the closing tag may be still to come."""
    found = re.match(r"\s*<think>(.*?)(?:</think>\s*|$)(.*)", text, re.DOTALL)
    return (found[1].strip(), found[2]) if found else ("", text)


def marked(text: str, passages: Sequence[Passage]) -> str:
    """Return an answer with UNSUPPORTED behind each sentence that neither rests on a passage nor is held by one."""
    out, rest = "", text
    for sentence in unsupported_sentences(MARKS.sub("", text), passages):
        before, found, after = rest.partition(sentence)
        if found and not MARKS.match(after):
            found += f" {UNSUPPORTED}"
        out, rest = out + before + found, after if found else rest
    return out + rest


def report(engine: Engine, piece: Reply, *, searched: bool, seed: int, follow_up: History) -> dict[str, Any]:
    """Return the entry under a finished answer: what it rests on, who gave it, and questions to go on with."""
    entry = _entry(_sources(piece, searched) + _facts(engine, piece, seed), REPORT)
    return entry | ({"options": follow_up} if follow_up else {})


def note(title: str, text: str) -> dict[str, Any]:
    """Return the entry that stands where no answer came; `text` is plain."""
    return _entry(f"<div class='note' role='status'><b>{escape(title)}.</b> {escape(text)}</div>", NOTE)


def stopped() -> dict[str, Any]:
    """Return the entry under an answer that the visitor stopped."""
    return _entry("<p class='rest'>Stopped before the end.</p>", REPORT)


def follow_ups(knowledge: Knowledge, passages: Sequence[Passage]) -> History:
    """Return up to three questions that the topic's other passages answer, as Gradio's options."""
    if not passages or "#" not in passages[0].id:
        return []
    used = {passage.id for passage in passages}
    fields = ("seek_care", "self_care", "treatment", "signs", "overview")
    others = [knowledge.get(f"{passages[0].topic}#{field}") for field in fields]
    titles = [passage.title for passage in others if passage and passage.id not in used and ": " in passage.title]
    return [{"label": title.partition(": ")[2].capitalize(), "value": f"{title}?"} for title in titles[:3]]


def who(engine: Engine, adapter: str) -> str:
    """Return which adapter on which base; `adapter` is a name of the engine's, "" for none."""
    return f"{adapter or 'base'} on {engine.base}"


def _sources(piece: Reply, searched: bool) -> str:
    """Return the panel with each passage, its page, and the sentences that the answer leans on marked."""
    if not searched:
        return "<p class='rest'>The knowledge base is off: this answer comes from the model's memory alone.</p>"
    if not piece.passages:
        return (
            "<p class='rest'>This answer rests on nothing: no passage of the knowledge base fits the question, "
            "so it comes from the model's memory.</p>"
        )
    said = MARKS.sub("", piece.final or "")  # as it was before the numbers, which hide where sentences end
    used = cite(said, piece.passages)
    entries = []
    for number, passage in enumerate(piece.passages, 1):
        quotes = [quote for cited, quote in used if cited == number]
        link = escape(passage.source)
        if passage.url:
            link = f"<a href='{escape(passage.url)}' target='_blank' rel='noopener noreferrer'>Read on at {link}</a>"
        title = f"<b>[{number}] {escape(passage.title)}</b>"
        entries.append(f"<li>{title}<br>{_highlighted(passage.text, quotes)}<br>{link}</li>")
    legend = "Marked: what the answer leans on." if used else "The answer leans on none of their sentences."
    if unsupported_sentences(said, piece.passages):
        legend += f" {UNSUPPORTED} stands behind what no passage supports."
    topic = escape(piece.passages[0].title.partition(": ")[0])
    head = (
        f"{'Rests on' if used else 'Was given'} {len(piece.passages)} passage{'s'[: len(piece.passages) > 1]}: {topic}"
    )
    return (
        f"<details class='fold sources'><summary>{head}</summary><ol>{''.join(entries)}</ol><p>{legend}</p></details>"
    )


def _highlighted(text: str, quotes: Sequence[str]) -> str:
    parts = [
        f"<mark>{escape(sentence)}</mark>" if sentence in quotes else escape(sentence) for sentence in sentences(text)
    ]
    return " ".join(parts)


def _facts(engine: Engine, piece: Reply, seed: int) -> str:
    """Return the folded facts of one answer; its head names who answered, how long it is and how fast it came."""
    stats, ended = piece.delta.stats, ENDED[piece.delta.finish_reason or "stop"]
    facts = {"Adapter": piece.adapter or "none", "Base": engine.base, "Engine": engine.name}
    head = [piece.adapter or "base"]
    if stats:
        head += [f"{stats.completion_tokens} tokens", f"{stats.tokens_per_second:.0f} tokens/s"]
        facts |= {
            "Length": f"{stats.completion_tokens} tokens",
            "Speed": f"{stats.tokens_per_second:.1f} tokens/s",
            "First word": f"after {stats.first_token_seconds:.2f} s",
            "Prompt": f"{stats.prompt_tokens} tokens, {stats.cached_tokens} of them from the cache",
        }
    facts |= {"Seed": str(seed), "End": ended}
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    head += [ended]
    return f"<details class='fold facts'><summary>{escape(' · '.join(head))}</summary><dl>{listed}</dl></details>"


def _entry(content: str, what: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "metadata": {"id": what}}
