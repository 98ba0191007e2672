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
from medchat.ui.chat_tab import ASSETS

log = logging.getLogger("medchat")

TEXT = """## What it is
An open, small health chat for research and education. It looks a question up in health passages written in plain words,
has a small language model answer from them, and shows which sentences rest on what.

**What it is not:** a doctor, a medical device, a diagnosis, or help in an emergency. It is an AI; it can be wrong, and
fluent sentences are no sign that they are true.

## What answers
**{base}** in the engine `{engine}`, {adapters}. Adapters share one copy of the base's weights and are chosen for each
message.

## What an answer rests on
{passages} passages are at hand. The built-in ones are our own words, written with care and reviewed once, by no
clinician; each names a public page to read on. Small numbers point to the passage behind a sentence; **[?]** stands
behind one that no passage supports. The check compares words: a sentence that turns a passage round is not noticed.

## Safety
Before any model runs, fixed rules and a small classifier read what you wrote in {languages} languages for signs of an
emergency or a crisis, and put a card with what to do first. In a crisis the card is the whole answer. No prompt,
adapter or failure switches this off. It misses things: silence means that nothing was recognised, never that someone is
safe.

## Privacy
Questions are computed on the machine that runs this page. Conversations are neither stored nor logged there; they live
in this browser tab. Your browser remembers that you accepted the note, and your country. A judgement in Compare is
stored with the adapters' names; its texts only if you tick the box.

## Licences
Code and health topics Apache-2.0. The embedded base, SmolLM2-135M-Instruct, is Apache-2.0; the embedded adapter was
trained on MedQuAD, CC BY 4.0. Other bases and adapters carry their own."""

METRICS = {
    "accuracy": "share answered right",
    "acc": "share answered right",
    "nll": "nats per token, lower is better",
    "perplexity": "lower is better",
}


def about_tab(engine: Engine, knowledge: Knowledge) -> None:
    """Lay out the tab inside the open gr.Blocks."""
    adapters = f"with {', '.join(engine.adapters)}" if engine.adapters else "without an adapter"
    with gr.Column(elem_id="about"):
        gr.Markdown(
            TEXT.format(
                base=engine.base,
                engine=engine.name,
                adapters=adapters,
                passages=f"{len(knowledge):,}",
                languages=len(triage.LANGUAGES),
            )
        )
        gr.HTML(results_html(find_results(ASSETS)), elem_id="results")


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


def results_html(results: list[dict[str, Any]]) -> str:
    """Return a table for each measured task: a bar for the value, a line for its 95 % interval, and the numbers."""
    tables: dict[tuple[str, str], list[tuple[str, dict[str, float]]]] = {}
    for result in results:
        name = Path(str(result.get("adapter") or "base")).name
        for task, metrics in result["tasks"].items():
            for metric, value in metrics.items():
                if isinstance(value, dict) and isinstance(value.get("value"), (int, float)):
                    tables.setdefault((task, metric), []).append((name, value))
    if not tables:
        return "<h2>Measured</h2><p>No results lie beside the adapters yet: <code>python -m train evaluate</code>.</p>"
    return "<h2>Measured</h2>" + "".join(_table(*key, rows) for key, rows in tables.items())


def _table(task: str, metric: str, rows: list[tuple[str, dict[str, float]]]) -> str:
    high = max(max(row["value"], row.get("high") or 0.0) for _, row in rows)
    scale = 100 / (1.0 if 0 <= high <= 1 else high * 1.05)
    body = ""
    for name, row in rows:
        low, top = row.get("low"), row.get("high")
        interval = f"{low:.3g} to {top:.3g}" if low is not None and top is not None else "—"
        bar = f"<i style='inline-size:{row['value'] * scale:.1f}%'></i>"
        if low is not None and top is not None:
            bar += f"<b style='inset-inline-start:{low * scale:.1f}%;inline-size:{(top - low) * scale:.1f}%'></b>"
        n = f"{row['n']:,.0f}" if row.get("n") else "—"
        body += (
            f"<tr><th scope='row'>{escape(name)}</th><td class='bar' aria-hidden='true'><span>{bar}</span></td>"
            f"<td>{row['value']:.3g}</td><td>{interval}</td><td>{n}</td></tr>"
        )
    about = METRICS.get(metric, "")
    caption = f"{escape(task)}: {escape(metric)}" + (f" ({about})" if about else "")
    return (
        f"<table><caption>{caption}</caption><thead><tr><th scope='col'>Model</th><td></td><th scope='col'>Value</th>"
        f"<th scope='col'>95 % interval</th><th scope='col'>Cases</th></tr></thead><tbody>{body}</tbody></table>"
    )
