"""The page and the API: the only importer of gradio. One file per tab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from medchat.engines import Engine
from medchat.feedback import Dataset
from medchat.knowledge import Knowledge
from medchat.line import Limits, Line
from medchat.seal import Seal, open_seal
from medchat.ui import language
from medchat.ui.about_tab import about_tab
from medchat.ui.api import add_api
from medchat.ui.chat_tab import ASSETS, KEYS, chat_tab, visitor
from medchat.ui.compare_tab import compare_tab
from medchat.ui.language import shown as word
from medchat.ui.model_tab import model_tab

LOGO = (ASSETS / "logo.svg").read_text(encoding="utf-8")
HEADER = f"""<header id="header">{LOGO}
<div><h1>MedChat</h1><p>{{tagline}}</p></div><strong class="label">{{not_a_doctor}}</strong></header>"""

# Answers are other people's text: whatever markup slips through, no picture or frame is fetched from elsewhere.
POLICY = "img-src 'self' data: blob:; media-src 'self' data: blob:; frame-src 'self'; object-src 'none'"


def build_demo(
    engine: Engine,
    knowledge: Knowledge,
    notice: str | None = None,
    limits: Limits | None = None,
    dataset: Dataset | None = None,
    seal: Seal | None = None,
) -> gr.Blocks:
    """Return the page and the API on `engine`, with answers resting on `knowledge`.

    `notice` is shown on top; `dataset` gets a copy of the feedback; `seal` encrypts what browsers keep.
    """
    line = Line(engine, limits)
    with gr.Blocks(title="MedChat", analytics_enabled=False, fill_height=True) as demo:
        gr.HTML(word("header"))
        if notice:
            gr.Markdown(notice, elem_id="notice")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab(word("chat"), id="chat"):
                choices = chat_tab(demo, line, knowledge, dataset, seal or open_seal())
            with gr.Tab(word("compare"), id="compare"):
                pair = compare_tab(demo, line, knowledge, choices)
            with gr.Tab(word("adapters"), id="adapters"):
                model_tab(demo, line, [choices.adapter, *pair])
            with gr.Tab(word("about"), id="about"):
                about_tab(demo, engine, knowledge)
        gr.Markdown(word("disclaimer"), elem_id="disclaimer")
        add_api(line, knowledge, notice)
        # Gradio stops the answers of a closed page by itself, but for one that was just about to start.
        demo.unload(_leaver(line))
    # The line in front of the engine decides who waits; this only bounds what Gradio holds.
    demo.queue(max_size=256, default_concurrency_limit=8)
    return demo


def _leaver(line: Line) -> Callable[[gr.Request], None]:
    def leave(request: gr.Request) -> None:
        line.gone(visitor(request))

    return leave


def launch_options() -> dict[str, Any]:
    """Return what belongs to launch(): the looks, and the settings that keep conversations private."""
    script = (ASSETS / "page.js").read_text(encoding="utf-8")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return {
        "theme": _theme(),
        "css_paths": [ASSETS / "style.css"],
        "head": f"{policy}<meta name='referrer' content='no-referrer'><script>{language.script()}{script}</script>",
        "favicon_path": ASSETS / "logo.svg",
        "i18n": gr.I18n(**language.translations(header=HEADER, keys=KEYS)),
        "mcp_server": True,  # the four functions of medchat.ui.api, at /gradio_api/mcp/
        "footer_links": ["api"],
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": "1mb",
        "max_threads": 100,  # each answer, and each that waits, holds one now and then
        "ssr_mode": False,
    }


def _theme() -> gr.themes.Base:
    """Return Gradio's plainest theme in our colours; its typeface comes with Gradio, not from a font server."""
    teal = gr.themes.Color(
        "#eef5f3", "#dfece9", "#bfdad5", "#94c1ba", "#5f9f97", "#2f7d75", "#17625c", "#124f4b", "#0f403d", "#0c3331",
        "#082422",
    )  # fmt: skip
    return gr.themes.Base(
        primary_hue=teal,
        secondary_hue=teal,
        neutral_hue="stone",
        font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size="lg",
        text_size="md",
    )
