"""The About tab: what this is and is not, its models, data, safety and licences, and what was measured."""

from __future__ import annotations

import json
import logging
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from medchat import triage
from medchat.engines import Engine
from medchat.knowledge import Knowledge
from medchat.ui import language
from medchat.ui.chat_tab import ASSETS
from medchat.ui.language import text as say

log = logging.getLogger("medchat")

METRICS = {"accuracy": "right", "acc": "right", "nll": "nats", "perplexity": "lower"}


def about_tab(demo: gr.Blocks, engine: Engine, knowledge: Knowledge) -> None:
    """Lay out the tab inside `demo`; its text comes in the visitor's language when the page is loaded."""
    results = find_results(ASSETS)

    def written(lang: str) -> tuple[str, str]:
        adapters = ", ".join(engine.adapters) or say(lang, "none")
        facts = {"base": engine.base, "engine": engine.name, "adapters": adapters}
        about = say(
            lang, "about", passages=language.number(lang, len(knowledge)), languages=len(triage.LANGUAGES), **facts
        )
        return about, results_html(results, lang)

    with gr.Column(elem_id="about"):
        about, measured = written("en")
        shown = [gr.Markdown(about), gr.HTML(measured, elem_id="results")]

    def draw(request: gr.Request) -> tuple[str, str]:
        return written(language.of(request))

    demo.load(draw, None, shown, queue=False, show_progress="hidden", api_visibility="private")


def find_results(folder: Path) -> list[dict[str, Any]]:
    """Return what `python -m train evaluate` wrote below `folder` (results*.json), unreadable files left out."""
    found = []
    for path in sorted(folder.rglob("results*.json")):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            results["tasks"].items()
            found.append(results)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            log.warning("%s is no results file: %s", path.name, type(error).__name__)
    return found


def results_html(results: list[dict[str, Any]], lang: str = "en") -> str:
    """Return a table for each measured task: a bar for the value, a line for its 95 % interval, and the numbers."""
    tables: dict[tuple[str, str], list[tuple[str, dict[str, float]]]] = {}
    for result in results:
        name = Path(str(result.get("adapter") or "base")).name
        for task, metrics in result["tasks"].items():
            for metric, value in metrics.items():
                if isinstance(value, dict) and isinstance(value.get("value"), (int, float)):
                    tables.setdefault((task, metric), []).append((name, value))
    if not tables:
        drawn = f"<p>{say(lang, 'no_results')} <code>python -m train evaluate</code></p>"
    else:
        drawn = "".join(_table(lang, *key, rows) for key, rows in tables.items())
    return f"<h2>{say(lang, 'measured')}</h2>{drawn}"


def _table(lang: str, task: str, metric: str, rows: list[tuple[str, dict[str, float]]]) -> str:
    high = max(max(row["value"], row.get("high") or 0.0) for _, row in rows)
    scale = 100 / (1.0 if 0 <= high <= 1 else high * 1.05)
    body = ""
    for name, row in rows:
        low, top = row.get("low"), row.get("high")
        interval = (
            say(lang, "from_to", low=_short(lang, low), high=_short(lang, top))
            if low is not None and top is not None
            else "—"
        )
        bar = f"<i style='inline-size:{row['value'] * scale:.1f}%'></i>"
        if low is not None and top is not None:
            bar += f"<b style='inset-inline-start:{low * scale:.1f}%;inline-size:{(top - low) * scale:.1f}%'></b>"
        n = language.number(lang, row["n"]) if row.get("n") else "—"
        body += (
            f"<tr><th scope='row'>{escape(name)}</th><td class='bar' aria-hidden='true'><span>{bar}</span></td>"
            f"<td>{_short(lang, row['value'])}</td><td>{interval}</td><td>{n}</td></tr>"
        )
    about = say(lang, METRICS[metric]) if metric in METRICS else ""
    caption = f"{escape(task)}: {escape(metric)}" + (f" ({about})" if about else "")
    head = "".join(
        f"<th scope='col'>{name}</th>" if name else "<td></td>"
        for name in (say(lang, "model"), "", say(lang, "value"), say(lang, "interval"), say(lang, "cases"))
    )
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _short(lang: str, value: float) -> str:
    return language.figure(lang, f"{value:.3g}")
