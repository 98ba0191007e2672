"""The page's conversation as it is kept in the browser, and as a transcript; and back. No gradio in here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from html.parser import HTMLParser
from typing import Any

from medchat import chat
from medchat.adapters import Adapter
from medchat.transcript import Transcript
from medchat.ui import conversation as talk
from medchat.ui.conversation import History
from medchat.ui.language import text as say

VERSION = 1
LONGEST_TITLE = 60  # characters of a title made from a question


def title_of(history: History) -> str:
    """Return a title: the first question, cut at a word."""
    first = next((talk.text_of(item) for item in history if talk.kind(item) == "user"), "")
    line = " ".join(first.split())
    return line if len(line) <= LONGEST_TITLE else line[:LONGEST_TITLE].rpartition(" ")[0].rstrip(",;:") + " …"


def packed(history: History) -> list[list[Any]]:
    """Return the entries as [kind, text] or [kind, text, options]: what is needed to draw them again, and no more."""
    entries = []
    for item in history:
        entry: list[Any] = [talk.kind(item), talk.text_of(item)]
        if options := item.get("options"):
            entry.append([[option.get("label"), option.get("value")] for option in options])
        entries.append(entry)
    return entries


def unpacked(entries: list[list[Any]]) -> History:
    """Return what was packed. The entries come out of the seal, so that this server made them."""
    history = []
    for what, text, *more in entries:
        item: dict[str, Any] = {"role": "user" if what == "user" else "assistant", "content": text}
        if what not in ("user", "answer"):
            item["metadata"] = {"id": what}
        if more:
            item["options"] = [{"label": label, "value": value} for label, value in more[0]]
        history.append(item)
    return history


def plain(history: History) -> str:
    """Return the words of a conversation, for searching."""
    return "\n".join(message["content"] for message in talk.flatten(history))


def transcript_of(history: History, title: str, adapters: Mapping[str, Adapter]) -> Transcript:
    """Return the conversation as plain messages; each question with what was answered, as the page shows it.

    The facts get the SHA-256 of the adapter that has this name here.
    """
    messages: list[dict[str, Any]] = []
    for item in history:
        what, text = talk.kind(item), talk.text_of(item)
        if what == "user":
            if messages and messages[-1]["role"] == "user":
                messages.append({"role": "assistant", "content": "", "note": "No answer."})
            messages.append({"role": "user", "content": text})
            continue
        if not messages:
            continue
        if messages[-1]["role"] == "user":
            messages.append({"role": "assistant", "content": ""})
        answer = messages[-1]
        if what == "answer":
            answer["content"] = text
        elif what == talk.CARD:
            answer["card"] = talk.plain_card(text)
        elif what == talk.REASONING:
            answer["reasoning"] = _Read(text).all
        elif what == talk.NOTE:
            answer["note"] = _Read(text).all
        else:
            report = _Read(text)
            facts: dict[str, str] = {}
            for name, value in report.facts.items():
                facts[name] = value
                if name == "Adapter" and value in adapters:
                    facts["SHA-256"] = adapters[value].sha256 or "known to the server only"
            found = {"sources": report.sources, "facts": facts, "note": report.rest}
            answer |= {name: value for name, value in found.items() if value}
    return Transcript(title or title_of(history), messages)


def history_of(transcript: Transcript, region: str, lang: str = "en") -> History:
    """Return an imported conversation as the page shows it.

    Cards against danger are made anew from the questions, never taken from a file; all else is drawn as text.
    """
    history: History = []
    earlier: list[dict[str, str]] = []
    for message in transcript.messages:
        content = message["content"]
        if message["role"] == "user":
            history += [{"role": "user", "content": content}]
            history += talk.card(chat.assess(content, earlier, region, lang), lang)
        else:
            if reasoning := message.get("reasoning"):
                history += talk.answer(f"<think>{reasoning.replace('</think>', '')}</think>", ended=True, lang=lang)
            if content:
                history += talk.answer(content)
            if note := message.get("note"):
                history.append(talk.note(say(lang, "from_file"), note, lang))
            elif not content and talk.kind(history[-1]) == "user":
                history.append(talk.note(say(lang, "no_answer"), say(lang, "file_holds_none"), lang))
            history.append(_report(message, lang))
        earlier.append({"role": message["role"], "content": content})
    return history


def _report(message: dict[str, Any], lang: str) -> dict[str, Any]:
    """Return the entry under an imported answer, which says that nobody vouches for it."""
    sources, facts = message.get("sources", []), message.get("facts", {})
    text = ""
    if sources:
        listed = []
        for number, source in enumerate(sources, 1):
            name = escape(source["source"] or source["url"])
            if source["url"]:
                url = escape(source["url"])
                rel = "target='_blank' rel='noopener noreferrer'"
                name = f"<a data-source='{name}' href='{url}' {rel}>{say(lang, 'read_on', source=name)}</a>"
            title = f"<b>[{number}] {escape(source['title'])}</b>"
            listed.append(f"<li>{title}<br>{escape(source['text'])}<br>{name}</li>")
        head = say(lang, "file_names_more" if len(sources) > 1 else "file_names_one", count=len(sources))
        text += f"<details class='fold sources'><summary>{head}</summary><ol>{''.join(listed)}</ol></details>"
    # Not the plain <dt> of our own answers: what a file brought is no answer to give feedback on.
    listed = "".join(f"<dt class='said'>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    head = " · ".join(part for part in (facts.get("Adapter", ""), say(lang, "unchecked")) if part)
    text += f"<details class='fold facts'><summary>{escape(head)}</summary><dl>{listed}</dl></details>"
    return {"role": "assistant", "content": text, "metadata": {"id": talk.REPORT}}


class _Read(HTMLParser):
    """Reads an entry that medchat.ui.conversation wrote: `sources`, `facts`, the `rest`, and `all` of its text."""

    def __init__(self, html: str):
        super().__init__()
        self.sources: list[dict[str, str]] = []
        self.facts: dict[str, str] = {}
        self.rest = ""
        self._open: list[str] = []
        self._url = self._source = ""
        self._parts = [""]  # of a source, between line breaks
        self._name = ""
        self._all = ""
        self.feed(html)
        self.close()
        self.all = " ".join(self._all.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self._parts.append("")
            self._all += "\n"
            return
        self._open.append("rest" if tag == "p" and ("class", "rest") in attrs else tag)
        if tag == "li":
            self._parts, self._url, self._source = [""], "", ""
        elif tag == "a":
            self._url, self._source = dict(attrs).get("href") or "", dict(attrs).get("data-source") or ""
        elif tag == "dt":
            self._name = dict(attrs).get("data-fact") or ""  # in English, whatever the language of the page

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()
        if tag == "li":
            title, text, name = (part.strip() for part in [*self._parts, "", ""][:3])
            source = {"title": re.sub(r"^\[\d+\] ", "", title), "text": text}
            self.sources.append(source | {"source": self._source or name, "url": self._url})

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside != "summary":
            self._all += data
        if "li" in self._open:
            self._parts[-1] += data
        elif inside == "dt":
            self._name = self._name or data
        elif inside == "dd":
            self.facts[self._name] = self.facts.get(self._name, "") + data
        elif inside == "rest":
            self.rest += data
