"""The Adapters tab: facts of each adapter, a live proof that it changes the output, and a box for another one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import escape
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from medchat import adapters, chat
from medchat.adapters import Adapter
from medchat.engines import Engine, EngineError, Sampling
from medchat.errors import UserError
from medchat.line import Line
from medchat.ui import language
from medchat.ui.chat_tab import visitor
from medchat.ui.language import shown as word
from medchat.ui.language import text as say

PROOF = "What is anemia?"  # the question of the live proof
PROOF_TOKENS = 40
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def model_tab(demo: gr.Blocks, line: Line, pickers: list[gr.Radio]) -> None:
    """Lay out the tab inside `demo` and connect it; `pickers` get an adapter that is added."""
    engine = line.engine
    gr.Markdown(word("adapters_intro"), elem_classes="intro")
    cards = gr.HTML(_cards(engine, "en"), elem_id="adapter-cards")
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    demo.load(_drawer(engine), None, cards, queue=False, **private)
    if engine.adapters:
        with gr.Row(elem_id="prove-row"):
            names = list(engine.adapters)
            proven = gr.Radio(names, value=names[0], label=word("prove"), elem_id="proven")
            prove = gr.Button(word("show_me"), elem_id="prove", scale=0, min_width=140)
        proof = gr.HTML("", elem_id="proof")
        prove.click(_prover(line), proven, proof, concurrency_limit=None, **private)
        pickers = [*pickers, proven]
    if hasattr(engine, "add_adapter"):
        _box(engine, cards, pickers)
    else:
        gr.Markdown(
            f"{word('loaded_at_start')} `python app.py --engine {engine.name} --adapter org/name`", elem_classes="intro"
        )


def _box(engine: Any, cards: gr.HTML, pickers: list[gr.Radio]) -> None:
    """Add the box that loads another adapter from the Hub for everybody, while other visitors go on chatting."""
    known = [(entry["title"], entry["id"]) for entry in adapters.curated() if entry["base"] == engine.base]

    def load(source: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        source, lang = (source or "").strip(), language.of(request)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source) or Path(source).exists():
            raise gr.Error(say(lang, "no_hub_id"), duration=None)
        same = gr.skip()
        yield say(lang, "fetching", source=source), same, *[same] * len(pickers)
        try:
            loaded = engine.add_adapter(source)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        listed = [
            gr.update(choices=list(engine.adapters) if picker.elem_id == "proven" else [*engine.adapters, "base"])
            for picker in pickers
        ]
        listed[0]["value"] = loaded.name
        yield say(lang, "ready", name=loaded.name), _cards(engine, lang), *listed

    box = gr.Textbox(
        label=word("another"),
        placeholder="org/name[@revision]",
        info=word("another_info"),
        submit_btn=True,
        elem_id="hub-id",
    )
    told = gr.Markdown(elem_id="added")
    once: dict[str, Any] = {"concurrency_limit": 1, "api_visibility": "private"}
    box.submit(load, box, [told, cards, *pickers], **once)
    if known:
        picked = gr.Radio(known, label=word("known"))
        picked.select(load, picked, [told, cards, *pickers], **once)


def _prover(line: Line) -> Callable[..., Iterator[str]]:
    def prove(name: str, request: gr.Request) -> Iterator[str]:
        """Answer one question with and without the adapter, always taking the likeliest token, and show both."""
        lang = language.of(request)
        yield f"<p class='empty'>{say(lang, 'asking_both')}</p>"
        who = line.for_visitor(visitor(request))
        told: list[str] = []
        try:
            for adapter in (name, ""):
                messages = [
                    {"role": "system", "content": chat.system_prompt(line.engine, name)},
                    {"role": "user", "content": PROOF},
                ]
                text = ""
                for delta in who.stream(
                    messages,
                    adapter=adapter,
                    sampling=Sampling(max_tokens=PROOF_TOKENS, temperature=0, seed=0),
                    cancel=Event(),
                ):
                    text += delta.text
                    yield _proof(lang, name, [*told, text])
                told.append(text)
        except EngineError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        yield _proof(lang, name, told, done=True)

    return prove


def _proof(lang: str, name: str, told: list[str], *, done: bool = False) -> str:
    """Return both texts, from the first word that differs marked."""
    with_it, without = [text.split() for text in [*told, ""][:2]]
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(with_it, without, strict=False))))

    def shown(words: list[str]) -> str:
        rest = " ".join(words[same:]) if done else ""
        start = " ".join(words[:same] if done else words)
        return escape(start) + (f" <mark>{escape(rest)}</mark>" if rest else "")

    verdict = ""
    if done:
        verdict = f"<p>{say(lang, 'differs' if with_it != without else 'same', count=same)}</p>"
    return (
        f"{verdict}<div class='pair'><div><h3>{escape(name)}</h3><p dir='auto'>{shown(with_it)}</p></div>"
        f"<div><h3>base</h3><p dir='auto'>{shown(without)}</p></div></div>"
    )


def _drawer(engine: Engine) -> Callable[[gr.Request], str]:
    def draw(request: gr.Request) -> str:
        return _cards(engine, language.of(request))

    return draw


def _cards(engine: Engine, lang: str = "en") -> str:
    listed = [_card(engine, adapter, lang) for adapter in engine.adapters.values()]
    none = f"<p class='empty'>{say(lang, 'bare_base')}</p>"
    return f"<div class='cards'>{''.join(listed) or none}</div>"


def _card(engine: Engine, adapter: Adapter, lang: str) -> str:
    server_only = say(lang, "server_only")
    facts = {
        say(lang, "source"): adapter.source + (f" @ {adapter.revision[:12]}" if adapter.revision else ""),
        say(lang, "answers_on"): engine.base,
        say(lang, "trained_on"): adapter.base or say(lang, "not_recorded"),
        say(lang, "rank"): str(adapter.rank) if adapter.rank else server_only,
        say(lang, "size"): _size(adapter.folder, lang) if adapter.sha256 else server_only,
        "SHA-256": f"{adapter.sha256[:16]}…" if adapter.sha256 else server_only,
    }
    listed = "".join(f"<dt>{name}</dt><dd{_whole(name, adapter)}>{escape(value)}</dd>" for name, value in facts.items())
    return f"<article class='adapter'><h3>{escape(adapter.name)}</h3><dl>{listed}</dl></article>"


def _whole(name: str, adapter: Adapter) -> str:
    return f" title='{adapter.sha256}'" if name == "SHA-256" else ""


def _size(folder: Path, lang: str) -> str:
    size = sum(path.stat().st_size for pattern in WEIGHTS for path in folder.glob(pattern))
    return f"{language.number(lang, size / 1e6, 1)} MB"
