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
from medchat.feedback import Dataset, new_conversation
from medchat.knowledge import Knowledge
from medchat.line import Line
from medchat.seal import Seal
from medchat.ui import conversation as talk
from medchat.ui import language
from medchat.ui.conversation import History
from medchat.ui.feedback_panel import feedback_panel
from medchat.ui.history_panel import connect_history, history_panel
from medchat.ui.language import shown as word
from medchat.ui.language import text as say

ASSETS = Path(__file__).parent.parent.parent / "assets"
EXAMPLES: dict[str, list[str]] = yaml.safe_load((ASSETS / "examples.yaml").read_text(encoding="utf-8"))
MANNERS = {"steady": 0.2, "balanced": 0.7, "varied": 1.1, "always": 0.0}  # temperatures
KEYS = (
    "<kbd>Enter</kbd> {sends} · <kbd>Shift</kbd> <kbd>Enter</kbd> {new_line} · <kbd>Esc</kbd> {stops} · "
    "<kbd>/</kbd> {back}"
)

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


def chat_tab(demo: gr.Blocks, line: Line, knowledge: Knowledge, dataset: Dataset | None, seal: Seal) -> Choices:
    """Lay out the tab inside `demo`, connect it, and return what other tabs share.

    `dataset` gets the feedback, `seal` encrypts what the browser keeps.
    """
    engine = line.engine
    conversation = gr.State("")  # its number; a callable here would be an endpoint of the API
    with gr.Row(elem_id="chat-tab"):
        with gr.Column(elem_id="talk", scale=1):
            with gr.Column(elem_id="welcome"):
                gr.Markdown(word("welcome"))
                themes = [(word(f"examples.{name}"), name) for name in EXAMPLES]
                theme = gr.Radio(themes, value=themes[0][1], label=word("theme"), show_label=False, elem_id="themes")
                with gr.Column(elem_id="examples"):
                    examples = [
                        gr.Button(word(f"examples.{question}"), elem_classes="example")
                        for question in EXAMPLES[themes[0][1]]
                    ]
            chatbot = _chatbot()
            feedback_panel(chatbot, conversation, dataset)
            with gr.Column(elem_id="consent", visible=False) as consent:
                gr.Markdown(word("consent"))
                agree = gr.Button(word("agree"), variant="primary", elem_id="agree")
            status = gr.HTML(_ready(engine), elem_id="status")
            box = gr.Textbox(
                elem_id="message",
                label=word("message"),
                show_label=False,
                placeholder=word("ask"),
                lines=1,
                max_lines=8,
                submit_btn=True,
                autofocus=True,
            )
            gr.HTML(word("english_only"), elem_id="english-only")
            gr.HTML(word("keys"), elem_id="keys")
        with gr.Column(elem_id="aside", scale=0, min_width=280):
            history = history_panel(seal)
            choices, system = _aside(engine, knowledge)

    respond = _responder(line, knowledge)
    c = choices
    inputs = [chatbot, c.adapter, c.temperature, c.max_tokens, c.seed, c.rest_on, system, c.region, c.agreed]
    outputs = [chatbot, box, status]
    private: dict[str, Any] = {"api_visibility": "private"}
    # In the queue, since only there an error becomes a message and all comes in order, but never waiting: the line in
    # medchat.line does that.
    at_once: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", **private}
    starts = [
        box.submit(_take, [box, chatbot, c.agreed, c.region], outputs, **at_once),
        chatbot.option_select(_take_option, [chatbot, c.agreed, c.region], outputs, **at_once),
        chatbot.retry(_take_again, [chatbot], outputs, **at_once),
        chatbot.edit(_take_edited, [chatbot, c.agreed, c.region], outputs, **at_once),
        *(
            button.click(_taker(number), [theme, chatbot, c.agreed, c.region], outputs, **at_once)
            for number, button in enumerate(examples)
        ),
    ]
    running: list[Any] = [start.success(respond, inputs, outputs, **at_once) for start in starts]
    stop = box.stop(_stopped, [chatbot], outputs, cancels=running, **at_once)
    chatbot.clear(_cleared(engine), None, outputs, cancels=running, **at_once)
    gr.on([demo.load, chatbot.clear], new_conversation, None, conversation, queue=False, **private)
    undo = chatbot.undo(_undo, [chatbot], [chatbot, box], queue=False, show_progress="hidden", **private)
    connect_history(
        demo, history, seal, engine, conversation, c.region, outputs,
        lambda shown: (shown, _box(), _ready(engine)),
        ended=[*starts, *running, stop, undo],
        running=running,
    )  # fmt: skip

    theme.change(
        lambda chosen: [gr.update(value=word(f"examples.{question}")) for question in EXAMPLES[chosen]],
        theme,
        examples,
        queue=False,
        **private,
    )
    agree.click(
        lambda: (time.strftime("%Y-%m-%d"), gr.update(visible=False), gr.update(autofocus=True)),
        None,
        [c.agreed, consent, box],
        queue=False,
        # To the top: the consent above was long, and what comes next would begin above a phone's screen.
        js="() => { document.querySelector('#message textarea').focus({preventScroll: true}); window.scrollTo(0, 0); }",
        **private,
    )
    home = gr.BrowserState("", storage_key="medchat-region", secret="medchat")
    c.region.input(_other_region, [chatbot, c.region], [chatbot, home], queue=False, show_progress="hidden", **private)
    demo.load(_welcome_back, [c.agreed, home], [consent, c.region], queue=False, show_progress="hidden", **private)
    return choices


def _chatbot() -> gr.Chatbot:
    return gr.Chatbot(
        elem_id="chat",
        label=word("conversation"),
        show_label=False,
        buttons=["copy", "copy_all"],
        editable="user",
        feedback_options=("Like", "Dislike"),
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
        label=word("adapter"),
        info=word("adapter_info"),
        elem_id="adapter",
    )
    rest_on = gr.Checkbox(
        len(knowledge) > 0,
        label=word("rest_on"),
        info=word("rest_on_info" if len(knowledge) else "no_knowledge"),
        interactive=len(knowledge) > 0,
    )
    manners = [(word(name), name) for name in MANNERS]
    manner = gr.Radio(manners, value="balanced", label=word("manner"), elem_id="manner")
    with gr.Accordion(word("where"), open=False, elem_id="where"):
        region = gr.Radio(
            [(word(f"country_{code}"), code) for code in ("", *triage.REGIONS)],
            value="",
            label=word("country"),
            info=word("country_info"),
            elem_id="region",
        )
    with gr.Accordion(word("fine"), open=False, elem_id="fine"):
        temperature = gr.Slider(0, 1.5, 0.7, step=0.1, label=word("temperature"), info=word("temperature_info"))
        max_tokens = gr.Slider(16, 1024, 512, step=16, label=word("longest"), info=word("longest_info"))
        seed = gr.Number(-1, precision=0, label=word("seed"), info=word("seed_info"))
        system = gr.Textbox(
            label=word("system"),
            info=word("system_info"),
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
        same, lang = gr.skip(), language.of(request)
        yield same, same, _status(say(lang, "thinking"))  # a generator that has yielded can be closed at once
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
                language=lang,
                system=(system or "").strip(),
            )
            for text, piece in paced(pieces):
                shown = [*history, *talk.card(piece.assessment, lang), *talk.answer(text, lang=lang)]
                if piece.final is not None:
                    yield (
                        [*history, *_ended(engine, knowledge, piece, searched, drawn.seed or 0, lang)],
                        _box(),
                        _gauge(engine, piece, lang),
                    )
                elif not agreed:  # only a card against danger comes without consent
                    yield (
                        [*shown, talk.note(say(lang, "no_answer_yet"), say(lang, "accept_below"), lang)],
                        _box(),
                        "",
                    )
                    return
                else:
                    place, seconds = line.place(cancel)
                    now = _status(_progress(lang, text, place, seconds))
                    fresh = shown if len(shown) > len(history) else same
                    yield fresh, same, now if now != told else same
                    told = now
        except (ChatError, EngineError) as error:
            none = say(lang, "no_answer")
            yield [*shown, talk.note(none, language.told(lang, error), lang)], _box(), _status(none)
        except Exception as error:
            log.error("reply failed: %s", type(error).__name__)  # the type alone: a message could quote the visitor
            none = say(lang, "no_answer")
            yield [*shown, talk.note(none, say(lang, "went_wrong"), lang)], _box(), _status(none)

    return respond


def _ended(engine: Engine, knowledge: Knowledge, piece: Reply, searched: bool, seed: int, lang: str) -> History:
    """Return the entries of a finished answer; in a crisis the card stands alone."""
    answer = talk.answer(piece.final or "", piece.passages, ended=True, lang=lang)
    entries = [*talk.card(piece.assessment, lang), *answer]
    if piece.assessment.level == "crisis" or not piece.final:
        return entries
    follow_up = talk.follow_ups(knowledge, piece.passages, lang) if piece.assessment.level == "none" else []
    return [*entries, talk.report(engine, piece, searched=searched, seed=seed, follow_up=follow_up, lang=lang)]


def _progress(lang: str, text: str, place: int, seconds: float) -> str:
    if place:
        return say(lang, "in_line", place=place, seconds=max(1, round(seconds)))
    if text:
        return say(lang, "reasoning_now" if talk.split_reasoning(text)[1] == "" else "writing")
    return say(lang, "thinking")


def _status(text: str, more: str = "") -> str:
    return f"<span class='now'>{escape(text)}</span>{more}"


def _ready(engine: Engine) -> str:
    """Return the status before the first question: who answers."""
    return f"<span class='now'>{talk.who(engine, chat.adapter_name(engine, ''), word('on'))}</span>"


def _gauge(engine: Engine, piece: Reply, lang: str) -> str:
    """Return the status after an answer: how full the context is, and what no longer fits."""
    stats = piece.delta.stats
    if stats is None:
        return _status(say(lang, "done"))
    used = min(1.0, (stats.prompt_tokens + stats.completion_tokens) / engine.context)
    label = say(lang, "context", used=language.percent(lang, used), all=language.number(lang, engine.context))
    gauge = (
        f"<span class='gauge' role='meter' aria-label='{escape(say(lang, 'context_used'))}' aria-valuemin='0' "
        f"aria-valuemax='100' aria-valuenow='{used * 100:.0f}' title='{label}'>"
        f"<i style='inline-size:{used:.0%}'></i></span><span class='small'>{label}</span>"
    )
    if piece.dropped_turns:
        dropped = say(lang, "dropped_one" if piece.dropped_turns == 1 else "dropped_more", count=piece.dropped_turns)
        gauge += f"<span class='small dropped'>{dropped}</span>"
    return _status(say(lang, "done"), gauge)


def _take(message: str, history: History, agreed: str, region: str, request: gr.Request) -> tuple[Any, ...]:
    """Move a valid message from the box into the conversation; an invalid one stays where it is, with a sentence."""
    flat, lang = talk.flatten(history), language.of(request)
    title = say(lang, "not_sent")
    try:
        chat.conversation(message, flat)
    except ChatError as error:
        said = language.told(lang, error)
        raise gr.Error(said, title=title, duration=None, print_exception=False) from error
    if not agreed and chat.assess(message, flat, region).level == "none":
        raise gr.Error(say(lang, "accept_above"), title=title, duration=8)
    asked = [*history, {"role": "user", "content": message.strip()}]
    return asked, _box(running=True, value=""), _status(say(lang, "thinking"))


def _taker(number: int) -> Callable[..., tuple[Any, ...]]:
    """Return what asks an example of the theme. It is asked in English, in which passages and answers are."""

    def take(theme: str, history: History, agreed: str, region: str, request: gr.Request) -> tuple[Any, ...]:
        return _take(EXAMPLES[theme][number], history, agreed, region, request)

    return take


def _take_option(
    history: History, agreed: str, region: str, event: gr.SelectData, request: gr.Request
) -> tuple[Any, ...]:
    return _take(event.value, history, agreed, region, request)


def _take_again(history: History, event: gr.RetryData, request: gr.Request) -> tuple[Any, ...]:
    return history[: _index(event) + 1], _box(running=True), _status(say(language.of(request), "thinking_again"))


def _take_edited(
    history: History, agreed: str, region: str, event: gr.EditData, request: gr.Request
) -> tuple[Any, ...]:
    asked, _, status = _take(event.value, history[: _index(event)], agreed, region, request)
    return asked, _box(running=True), status


def _undo(history: History, event: gr.UndoData) -> tuple[Any, Any]:
    index = _index(event)
    return history[:index], _box(value=talk.text_of(history[index]))


def _index(event: Any) -> int:
    return event.index if isinstance(event.index, int) else event.index[0]


def _stopped(history: History, request: gr.Request) -> tuple[Any, ...]:
    """Say under the answer that it was stopped; before the first word a note takes its place."""
    lang = language.of(request)
    last = talk.kind(history[-1]) if history else talk.REPORT
    if last in ("user", talk.CARD):
        history = [*history, talk.note(say(lang, "stopped"), say(lang, "stopped_early"), lang)]
    elif last not in (talk.REPORT, talk.NOTE):
        history = [*history, talk.stopped(lang)]
    return history, _box(), _status(say(lang, "stopped"))


def _cleared(engine: Engine) -> Callable[[], tuple[Any, ...]]:
    return lambda: ([], _box(), _ready(engine))


def _other_region(history: History, region: str, request: gr.Request) -> tuple[History, str]:
    """Return the conversation with the numbers of another region on its cards, and the region to remember."""
    lang, shown = language.of(request), []
    said: list[str] = []
    for item in history:
        if talk.kind(item) == "user":
            said.append(talk.text_of(item))
        elif talk.kind(item) == talk.CARD:
            earlier = [{"role": "user", "content": text} for text in said[:-1]]
            item = talk.card(chat.assess(said[-1], earlier, region, lang), lang)[0]
        shown.append(item)
    return shown, region


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
