"""The conversations in this browser: kept, listed, searched, renamed, deleted, exported and imported.

The browser keeps them sealed (medchat.seal); assets/history.js holds the list and draws it. Here they are sealed and
opened, and turned into files, in memory alone: nothing of them touches this machine's disk or logs.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import gradio as gr

from medchat import transcript
from medchat.engines import Engine
from medchat.feedback import new_conversation
from medchat.seal import Seal, sealed, unsealed
from medchat.transcript import ImportFailed
from medchat.ui import kept, language
from medchat.ui.conversation import History

ASSETS = Path(__file__).parent.parent.parent / "assets"
MOST = 500  # conversations opened at once; the browser keeps fewer
LARGEST = 6_000_000  # characters of them, sealed

# The words come with the panel in all languages; page.js says which.
PANEL = """<section id="history" aria-label="{conversations}">
<div class="bar"><button type="button" id="new-talk" aria-label="{new_talk}"><span class="short">{new_short}</span>
<span class="long">{new_talk}</span></button>
<button type="button" id="private" aria-pressed="false" title="{private_title}">{private_button}</button></div>
<p id="private-note" hidden></p>
<details id="talks" open><summary>{conversations} <span id="talk-count" class="small"></span></summary>
<div id="kept-talks">
<input type="search" id="find-talk" aria-label="{search_label}" placeholder="{search}" autocomplete="off">
<ul id="talk-list" aria-label="{conversations}"></ul><p id="no-talk" class="small"></p>
<div id="locked" class="told" hidden><p></p><button type="button" class="plain"></button></div></div>
<details id="talk-files"><summary>{files}</summary>
<div class="files" role="group" aria-label="{export_label}">
<button type="button" data-export="md">Markdown</button><button type="button" data-export="json">JSON</button>
<button type="button" data-export="html">HTML</button><button type="button" data-export="print">{print}</button></div>
<div class="files"><button type="button" id="import-talk">{import_talk}</button>
<input type="file" id="import-file" accept=".json,application/json" aria-label="{import_label}" hidden>
<button type="button" id="delete-all">{delete_all}</button></div>%s</details></details>
<div id="talk-told" role="status"></div>
<dialog id="confirm-delete" aria-labelledby="confirm-title"><p id="confirm-title"><b>{confirm}</b></p>
<p>{confirm_what}</p><div class="files"><button type="button" value="yes">{delete_all}</button>
<button type="button" value="no" autofocus>{keep_them}</button></div></dialog>
</section>"""
FLEETING = "<p class='small'>{fleeting}</p>"

# What the browser keeps, read before the page is drawn; nothing where storage is blocked.
STORED = """() => {
  const found = {};
  try {
    for (const key of Object.keys(localStorage))
      if (key.startsWith("medchat-talk-")) found[key.slice(13)] = localStorage.getItem(key);
  } catch {}
  return [{ tokens: found }];
}"""


def history_panel(seal: Seal) -> gr.HTML:
    """Lay out the panel inside the open gr.Blocks and return it; it says so where the seal does not last."""
    template = PANEL % ("" if seal.lasting else FLEETING)
    return gr.HTML(
        None,
        html_template=re.sub(r"{(\w+)}", r"${words[window.medchatLanguage].\1}", template),
        js_on_load=(ASSETS / "history.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="history-panel",
        words={name: groups["history"] for name, groups in language.words().items()},
    )


def connect_history(
    demo: gr.Blocks,
    panel: gr.HTML,
    seal: Seal,
    engine: Engine,
    conversation: gr.State,
    region: gr.Radio,
    chat: Sequence[Any],
    show: Callable[[History], tuple[Any, ...]],
    ended: Sequence[Any],
    running: Sequence[Any],
) -> None:
    """Connect the panel to the chat: `chat` are its outputs, chatbot first, and `show` their values for a history.

    After each of the events `ended` the conversation is kept; the events `running` end where another one is opened.
    """
    chatbot = chat[0]
    title = gr.State("")  # as renamed by the visitor, else ""
    at_once: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}

    def entry(number: str, name: str, history: History, changed: float) -> dict[str, Any]:
        """Return what the browser keeps of a conversation (`token`), and what it lists and searches."""
        body = {"v": kept.VERSION, "id": number, "title": name, "changed": changed, "entries": kept.packed(history)}
        return {"token": sealed(seal, body), **_listed(body)}

    def keep(history: History, number: str, name: str) -> dict[str, Any]:
        """Have the browser keep what is shown; a conversation whose only question was undone is kept no longer."""
        if not history:
            return _message(emptied=number)
        return _message(kept=entry(number, name, history, time.time()), current=number)

    def unlock(sent: dict[str, Any]) -> dict[str, Any]:
        """Open what the browser keeps; what another secret sealed is named, and stays."""
        talks, locked = [], []
        for number, body in _bodies(seal, sent):
            if body is None or body["id"] != number:
                locked.append(number)
            else:
                talks.append(_listed(body))
        return _message(list=talks, locked=locked)

    def pick(history: History, number: str, name: str, event: gr.EventData) -> tuple[Any, ...]:
        """Show another conversation, and keep the one that was shown if it ended in the middle of an answer."""
        body = unsealed(seal, event._data.get("token"))
        left = {"kept": entry(number, name, history, time.time())} if history and event._data.get("running") else {}
        if body is None:
            return (*[gr.skip()] * (len(chat) + 2), _message(told="cannot_open", **left))
        shown = kept.unpacked(body["entries"])
        return *show(shown), body["id"], body["title"], _message(current=body["id"], shown=True, **left)

    def fresh(history: History, number: str, name: str, event: gr.EventData) -> tuple[Any, ...]:
        running, started = history and event._data.get("running"), new_conversation()
        left = {"kept": entry(number, name, history, time.time())} if running else {}
        return *show([]), started, "", _message(current=started, shown=True, **left)

    def rename(number: str, name: str, event: gr.EventData) -> tuple[Any, Any]:
        body = unsealed(seal, event._data.get("token"))
        if body is None:
            return name, _message(told="cannot_rename")
        body["title"] = " ".join(str(event._data.get("title", "")).split())[: transcript.LONGEST["title"]]
        renamed = {"token": sealed(seal, body), **_listed(body)}
        return body["title"] if body["id"] == number else name, _message(kept=renamed)

    def export(history: History, name: str, event: gr.EventData) -> dict[str, Any]:
        """Return the conversation as a file, which the browser makes of the text: none is written here."""
        if not history:
            return _message(told="nothing_to_export")
        as_what = event._data.get("format")
        taken = kept.transcript_of(history, name, engine.adapters)
        write, kind, ending = {
            "md": (transcript.to_markdown, "text/markdown", "md"),
            "json": (transcript.to_json, "application/json", "json"),
        }.get(as_what, (transcript.to_html, "text/html", "html"))
        slug = re.sub(r"[^\w]+", "-", taken.title.lower()).strip("-")[:40]
        file = {"text": write(taken, date.today()), "type": kind, "name": f"medchat-{slug}.{ending}"}
        return _message(file=file, print=as_what == "print")

    def bring(where: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Show the conversation of a file, or say all that is wrong with it."""
        try:
            brought = transcript.from_json(str(event._data.get("text", "")))
        except ImportFailed as error:
            return (*[gr.skip()] * (len(chat) + 2), _message(problems=error.problems, fix=error.fix))
        history, number = kept.history_of(brought, where, language.of(request)), new_conversation()
        added = entry(number, brought.title, history, time.time())
        return *show(history), number, brought.title, _message(kept=added, current=number, shown=True, imported=True)

    now, shown = [chatbot, conversation, title], [*chat, conversation, title, panel]
    for event in ended:
        event.success(keep, now, panel, **at_once)
    demo.load(unlock, panel, panel, js=STORED, **at_once)
    panel.unlock_talks(unlock, panel, panel, js=STORED, **at_once)
    panel.open_talk(pick, now, shown, cancels=running, **at_once)
    panel.new_talk(fresh, now, shown, cancels=running, **at_once)
    panel.rename_talk(rename, [conversation, title], [title, panel], **at_once)
    panel.export_talk(export, [chatbot, title], panel, **at_once)
    panel.import_talk(bring, region, shown, cancels=running, **at_once)
    chatbot.clear(lambda: ("", _message(current="")), None, [title, panel], **at_once)


def _message(**told: Any) -> dict[str, Any]:
    """Return what history.js is told; a number makes it news even where the same was told before."""
    return {"number": uuid.uuid4().hex, **told}


def _listed(body: dict[str, Any]) -> dict[str, Any]:
    history = kept.unpacked(body["entries"])
    title = body["title"] or kept.title_of(history)
    return {"id": body["id"], "title": title, "changed": body["changed"], "text": kept.plain(history)}


def _bodies(seal: Seal, sent: object) -> list[tuple[str, dict[str, Any] | None]]:
    """Return (number, what was sealed or None) for what a browser sent; nothing for what no browser of ours sends."""
    tokens = sent.get("tokens") if isinstance(sent, dict) else None
    if not isinstance(tokens, dict) or len(tokens) > MOST or sum(len(str(t)) for t in tokens.values()) > LARGEST:
        return []
    opened = [(number, unsealed(seal, token)) for number, token in tokens.items()]
    return [(number, body if body and body.get("v") == kept.VERSION else None) for number, body in opened]
