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
from medchat.ui.chat_tab import Choices, paced, sampling, visitor

INTRO = """## Compare
One question, two answers with the same seed. Blind hides who wrote which until you have judged."""
LABELS = {"a": "A is better", "b": "B is better", "both good": "Both are good", "both bad": "Both are bad"}
WAITING = "<p class='empty'>The answer comes here.</p>"

log = logging.getLogger("medchat")


def compare_tab(line: Line, knowledge: Knowledge, choices: Choices) -> list[gr.Radio]:
    """Lay out the tab inside the open gr.Blocks, connect it, and return its two adapter pickers."""
    names = [*line.engine.adapters, "base"]
    gr.Markdown(INTRO, elem_classes="intro")
    question = gr.Textbox(
        elem_id="question",
        label="Question for both",
        placeholder="What helps against heartburn?",
        lines=1,
        max_lines=6,
        submit_btn="Compare",
    )
    with gr.Row(elem_id="sides"):
        left = gr.Radio(names, value=names[0], label="Adapter for one side", elem_id="left")
        right = gr.Radio(names, value=names[-1], label="Adapter for the other side", elem_id="right")
        blind = gr.Checkbox(True, label="Blind", info="Names and sides stay hidden until you judge.", elem_id="blind")
    card = gr.Markdown(elem_id="compare-card", visible=False)
    status = gr.HTML("", elem_id="compare-status")
    with gr.Row(elem_id="answers", equal_height=True):
        shown = [gr.Column(elem_classes="side") for _ in "ab"]
        heads, texts = [], []
        for side, column in zip("AB", shown, strict=True):
            with column:
                heads.append(gr.HTML(_head(side), elem_classes="side-head"))
                texts.append(
                    gr.Markdown(WAITING, elem_id=f"answer-{side.lower()}", sanitize_html=True, latex_delimiters=[])
                )
    keep = gr.Checkbox(
        False,
        label="Keep the question and both answers with my judgement",
        info="Stored on this machine, without your name, for training better adapters. Else only who won is kept.",
        elem_id="keep",
    )
    with gr.Row(elem_id="votes"):
        buttons = [gr.Button(label, interactive=False, elem_classes="vote") for label in LABELS.values()]
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
    question.stop(
        lambda: (gr.update(value="<span class='now'>Stopped</span>"), gr.update(submit_btn="Compare", stop_btn=False)),
        None,
        [status, question],
        cancels=[run],
        queue=False,
        **private,
    )
    for button, choice in zip(buttons, LABELS, strict=True):
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
        same = gr.skip()
        sides = [left, right]
        if blind:
            random.shuffle(sides)
        hidden = ["", ""] if blind else sides
        try:
            flagged = chat.assess(question, [], region or None)
            if not agreed and flagged.level == "none":
                raise ChatError("The note on the Chat tab is not accepted yet.", "Please read and accept it first.")
            chat.conversation(question, [])
            drawn = sampling(max_tokens, temperature, -1)
        except ChatError as error:
            raise gr.Error(str(error), title="Not sent", duration=None, print_exception=False) from error
        shown = talk.card(flagged)
        opening = gr.update(value=talk.text_of(shown[0]) if shown else "", visible=bool(shown))
        off = [gr.update(interactive=False)] * 4
        start = [_head(side, name) for side, name in zip("AB", hidden, strict=True)]
        running = gr.update(submit_btn=False, stop_btn=True)
        yield opening, _now("Thinking ..."), *start, WAITING, WAITING, *off, "", None, running
        idle = gr.update(submit_btn="Compare", stop_btn=False)
        if flagged.level == "crisis" or not agreed:
            yield same, _now("See the card above."), same, same, "", "", *off, "", None, idle
            return

        who = line.for_visitor(visitor(request))
        replies = [
            _Side(chat.reply(
                who, question, adapter=name, sampling=drawn, knowledge=knowledge if rest_on else None, cancel=Event()
            ))
            for name in sides
        ]  # fmt: skip
        while any(not reply.ended for reply in replies):
            for reply in replies:
                reply.go_on()
            status = "Writing ..." if any(reply.text for reply in replies) else "Thinking ..."
            yield same, _now(status), same, same, *(reply.text or WAITING for reply in replies), *[same] * 7
        (name_a, name_b), (answer_a, answer_b) = sides, [reply.text for reply in replies]
        seed = drawn.seed or 0
        vote = votes.Vote(line.engine.base, name_a, name_b, "", blind, seed, question.strip(), answer_a, answer_b)
        failed = any(reply.failed for reply in replies)
        feet = [_head(side, name, reply.facts) for side, name, reply in zip("AB", hidden, replies, strict=True)]
        can = [gr.update(interactive=not failed)] * 4
        done = _now("" if failed else "Which answer is better?")
        yield same, done, *feet, *(reply.text for reply in replies), *can, "", None if failed else vote, idle

    return compare


class _Side:
    """One of the two answers while it comes in."""

    def __init__(self, pieces: Iterator[Reply]):
        self._pieces = paced(pieces)
        self.text, self.facts = "", ""
        self.ended = self.failed = False

    def go_on(self) -> None:
        """Take the next piece, if any; an error becomes the text."""
        if self.ended:
            return
        try:
            text, piece = next(self._pieces)
            self.text = piece.final if piece.final is not None else text
            if piece.final is not None:
                self.ended = True
                if stats := piece.delta.stats:
                    self.facts = f"{stats.completion_tokens} tokens · {stats.tokens_per_second:.0f} tokens/s"
        except StopIteration:
            self.ended = True
        except (ChatError, EngineError) as error:
            self.text, self.ended, self.failed = str(error), True, True
        except Exception as error:
            log.error("comparison failed: %s", type(error).__name__)
            self.text, self.ended, self.failed = "Something went wrong on our side. Please try again.", True, True


def _voter(choice: str) -> Callable[..., tuple[Any, ...]]:
    def vote(outcome: votes.Vote | None, keep: bool) -> tuple[Any, ...]:
        """Store the judgement, say who was who, and how the votes stand."""
        if outcome is None:
            return (*[gr.skip()] * 8,)
        judged = replace(outcome, choice=choice)
        if not keep:
            judged = replace(judged, question="", answer_a="", answer_b="")
        try:
            votes.add(judged)
            told = _standing(choice, votes.tally())
        except (sqlite3.Error, OSError) as error:
            log.error("vote not stored: %s", type(error).__name__)
            told = "<p>Your judgement could not be stored here; the names are shown above.</p>"
        heads = [_head(side, name) for side, name in (("A", outcome.adapter_a), ("B", outcome.adapter_b))]
        return (*heads, *[gr.update(interactive=False)] * 4, told, None)

    return vote


def _standing(choice: str, tally: dict[str, int]) -> str:
    listed = ", ".join(f"{escape(name)} {count}" for name, count in tally.items())
    return f"<p>Thank you: {LABELS[choice].lower()}. Wins so far on this machine: {listed or 'none'}.</p>"


def _head(side: str, name: str = "", facts: str = "") -> str:
    who = f" <b>{escape(name)}</b>" if name else ""
    return f"<h3>Answer {side}{who}</h3><span class='small'>{escape(facts)}</span>"


def _now(text: str) -> str:
    return f"<span class='now'>{escape(text)}</span>"
