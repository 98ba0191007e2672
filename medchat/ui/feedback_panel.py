"""The panel that opens after a thumb: reasons, a better answer, consent, and deletion. Nothing is kept before Send."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html import escape, unescape
from typing import Any

import gradio as gr

from medchat import feedback
from medchat.errors import UserError
from medchat.feedback import BAD, GOOD, Dataset, Feedback
from medchat.ui import conversation as talk
from medchat.ui import language
from medchat.ui.conversation import History
from medchat.ui.language import shown as word
from medchat.ui.language import text as say

# As medchat.ui.conversation writes them.
FACT = re.compile(r"<dt data-fact='(Adapter|Base|Seed)'>[^<]*</dt><dd(?: data-is='(.*?)')?>(.*?)</dd>")

# The panel opens below the conversation: bring it into view, and the keyboard to it.
GO_THERE = """() => setTimeout(() => {
  const panel = document.querySelector("#feedback");
  panel?.scrollIntoView({ block: "nearest" });
  panel?.querySelector("input")?.focus({ preventScroll: true });
}, 50)"""


def feedback_panel(chatbot: gr.Chatbot, conversation: gr.State, dataset: Dataset | None) -> None:
    """Lay out the panel inside the open gr.Blocks; it opens after a thumb of `chatbot`.

    `conversation` holds the number of the conversation that is shown (feedback.new_conversation).
    """
    judged = gr.State(None)  # the Feedback to be: what was shown when the thumb was pressed
    allowed = gr.BrowserState(False, storage_key="medchat-feedback", secret="medchat")
    with gr.Column(elem_id="feedback", visible=False) as panel:
        with gr.Column() as form:
            reasons = gr.CheckboxGroup([], label=word("feedback.why"), elem_id="reasons")
            better = gr.Textbox(
                label=word("feedback.better"),
                placeholder=word("feedback.better_example"),
                lines=2,
                max_lines=8,
                max_length=feedback.LONGEST,
                elem_id="better",
            )
            opt_in = gr.Checkbox(False, label=word("feedback.opt_in"), elem_id="opt-in")
        told = gr.HTML("", elem_id="feedback-told")
        with gr.Row():
            send = gr.Button(word("feedback.send"), variant="primary", elem_id="send-feedback")
            close = gr.Button(word("feedback.close"), elem_id="close-feedback")
            delete = gr.Button(word("feedback.delete"), elem_id="delete-feedback")

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    at_once = {"concurrency_limit": None, **private}
    opening = chatbot.like(
        _opener(dataset),
        [chatbot, conversation, allowed],
        [panel, form, reasons, better, opt_in, told, send, judged],
        **at_once,
    )
    opening.success(None, None, None, js=GO_THERE, **private)
    send.click(_sender(dataset), [judged, reasons, better, opt_in], [form, told, send, judged], **at_once)
    delete.click(_deleter(dataset), [conversation], [told], **at_once)
    opt_in.input(lambda yes: yes, opt_in, allowed, queue=False, **private)
    gr.on([close.click, chatbot.clear], lambda: gr.update(visible=False), None, panel, queue=False, **private)


def judgement(history: History, index: int, conversation: str, liked: bool) -> Feedback | None:
    """Return the Feedback to be on the answer whose first entry is `history[index]`; None where no model answered."""
    end = index
    while end < len(history) and talk.kind(history[end]) != "user":
        end += 1
    entries = history[index:end]
    facts = {
        name: english or unescape(value)
        for entry in entries
        if talk.kind(entry) == talk.REPORT
        for name, english, value in FACT.findall(talk.text_of(entry))
    }
    if "Seed" not in facts or "answer" not in map(talk.kind, entries):
        return None
    return Feedback(
        conversation,
        talk.flatten(history[:end]),
        liked,
        adapter=facts.get("Adapter", ""),
        base=facts.get("Base", ""),
        seed=int(facts["Seed"]),
    )


def _opener(dataset: Dataset | None) -> Callable[..., tuple[Any, ...]]:
    def opened(
        history: History, conversation: str, allowed: bool, event: gr.LikeData, request: gr.Request
    ) -> tuple[Any, ...]:
        """Open the panel for the answer whose thumb was pressed; close it when the thumb is taken back."""
        lang, pressed = language.of(request), isinstance(event.liked, bool)
        index = event.index if isinstance(event.index, int) else event.index[0]
        outcome = judgement(history, index, conversation, event.liked is True) if pressed else None
        if outcome is None:
            if pressed:
                gr.Info(say(lang, "feedback.not_judged"), duration=5)
            return (gr.update(visible=False), *[gr.skip()] * 6, None)
        listed = [(say(lang, f"feedback.{name}"), name) for name in (GOOD if outcome.liked else BAD)]
        asked = say(lang, "feedback.good" if outcome.liked else "feedback.bad")
        stored = say(lang, "feedback.stored")
        if dataset:
            stored += " " + say(lang, "feedback.copied", repo=dataset.repo)
        shown = gr.update(visible=True)
        choices = gr.update(choices=listed, value=[], label=asked)
        return shown, shown, choices, "", gr.update(value=bool(allowed), info=stored), "", shown, outcome

    return opened


def _sender(dataset: Dataset | None) -> Callable[..., tuple[Any, ...]]:
    def send(
        outcome: Feedback | None, reasons: list[str], better: str, opt_in: bool, request: gr.Request
    ) -> tuple[Any, ...]:
        """Store the judgement; whatever goes wrong, the form keeps what was typed."""
        same, lang = gr.skip(), language.of(request)
        if outcome is None:
            return same, same, same, same
        if not opt_in:
            return same, _told(say(lang, "feedback.not_allowed")), same, same
        try:
            feedback.add(replace(outcome, reasons=tuple(reasons), better=better or ""), dataset=dataset)
        except UserError as error:
            return same, _told(language.told(lang, error)), same, same
        hidden = gr.update(visible=False)
        thanks = say(lang, "feedback.thanks", number=outcome.conversation)
        return hidden, _told(thanks), hidden, None

    return send


def _deleter(dataset: Dataset | None) -> Callable[..., str]:
    def delete(conversation: str, request: gr.Request) -> str:
        """Delete what this conversation left, and say how much that was."""
        lang = language.of(request)
        try:
            count = feedback.delete(conversation, dataset=dataset)
        except UserError as error:
            return _told(language.told(lang, error))
        name = {0: "none_stored", 1: "deleted_one"}.get(count, "deleted_more")
        return _told(say(lang, f"feedback.{name}", count=count))

    return delete


def _told(text: str) -> str:
    return f"<p role='status'>{escape(text)}</p>"
