"""The Chat tab: consent, welcome, conversation, status line, and the choices beside it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
import yaml

from medchat import chat, triage
from medchat.chat import ChatError, Reply
from medchat.engines import Engine, EngineError, Sampling
from medchat.knowledge import Knowledge
from medchat.line import Line
from medchat.ui import conversation as talk
from medchat.ui.conversation import History

ASSETS = Path(__file__).parent.parent.parent / "assets"
EXAMPLES: dict[str, list[str]] = yaml.safe_load((ASSETS / "examples.yaml").read_text(encoding="utf-8"))
COUNTRIES = {
    "": "Several countries",
    "US": "United States",
    "CA": "Canada",
    "UK": "United Kingdom",
    "IE": "Ireland",
    "AU": "Australia",
    "NZ": "New Zealand",
    "IN": "India",
    "EU": "European Union",
}
MANNERS = {"Steady": 0.2, "Balanced": 0.7, "Varied": 1.1, "Always the same": 0.0}  # temperatures
CONSENT = """**Before you ask:** MedChat is an AI for research and education, not a doctor or a medical device, and it
can be wrong. **In an emergency call your local emergency number**, do not ask here first. Questions are computed on the
machine that runs this page, neither kept nor logged; please leave out names."""
WELCOME = """## What would you like to understand?
It looks your question up in health passages written in plain words, answers in its own, and shows what it read."""

# Fresh text is sent to the browser at most this often, in seconds: each update costs it a rendering.
PACE = 0.1
AT_ONCE = 15  # updates that come without waiting, so that an answer starts smoothly

log = logging.getLogger("medchat")


@dataclass(frozen=True)
class Choices:
    """The components that other tabs share with the chat."""

    adapter: gr.Radio
    temperature: gr.Slider
    max_tokens: gr.Slider
    seed: gr.Number
    rest_on: gr.Checkbox
    region: gr.Radio
    agreed: gr.BrowserState


def chat_tab(demo: gr.Blocks, line: Line, knowledge: Knowledge) -> Choices:
    """Lay out the tab inside `demo`, connect it, and return what other tabs share."""
    engine = line.engine
    with gr.Row(elem_id="chat-tab"):
        with gr.Column(elem_id="talk", scale=1):
            with gr.Column(elem_id="welcome"):
                gr.Markdown(WELCOME)
                theme = gr.Radio(
                    list(EXAMPLES), value=next(iter(EXAMPLES)), label="Theme", show_label=False, elem_id="themes"
                )
                with gr.Column(elem_id="examples"):
                    first = EXAMPLES[next(iter(EXAMPLES))]
                    examples = [gr.Button(text, elem_classes="example") for text in first]
            chatbot = _chatbot()
            with gr.Column(elem_id="consent", visible=False) as consent:
                gr.Markdown(CONSENT)
                agree = gr.Button("I understand", variant="primary", elem_id="agree")
            status = gr.HTML(_status(talk.who(engine, chat.adapter_name(engine, ""))), elem_id="status")
            box = gr.Textbox(
                elem_id="message",
                label="Your message",
                show_label=False,
                placeholder="Ask a health question",
                lines=1,
                max_lines=8,
                submit_btn=True,
                autofocus=True,
            )
            gr.HTML(
                "<kbd>Enter</kbd> sends · <kbd>Shift</kbd> <kbd>Enter</kbd> new line · <kbd>Esc</kbd> stops · "
                "<kbd>/</kbd> back to the question",
                elem_id="keys",
            )
        with gr.Column(elem_id="aside", scale=0, min_width=280):
            choices, system = _aside(engine, knowledge)

    respond = _responder(line, knowledge)
    c = choices
    inputs = [chatbot, c.adapter, c.temperature, c.max_tokens, c.seed, c.rest_on, system, c.region, c.agreed]
    outputs = [chatbot, box, status]
    private: dict[str, Any] = {"api_visibility": "private"}
    # In the queue, since only there an error becomes a message, but never waiting: the line in medchat.line does that.
    at_once: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", **private}
    starts = [
        box.submit(_take, [box, chatbot, c.agreed, c.region], outputs, **at_once),
        chatbot.option_select(_take_option, [chatbot, c.agreed, c.region], outputs, **at_once),
        chatbot.retry(_take_again, [chatbot], outputs, **at_once),
        chatbot.edit(_take_edited, [chatbot, c.agreed, c.region], outputs, **at_once),
        *(button.click(_take, [button, chatbot, c.agreed, c.region], outputs, **at_once) for button in examples),
    ]
    running: list[Any] = [start.success(respond, inputs, outputs, **at_once) for start in starts]
    box.stop(_stopped, [chatbot], outputs, cancels=running, queue=False, show_progress="hidden", **private)
    chatbot.clear(_cleared(engine), None, outputs, cancels=running, queue=False, show_progress="hidden", **private)
    chatbot.undo(_undo, [chatbot], [chatbot, box], queue=False, show_progress="hidden", **private)

    theme.change(
        lambda chosen: [gr.update(value=text) for text in EXAMPLES[chosen]], theme, examples, queue=False, **private
    )
    agree.click(
        lambda: (time.strftime("%Y-%m-%d"), gr.update(visible=False), gr.update(autofocus=True)),
        None,
        [c.agreed, consent, box],
        queue=False,
        js="() => document.querySelector('#message textarea').focus()",
        **private,
    )
    c.region.input(_other_region, [chatbot, c.region], chatbot, queue=False, show_progress="hidden", **private)
    home = gr.BrowserState("", storage_key="medchat-region", secret="medchat")
    c.region.input(lambda region: region, c.region, home, queue=False, **private)
    demo.load(_welcome_back, [c.agreed, home], [consent, c.region], queue=False, show_progress="hidden", **private)
    return choices


def _chatbot() -> gr.Chatbot:
    return gr.Chatbot(
        elem_id="chat",
        label="Conversation",
        show_label=False,
        buttons=["copy", "copy_all"],
        editable="user",
        feedback_options=None,
        watermark=chat.DISCLAIMER,
        latex_delimiters=[],  # "$5 or $10" is no formula
        sanitize_html=True,
        allow_tags=False,
        allow_file_downloads=False,
        layout="bubble",
        scale=1,
    )


def _aside(engine: Engine, knowledge: Knowledge) -> tuple[Choices, gr.Textbox]:
    """Add what a visitor can choose; return it, and the box with the system prompt."""
    adapter = gr.Radio(
        [*engine.adapters, "base"],
        value=next(iter(engine.adapters), "base"),
        label="Adapter",
        info=f"Fine-tuned on top of {engine.base}; base is the model without.",
        elem_id="adapter",
    )
    rest_on = gr.Checkbox(
        len(knowledge) > 0,
        label="Answer from the knowledge base",
        info="The model reads passages first, and you see which." if len(knowledge) else "None was opened.",
        interactive=len(knowledge) > 0,
    )
    manner = gr.Radio(list(MANNERS), value="Balanced", label="Manner", elem_id="manner")
    with gr.Accordion("Where you are", open=False, elem_id="where"):
        region = gr.Radio(
            [(label, code) for code, label in COUNTRIES.items()],
            value="",
            label="Country",
            info="For the telephone numbers on a card against danger.",
            elem_id="region",
        )
    with gr.Accordion("Fine control", open=False, elem_id="fine"):
        temperature = gr.Slider(0, 1.5, 0.7, step=0.1, label="Temperature", info="0 always gives the same answer.")
        max_tokens = gr.Slider(
            16, 1024, 512, step=16, label="Longest answer", info="In tokens, about ¾ of a word each."
        )
        seed = gr.Number(-1, precision=0, label="Seed", info="-1 draws a new one each time.")
        system = gr.Textbox(
            label="System prompt",
            info="What the model is told first. The layer against danger stands outside it.",
            placeholder=chat.system_prompt(engine, chat.adapter_name(engine, "")),
            lines=3,
            max_lines=8,
            max_length=2000,
        )
    manner.input(
        lambda chosen: MANNERS[chosen], manner, temperature, queue=False, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
    agreed = gr.BrowserState("", storage_key="medchat-agreed", secret="medchat")  # nothing in it is a secret
    return Choices(adapter, temperature, max_tokens, seed, rest_on, region, agreed), system


def sampling(max_tokens: float, temperature: float, seed: float | None) -> Sampling:
    """Return the settings checked; raises ChatError naming all that is wrong."""
    found = []
    if not 1 <= max_tokens <= 2048:
        found.append("max_tokens must be from 1 to 2048")
    if not 0 <= temperature <= 2:
        found.append("temperature must be from 0 to 2")
    if seed is not None and not -1 <= seed < 2**31:
        found.append("seed must be -1 or a number below 2147483648")
    if found:
        raise ChatError(f"{'; '.join(found).capitalize()}.", "Please correct that and send again.")
    drawn = random.randrange(2**31) if seed is None or seed < 0 else int(seed)  # drawn here, so that it can be told
    return Sampling(max_tokens=int(max_tokens), temperature=temperature, seed=drawn)


def visitor(request: gr.Request | None) -> str:
    """Return what tells visitors apart: the page or client they use, else their address."""
    if request is None:
        return ""
    return request.session_hash or (request.client.host if request.client else "")


def paced(pieces: Iterator[Reply]) -> Iterator[tuple[str, Reply]]:
    """Yield (text so far, piece): the first words and the end at once, the rest at most every PACE seconds."""
    text, sent, due, updates = "", "", 0.0, 0
    for piece in pieces:
        text += piece.delta.text
        now = time.monotonic()
        if piece.final is not None or not text or (text != sent and now >= due):
            yield text, piece
            updates += text != sent
            sent, due = text, now + (PACE if updates > AT_ONCE else 0)


def _responder(line: Line, knowledge: Knowledge) -> Callable[..., Iterator[tuple[Any, ...]]]:
    engine = line.engine

    def respond(
        history: History,
        adapter: str,
        temperature: float,
        max_tokens: int,
        seed: int | None,
        rest_on: bool,
        system: str,
        region: str,
        agreed: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Stream the answer to the last message of `history`."""
        same = gr.skip()
        yield same, same, _status("Thinking ...")  # a generator that has yielded can be closed at once
        *earlier, last = history
        shown, cancel, told = history, Event(), ""
        searched = rest_on and len(knowledge) > 0
        try:
            drawn = sampling(max_tokens, temperature, seed)
            pieces = chat.reply(
                line.for_visitor(visitor(request)),
                talk.text_of(last),
                talk.flatten(earlier),
                adapter=adapter,
                sampling=drawn,
                knowledge=knowledge if rest_on else None,
                cancel=cancel,
                region=region or None,
                system=(system or "").strip(),
            )
            for text, piece in paced(pieces):
                shown = [*history, *talk.card(piece.assessment), *talk.answer(text)]
                if piece.final is not None:
                    yield (
                        [*history, *_ended(engine, knowledge, piece, searched, drawn.seed or 0)],
                        _box(),
                        _gauge(engine, piece),
                    )
                elif not agreed:  # only a card against danger comes without consent
                    yield (
                        [*shown, talk.note("No answer yet", "Please read and accept the note below first.")],
                        _box(),
                        "",
                    )
                    return
                else:
                    place, seconds = line.place(cancel)
                    now = _status(_progress(text, place, seconds))
                    fresh = shown if len(shown) > len(history) else same
                    yield fresh, same, now if now != told else same
                    told = now
        except (ChatError, EngineError) as error:
            yield [*shown, talk.note("No answer", str(error))], _box(), _status("No answer")
        except Exception as error:
            log.error("reply failed: %s", type(error).__name__)  # the type alone: a message could quote the visitor
            text = "Something went wrong on our side. Use retry to ask again."
            yield [*shown, talk.note("No answer", text)], _box(), _status("No answer")

    return respond


def _ended(engine: Engine, knowledge: Knowledge, piece: Reply, searched: bool, seed: int) -> History:
    """Return the entries of a finished answer; in a crisis the card stands alone."""
    entries = [*talk.card(piece.assessment), *talk.answer(piece.final or "", piece.passages, ended=True)]
    if piece.assessment.level == "crisis" or not piece.final:
        return entries
    follow_up = talk.follow_ups(knowledge, piece.passages) if piece.assessment.level == "none" else []
    return [*entries, talk.report(engine, piece, searched=searched, seed=seed, follow_up=follow_up)]


def _progress(text: str, place: int, seconds: float) -> str:
    if place:
        return f"Number {place} in line, about {max(1, round(seconds))} s to go"
    if text:
        return "Reasoning ..." if talk.split_reasoning(text)[1] == "" else "Writing ..."
    return "Thinking ..."


def _status(text: str, more: str = "") -> str:
    return f"<span class='now'>{escape(text)}</span>{more}"


def _gauge(engine: Engine, piece: Reply) -> str:
    """Return the status after an answer: how full the context is, and what no longer fits."""
    stats = piece.delta.stats
    if stats is None:
        return _status("Done")
    used = min(1.0, (stats.prompt_tokens + stats.completion_tokens) / engine.context)
    label = f"Context {used:.0%} of {engine.context:,} tokens"
    gauge = (
        f"<span class='gauge' role='meter' aria-label='Context used' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{used * 100:.0f}' title='{label}'><i style='inline-size:{used:.0%}'></i></span>"
        f"<span class='small'>{label}</span>"
    )
    if piece.dropped_turns:
        questions = "question" if piece.dropped_turns == 1 else f"{piece.dropped_turns} questions"
        gauge += f"<span class='small dropped'>The oldest {questions} no longer fitted and was left out.</span>"
    return _status("Done", gauge)


def _take(message: str, history: History, agreed: str, region: str) -> tuple[Any, ...]:
    """Move a valid message from the box into the conversation; an invalid one stays where it is, with a sentence."""
    flat = talk.flatten(history)
    try:
        chat.conversation(message, flat)
    except ChatError as error:
        raise gr.Error(str(error), title="Not sent", duration=None, print_exception=False) from error
    if not agreed and chat.assess(message, flat, region).level == "none":
        raise gr.Error("Please read the note above your question and accept it first.", title="Not sent", duration=8)
    asked = [*history, {"role": "user", "content": message.strip()}]
    return asked, _box(running=True, value=""), _status("Thinking ...")


def _take_option(history: History, agreed: str, region: str, event: gr.SelectData) -> tuple[Any, ...]:
    return _take(event.value, history, agreed, region)


def _take_again(history: History, event: gr.RetryData) -> tuple[Any, ...]:
    return history[: _index(event) + 1], _box(running=True), _status("Thinking again ...")


def _take_edited(history: History, agreed: str, region: str, event: gr.EditData) -> tuple[Any, ...]:
    asked, _, status = _take(event.value, history[: _index(event)], agreed, region)
    return asked, _box(running=True), status


def _undo(history: History, event: gr.UndoData) -> tuple[Any, Any]:
    index = _index(event)
    return history[:index], _box(value=talk.text_of(history[index]))


def _index(event: Any) -> int:
    return event.index if isinstance(event.index, int) else event.index[0]


def _stopped(history: History) -> tuple[Any, ...]:
    """Say under the answer that it was stopped; before the first word a note takes its place."""
    last = talk.kind(history[-1]) if history else talk.REPORT
    if last in ("user", talk.CARD):
        history = [*history, talk.note("Stopped", "Stopped before the first word. Use retry to ask again.")]
    elif last not in (talk.REPORT, talk.NOTE):
        history = [*history, talk.stopped()]
    return history, _box(), _status("Stopped")


def _cleared(engine: Engine) -> Callable[[], tuple[Any, ...]]:
    return lambda: ([], _box(), _status(talk.who(engine, chat.adapter_name(engine, ""))))


def _other_region(history: History, region: str) -> History:
    """Return the conversation with the numbers of another region on its cards."""
    said: list[str] = []
    shown = []
    for item in history:
        if talk.kind(item) == "user":
            said.append(talk.text_of(item))
        elif talk.kind(item) == talk.CARD:
            item = talk.card(chat.assess(said[-1], [{"role": "user", "content": s} for s in said[:-1]], region))[0]
        shown.append(item)
    return shown


def _welcome_back(agreed: str, home: str, request: gr.Request) -> tuple[Any, Any]:
    """Show the consent to those who have not given it, and guess the region from the browser's language."""
    country = (request.headers.get("accept-language") or "").split(",")[0].partition("-")[2].upper()
    guess = {"GB": "UK"}.get(country, country)
    region = home or (guess if guess in triage.REGIONS else "")
    return gr.update(visible=not agreed), gr.update(value=region)


def _box(*, running: bool = False, value: str | None = None) -> Any:
    update: dict[str, Any] = {"submit_btn": not running, "stop_btn": running}
    if value is not None:
        update["value"] = value
    return gr.update(**update)
