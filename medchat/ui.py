"""The page and the API: the only importer of gradio."""

from __future__ import annotations

import html
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from medchat import adapters, chat, triage
from medchat.chat import ChatError, Reply
from medchat.engines import Engine, EngineError, Sampling
from medchat.errors import UserError
from medchat.knowledge import Knowledge, Passage, cite
from medchat.prompt import Message

ASSETS = Path(__file__).parent.parent / "assets"

EXAMPLES = [
    "What are the symptoms of iron deficiency anemia?",
    "How can I lower my blood pressure?",
    "Why do I get heartburn at night?",
    "How is asthma treated?",
    "What should I ask my doctor about diabetes?",
    "How can I sleep better?",
]

HEADER = f"""<div id="header">{(ASSETS / "logo.svg").read_text(encoding="utf-8")}
<div><h1>MedChat</h1><p>Health questions, answered in plain words by a small open model.</p></div></div>"""

PLACEHOLDER = "**What would you like to know?**\n\nPlease leave out names and other personal details."

ENDED = {"stop": "ended by itself", "length": "cut at the length limit", "cancelled": "stopped"}

CARD = "card"  # id of the message that holds a card against danger

# Fresh text is sent to the browser at most this often, in seconds: each update costs it a rendering.
PACE = 0.1
AT_ONCE = 15  # updates that come without waiting, so that an answer starts smoothly

log = logging.getLogger("medchat")


def build_demo(engine: Engine, knowledge: Knowledge, notice: str | None = None) -> gr.Blocks:
    """Return the page and the API on `engine`, with answers resting on `knowledge`; `notice` is shown on top."""
    model = {"concurrency_limit": engine.slots, "concurrency_id": "model"}
    with gr.Blocks(title="MedChat", analytics_enabled=False, fill_height=True) as demo:
        gr.HTML(HEADER)
        if notice:
            gr.Markdown(notice, elem_id="notice")
        chatbot = gr.Chatbot(
            elem_id="chat",
            label="Conversation",
            show_label=False,
            placeholder=PLACEHOLDER,
            examples=[{"text": text} for text in EXAMPLES],
            buttons=["copy", "copy_all"],
            feedback_options=None,
            sanitize_html=True,
            allow_tags=False,
            allow_file_downloads=False,
            layout="bubble",
            scale=1,
        )
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
        status = gr.Markdown(_who(engine), elem_id="status")
        sources = gr.HTML(elem_id="sources", visible=False)
        with gr.Accordion("Settings", open=False):
            adapter = gr.Radio(
                [*engine.adapters, "base"],
                value=next(iter(engine.adapters), "base"),
                label="Adapter",
                info=f"What {engine.base} was fine-tuned with; base is the model without.",
            )
            if hasattr(engine, "add_adapter"):
                _adapter_box(engine, adapter)
            rest_on = gr.Checkbox(
                len(knowledge) > 0,
                label="Answer from the knowledge base",
                info="Gives the model passages to read and shows them under the answer.",
                interactive=len(knowledge) > 0,
            )
            with gr.Row():
                temperature = gr.Slider(
                    0, 1.5, 0.7, step=0.1, label="Temperature", info="0 always gives the same reply."
                )
                max_tokens = gr.Slider(
                    16, 1024, 512, step=16, label="Longest reply", info="In tokens, about ¾ word each."
                )
                seed = gr.Number(-1, precision=0, label="Seed", info="-1 draws a new one each time.")
        gr.Markdown(chat.DISCLAIMER, elem_id="disclaimer")

        respond = _responder(engine, knowledge)
        options = [adapter, temperature, max_tokens, seed, rest_on]
        outputs = [chatbot, box, status, sources]
        private: dict[str, Any] = {"api_visibility": "private"}
        # In the queue, since only there an error becomes a message, but never waiting.
        at_once = {"concurrency_limit": None, "show_progress": "hidden", **private}
        asked = box.submit(_take, [box, chatbot], outputs, **at_once)
        picked = chatbot.example_select(_take_example, [chatbot], outputs, **at_once)
        again = chatbot.retry(_take_again, [chatbot], outputs, **at_once)
        running: list[Any] = [
            taken.success(respond, [chatbot, *options], outputs, show_progress="hidden", **model, **private)
            for taken in (asked, picked, again)
        ]
        for run in running:
            run.then(_finish, [chatbot], [chatbot, box], queue=False, **private)
        box.stop(_finish_stopped(engine), [chatbot], outputs, cancels=running, queue=False, **private)
        chatbot.undo(_undo, [chatbot], [chatbot, box], queue=False, **private)

        gr.api(_chat_api(engine, knowledge), api_name="chat", **model)
        gr.api(_sources_api(knowledge), api_name="sources")
        gr.api(_triage_api, api_name="triage")
        gr.api(_models_api(engine, notice), api_name="models")
    demo.queue(max_size=32, default_concurrency_limit=8)
    return demo


def _adapter_box(engine: Any, adapter: gr.Radio) -> None:
    """Add the box that loads another adapter from the Hub for everybody, while other visitors go on chatting."""
    known = [(entry["title"], entry["id"]) for entry in adapters.curated() if entry["base"] == engine.base]

    def load(source: str) -> Iterator[tuple[Any, Any]]:
        source = (source or "").strip()
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source) or Path(source).exists():
            raise gr.Error("That is not a Hub id. Hub ids look like org/name or org/name@revision.", duration=None)
        yield gr.skip(), f"Fetching {source} ..."
        try:
            loaded = engine.add_adapter(source)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        choices = [*engine.adapters, "base"]
        yield gr.update(choices=choices, value=loaded.name), f"**{loaded.name}** is ready: rank {loaded.rank}."

    box = gr.Textbox(
        label="Another adapter", placeholder="org/name[@revision]", info="Hub id of a PEFT LoRA.", submit_btn=True
    )
    told = gr.Markdown()
    once: dict[str, Any] = {"concurrency_limit": 1, "api_visibility": "private"}
    box.submit(load, box, [adapter, told], **once)
    if known:
        picked = gr.Radio(known, label="Known adapters for this base")
        picked.select(load, picked, [adapter, told], **once)


def launch_options() -> dict[str, Any]:
    """Return what belongs to launch(): the looks, and the settings that keep conversations private."""
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]  # nothing is fetched from a font server
    return {
        "theme": gr.themes.Soft(
            primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
        ),
        "css_paths": [ASSETS / "style.css"],
        "favicon_path": ASSETS / "logo.svg",
        "footer_links": ["api"],
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": "1mb",
        "ssr_mode": False,
    }


def flatten(history: list[dict[str, Any]]) -> list[Message]:
    """Return Gradio's history as plain messages, without the turns that got no answer.

    A card against danger counts as the answer only where no other follows.
    """
    messages: list[Message] = []
    card = False
    for item in history:
        content = item["content"]
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        metadata = item.get("metadata") or {}
        answered = bool(messages) and messages[-1]["role"] == "assistant"
        if item["role"] == "user":
            messages.append({"role": "user", "content": content})
        elif metadata.get("title") or not content:
            if messages and not answered:
                messages.pop()
        elif answered and card:
            messages[-1] = {"role": "assistant", "content": content}
        else:
            messages.append({"role": "assistant", "content": content})
        card = metadata.get("id") == CARD
    return messages


def _take(message: str, history: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Move a valid message from the box into the conversation; an invalid one stays where it is, with a sentence."""
    try:
        chat.conversation(message, flatten(history))
    except ChatError as error:
        raise gr.Error(str(error), title="Not sent", duration=None, print_exception=False) from error
    asked = [*history, {"role": "user", "content": message.strip()}]
    return asked, _box(running=True, value=""), "Thinking ...", gr.update(visible=False)


def _take_example(history: list[dict[str, Any]], event: gr.SelectData) -> tuple[Any, ...]:
    return _take(event.value["text"], history)


def _take_again(history: list[dict[str, Any]], event: gr.RetryData) -> tuple[Any, ...]:
    index = event.index if isinstance(event.index, int) else event.index[0]
    return history[: index + 1], _box(running=True), "Thinking again ...", gr.update(visible=False)


def _undo(history: list[dict[str, Any]], event: gr.UndoData) -> tuple[Any, Any]:
    index = event.index if isinstance(event.index, int) else event.index[0]
    return history[:index], _box(value=flatten(history[index : index + 1])[0]["content"])


def _finish(history: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Give the send button back; a question stopped before the first word gets a note in place of an answer."""
    if history and history[-1]["role"] == "user":
        history = [*history, _note("Stopped", "Stopped before the first word. Use retry to ask again.")]
    return history, _box()


def _finish_stopped(engine: Engine) -> Callable[[list[dict[str, Any]]], tuple[Any, ...]]:
    def finish(history: list[dict[str, Any]]) -> tuple[Any, ...]:
        return *_finish(history), f"{_who(engine)} · {ENDED['cancelled']}", gr.skip()

    return finish


def _responder(engine: Engine, knowledge: Knowledge) -> Callable[..., Iterator[tuple[Any, ...]]]:
    def respond(
        history: list[dict[str, Any]],
        adapter: str,
        temperature: float,
        max_tokens: int,
        seed: int | None,
        rest_on: bool,
    ) -> Iterator[tuple[Any, ...]]:
        """Stream the answer to the last message of `history`."""
        same = gr.skip()
        yield same, same, "Thinking ...", same  # a generator that has yielded can be closed at once
        *earlier, last = history
        question = flatten([last])[0]["content"]
        shown = history
        try:
            pieces = chat.reply(
                engine,
                question,
                flatten(earlier),
                adapter=adapter,
                sampling=_sampling(max_tokens, temperature, seed),
                knowledge=knowledge if rest_on else None,
            )
            for text, piece in _paced(pieces):
                shown = [*history, *_card(piece), *_answer(text if piece.final is None else piece.final)]
                if piece.final is None:
                    yield shown if len(shown) > len(history) else same, same, same, same
                else:
                    yield shown, same, _facts(engine, piece), _sources(piece, rest_on and len(knowledge) > 0)
        except (ChatError, EngineError) as error:
            yield [*shown, _note("No answer", str(error))], same, _who(engine), same
        except Exception as error:
            log.error("reply failed: %s", type(error).__name__)  # the type alone: a message could quote the visitor
            text = "Something went wrong on our side. Use retry to ask again."
            yield [*shown, _note("No answer", text)], same, _who(engine), same

    return respond


def _chat_api(engine: Engine, knowledge: Knowledge) -> Callable[..., Iterator[str]]:
    passages_at_hand = knowledge

    def chat_api(
        message: str,
        history: list[dict[str, str]] = [],  # noqa: B006  (Gradio shows it as the default; never changed)
        adapter: str = "",
        max_tokens: int = 512,
        temperature: float = 0.7,
        seed: int = -1,
        knowledge: bool = True,
    ) -> Iterator[str]:
        """Answer a health question; streams the reply so far. Educational, not a doctor's advice.

        Signs of an emergency or a crisis put a card with what to do first. The last text carries the numbers of the
        passages that it rests on, and lists them.

        Args:
            message: the question, at most 8,000 characters
            history: earlier messages, {"role": "user" or "assistant", "content": text}, oldest first
            adapter: a name from /models, "" for the default adapter, "base" for none
            max_tokens: longest reply, 1 to 2048
            temperature: 0 (always the same reply) to 2
            seed: makes a reply repeatable; -1 draws a new one
            knowledge: let the answer rest on passages of the knowledge base
        """
        try:
            pieces = chat.reply(
                engine,
                message,
                history,
                adapter=adapter,
                sampling=_sampling(max_tokens, temperature, seed),
                knowledge=passages_at_hand if knowledge else None,
            )
            for text, piece in _paced(pieces):
                text = text if piece.final is None else piece.final + _listed(piece.passages)
                parts = [part for part in (piece.assessment.message, text) if part]
                if parts:
                    yield "\n\n".join(parts)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return chat_api


def _sources_api(knowledge: Knowledge) -> Callable[..., list[dict[str, Any]]]:
    def sources(question: str, history: list[dict[str, str]] = []) -> list[dict[str, Any]]:  # noqa: B006
        """Return the passages of the knowledge base that an answer to this question would rest on, best first.

        Args:
            question: the question
            history: earlier messages, for a question that leans on them
        """
        found = chat.passages_for(knowledge, question, history)
        return [{"title": p.title, "text": p.text, "url": p.url, "score": round(p.score, 3)} for p in found]

    return sources


def _triage_api(text: str) -> dict[str, Any]:
    """Look for signs of an emergency or a crisis; level "none" means that nothing was recognised, never "safe".

    Args:
        text: what a person wrote
    """
    assessment = triage.check(text)
    flags = [{"id": flag.id, "label": flag.label} for flag in assessment.flags]
    return {"level": assessment.level, "flags": flags, "message": assessment.message}


def _models_api(engine: Engine, notice: str | None) -> Callable[[], dict[str, Any]]:
    def models() -> dict[str, Any]:
        """Tell which engine, base model and adapters answer here, and whether something else was asked for."""
        adapters = [adapter.summary() for adapter in engine.adapters.values()]
        return {"engine": engine.name, "base": engine.base, "adapters": adapters, "notice": notice}

    return models


def _paced(pieces: Iterator[Reply]) -> Iterator[tuple[str, Reply]]:
    """Yield (text so far, piece): the first words and the end at once, the rest at most every PACE seconds."""
    text, sent, due, updates = "", "", 0.0, 0
    for piece in pieces:
        text += piece.delta.text
        now = time.monotonic()
        if piece.final is not None or not text or (text != sent and now >= due):
            yield text, piece
            updates += text != sent
            sent, due = text, now + (PACE if updates > AT_ONCE else 0)


def _sampling(max_tokens: float, temperature: float, seed: float | None) -> Sampling:
    found = []
    if not 1 <= max_tokens <= 2048:
        found.append("max_tokens must be from 1 to 2048")
    if not 0 <= temperature <= 2:
        found.append("temperature must be from 0 to 2")
    if seed is not None and not -1 <= seed < 2**31:
        found.append("seed must be -1 or a number below 2147483648")
    if found:
        raise ChatError(f"{'; '.join(found).capitalize()}.", "Please correct that and send again.")
    return Sampling(
        max_tokens=int(max_tokens), temperature=temperature, seed=None if seed is None or seed < 0 else int(seed)
    )


def _card(piece: Reply) -> list[dict[str, Any]]:
    """Return the card as a quotation, which the style sheet draws as a card; the flattening knows it by its id."""
    if not piece.assessment.message:
        return []
    quoted = "\n".join(f"> {line}" for line in piece.assessment.message.splitlines())
    return [{"role": "assistant", "content": quoted, "metadata": {"id": CARD}}]


def _answer(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}] if text else []


def _listed(passages: tuple[Passage, ...]) -> str:
    lines = [f"[{number}] {p.title}. {p.source}: {p.url}" for number, p in enumerate(passages, 1)]
    return "\n\nSources:\n" + "\n".join(lines) if lines else ""


def _sources(piece: Reply, searched: bool) -> Any:
    """Return the panel with each passage, its link, and the sentences that the answer leans on marked."""
    if not searched or piece.assessment.level == "crisis":
        return gr.update(visible=False)
    if not piece.passages:
        text = "This answer rests on no passage: nothing in the knowledge base fits the question closely enough."
        return gr.update(value=f"<p>{text}</p>", visible=True)
    used = cite(piece.final or "", piece.passages)
    entries = []
    for number, passage in enumerate(piece.passages, 1):
        body = html.escape(passage.text)
        for _, quote in (pair for pair in used if pair[0] == number):
            body = body.replace(html.escape(quote), f"<mark>{html.escape(quote)}</mark>")
        link = f'<a href="{html.escape(passage.url, quote=True)}" target="_blank" rel="noopener noreferrer">'
        source = f"{link}{html.escape(passage.source)}</a>" if passage.url else html.escape(passage.source)
        entries.append(
            f"<details><summary>[{number}] {html.escape(passage.title)}</summary><p>{body}</p>{source}</details>"
        )
    return gr.update(value="<p>This answer was given these passages to read:</p>" + "".join(entries), visible=True)


def _note(title: str, text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "metadata": {"title": title}}


def _box(*, running: bool = False, value: str | None = None) -> Any:
    update: dict[str, Any] = {"submit_btn": not running, "stop_btn": running}
    if value is not None:
        update["value"] = value
    return gr.update(**update)


def _who(engine: Engine, adapter: str | None = None) -> str:
    name = next(iter(engine.adapters), "") if adapter is None else adapter
    return f"Answering: **{name or 'no adapter'}** on {engine.base}"


def _facts(engine: Engine, piece: Reply) -> str:
    facts = [_who(engine, piece.adapter), ENDED[piece.delta.finish_reason or "stop"]]
    if stats := piece.delta.stats:
        facts += [
            f"{stats.completion_tokens} tokens",
            f"{stats.tokens_per_second:.0f} tokens/s",
            f"first word after {stats.first_token_seconds:.1f} s",
        ]
    if piece.dropped_turns:
        facts.append(f"the oldest {piece.dropped_turns} question(s) no longer fit and were left out")
    return " · ".join(facts)
