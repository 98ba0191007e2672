"""A conversation to take away, as Markdown, JSON and print-ready HTML, and the JSON back in.

A transcript holds plain messages. An answer may carry what the page shows around it: `card`, `reasoning`, `note`,
`sources` ({"title", "text", "source", "url"}) and `facts` (name -> value, both text).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from html import escape
from typing import Any

from markdown_it import MarkdownIt

from medchat import prompt
from medchat.chat import DISCLAIMER
from medchat.errors import UserError

FORMAT, VERSION = "medchat-conversation", 1
LABEL = "The answers were written by an AI, not by a doctor."
LARGEST = 1_000_000  # bytes of an imported file
MOST_MESSAGES = 400
LONGEST = {"title": 120, "content": 20_000, "card": 4_000, "reasoning": 20_000, "note": 1_000}  # characters
MOST_SOURCES, LONGEST_SOURCE = 20, 4_000
MOST_FACTS, LONGEST_FACT = 30, 300
SHOWN = 12  # problems told one by one
TEXTS = ("card", "reasoning", "note")  # what an answer may carry as text
SOURCE = ("title", "text", "source", "url")


@dataclass(frozen=True)
class Transcript:
    """A titled conversation; `messages` are {"role", "content"} and, on answers, what the module's docstring lists."""

    title: str
    messages: list[dict[str, Any]]


class ImportFailed(UserError):
    """A file is no conversation that can be shown; `problems` holds all that is wrong with it, as sentence parts."""

    def __init__(self, problems: list[str]):
        more = len(problems) - SHOWN
        self.problems = problems[:SHOWN] + ([f"and {more:,} more like these"] if more > 0 else [])
        super().__init__(
            f"Nothing was imported: {'; '.join(self.problems)}.", "Choose a JSON file that MedChat exported."
        )


# --- out ---


def to_json(transcript: Transcript, today: date) -> str:
    """Return the file that from_json reads."""
    about = {"format": FORMAT, "version": VERSION, "title": transcript.title, "exported": today.isoformat()}
    about |= {"disclaimer": DISCLAIMER, "label": LABEL, "messages": transcript.messages}
    return json.dumps(about, ensure_ascii=False, indent=2) + "\n"


def to_markdown(transcript: Transcript, today: date) -> str:
    """Return CommonMark in which no markup of a message is live, and every link goes to the web."""
    parts = [f"# {_line(transcript.title)}", f"> {DISCLAIMER}\n>\n> {LABEL} Exported on {today.isoformat()}."]
    for message in transcript.messages:
        if message["role"] == "user":
            parts += ["## You", _quoted(_inert(message["content"]))]
            continue
        parts.append("## MedChat (AI, not a doctor)")
        if message.get("card"):
            parts.append(_quoted(_inert(message["card"])))
        if message.get("reasoning"):
            parts.append(f"Reasoning:\n\n{_quoted(_inert(message['reasoning']))}")
        parts += [_inert(text) for text in (message["content"], message.get("note")) if text]
        if message.get("sources"):
            listed = [
                f"{i}. **{_line(s['title'])}** — {_line(s['text'])} ({_line(s['source'])}{_link(s['url'])})"
                for i, s in enumerate(message["sources"], 1)
            ]
            parts.append("Sources:\n\n" + "\n".join(listed))
        if message.get("facts"):
            parts.append("*" + " · ".join(f"{_line(k)}: {_line(v)}" for k, v in message["facts"].items()) + "*")
    return "\n\n".join(parts) + "\n"


def to_html(transcript: Transcript, today: date) -> str:
    """Return one page that needs nothing else, dark where that is wished, and black on white on paper.

    It opens the print view when its address ends with #print. Only that script may run in it, and nothing is fetched.
    """
    digest = base64.b64encode(hashlib.sha256(PRINT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    body = "\n".join(_sections(transcript))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(transcript.title)}</title>
<style>{LOOK}</style>
<script>{PRINT}</script>
</head>
<body>
<header><h1 dir="auto">{escape(transcript.title)}</h1>
<p class="label"><strong>AI · not a doctor.</strong> {escape(LABEL)} Exported on {today.isoformat()}.</p>
<p>{escape(DISCLAIMER)}</p></header>
<main>
{body}
</main>
<footer>{escape(DISCLAIMER)}</footer>
</body>
</html>
"""


PRINT = 'if (location.hash === "#print") addEventListener("load", () => print());'
LOOK = """
:root { color-scheme: light dark; --ink: #1f2b2a; --soft: #55625f; --paper: #fffefb; --mist: #e4eeeb; --line: #ddd8cc;
  --teal: #17625c; --alarm: #9f1d1d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebe8; --soft: #a3b1ad; --paper: #101718; --mist: #1e302f;
  --line: #2c3a3a; --teal: #7cc9bd; --alarm: #ff9d92; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #333; --paper: #fff; --mist: #fff; --line: #999;
  --teal: #17625c; --alarm: #9f1d1d; } @page { margin: 2cm; }
  body { max-width: none !important; padding: 0 !important; }
  section, .card, li, dl { break-inside: avoid; } h2 { break-after: avoid; } }
body { max-width: 44rem; margin: 0 auto; padding: 2rem 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: .85rem; color: var(--teal); margin: 1.6rem 0 .3rem; }
header, footer { color: var(--soft); font-size: .9rem; }
header { border-block-end: 1px solid var(--line); padding-block-end: .6rem; }
header h1, .label strong { color: var(--ink); }
footer { border-block-start: 1px solid var(--line); margin-block-start: 2rem; padding-block-start: .6rem; }
.asked { background: var(--mist); border: 1px solid var(--line); border-radius: .8rem; padding: .6rem 1rem;
  white-space: pre-wrap; }
.card { border: 2px solid var(--alarm); border-radius: .6rem; padding: .2rem 1rem; }
.aside { color: var(--soft); font-size: .9rem; white-space: pre-wrap; }
ol { padding-inline-start: 1.4rem; } ol, dl { font-size: .88rem; } li { margin-block: .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; color: var(--soft); } dd { margin: 0; }
a { color: var(--teal); }
"""


def _sections(transcript: Transcript) -> Iterator[str]:
    """Yield each message as a section of the page."""
    # No raw HTML, no pictures; links with dangerous schemes stay text.
    render = MarkdownIt("commonmark", {"html": False}).disable("image").enable("table").render
    for message in transcript.messages:
        content = message["content"]
        if message["role"] == "user":
            yield f'<section><h2>You</h2><div class="asked" dir="auto">{escape(content)}</div></section>'
            continue
        parts = ["<h2>MedChat · AI, not a doctor</h2>"]
        if message.get("card"):
            parts.append(f'<div class="card" dir="auto">{render(message["card"])}</div>')
        if message.get("reasoning"):
            parts.append(f'<p class="aside" dir="auto">Reasoning: {escape(message["reasoning"])}</p>')
        if content:
            parts.append(f'<div dir="auto">{render(content)}</div>')
        if message.get("note"):
            parts.append(f'<p class="aside">{escape(message["note"])}</p>')
        if message.get("sources"):
            parts.append(f"<ol>{''.join(_source(source) for source in message['sources'])}</ol>")
        if message.get("facts"):
            listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in message["facts"].items())
            parts.append(f"<dl>{listed}</dl>")
        yield f"<section>{''.join(parts)}</section>"


def _source(source: dict[str, str]) -> str:
    name = escape(source["source"])
    if source["url"]:
        name = f'<a href="{escape(source["url"])}" rel="noopener noreferrer">{name or escape(source["url"])}</a>'
    return f'<li dir="auto"><b>{escape(source["title"])}</b><br>{escape(source["text"])}<br>{name}</li>'


def _inert(text: str) -> str:
    """Return Markdown whose tags and links to anything but web pages are text; "p < 0.05" stays as it is."""
    text = re.sub(r"!?\[([^\]]*)\]\(\s*(?!https?://)[^)]*\)", r"[\1]", text.replace("![", "["))
    text = re.sub(r"(?m)^(\s*\[[^\]]+\]):", r"\1 :", text)  # definitions of links, which could point anywhere
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)


def _line(text: str) -> str:
    """Return a text as one line that starts no markup."""
    return re.sub(r"([\\`*_\[\]#|])", r"\\\1", _inert(" ".join(text.split())))


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def _link(url: str) -> str:
    return f", <{url}>" if url else ""


# --- in ---


def from_json(text: str) -> Transcript:
    """Return the conversation in a file that to_json wrote; raises ImportFailed naming all that is wrong.

    Nothing of it is trusted: every text is checked for its type and length, addresses must be web pages, and the text
    is for drawing as text or as an answer's Markdown, which the page cleans as it does the model's.
    """
    if len(text) > LARGEST or len(text.encode(errors="replace")) > LARGEST:
        raise ImportFailed([f"the file is larger than {LARGEST // 1_000_000} MB"])
    try:
        data = json.loads(text)
    except RecursionError:
        raise ImportFailed(["it is nested too deeply to be a conversation"]) from None
    except ValueError as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ImportFailed([f"it is not JSON{where}"]) from None
    if not isinstance(data, dict):
        raise ImportFailed(["it holds no conversation"])
    if found := problems(data):
        raise ImportFailed(found)
    messages = [
        {"role": m["role"], "content": m["content"]} | {k: m[k] for k in (*TEXTS, "sources", "facts") if m.get(k)}
        for m in data["messages"]
    ]
    return Transcript(" ".join(data["title"].split()), messages)


def problems(data: dict[str, Any]) -> list[str]:
    """Return everything that is wrong with an imported file's content, as parts of a sentence."""
    found = []
    if data.get("format") != FORMAT:
        found.append(f'"format" is not "{FORMAT}"')
    if data.get("version") != VERSION or isinstance(data.get("version"), bool):
        found.append(f'"version" is not {VERSION}, the one that this MedChat reads')
    found += _text(data, "title", '"title"')
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        return [*found, '"messages" is not a list of messages']
    if len(messages) > MOST_MESSAGES:
        found.append(f"it has {len(messages):,} messages, {MOST_MESSAGES} are possible")
    last = messages[-1]
    open_end = [] if isinstance(last, dict) and last.get("role") == "user" else [{"role": "user", "content": ""}]
    found += prompt.problems([*messages, *open_end])
    for number, message in enumerate(messages, 1):
        if isinstance(message, dict):
            found += _message(message, f"message {number}")
    return found


def _message(message: dict[str, Any], where: str) -> Iterator[str]:
    if message.get("role") == "system":
        yield f"{where} is a system prompt, which a file cannot bring"
    if isinstance(message.get("content"), str):
        yield from _text(message, "content", where)
    for name in TEXTS:
        if name in message:
            yield from _text(message, name, f"the {name} of {where}")
    if unknown := [str(name)[:20] for name in message if name not in ("role", "content", *TEXTS, "sources", "facts")]:
        yield f"{where} has unknown fields: {', '.join(unknown[:5])}"
    yield from _facts(message.get("facts", {}), f"the facts of {where}")
    sources = message.get("sources", [])
    if not isinstance(sources, list) or len(sources) > MOST_SOURCES:
        yield f"the sources of {where} are not a list of at most {MOST_SOURCES}"
        return
    for number, source in enumerate(sources, 1):
        if not _texts(source, SOURCE, LONGEST_SOURCE):
            yield f"source {number} of {where} is not four texts: {', '.join(SOURCE)}"
        elif source["url"] and not re.fullmatch(r"https?://[^\s<>\"'`\\]+", source["url"]):
            yield f"source {number} of {where} has an address that is no web page"


def _facts(facts: object, where: str) -> Iterator[str]:
    if not isinstance(facts, dict) or len(facts) > MOST_FACTS or not _texts(facts, tuple(facts), LONGEST_FACT):
        yield f"{where} are not at most {MOST_FACTS} names with short texts"
    elif not all(_readable(name) and len(name) <= LONGEST_FACT for name in facts):
        yield f"{where} have names that are no text"


def _text(data: dict[str, Any], name: str, where: str) -> Iterator[str]:
    text, most = data.get(name), LONGEST[name]
    if not isinstance(text, str):
        yield f"{where} is not text"
    elif len(text) > most:
        yield f"{where} has {len(text):,} characters, {most:,} are possible"
    elif not _readable(text):
        yield f"{where} holds characters that are no text"


def _texts(data: object, names: tuple[str, ...], most: int) -> bool:
    """Return whether `data` holds exactly `names`, each with a readable text of at most `most` characters."""
    return (
        isinstance(data, dict)
        and set(data) == set(names)
        and all(isinstance(text, str) and len(text) <= most and _readable(text) for text in data.values())
    )


def _readable(text: str) -> bool:
    """Return whether a text is free of NUL and of halves of characters, which cannot be sent or stored."""
    return "\0" not in text and not re.search("[\ud800-\udfff]", text)
