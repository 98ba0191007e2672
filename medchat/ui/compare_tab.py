"""The Compare tab: one question, two adapters (or the base) side by side, streaming at once, and a vote."""

from __future__ import annotations

import logging
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from threading import Event
from typing import Any

import gradio as gr

from medchat import chat, votes
from medchat.chat import ChatError, Reply
from medchat.engines import EngineError
from medchat.knowledge import Knowledge
from medchat.line import Line
from medchat.ui import conversation as talk
from medchat.ui import language
from medchat.ui.chat_tab import Choices, paced, sampling, visitor
from medchat.ui.language import shown as word
from medchat.ui.language import text

VOTES = {"a": "vote_a", "b": "vote_b", "both good": "vote_both_good", "both bad": "vote_both_bad"}
WAITING = "<p class='empty'>{}</p>"

log = logging.getLogger("medchat")


def compare_tab(demo: gr.Blocks, line: Line, knowledge: Knowledge, choices: Choices) -> list[gr.Radio]:
    """Lay out the tab inside `demo`, connect it, and return its two adapter pickers."""
    names = [*line.engine.adapters, "base"]
    gr.Markdown(word("compare_intro"), elem_classes="intro")
    question = gr.Textbox(
        elem_id="question",
        label=word("question"),
        placeholder=word("question_example"),
        lines=1,
        max_lines=6,
        submit_btn=True,  # gets its name when the page is loaded
    )
    with gr.Row(elem_id="sides"):
        left = gr.Radio(names, value=names[0], label=word("left"), elem_id="left")
        right = gr.Radio(names, value=names[-1], label=word("right"), elem_id="right")
        blind = gr.Checkbox(True, label=word("blind"), info=word("blind_info"), elem_id="blind")
    card = gr.Markdown(elem_id="compare-card", visible=False)
    status = gr.HTML("", elem_id="compare-status")
    with gr.Row(elem_id="answers", equal_height=True):
        shown = [gr.Column(elem_classes="side") for _ in "ab"]
        heads, texts = [], []
        for side, column in zip("ab", shown, strict=True):
            with column:
                heads.append(gr.HTML(_head(word(f"answer_{side}")), elem_classes="side-head"))
                waiting = WAITING.format(word("answer_here"))
                texts.append(gr.Markdown(waiting, elem_id=f"answer-{side}", sanitize_html=True, latex_delimiters=[]))
    keep = gr.Checkbox(
        False,
        label=word("keep"),
        info=word("keep_info"),
        elem_id="keep",
    )
    with gr.Row(elem_id="votes"):
        buttons = [gr.Button(word(name), interactive=False, elem_classes="vote") for name in VOTES.values()]
    told = gr.HTML("", elem_id="tally")
    outcome = gr.State(None)  # the votes.Vote to be, without its choice

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    fields = [card, status, *heads, *texts, *buttons, told, outcome, question]
    run = question.submit(
        _comparer(line, knowledge),
        [question, left, right, blind, choices.temperature, choices.max_tokens, choices.rest_on, choices.region,
         choices.agreed],
        fields,
        concurrency_limit=None,
        **private,
    )  # fmt: skip
    # Through the queue, so that it arrives after the pieces that were on their way.
    question.stop(_stopped, None, [status, question], cancels=[run], concurrency_limit=None, **private)
    demo.load(_idle, None, question, queue=False, **private)
    for button, choice in zip(buttons, VOTES, strict=True):
        button.click(
            _voter(choice), [outcome, keep], [*heads, *buttons, told, outcome],
            concurrency_limit=None, **private,
        )  # fmt: skip
    return [left, right]


def _comparer(line: Line, knowledge: Knowledge) -> Callable[..., Iterator[tuple[Any, ...]]]:
    def compare(
        question: str,
        left: str,
        right: str,
        blind: bool,
        temperature: float,
        max_tokens: int,
        rest_on: bool,
        region: str,
        agreed: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Stream both answers; the two replies take turns, since each yields at least every 0.1 s."""
        same, lang = gr.skip(), language.of(request)
        waiting = WAITING.format(text(lang, "answer_here"))
        sides = [left, right]
        if blind:
            random.shuffle(sides)
        hidden = ["", ""] if blind else sides
        try:
            flagged = chat.assess(question, [], region or None, lang)
            if not agreed and flagged.level == "none":
                raise ChatError(text(lang, "accept_on_chat"), "")
            chat.conversation(question, [])
            drawn = sampling(max_tokens, temperature, -1)
        except ChatError as error:
            raise gr.Error(
                language.told(lang, error), title=text(lang, "not_sent"), duration=None, print_exception=False
            ) from error
        shown = talk.card(flagged, lang)
        opening = gr.update(value=talk.text_of(shown[0]) if shown else "", visible=bool(shown))
        off = [gr.update(interactive=False)] * 4
        titles = [text(lang, "answer_a"), text(lang, "answer_b")]
        start = [_head(title, name) for title, name in zip(titles, hidden, strict=True)]
        running = gr.update(submit_btn=False, stop_btn=True)
        yield opening, _now(text(lang, "thinking")), *start, waiting, waiting, *off, "", None, running
        idle = _idle(request)
        if flagged.level == "crisis" or not agreed:
            yield same, _now(text(lang, "see_card")), same, same, "", "", *off, "", None, idle
            return

        who = line.for_visitor(visitor(request))
        replies = [
            _Side(lang, chat.reply(
                who, question, adapter=name, sampling=drawn, knowledge=knowledge if rest_on else None, cancel=Event()
            ))
            for name in sides
        ]  # fmt: skip
        written = False
        while any(not reply.ended for reply in replies):
            for reply in replies:
                reply.go_on()
            begun = any(reply.text for reply in replies) and not written
            # Said once: with every piece, one that comes late would take back "Stopped".
            now = _now(text(lang, "writing")) if begun else same
            written = written or begun
            yield same, now, same, same, *(reply.text or waiting for reply in replies), *[same] * 7
        (name_a, name_b), (answer_a, answer_b) = sides, [reply.text for reply in replies]
        seed = drawn.seed or 0
        vote = votes.Vote(line.engine.base, name_a, name_b, "", blind, seed, question.strip(), answer_a, answer_b)
        failed = any(reply.failed for reply in replies)
        feet = [_head(title, name, reply.facts) for title, name, reply in zip(titles, hidden, replies, strict=True)]
        can = [gr.update(interactive=not failed)] * 4
        done = _now("" if failed else text(lang, "which"))
        yield same, done, *feet, *(reply.text for reply in replies), *can, "", None if failed else vote, idle

    return compare


class _Side:
    """One of the two answers while it comes in."""

    def __init__(self, lang: str, pieces: Iterator[Reply]):
        self._lang, self._pieces = lang, paced(pieces)
        self.text, self.facts = "", ""
        self.ended = self.failed = False

    def go_on(self) -> None:
        """Take the next piece, if any; an error becomes the text."""
        if self.ended:
            return
        try:
            said, piece = next(self._pieces)
            self.text = piece.final if piece.final is not None else said
            if piece.final is not None:
                self.ended = True
                if stats := piece.delta.stats:
                    self.facts = talk.pace(self._lang, stats)
        except StopIteration:
            self.ended = True
        except (ChatError, EngineError) as error:
            self.text, self.ended, self.failed = language.told(self._lang, error), True, True
        except Exception as error:
            log.error("comparison failed: %s", type(error).__name__)
            self.text, self.ended, self.failed = text(self._lang, "went_wrong_again"), True, True


def _voter(choice: str) -> Callable[..., tuple[Any, ...]]:
    def vote(outcome: votes.Vote | None, keep: bool, request: gr.Request) -> tuple[Any, ...]:
        """Store the judgement, say who was who, and how the votes stand."""
        lang = language.of(request)
        if outcome is None:
            return (*[gr.skip()] * 8,)
        judged = replace(outcome, choice=choice)
        if not keep:
            judged = replace(judged, question="", answer_a="", answer_b="")
        try:
            votes.add(judged)
            told = _standing(lang, choice, votes.tally())
        except (sqlite3.Error, OSError) as error:
            log.error("vote not stored: %s", type(error).__name__)
            told = f"<p>{text(lang, 'not_stored')}</p>"
        named = (("answer_a", outcome.adapter_a), ("answer_b", outcome.adapter_b))
        heads = [_head(text(lang, title), name) for title, name in named]
        return (*heads, *[gr.update(interactive=False)] * 4, told, None)

    return vote


def _idle(request: gr.Request) -> Any:
    return gr.update(submit_btn=text(language.of(request), "compare"), stop_btn=False)


def _stopped(request: gr.Request) -> tuple[Any, Any]:
    return gr.update(value=_now(text(language.of(request), "stopped"))), _idle(request)


def _standing(lang: str, choice: str, tally: dict[str, int]) -> str:
    wins = ", ".join(f"{escape(name)} {count}" for name, count in tally.items()) or text(lang, "none")
    return f"<p>{text(lang, 'thanks', choice=text(lang, VOTES[choice]), wins=wins)}</p>"


def _head(title: str, name: str = "", facts: str = "") -> str:
    who = f" <b>{escape(name)}</b>" if name else ""
    return f"<h3>{title}{who}</h3><span class='small'>{escape(facts)}</span>"


def _now(text: str) -> str:
    return f"<span class='now'>{escape(text)}</span>"
