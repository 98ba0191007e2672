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
from medchat.engines import Engine, Stats
from medchat.knowledge import Knowledge, Passage, cite, sentences, unsupported_sentences
from medchat.prompt import Message
from medchat.triage import Assessment
from medchat.ui import language
from medchat.ui.language import text as word

CARD, REASONING, REPORT, NOTE = "card", "reasoning", "report", "note"
UNSUPPORTED = "[?]"  # stands behind a sentence that no passage supports, as "[1]" behind one that the first does
ELSEWHERE = '<a class="elsewhere" href="#where">{}</a>'
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


def card(assessment: Assessment, lang: str = "en") -> History:
    """Return the card against danger: Markdown within an alert, which the style sheet draws and readers speak first.

    `lang` is the language of what is around the card; its own text has one already (triage.check).
    """
    if not assessment.message:
        return []
    elsewhere = ELSEWHERE.format(word(lang, "elsewhere"))
    opening = f'<div class="card {assessment.level}" role="alert">'
    return [_entry(f"{opening}\n\n{assessment.message}\n\n{elsewhere}</div>", CARD)]


def plain_card(content: str) -> str:
    """Return a card's text without its frame."""
    link = re.escape(ELSEWHERE).replace(r"\{\}", "[^<]*")
    return re.sub(rf"^<div [^>]*>\s*|(?:{link})?</div>$", "", content).strip()


def answer(text: str, passages: Sequence[Passage] = (), *, ended: bool = False, lang: str = "en") -> History:
    """Return the entries of an answer so far; one that has ended gets its marks where no passage supports it."""
    reasoning, text = split_reasoning(text)
    entries = []
    if reasoning:
        state = "" if text or ended else " open"
        told = escape(reasoning).replace("\n", "<br>")
        head = f"<summary>{word(lang, 'reasoning')}</summary>"
        entries.append(_entry(f"<details class='fold'{state}>{head}{told}</details>", REASONING))
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


def report(
    engine: Engine, piece: Reply, *, searched: bool, seed: int, follow_up: History, lang: str = "en"
) -> dict[str, Any]:
    """Return the entry under a finished answer: what it rests on, who gave it, and questions to go on with."""
    entry = _entry(_sources(piece, searched, lang) + _facts(engine, piece, seed, lang), REPORT)
    return entry | ({"options": follow_up} if follow_up else {})


def note(title: str, text: str, lang: str = "en") -> dict[str, Any]:
    """Return the entry that stands where no answer came; `text` is plain."""
    return _entry(
        f"<div class='note' role='status'><b>{escape(title)}{language.ENDS.get(lang, '.')}</b> {escape(text)}</div>",
        NOTE,
    )


def stopped(lang: str = "en") -> dict[str, Any]:
    """Return the entry under an answer that the visitor stopped."""
    return _entry(f"<p class='rest'>{word(lang, 'stopped_late')}</p>", REPORT)


def follow_ups(knowledge: Knowledge, passages: Sequence[Passage], lang: str = "en") -> History:
    """Return up to three questions that the topic's other passages answer, as Gradio's options.

    They are asked in English, as the examples are.
    """
    if not passages or "#" not in passages[0].id:
        return []
    used = {passage.id for passage in passages}
    fields = ("seek_care", "self_care", "treatment", "signs", "overview")
    others = [knowledge.get(f"{passages[0].topic}#{field}") for field in fields]
    titles = [passage.title for passage in others if passage and passage.id not in used and ": " in passage.title]
    return [{"label": language.heading(lang, title.partition(": ")[2]), "value": f"{title}?"} for title in titles[:3]]


def who(engine: Engine, adapter: str, on: str) -> str:
    """Return which adapter `on` which base; `adapter` is a name of the engine's, "" for none."""
    return f"{adapter or 'base'} {on} {engine.base}"


def pace(lang: str, stats: Stats) -> str:
    """Return how long an answer is and how fast it came."""
    speed = word(lang, "tokens_per_second", speed=language.number(lang, stats.tokens_per_second))
    return f"{word(lang, 'tokens', count=language.number(lang, stats.completion_tokens))} · {speed}"


def _sources(piece: Reply, searched: bool, lang: str) -> str:
    """Return the panel with each passage, its page, and the sentences that the answer leans on marked."""
    if not searched:
        return f"<p class='rest'>{word(lang, 'knowledge_off')}</p>"
    if not piece.passages:
        return f"<p class='rest'>{word(lang, 'rests_on_nothing')}</p>"
    topic = piece.passages[0].title.partition(": ")[0]
    said = MARKS.sub("", piece.final or "")  # as it was before the numbers, which hide where sentences end
    used = cite(said, piece.passages)
    entries = []
    for number, passage in enumerate(piece.passages, 1):
        quotes = [quote for cited, quote in used if cited == number]
        link = escape(passage.source)
        if passage.url:
            read_on = word(lang, "read_on", source=link)
            link = (
                f"<a data-source='{link}' href='{escape(passage.url)}' target='_blank' rel='noopener noreferrer'>"
                f"{read_on}</a>"
            )
        title = f"<b>[{number}] {escape(passage.title)}</b>"
        entries.append(f"<li dir='auto'>{title}<br>{_highlighted(passage.text, quotes)}<br>{link}</li>")
    legend = word(lang, "marked" if used else "none_marked")
    if unsupported_sentences(said, piece.passages):
        legend += " " + word(lang, "unsupported", mark=UNSUPPORTED)
    head = word(
        lang,
        ("rests_on_" if used else "was_given_") + ("more" if len(piece.passages) > 1 else "one"),
        count=len(piece.passages),
        topic=escape(topic),
    )
    return (
        f"<details class='fold sources'><summary>{head}</summary><ol>{''.join(entries)}</ol><p>{legend}</p></details>"
    )


def _highlighted(text: str, quotes: Sequence[str]) -> str:
    parts = [
        f"<mark>{escape(sentence)}</mark>" if sentence in quotes else escape(sentence) for sentence in sentences(text)
    ]
    return " ".join(parts)


def _facts(engine: Engine, piece: Reply, seed: int, lang: str) -> str:
    """Return the folded facts of one answer; its head names who answered, how long it is and how fast it came.

    `data-fact` names a fact in English, whatever the language, and `data-is` what is no name, for those who read them
    from the page again.
    """
    stats, ended = piece.delta.stats, word(lang, f"ended_{piece.delta.finish_reason or 'stop'}")
    facts = {"Adapter": piece.adapter or word(lang, "none"), "Base": engine.base, "Engine": engine.name}
    head = [piece.adapter or "base"]
    if stats:
        head.append(pace(lang, stats))
        facts |= {
            "Length": word(lang, "tokens", count=language.number(lang, stats.completion_tokens)),
            "Speed": word(lang, "tokens_per_second", speed=language.number(lang, stats.tokens_per_second, 1)),
            "First word": word(lang, "after", seconds=language.number(lang, stats.first_token_seconds, 2)),
            "Prompt": word(
                lang,
                "cached",
                count=language.number(lang, stats.prompt_tokens),
                cached=language.number(lang, stats.cached_tokens),
            ),
        }
    facts |= {"Seed": str(seed), "End": ended}
    bare = {} if piece.adapter else {"Adapter": " data-is='none'"}
    listed = "".join(
        f"<dt data-fact='{name}'>{word(lang, name.lower().replace(' ', '_'))}</dt>"
        f"<dd{bare.get(name, '')}>{escape(value)}</dd>"
        for name, value in facts.items()
    )
    told = " · ".join(f"<bdi>{escape(part)}</bdi>" for part in [*head, ended])  # names are in Latin letters
    return f"<details class='fold facts'><summary>{told}</summary><dl>{listed}</dl></details>"


def _entry(content: str, what: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "metadata": {"id": what}}
